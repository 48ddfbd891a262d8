"""Why boxes match almost nothing: fractions instead of pixels, corners instead of sizes, another order of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pyface.evaluation.average_precision import box_iou

LOW = 0.1
"""Below this average precision or true positive rate, the format of the boxes is in doubt."""

_IMAGES = 500  # enough to distinguish formats
_TELLING = 0.2  # share of faces that another reading of the rows has to match

Boxes = NDArray[np.float64]


def _from_sizes(rows: Boxes) -> Boxes:
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)


def _from_centers(rows: Boxes) -> Boxes:
    return np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)


_READINGS: dict[str, Callable[[Boxes], Boxes]] = {
    "x y w h score": _from_sizes,
    "x1 y1 x2 y2 score": lambda rows: rows[:, :4],
    "cx cy w h score": _from_centers,
    "y x h w score": lambda rows: _from_sizes(rows[:, [1, 0, 3, 2]]),
    "y1 x1 y2 x2 score": lambda rows: rows[:, [1, 0, 3, 2]],
    "w h x y score": lambda rows: _from_sizes(rows[:, [2, 3, 0, 1]]),
    "score x y w h": lambda rows: _from_sizes(rows[:, 1:]),
    "score x1 y1 x2 y2": lambda rows: rows[:, 1:],
}


def explain_low(images: Iterable[tuple[Boxes, Boxes]], expected: str = "x y w h score") -> str | None:
    """Describes what the rows look like if a reading other than the expected one fits far better.

    Args:
        images: For each image the rows, float64 [N, 5], and the faces that they should match, [F, 4], as (x1, y1,
            x2, y2).
        expected: "x y w h score" or "x1 y1 x2 y2 score", in pixels.

    Returns:
        The end of a sentence about the rows; None if they look right.

    Example:
        >>> explain_low([(np.array([[90, 90, 130, 140, 0.9]]), np.array([[90, 90, 130, 140]]))])
        'look like x1 y1 x2 y2 score, but must be x y w h score'
    """
    some = list(islice(((rows, faces) for rows, faces in images if len(rows) and len(faces)), _IMAGES))
    if not some:
        return None
    numbers = np.concatenate([rows[:, :4] for rows, _ in some])
    sides = np.concatenate([faces[:, 2:] - faces[:, :2] for _, faces in some])
    if np.quantile(np.abs(numbers), 0.99) <= 1.5 and np.median(sides) > 3:
        return "look like fractions of the image's width and height, but must be pixels"
    share = {name: _matched(some, reading) for name, reading in _READINGS.items()}
    best = max(share, key=lambda name: share[name])
    if share[best] < _TELLING or share[best] < 3 * share[expected]:
        return None
    return f"look like {best}, but must be {expected}"


def _matched(images: list[tuple[Boxes, Boxes]], reading: Callable[[Boxes], Boxes]) -> float:
    """The share of faces that have a box with an IoU of 0.5 or more, for one reading of the rows."""
    found = sum(int((box_iou(reading(rows), faces).max(0) >= 0.5).sum()) for rows, faces in images)
    return found / sum(len(faces) for _, faces in images)
