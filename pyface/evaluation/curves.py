"""Precision-recall curves and the area under them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Curve(NamedTuple):
    """A precision-recall curve, from the highest threshold to the lowest.

    Attributes:
        thresholds: float64 [N]; detections with a score >= this count.
        precision: float64 [N], 0 if nothing is detected.
        recall: float64 [N], never decreasing.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def average_precision(self) -> float:
        """The area under the monotone envelope: at each recall, the best precision at this or any higher recall.

        Example:
            >>> Curve(np.array([0.9, 0.5]), np.array([1.0, 0.5]), np.array([0.5, 1.0])).average_precision
            0.75
        """
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * envelope))


def columns_of(curve: Any) -> dict[str, list[float]]:
    """The columns of a curve, a NamedTuple of arrays, as lists for JSON."""
    return {name: [round(value, 6) for value in column.tolist()] for name, column in curve._asdict().items()}
