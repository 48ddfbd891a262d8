"""Crop rules: which part of an image becomes a training sample. The papers' rules, and our own for small data.

A rule takes a random generator, an image's annotations, its height and width, and the side of the sample. It returns a
square in the image's pixels, which may reach beyond the image. Mirroring (half of all samples) is not part of a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage

Square = tuple[float, float, float]
"""Left, top, side."""

Rule = Callable[[np.random.Generator, AnnotatedImage, int, int, int], Square]

LONG_SIDE = 640  # longer side of an image in detection; scales are chosen around it
MOST_ENLARGED = 4.0  # enlarging more only blurs


def octaves(rng: np.random.Generator, picture: AnnotatedImage, height: int, width: int, size: int) -> Square:
    """A square that shows faces of all sizes equally often, or the image at half to twice its size in detection.

    Three in five samples of images with faces are scaled for one of their faces. Its target size is log-uniform between
    8 px and 0.7 of the sample's side.
    """
    if len(picture.faces) and rng.random() < 0.6:
        face = picture.faces[rng.integers(len(picture.faces))]
        wanted = 2 ** rng.uniform(3, math.log2(0.7 * size))
        scale = np.clip(wanted / _side(face), 0.75 * size / max(height, width), MOST_ENLARGED)
        side = size / scale
        return _around(rng, face[0], face[2], width, side), _around(rng, face[1], face[3], height, side), side
    side = size / (2 ** rng.uniform(-1, 1) * LONG_SIDE / max(height, width))
    return _within(rng, width, side), _within(rng, height, side), side


def s3fd(rng: np.random.Generator, picture: AnnotatedImage, height: int, width: int, size: int) -> Square:
    """The largest square that fits into the image, or (four times in five) one of 0.3 to 1 times its side.

    Source: docs/detectors.md 2.5.
    """
    side = min(height, width) * (1.0 if rng.random() < 0.2 else rng.uniform(0.3, 1.0))
    return _within(rng, width, side), _within(rng, height, side), side


def srn(rng: np.random.Generator, picture: AnnotatedImage, height: int, width: int, size: int) -> Square:
    """A square of the image, which half of the time is padded to up to twice its size (docs/detectors.md 4.4).

    The square's side is the shorter side of the padded image, or (half of the time) 0.5 to 1 of it.
    """
    grown = rng.uniform(1.0, 2.0) if rng.random() < 0.5 else 1.0
    left, top = -rng.uniform(0, (grown - 1) * width), -rng.uniform(0, (grown - 1) * height)
    side = grown * min(height, width) * (1.0 if rng.random() < 0.5 else rng.uniform(0.5, 1.0))
    return left + _within(rng, grown * width, side), top + _within(rng, grown * height, side), side


def ssh(rng: np.random.Generator, picture: AnnotatedImage, height: int, width: int, size: int) -> Square:
    """A part of the image, scaled to a shorter side of 1,200 px and a longer side of at most 1,600 px
    (docs/detectors.md 5.3). The authors train on whole images, one per GPU."""
    side = size / min(1200 / min(height, width), 1600 / max(height, width))
    return _within(rng, width, side), _within(rng, height, side), side


def densebox(face: float, band: tuple[float, float]) -> Rule:
    """DenseBox's rule (docs/detectors.md 1.4), for a network that finds faces `face` pixels high, times a factor in
    `band`.

    Half of the samples of images with faces have such a face in the middle, give or take half of `face`. The others are
    random parts at random scales.
    """

    def rule(rng: np.random.Generator, picture: AnnotatedImage, height: int, width: int, size: int) -> Square:
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
    """A random start for a window of length `side` that lies within [0, length], or contains it if it is longer."""
    return rng.uniform(min(0.0, length - side), max(0.0, length - side))


def _around(rng: np.random.Generator, low: float, high: float, length: float, side: float) -> float:
    """A start like `_within`'s, of a window that also contains [low, high], or is centred on it if none can."""
    first, last = max(high - side, min(0.0, length - side)), min(low, max(0.0, length - side))
    return rng.uniform(first, last) if first <= last else (low + high - side) / 2
