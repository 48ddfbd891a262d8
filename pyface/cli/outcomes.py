"""From images and films to results: detects, and writes the copies and films that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import cv2

from pyface.cli.console import print_status
from pyface.cli.report import Report
from pyface.detector import FaceDetector, Outcome
from pyface.draw import draw
from pyface.io.images import Pixels
from pyface.io.pipeline import ordered_map
from pyface.io.results import failed, of_frame
from pyface.io.sources import Source, is_film, is_live, source_name
from pyface.io.video import CODECS, FilmWriter, Frame, VideoError, film_seconds, video

Finished = TypeVar("Finished")


@dataclass(frozen=True)
class Run:
    """A detector, and what is done with the faces that it finds.

    Attributes:
        detector: Finds the faces.
        copies: Where the copy of each source goes; None: no copies.
        report: Is told of films and their dropped frames; results are for the caller to count.
        every: Take one frame of a film in this many.
        fps: Take at most this many frames per second instead.
        after: The first source is a film, and its frames up to this number are done already; -1: it is not.
    """

    detector: FaceDetector
    copies: dict[Source, Path] | None
    report: Report
    every: int
    fps: float | None
    after: int

    def results(self, sources: list[Source]) -> Generator[dict[str, Any]]:
        """Yields the result of every image and frame in order, once its copy is saved."""
        cv2.utils.logging.setLogLevel(
            cv2.utils.logging.LOG_LEVEL_SILENT
        )  # what is wrong with an image is in its result
        pool = ThreadPoolExecutor(2, thread_name_prefix="pyface-save")
        try:
            for are_films, group in groupby(sources, is_film):
                if not are_films:
                    yield from _finished(pool, self._finish_image, self.detector.stream(group))
                    continue
                for film in group:
                    yield from self._film_results(pool, film, self.after if film == sources[0] else -1)
        finally:
            pool.shutdown(cancel_futures=True)

    def _film_results(self, pool: Executor, film: Source, after: int) -> Iterator[dict[str, Any]]:
        """Yields the results of a film's frames; if the film cannot be read to its end, the reason is the last one."""
        name = source_name(film)
        try:
            self.report.begin_film(name, 0 if is_live(film) else film_seconds(str(film)))
            with _FilmCopy(None if self.copies is None else self.copies[film]) as copy:
                for result, drawn in self._frames(pool, film, after):
                    copy.write(drawn, result["time"])
                    yield result
        except (VideoError, ImportError) as error:
            yield failed(name, str(error))
        else:
            self.report.end_film()

    def _frames(self, pool: Executor, film: Source, after: int) -> Iterator[tuple[dict[str, Any], Pixels | None]]:
        frames = video(film, every=self.every, fps=self.fps)
        if not is_live(film):
            remaining = (pair for pair in frames if pair[0].frame > after)
            return _finished(pool, self._finish_frame, self.detector.stream(remaining, copy=False))
        # One at a time: a stream would take frames ahead, which would no longer be the newest at their turn.
        return (self._finish_frame(*self.detector.stream([pair], copy=False)) for pair in self._count_drops(frames))

    def _count_drops(self, frames: Iterable[tuple[Frame, Pixels]]) -> Iterator[tuple[Frame, Pixels]]:
        for frame, image in frames:
            self.report.add_drops(frame.dropped)
            yield frame, image

    def _finish_image(self, outcome: Outcome) -> dict[str, Any]:
        """Makes the result of an image, and saves its copy if asked to."""
        if outcome.detections is None:
            return failed(outcome.source, str(outcome.error))
        if self.copies is not None:
            _save_image(self.copies[outcome.source], draw(outcome.image, outcome.detections))
        return outcome.detections.to_dict()

    def _finish_frame(self, outcome: Outcome) -> tuple[dict[str, Any], Pixels | None]:
        """Makes the result of a frame, and the frame that goes into the film's copy if there is one."""
        frame: Frame = outcome.source
        if outcome.detections is None:
            return of_frame(failed(frame.source, str(outcome.error)), frame.source, frame.frame, frame.time), None
        drawn = None if self.copies is None else draw(outcome.image, outcome.detections)
        return of_frame(outcome.detections.to_dict(), frame.source, frame.frame, frame.time), drawn


def _finished(pool: Executor, finish: Callable[[Outcome], Finished], outcomes: Iterator[Outcome]) -> Iterator[Finished]:
    """What `finish` makes of outcomes, in order; a bounded number of them are under way."""
    return ordered_map(
        pool, finish, outcomes, ahead=1.0, weight=lambda outcome: max(1 / 16, _pixels(outcome) / 2**26), eager=True
    )


def _pixels(outcome: Outcome) -> int:
    return outcome.detections.width * outcome.detections.height if outcome.detections is not None else 0


def _save_image(path: Path, image: Pixels) -> None:
    try:
        encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    except cv2.error as error:
        raise OSError(0, f"the image cannot be encoded ({error.err})", str(path)) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


class _FilmCopy:
    """The annotated copy of a film, which begins with its first frame; no path: nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writer: FilmWriter | None = None
        self._size = (0, 0)

    def write(self, image: Pixels | None, time: float) -> None:
        if self._path is None or image is None:
            return
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._size = FilmWriter(self._path), (image.shape[1], image.shape[0])
            if self._writer.codec != CODECS[0]:
                print_status(f"pyface: PyAV has no H.264 encoder here, so browsers do not play {self._path}")
        if (image.shape[1], image.shape[0]) != self._size:  # a broadcast may change its size, a file's stream may not
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        self._writer.write(image, time)

    def __enter__(self) -> _FilmCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
