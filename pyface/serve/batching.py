"""Shared batches of many clients' images: read in several threads, detected in one, coordinated by the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from pyface.detections import Detections
from pyface.detector import FaceDetector
from pyface.io.images import EncodedImage, ImageError, decode_image, open_image
from pyface.io.results import failed
from pyface.serve.limits import Budget, Limits, Overloaded, Room
from pyface.serve.metrics import Metrics

Value = TypeVar("Value")

DECODED_PIXELS = 2**26
"""Largest number of pixels of decoded images that the service holds at once: 0.2 GB."""

_LINGER = 0.004  # seconds for which a batch that is not full waits for images that are being decoded
_FAULTS = 8  # after failing on this many images in a row, the detector is at fault, not the images

log = logging.getLogger("pyface.serve")


class Upload(NamedTuple):
    """One image of a request: its file, and the name that the client gave, which is only repeated in the result."""

    name: str | None
    data: bytes


class Found(NamedTuple):
    """The outcome of one upload.

    Attributes:
        result: "read", "unreadable" (the upload is at fault), "failed" (the detector is at fault), or "late".
        line: What `pyface detect` writes for the image.
    """

    result: Literal["read", "unreadable", "failed", "late"]
    line: dict[str, Any]


class DetectorFault(Exception):
    """The detector raised an error, which has been logged."""


@dataclass(eq=False)
class _Waiting:
    """A decoded image that waits for the detector."""

    image: Any
    score_threshold: float | None
    deadline: float
    detections: asyncio.Future[Detections]


class Batcher:
    """Runs one detector for many requests at once; an asynchronous context manager.

    It sets the detector's `score_threshold`, so nothing else may use the detector at the same time.

    Args:
        detector: Finds the faces; its `batch_size` and `max_pixels` apply.
        limits: How much may wait, and for how long.
    """

    def __init__(self, detector: FaceDetector, limits: Limits) -> None:
        self.detector = detector
        self.limits = limits
        self.room = Room(limits)
        self.metrics = Metrics(lambda: self.room.images)
        self._default_threshold = detector.score_threshold
        self._seconds_per_image = 0.0
        self._faults = 0
        self._pixels = Budget(DECODED_PIXELS)
        self._decoding = 0
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Found]] = set()

    async def __aenter__(self) -> Batcher:
        self._readers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pyface-read")
        self._detecting = ThreadPoolExecutor(1, thread_name_prefix="pyface-detect")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finishes what has been accepted, then stops the threads."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._worker.cancel()
        self._readers.shutdown()
        self._detecting.shutdown()

    @property
    def works(self) -> bool:
        """False once the detector has failed on many images in a row, as it does after a GPU error."""
        return self._faults < _FAULTS

    def retry_after(self) -> int:
        """Estimates the seconds until the service is done with its images, from 1 to the deadline."""
        seconds = math.ceil(self.room.images * self._seconds_per_image)
        return max(1, min(seconds, math.ceil(self.limits.deadline)))

    async def detect(self, uploads: Sequence[Upload], score_threshold: float | None, deadline: float) -> list[Found]:
        """Finds the faces in the images of one request.

        Args:
            uploads: The images, at least one.
            score_threshold: Faces have a score > this; None: the detector's own threshold.
            deadline: When to give up, in the event loop's time.

        Raises:
            Overloaded: There is no room for the images, or the deadline has passed.
        """
        self.room.take(len(uploads), sum(len(upload.data) for upload in uploads))
        tasks = [self._start(upload, score_threshold, deadline) for upload in uploads]
        # Images that are late are not cancelled, since their memory is in use until their turn comes.
        await asyncio.wait(tasks, timeout=deadline - asyncio.get_running_loop().time())
        found = [task.result() for task in tasks if task.done()]
        if len(found) < len(tasks) or any(one.result == "late" for one in found):
            raise Overloaded
        return found

    def _start(self, upload: Upload, score_threshold: float | None, deadline: float) -> asyncio.Task[Found]:
        task = asyncio.create_task(self._find(upload, score_threshold, deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self.room.give_back(1, len(upload.data)))
        return task

    async def _find(self, upload: Upload, score_threshold: float | None, deadline: float) -> Found:
        """Takes an upload through all stages; an error at any stage becomes its result."""
        try:
            opened = await self._in_thread(open_image, upload.data, max_pixels=self.detector.max_pixels)
            assert isinstance(opened, EncodedImage)
            async with self._pixels.hold(opened.pixels):
                self._check_time(deadline)
                image = await self._decode(opened)
                detections = await self._wait_for_detector(image, score_threshold, deadline)
            line = await self._in_thread(Detections.to_dict, detections)
            found = Found("read", line | {"source": upload.name})
            self.metrics.faces.inc(len(detections))
        except (ImageError, MemoryError) as error:
            found = _failure("unreadable", upload, str(error) or "the image is too large for the service's memory")
        except Overloaded:
            found = _failure("late", upload, "the service was too busy")
        except DetectorFault:
            found = _failure("failed", upload, "the detector failed on this image; the service's log has the reason")
        except Exception:
            log.exception("an image could not be processed")
            found = _failure("failed", upload, "the service failed on this image; its log has the reason")
        self.metrics.images.labels(found.result).inc()
        return found

    async def _in_thread(self, function: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: function(*arguments, **options))

    async def _decode(self, opened: EncodedImage) -> Any:
        self._decoding += 1
        try:
            return await self._in_thread(decode_image, opened)
        finally:
            self._decoding -= 1
            self._changed.set()

    async def _wait_for_detector(self, image: Any, score_threshold: float | None, deadline: float) -> Detections:
        detections = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(image, score_threshold, deadline, detections))
        self._changed.set()
        return await detections

    def _check_time(self, deadline: float) -> None:
        if asyncio.get_running_loop().time() > deadline:
            raise Overloaded

    async def _work(self) -> None:
        """Runs batch after batch until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_until(lambda: bool(self._waiting))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    await self._wait_until(lambda: not self._decoding or len(self._waiting) >= self.detector.batch_size)
            batch = self._take_batch()
            if not batch:
                continue
            images, score_threshold = [one.image for one in batch], batch[0].score_threshold
            outcomes = await loop.run_in_executor(self._detecting, self._detect_batch, images, score_threshold)
            for one, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Detections):
                    one.detections.set_result(outcome)
                else:
                    one.detections.set_exception(outcome)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _take_batch(self) -> list[_Waiting]:
        """Takes the first image that is not late, and the next ones that share its threshold."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        for one in self._waiting:
            if one.deadline < now:
                one.detections.set_exception(Overloaded())
            elif len(batch) < self.detector.batch_size and (
                not batch or one.score_threshold == batch[0].score_threshold
            ):
                batch.append(one)
            else:
                rest.append(one)
        self._waiting = rest
        return batch

    def _detect_batch(self, images: list[Any], score_threshold: float | None) -> list[Detections | Exception]:
        """Detects in a batch, in a thread; errors are returned, and one image's error does not affect the others."""
        self.detector.score_threshold = self._default_threshold if score_threshold is None else score_threshold
        start = time.perf_counter()
        try:
            outcomes = [
                _detections_or_error(outcome) for _, outcome in zip(images, self.detector.stream(images), strict=True)
            ]
        except Exception:
            if len(images) > 1:
                return [self._detect_batch([image], score_threshold)[0] for image in images]
            log.exception("the detector failed on an image")
            self._faults += 1
            return [DetectorFault()]
        seconds = time.perf_counter() - start
        self._faults = 0
        self._seconds_per_image += 0.1 * (seconds / len(images) - self._seconds_per_image)
        self.metrics.batch_images.observe(len(images))
        self.metrics.batch_seconds.observe(seconds)
        return outcomes


def _detections_or_error(outcome: Any) -> Detections | Exception:
    return outcome.error if outcome.detections is None else outcome.detections


def _failure(result: Literal["unreadable", "failed", "late"], upload: Upload, error: str) -> Found:
    return Found(result, failed("", error) | {"source": upload.name})
