"""What `pyface detect` shows while it runs: a progress bar, a line per image or video, and a summary."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyface.cli.console import count, print_status
from pyface.io.results import was_read

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Report:
    """Counts results, and shows them if it writes to a terminal.

    Args:
        total: Number of images and videos.
        skipped: How many of them are done already.
        skipped_failed: How many of these have an error.
        show_lines: Print a line per image and video.
    """

    def __init__(self, total: int, skipped: int, skipped_failed: int, *, show_lines: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.skipped, self.skipped_failed = total, skipped, skipped_failed
        self.done, self.faces, self.images, self.frames, self.dropped = skipped, 0, 0, 0, 0
        self.failed: Counter[str] = Counter()  # by "image", "frame", "video", "archive" and "copy"
        self._start = time.monotonic()
        self._stderr = Console(stderr=True)
        self._lines: Console | None = None
        if show_lines:  # beside the bar, lines must go through its console, or they would garble it
            self._lines = self._stderr if self._stderr.is_terminal else Console()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._stderr,
            transient=True,
            disable=not self._stderr.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("Finding faces", total=total, completed=skipped)
        self._video: _Video | None = None
        self._archive: _Archive | None = None

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, result: dict[str, Any]) -> None:
        """Counts the result of an image, of a frame, or of a video that failed, and shows it."""
        self.faces += len(result["faces"])
        if "frame" in result:
            self._add_frame(result)
            return
        if result["error"] is not None:
            self.failed["copy" if was_read(result) else self._kind_of(result)] += 1
            self.images += was_read(result)
            self._add_line(result, result["error"], "red")
            return
        from pyface.detections import format_score

        self.images += 1
        scores = " ".join(format_score(face["score"]) for face in result["faces"][:8])
        more = " ..." if len(result["faces"]) > 8 else ""
        size = f"{result['width']} x {result['height']}"
        text = f"{result['source']}  {size}  {count(len(result['faces']), 'face')}  {scores}{more}".rstrip()
        self._add_line(result, text, "" if result["faces"] else "dim")

    def begin_archive(self, name: str) -> None:
        """Shows the progress of an archive, whose number of images is not known."""
        self._archive = _Archive(name, self._bar.add_task(name, total=None))

    def end_archive(self) -> None:
        """Counts an archive that was read to its end; its images have lines of their own."""
        self._count_source()

    def begin_video(self, name: str, seconds: float) -> None:
        """Shows the progress of a video; 0 seconds stand for a camera, or a video that does not state its length."""
        task = self._bar.add_task(f"{name} (seconds)" if seconds else name, total=seconds or None)
        self._video = _Video(name, seconds > 0, task)

    def add_drops(self, frames: int) -> None:
        """Counts camera frames that were dropped because the detector was too slow."""
        self.dropped += frames

    def end_video(self) -> None:
        """Counts a video that was read to its end, and prints its line."""
        video = self._video
        if video is not None:
            counts = f"{count(video.frames, 'frame')}, {video.time:.1f} s  {count(video.faces, 'face')}"
            self._end_source(f"{video.name}  {counts}", "" if video.faces else "dim")

    def _add_frame(self, result: dict[str, Any]) -> None:
        video = self._video
        assert video is not None
        video.frames, video.faces, video.time = video.frames + 1, video.faces + len(result["faces"]), result["time"]
        self.frames += was_read(result)
        if result["error"] is not None:
            self.failed["copy" if was_read(result) else "frame"] += 1
            self._print_line(result["error"], "red")
        self._bar.update(video.task, completed=video.time)
        if not video.has_length:
            self._bar.update(video.task, description=f"{video.name}: {count(video.frames, 'frame')}{self._drops()}")

    def _kind_of(self, result: dict[str, Any]) -> str:
        if self._archive is not None:
            return "archive" if result["source"] == self._archive.name else "image"
        return "image" if self._video is None else "video"

    def _add_line(self, result: dict[str, Any], line: str, style: str) -> None:
        if self._archive is None or result["source"] == self._archive.name:
            self._end_source(line, style)
            return
        self._bar.advance(self._archive.task)
        self._print_line(line, style)

    def _end_source(self, line: str, style: str) -> None:
        self._count_source()
        self._print_line(line, style)

    def _count_source(self) -> None:
        self.done += 1
        self._bar.advance(self._task)
        for source in (self._video, self._archive):
            if source is not None:
                self._bar.remove_task(source.task)
        self._video = self._archive = None

    def _print_line(self, line: str, style: str) -> None:
        if self._lines is not None:
            line = line.encode("utf-8", "replace").decode()  # a file's name may contain what no terminal can show
            self._lines.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _drops(self) -> str:
        return f", {count(self.dropped, 'frame')} dropped" if self.dropped else ""

    def describe_done(self) -> str:
        """Returns how far an interrupted run has got."""
        if self._archive is not None:
            return f"{self.done} of {count(self.total, 'source')} and part of {self._archive.name} are done"
        if not self.frames:
            return f"{self.done} of {count(self.total, 'image')} are done"
        return f"{self.done} of {count(self.total, 'source')} and {count(self.frames, 'frame')} are done{self._drops()}"

    def summarise(self, places: dict[str, Path | None]) -> None:
        """Prints totals: on a terminal always, elsewhere if there is a file of results, or images failed."""
        found_in = [count(self.images, "image")] if self.images or not self.frames else []
        found_in += [count(self.frames, "frame")] if self.frames else []
        parts = [f"{count(self.faces, 'face')} in {' and '.join(found_in)}{self._drops()}"]
        failures = [count(number, what) for what, number in self.failed.items() if number and what != "copy"]
        if failures:
            parts.append(f"{' and '.join(failures)} could not be read")
        if self.failed["copy"]:
            copies = "1 copy" if self.failed["copy"] == 1 else f"{self.failed['copy']:,} copies"
            parts.append(f"{copies} could not be written")
        if self.skipped:
            errors = f", {self.skipped_failed} of them with errors" if self.skipped_failed else ""
            parts.append(f"{self.skipped} done before{errors}")
        parts.append(f"{time.monotonic() - self._start:.1f} s")
        written = [f"{what} in {place}" for what, place in places.items() if place is not None]
        text = "; ".join([", ".join(parts), *written])
        if self._stderr.is_terminal or self._lines is not None:
            console = self._stderr if self._stderr.is_terminal else self._lines
            assert console is not None
            console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)
        elif self.failed.total() or places.get("results"):
            print_status(f"pyface: {text}")


class _Archive(NamedTuple):
    """The archive that is being read."""

    name: str
    task: TaskID


class _Video:
    """The video that is being read."""

    def __init__(self, name: str, has_length: bool, task: TaskID) -> None:
        self.name, self.has_length, self.task = name, has_length, task
        self.frames, self.faces, self.time = 0, 0, 0.0
