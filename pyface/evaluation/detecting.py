"""Running a detector on the files of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyface.detections import Detections
    from pyface.detector import FaceDetector

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iterator of results, for example in a progress bar, given their number and a label."""

Report = Callable[[object], None]
"""Takes the reason why an image cannot be read."""


def detect_files(
    detector: FaceDetector, paths: Sequence[Path], report: Report, track: Track, label: str = "Detecting"
) -> Iterator[tuple[Path, Detections]]:
    """Yields each path with its faces; images that cannot be read are reported and left out."""
    for outcome in track(detector.stream(paths), len(paths), label):
        if outcome.detections is None:
            report(outcome.error)
        else:
            yield Path(outcome.source), outcome.detections
