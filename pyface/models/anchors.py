"""Anchors of the single-shot detectors; `pyface.ops.AnchorLevel` documents the format."""

from __future__ import annotations

from collections.abc import Iterable

Box = tuple[float, float, float, float]


def anchors_around(centre: float, shapes: Iterable[tuple[float, float]]) -> tuple[Box, ...]:
    """The anchors of cell (0, 0), which share their centre.

    Args:
        centre: x and y of the centre, in continuous pixels of the network's input.
        shapes: (width, height) of each anchor.

    Returns:
        One box (x1, y1, x2, y2) per shape, as `AnchorLevel.anchors` takes them.

    Example:
        >>> anchors_around(2.0, [(16, 16)])
        ((-6.0, -6.0, 10.0, 10.0),)
    """
    return tuple(
        (centre - width / 2, centre - height / 2, centre + width / 2, centre + height / 2) for width, height in shapes
    )
