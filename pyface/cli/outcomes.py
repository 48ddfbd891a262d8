"""From images and films to results: detects, and writes the copies and films that were asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import cv2

from pyface.cli.copies import Copies, FilmCopy
from pyface.cli.report import Report
from pyface.detector import FaceDetector, Outcome
from pyface.io.images import Pixels
from pyface.io.pipeline import ordered_map
from pyface.io.results import failed, of_frame
from pyface.io.sources import Source, is_film, is_live, source_name
from pyface.io.video import Frame, VideoError, film_seconds, video

Finished = TypeVar("Finished")


@dataclass(frozen=True)
class Run:
    """A detector, and what is done with the faces that it finds.

    Attributes:
        detector: Finds the faces.
        copies: The files that are written beside the results.
        report: Is told of films and their dropped frames; results are for the caller to count.
        every: Take one frame of a film in this many.
        fps: Take at most this many frames per second instead.
        after: The first source is a film, and its frames up to this number are done already; -1: it is not.
    """

    detector: FaceDetector
    copies: Copies
    report: Report
    every: int
    fps: float | None
    after: int

    def results(self, sources: list[Source]) -> Generator[dict[str, Any]]:
        """Yields the result of every image and frame in order, once its copy is saved."""
        # What is wrong with an image is in its result, and broken metadata are left out.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        warnings.filterwarnings("ignore", module="PIL")
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
            with FilmCopy(None if self.copies.places is None else self.copies.places[film]) as copy:
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
            return _finished(pool, partial(self._finish_frame, film), self.detector.stream(remaining, copy=False))
        # One at a time: a stream would take frames ahead, which would no longer be the newest at their turn.
        newest = (self.detector.stream([pair], copy=False) for pair in self._count_drops(frames))
        return (self._finish_frame(film, outcome) for outcomes in newest for outcome in outcomes)

    def _count_drops(self, frames: Iterable[tuple[Frame, Pixels]]) -> Iterator[tuple[Frame, Pixels]]:
        for frame, image in frames:
            self.report.add_drops(frame.dropped)
            yield frame, image

    def _finish_image(self, outcome: Outcome) -> dict[str, Any]:
        """Makes the result of an image, and saves its copies."""
        if outcome.detections is None:
            return failed(outcome.source, str(outcome.error))
        self.copies.save_image(outcome.source, outcome.image, outcome.detections)
        return self._result(outcome.source, None, outcome)

    def _finish_frame(self, film: Source, outcome: Outcome) -> tuple[dict[str, Any], Pixels | None]:
        """Makes the result of a frame, and the frame that goes into the film's copy if there is one."""
        frame: Frame = outcome.source
        if outcome.detections is None:
            return of_frame(failed(frame.source, str(outcome.error)), frame.source, frame.frame, frame.time), None
        has_copy = self.copies.places is not None
        picture = self.copies.picture(outcome.image, outcome.detections) if has_copy else None
        result = self._result(film, frame.frame, outcome)
        return of_frame(result, frame.source, frame.frame, frame.time), picture

    def _result(self, source: Source, frame: int | None, outcome: Outcome) -> dict[str, Any]:
        """Makes the result of the faces that were found, and saves their crops."""
        assert outcome.detections is not None
        result = outcome.detections.to_dict()
        crops = self.copies.save_crops(source, frame, outcome.image, outcome.detections)
        for face, crop in zip(result["faces"], crops, strict=False):  # no crops are asked for: there are none
            face["crop"] = crop
        return result


def _finished(pool: Executor, finish: Callable[[Outcome], Finished], outcomes: Iterator[Outcome]) -> Iterator[Finished]:
    """What `finish` makes of outcomes, in order; a bounded number of them are under way."""
    return ordered_map(
        pool, finish, outcomes, ahead=1.0, weight=lambda outcome: max(1 / 16, _pixels(outcome) / 2**26), eager=True
    )


def _pixels(outcome: Outcome) -> int:
    return outcome.detections.width * outcome.detections.height if outcome.detections is not None else 0
