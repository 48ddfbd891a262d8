"""Ellipses and rectangles, and their overlap (FDDB).

There are two measures: `pixel_overlap` counts the pixels that FDDB's own program paints, as for published figures;
`exact_overlap` integrates the continuous shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Size = tuple[int, int]
"""Width and height of an image."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


class Regions(NamedTuple):
    """Ellipses, rectangles, or both.

    Attributes:
        rows: float64 [N, 5] in continuous pixels. An ellipse is (radius, radius, angle, cx, cy), where the first
            radius lies along the angle, in radians from the x axis towards y (downwards), as in FDDB's files. A
            rectangle is (x, y, w, h, NaN).
    """

    rows: Array

    @property
    def is_ellipse(self) -> NDArray[np.bool_]:
        """Which regions are ellipses, bool [N]."""
        return ~np.isnan(self.rows[:, 4])

    def bounds(self) -> Array:
        """Bounding boxes of the regions: [N, 4], (x1, y1, x2, y2)."""
        first, second, angle, cx, cy = self.rows.T
        sin, cos = np.sin(angle), np.cos(angle)
        half = np.hypot(first * cos, second * sin), np.hypot(first * sin, second * cos)
        around = np.stack([cx - half[0], cy - half[1], cx + half[0], cy + half[1]], axis=1)
        x, y, w, h, _ = self.rows.T
        return np.where(self.is_ellipse[:, None], around, np.stack([x, y, x + w, y + h], axis=1))


def ellipses(rows: object) -> Regions:
    """Makes regions from rows (radius, radius, angle, cx, cy)."""
    return Regions(np.asarray(rows, np.float64).reshape(-1, 5))


def rectangles(rows: object) -> Regions:
    """Makes regions from rows (x, y, w, h)."""
    boxes = np.asarray(rows, np.float64).reshape(-1, 4)
    return Regions(np.concatenate([boxes, np.full((len(boxes), 1), np.nan)], axis=1))


# --- pixels ----------------------------------------------------------------------------------------------------------


class _Mask(NamedTuple):
    """The painted pixels of one region: the nonzero ones of `pixels`, an array that begins at column x, row y."""

    x: int
    y: int
    pixels: NDArray[np.uint8]
    area: int


def pixel_overlap(faces: Regions, found: Regions, size: Size | None = None) -> Array:
    """IoU of all pairs, as counted by FDDB's own program: [F, D].

    That program paints each region into a mask of the image's size with OpenCV, which rounds. An ellipse's centre is
    rounded, its angle is rounded to a degree, and its radii are truncated to whole pixels; it is painted as a polygon
    of at most 72 sides. A rectangle is painted between its rounded corners, both included.

    Args:
        faces, found: The regions.
        size: Size of the image, to which regions are clipped; None: they are not clipped.

    Example:
        >>> pixel_overlap(rectangles([[0, 0, 9, 9]]), rectangles([[0, 0, 9, 4]])).item()
        0.5
    """
    truth, other = (_masks(of, size) for of in (faces, found))
    overlap = np.zeros((len(truth), len(other)))
    for f, d in np.argwhere(_touching(_windows(truth), _windows(other))):
        common = _intersection(truth[f], other[d])
        overlap[f, d] = common / (truth[f].area + other[d].area - common)
    return overlap


def _masks(regions: Regions, size: Size | None) -> list[_Mask]:
    width, height = size or (None, None)
    # OpenCV's points are rounded from float32, halves to even.
    corners = np.rint(regions.bounds().astype(np.float32)).astype(np.int64)
    masks = []
    for row, (x1, y1, x2, y2), is_ellipse in zip(regions.rows, corners.tolist(), regions.is_ellipse, strict=True):
        margin = 2 if is_ellipse else 0  # rounding moves an ellipse by at most this
        left, top = x1 - margin, y1 - margin
        right, bottom = x2 + margin + 1, y2 + margin + 1
        if width is not None and height is not None:
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        shape = max(bottom - top, 0), max(right - left, 0)
        if is_ellipse:
            pixels = _painted_ellipse(row, left, top, shape)
            masks.append(_Mask(left, top, pixels, cv2.countNonZero(pixels) if pixels.size else 0))
        else:
            masks.append(_Mask(left, top, np.ones(shape, np.uint8), shape[0] * shape[1]))
    return masks


def _painted_ellipse(row: Array, left: int, top: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    pixels = np.zeros(shape, np.uint8)
    if pixels.size:
        cx, cy = np.rint(row[3:].astype(np.float32)).astype(int).tolist()
        radii = int(row[0]), int(row[1])
        cv2.ellipse(pixels, (cx - left, cy - top), radii, float(np.degrees(row[2])), 0, 360, 1, cv2.FILLED)
    return pixels


def _windows(masks: list[_Mask]) -> Array:
    boxes = [(of.x, of.y, of.x + of.pixels.shape[1], of.y + of.pixels.shape[0]) for of in masks]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _intersection(a: _Mask, b: _Mask) -> int:
    left, top = max(a.x, b.x), max(a.y, b.y)
    right = min(a.x + a.pixels.shape[1], b.x + b.pixels.shape[1])
    bottom = min(a.y + a.pixels.shape[0], b.y + b.pixels.shape[0])
    parts = [of.pixels[top - of.y : bottom - of.y, left - of.x : right - of.x] for of in (a, b)]
    return cv2.countNonZero(parts[0] & parts[1])


def _touching(a: Array, b: Array) -> NDArray[np.bool_]:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return sides.min(axis=2) > 0


# --- continuous shapes -----------------------------------------------------------------------------------------------


def exact_overlap(faces: Regions, found: Regions, size: Size | None = None) -> Array:
    """IoU of all pairs as continuous shapes: [F, D], accurate to 2e-4.

    Both shapes are convex, so a horizontal line intersects each in one interval. The common length of the two intervals
    is integrated over y by Gaussian quadrature, after a substitution that removes the square roots at an ellipse's
    ends.

    Args:
        faces, found: The regions.
        size: Size of the image, to which regions are clipped; None: they are not clipped.

    Example:
        >>> exact_overlap(ellipses([[20, 10, 0, 50, 50]]), rectangles([[30, 40, 40, 20]])).round(6).item()
        0.785398
    """
    overlap = np.zeros((len(faces.rows), len(found.rows)))
    f, d = np.nonzero(_touching(faces.bounds(), found.bounds()))
    areas = [_area([regions.rows], size) for regions in (faces, found)]
    common = _area([faces.rows[f], found.rows[d]], size)
    union = areas[0][f] + areas[1][d] - common
    overlap[f, d] = np.divide(common, union, out=np.zeros_like(common), where=union > 0).clip(0, 1)
    return overlap


def _area(shapes: list[Array], size: Size | None) -> Array:
    """The area that the shapes of each row have in common: shapes are [P, 5], the result is [P]."""
    if size is not None:
        border = [0.0, 0.0, *map(float, size), np.nan]
        shapes = [*shapes, np.tile(border, (len(shapes[0]), 1))]
    bounds = np.stack([Regions(rows).bounds() for rows in shapes])
    top, bottom = bounds[..., 1].max(0), bounds[..., 3].min(0)
    middle, half = (top + bottom) / 2, (bottom - top).clip(0) / 2
    angles = _NODES * (np.pi / 2)
    y = middle[:, None] + half[:, None] * np.sin(angles)
    intervals = [_interval(rows, y) for rows in shapes]
    left, right = np.max([of[0] for of in intervals], axis=0), np.min([of[1] for of in intervals], axis=0)
    return np.asarray((right - left).clip(0) @ (_WEIGHTS * np.cos(angles)) * half * (np.pi / 2))


def _interval(rows: Array, y: Array) -> tuple[Array, Array]:
    """Where lines at y [P, K] enter and leave shapes [P, 5]; for lines that miss, an arbitrary empty interval."""
    first, second, angle, cx, cy = (column[:, None] for column in rows.T)
    sin, cos = np.sin(angle), np.cos(angle)
    squared = np.maximum((first * sin) ** 2 + (second * cos) ** 2, 1e-30)  # the square of half the height
    dy = y - cy
    centre = cx + dy * sin * cos * (first**2 - second**2) / squared
    half = first * second * np.sqrt((1 - dy**2 / squared).clip(0) / squared)
    is_rectangle = np.isnan(cy)
    x, width = first, angle
    return np.where(is_rectangle, x, centre - half), np.where(is_rectangle, x + width, centre + half)


# --- boxes to ellipses -----------------------------------------------------------------------------------------------

# S3FD's linear regression from its boxes to FDDB's ellipses (docs/detectors.md 6.2): means and deviations of the boxes
# (x, y, w, h) and of the ellipses (major, minor, angle, cx, cy), and the weights.
_BOX_MEAN = np.array([156.1395, 78.3978, 84.9308, 116.1129])
_BOX_DEVIATION = np.array([100.3134, 59.3096, 44.3353, 62.0197])
_ELLIPSE_MEAN = np.array([70.9118, 46.7305, -0.01539, 198.4824, 127.6634])
_ELLIPSE_DEVIATION = np.array([37.4232, 24.5170, 0.13649, 95.6061, 61.8319])
_FIT = np.array(
    [
        [-0.00386, 0.01273, 0.42955, 0.56578],
        [0.00169, 0.00777, 0.72043, 0.27453],
        [0.00772, 0.01826, -0.31514, 0.29616],
        [1.05155, 0.00030, 0.23822, -0.00610],
        [0.00255, 0.95432, -0.18104, 0.61168],
    ]
)


def box_to_ellipse(regions: Regions) -> Regions:
    """Converts boxes to ellipses like FDDB's, by S3FD's regression (docs/detectors.md 6.2); ellipses stay as they are.

    It was fitted to one detector's boxes on FDDB, so it only suits similar boxes: around the face without the forehead.

    Example:
        >>> box_to_ellipse(rectangles([[100, 80, 80, 100]])).rows.round(1).tolist()
        [[63.7, 43.0, 1.5, 139.8, 120.6]]
    """
    boxes = regions.rows[:, :4]
    fitted = ((boxes - _BOX_MEAN) / _BOX_DEVIATION) @ _FIT.T * _ELLIPSE_DEVIATION + _ELLIPSE_MEAN
    fitted[:, :2] = fitted[:, :2].clip(0)  # negative for the smallest boxes
    fitted[:, 2] += np.where(fitted[:, 2] >= 0, -np.pi / 2, np.pi / 2)
    return Regions(np.where(regions.is_ellipse[:, None], regions.rows, fitted))
