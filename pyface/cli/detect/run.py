"""From images and videos to results: detects, and writes the copies and videos that were asked for."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeVar

import cv2

from pyface.cli.console import print_status
from pyface.cli.detect.copies import Copies, CopyError, VideoCopy
from pyface.cli.detect.report import Report
from pyface.detections import Tracks
from pyface.detector import FaceDetector, Outcome
from pyface.io.archives import ArchiveError, archive, member_source
from pyface.io.images import ImageError, KindError, Pixels
from pyface.io.pipeline import ordered_map
from pyface.io.results import failed, of_frame
from pyface.io.sources import (
    Source,
    describe_skipped,
    is_archive,
    is_live,
    is_selected,
    is_unclear,
    is_video,
    source_key,
    source_name,
)
from pyface.io.video import Frame, VideoError, video, video_seconds

Finished = TypeVar("Finished")


class Found(NamedTuple):
    """What was found in an image or frame, and the track number of each face; None: there are no tracks."""

    outcome: Outcome
    ids: list[int | None] | None

    @property
    def pixels(self) -> int:
        """Number of pixels of the image, 0 if it could not be read."""
        faces = self.outcome.detections
        return faces.width * faces.height if faces is not None else 0


@dataclass(frozen=True)
class Run:
    """A detector, and what is done with the faces that it finds.

    Attributes:
        detector: Finds the faces.
        copies: The files that are written beside the results.
        report: Receives videos and dropped frames; the caller counts the results.
        every: Take one frame of a video in this many.
        fps: Take at most this many frames per second instead.
        track: Give the faces of videos the numbers of their tracks, and those of images None.
        begun: The key of a partly done video and the number of its last frame that is done; None: there is none.
        globs, excludes: Which images of archives to take; see `is_selected`.
        done: The keys of the images that are done already; those in archives are skipped.
    """

    detector: FaceDetector
    copies: Copies
    report: Report
    every: int
    fps: float | None
    track: bool
    begun: tuple[str, int] | None
    globs: Sequence[str] = ()
    excludes: Sequence[str] = ()
    done: Container[str] = frozenset()

    def results(self, sources: list[Source]) -> Generator[dict[str, Any]]:
        """Yields the result of every image and frame in order, once its copy is saved."""
        # What is wrong with an image is in its result, and broken metadata are left out.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        warnings.filterwarnings("ignore", module="PIL")
        pool = ThreadPoolExecutor(2, thread_name_prefix="pyface-save")
        try:
            for kind, group in groupby(sources, _kind):
                match kind:
                    case "image":
                        found = (Found(outcome, None) for outcome in self.detector.stream(group))
                        yield from _finished(pool, self._finish_image, found)
                    case "unclear":
                        yield from self._unclear_results(pool, group)
                    case "archive":
                        for source in group:
                            yield from self._archive_results(pool, source_name(source))
                    case "video":
                        for source in group:
                            yield from self._video_results(pool, source)
        finally:
            pool.shutdown(cancel_futures=True)

    def _archive_results(self, pool: Executor, name: str) -> Iterator[dict[str, Any]]:
        """Yields the results of an archive's images; if it cannot be read to its end, the last one gives the reason."""

        def is_wanted(member: str) -> bool:
            source = member_source(name, member)
            if not is_selected(source, self.globs, self.excludes):
                return False
            self.copies.add_member(name, member)  # finished ones too, so that names do not depend on them
            return source_key(source) not in self.done

        skipped: Counter[str] = Counter()
        self.report.begin_archive(name)
        members = archive(name, wanted=is_wanted, max_pixels=self.detector.max_pixels, skipped=skipped)
        try:
            found = (Found(outcome, None) for outcome in self.detector.stream(members, copy=False))
            yield from _finished(pool, self._finish_image, found)
        except ArchiveError as error:
            yield failed(name, str(error))
        else:
            self.report.end_archive()
        for text in describe_skipped(skipped):
            print_status(f"pyface: {name}: {text}")

    def _unclear_results(self, pool: Executor, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
        """Yields the results of URLs that may be images or videos."""
        for outcome in self.detector.stream(sources):
            if isinstance(outcome.error, KindError):
                yield from self._video_results(pool, outcome.source)
            else:
                yield self._finish_image(Found(outcome, None))

    def _video_results(self, pool: Executor, source: Source) -> Iterator[dict[str, Any]]:
        """Yields the results of a video's frames; if it cannot be read to its end, the last one gives the reason.

        If its copy cannot be written, the first one gives the reason, and the faces are kept.
        """
        name = source_name(source)
        try:
            self.report.begin_video(name, 0 if is_live(source) else video_seconds(str(source)))
            with VideoCopy(self.copies, source) as copy:
                for result, drawn in self._frames(pool, source):
                    try:
                        copy.write(drawn, result["time"])
                    except CopyError as error:
                        result["error"] = str(error)
                    yield result
        except (VideoError, ImportError) as error:
            yield failed(name, str(error))
        else:
            self.report.end_video()

    def _frames(self, pool: Executor, source: Source) -> Iterator[tuple[dict[str, Any], Pixels | None]]:
        after = self.begun[1] if self.begun is not None and self.begun[0] == source_key(source) else -1
        frames = video(source, every=self.every, fps=self.fps)
        finish = partial(self._finish_frame, source)
        if not is_live(source):
            remaining = (pair for pair in frames if pair[0].frame > after)
            return _finished(pool, finish, self._tracked(self.detector.stream(remaining, copy=False)))
        # One at a time: a stream would take frames ahead, which would no longer be the newest when they are used.
        newest = (self.detector.stream([pair], copy=False) for pair in self._count_drops(frames))
        return map(finish, self._tracked(outcome for outcomes in newest for outcome in outcomes))

    def _tracked(self, outcomes: Iterable[Outcome]) -> Iterator[Found]:
        tracks = Tracks() if self.track else None
        for outcome in outcomes:
            if tracks is None or outcome.detections is None:
                yield Found(outcome, None)
            else:
                yield Found(outcome, tracks.ids(outcome.detections, outcome.source.time))

    def _count_drops(self, frames: Iterable[tuple[Frame, Pixels]]) -> Iterator[tuple[Frame, Pixels]]:
        for frame, image in frames:
            self.report.add_drops(frame.dropped)
            yield frame, image

    def _finish_image(self, found: Found) -> dict[str, Any]:
        """Makes the result of an image, and saves its copies; faces are kept if a copy cannot be written."""
        outcome = found.outcome
        name = os.fspath(outcome.source)
        if outcome.detections is None:
            return failed(name, str(outcome.error))
        try:
            self.copies.save_image(outcome.source, outcome.image, outcome.detections)
            return self._result(found, self.copies.save_crops(name, None, outcome.image, outcome.detections))
        except (CopyError, ImageError) as error:
            return self._result(found, []) | {"error": str(error)}

    def _finish_frame(self, source: Source, found: Found) -> tuple[dict[str, Any], Pixels | None]:
        """Makes the result of a frame, and the frame that goes into the source's copy if there is one."""
        outcome, frame = found.outcome, found.outcome.source
        if outcome.detections is None:
            return of_frame(failed(frame.source, str(outcome.error)), frame.source, frame.frame, frame.time), None
        has_copy = self.copies.places is not None
        marked = self.copies.mark_faces(outcome.image, outcome.detections, found.ids) if has_copy else None
        try:
            result = self._result(found, self.copies.save_crops(source, frame.frame, outcome.image, outcome.detections))
        except CopyError as error:
            result = self._result(found, []) | {"error": str(error)}
        return of_frame(result, frame.source, frame.frame, frame.time), marked

    def _result(self, found: Found, crops: Sequence[str | None]) -> dict[str, Any]:
        """Makes the result of the faces that were found, with the files of their crops."""
        faces = found.outcome.detections
        assert faces is not None
        result = faces.to_dict()
        for k, face in enumerate(result["faces"]):
            face |= {"id": None if found.ids is None else found.ids[k]} if self.track else {}
            face |= {"crop": crops[k] if crops else None} if self.copies.crops is not None else {}
        return result


def _kind(source: Source) -> Literal["image", "video", "archive", "unclear"]:
    if is_archive(source):
        return "archive"
    if is_video(source):
        return "video"
    return "unclear" if is_unclear(source) else "image"


def _finished(pool: Executor, finish: Callable[[Found], Finished], found: Iterable[Found]) -> Iterator[Finished]:
    """Yields the results of `finish`, in order; a bounded number of calls are under way."""
    return ordered_map(pool, finish, found, ahead=1.0, weight=lambda item: max(1 / 16, item.pixels / 2**26), eager=True)
