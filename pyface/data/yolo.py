"""YOLO's annotation format: `labels/NAME.txt` for `images/NAME.jpg`, one row per face (docs.ultralytics.com/datasets).

A row is `class x y w h`, in shares of the image's width and height, with the box's centre first; it may go on with five
landmarks, as `x y` or `x y visibility`. An image without a file has no faces. There are no ignore boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyface.data.picture import Box, DatasetError, Picture, is_coordinate, picture_of, size_of
from pyface.io.sources import is_picture

COUNTS = {5: 0, 15: 2, 20: 3}  # numbers in a row -> numbers per landmark


def read_yolo(folder: Path) -> list[Picture]:
    """Reads a data folder with `images/` and `labels/`; only the images' headers are read.

    Raises:
        DatasetError: A row is malformed (file and line are named), or of another class than 0.
    """
    images, labels = folder / "images", folder / "labels"
    files = sorted(path for path in images.rglob("*") if is_picture(path.name))
    unused = {path.relative_to(labels).with_suffix("") for path in labels.rglob("*.txt")}
    pictures = []
    for path in files:
        stem = path.relative_to(images).with_suffix("")
        rows = list(_rows(labels / f"{stem}.txt")) if stem in unused else []
        unused.discard(stem)
        height, width = size_of(path) if rows else (0, 0)
        pictures.append(picture_of(path, [_box(row, height, width) for row in rows]))
    unused = {stem for stem in unused if str(stem) != "classes"}
    if unused:
        raise DatasetError(f"{labels}: {min(unused)}.txt belongs to no image in {images}")
    return pictures


def yolo_rows(picture: Picture, height: int, width: int) -> str:
    """The content of an image's label file; rows have landmarks if one of its faces does. Ignore boxes are lost."""
    rows = []
    marked = bool(np.isfinite(picture.landmarks).any())
    for (x1, y1, x2, y2), points in zip(picture.faces.tolist(), picture.landmarks, strict=True):
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        for x, y in points.tolist() if marked else []:
            numbers += [x / width, y / height, 2] if math.isfinite(x) and math.isfinite(y) else [0, 0, 0]
        rows.append("0 " + " ".join(f"{number:.8g}" for number in numbers) + "\n")
    return "".join(rows)


def _rows(file: Path) -> Iterator[list[float]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read as text ({error})") from error
    for k, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            numbers = [float(value) for value in line.split()]
        except ValueError:
            numbers = []
        if len(numbers) not in COUNTS or not all(map(is_coordinate, numbers)):
            raise DatasetError(
                f"{file}, line {k} must be `class x y w h`, with five landmarks or none, got {line.strip()!r}"
            )
        if numbers[0] != 0:
            raise DatasetError(f"{file}, line {k}: the only class must be 0, a face, got {numbers[0]:g}")
        if max(numbers[1:5]) > 2:
            raise DatasetError(f"{file}, line {k}: x y w h must be shares of the image's size, got {line.strip()!r}")
        yield numbers


def _box(numbers: list[float], height: int, width: int) -> Box:
    x, y, w, h = numbers[1:5]
    landmarks = _landmarks(numbers, height, width)
    return Box(((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), landmarks=landmarks)


def _landmarks(numbers: list[float], height: int, width: int) -> NDArray[np.float32] | None:
    per_point = COUNTS[len(numbers)]
    if not per_point:
        return None
    points = np.array(numbers[5:], np.float32).reshape(5, per_point)
    # Without a visibility, (0, 0) stands for a point that is not known.
    known = points[:, 2:] > 0 if per_point == 3 else points.any(1, keepdims=True)
    return np.where(known, points[:, :2] * np.array([width, height], np.float32), np.nan).astype(np.float32)
