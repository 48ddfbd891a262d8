"""What a sample shows of a picture: the crop rules of the papers, and one of our own for small data.

A rule takes a random generator, what is known about a picture, its size and the side of the sample, and answers a
square in the picture's pixels, which may reach beyond it. Its mirror image is taken in half of all cases, whatever the
rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyface.data.wider import Picture

Square = tuple[float, float, float]
"""Left, top, side."""

Rule = Callable[[np.random.Generator, Picture, int, int, int], Square]

LONG_SIDE = 640  # of a picture as detectors see it, which scales are chosen around
MOST_ENLARGED = 4.0  # more than that only blurs


def octaves(rng: np.random.Generator, picture: Picture, height: int, width: int, size: int) -> Square:
    """Faces of all sizes equally often, or pictures from half to twice the size that a detector sees them at.

    For three of five samples of pictures with faces, one face is to be some octave's size, from 8 px to 0.7 of the
    sample.
    """
    if len(picture.faces) and rng.random() < 0.6:
        face = picture.faces[rng.integers(len(picture.faces))]
        wanted = 2 ** rng.uniform(3, math.log2(0.7 * size))
        scale = np.clip(wanted / _side(face), 0.75 * size / max(height, width), MOST_ENLARGED)
        side = size / scale
        return _around(rng, face[0], face[2], width, side), _around(rng, face[1], face[3], height, side), side
    side = size / (2 ** rng.uniform(-1, 1) * LONG_SIDE / max(height, width))
    return _within(rng, width, side), _within(rng, height, side), side


def s3fd(rng: np.random.Generator, picture: Picture, height: int, width: int, size: int) -> Square:
    """The largest square of the picture, or (four times of five) one of 0.3 to 1 times its side (DETECTORS.md 2.5)."""
    side = min(height, width) * (1.0 if rng.random() < 0.2 else rng.uniform(0.3, 1.0))
    return _within(rng, width, side), _within(rng, height, side), side


def srn(rng: np.random.Generator, picture: Picture, height: int, width: int, size: int) -> Square:
    """A square of the picture in up to twice its size of padding (DETECTORS.md 4.4): its shorter side, or 0.5 to 1 of
    it."""
    grown = rng.uniform(1.0, 2.0) if rng.random() < 0.5 else 1.0
    left, top = -rng.uniform(0, (grown - 1) * width), -rng.uniform(0, (grown - 1) * height)
    side = grown * min(height, width) * (1.0 if rng.random() < 0.5 else rng.uniform(0.5, 1.0))
    return left + _within(rng, grown * width, side), top + _within(rng, grown * height, side), side


def ssh(rng: np.random.Generator, picture: Picture, height: int, width: int, size: int) -> Square:
    """A part of the picture at the scale at which its shorter side is 1,200 px, its longer one at most 1,600
    (DETECTORS.md 5.3). The authors show all of it, one picture a GPU."""
    side = size / min(1200 / min(height, width), 1600 / max(height, width))
    return _within(rng, width, side), _within(rng, height, side), side


def densebox(face: float, band: tuple[float, float] = (0.8, 1.25)) -> Rule:
    """DenseBox's (DETECTORS.md 1.4), for a network that finds faces `face` pixels high, times a factor in a band.

    In every second sample such a face is in the middle, give or take half of `face`. The others are random parts at
    random scales.
    """

    def rule(rng: np.random.Generator, picture: Picture, height: int, width: int, size: int) -> Square:
        if len(picture.faces) == 0 or rng.random() < 0.5:
            side = size / (2 ** rng.uniform(-2, 1) * LONG_SIDE / max(height, width))
            return _within(rng, width, side), _within(rng, height, side), side
        x1, y1, x2, y2 = picture.faces[rng.integers(len(picture.faces))]
        scale = min(face * rng.uniform(*band) / (y2 - y1), MOST_ENLARGED)
        side = size / scale
        x, y = ((x1 + x2) / 2, (y1 + y2) / 2) + rng.uniform(-0.5, 0.5, 2) * face / scale
        return x - side / 2, y - side / 2, side

    return rule


RULES: dict[str, Rule] = {"octaves": octaves, "s3fd": s3fd, "srn": srn, "ssh": ssh}


def _side(box: NDArray[np.float32]) -> float:
    return math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))


def _within(rng: np.random.Generator, length: float, side: float) -> float:
    """Where a window begins that lies on an axis, or the axis in it."""
    return rng.uniform(min(0.0, length - side), max(0.0, length - side))


def _around(rng: np.random.Generator, low: float, high: float, length: float, side: float) -> float:
    """Likewise, and it holds [low, high] as far as that goes."""
    first, last = max(high - side, min(0.0, length - side)), min(low, max(0.0, length - side))
    return rng.uniform(first, last) if first <= last else (low + high - side) / 2
