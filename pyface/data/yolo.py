"""YOLO's annotation format: `labels/NAME.txt` for `images/NAME.jpg`, one row per box (docs.ultralytics.com/datasets).

A row is `class x y w h`, where x and y are the box's centre, as fractions of the image's width and height; five
landmarks may follow, as `x y` or `x y visibility`. An image without a label file has no faces. There are no ignore
boxes. Names of classes are in `data.yaml`, in the folder or the one above, or in `classes.txt`; without them, 0 is the
only class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage, Box, DatasetError, ImageRecord, is_coordinate, read_lines, size_of
from pyface.io.sources import is_picture

COUNTS = {5: 0, 15: 2, 20: 3}  # numbers in a row -> numbers per landmark


def read_yolo(folder: Path) -> list[ImageRecord]:
    """Reads a data folder with `images/` and `labels/`; only the images' headers are read.

    Raises:
        DatasetError: A row is malformed (file and line are named), a class is unknown, or several classes are named but
            none is called "face".
        ImportError: The class names are in `data.yaml`, and PyYAML is not installed.
    """
    images, labels = folder / "images", folder / "labels"
    files = sorted(path for path in images.rglob("*") if is_picture(path.name))
    used = {
        path.relative_to(labels).with_suffix("")
        for path in labels.rglob("*.txt")
        if path.name != "classes.txt" and not path.name.startswith(".")
    }
    classes, face = _classes(folder)
    found = []
    for path in files:
        stem = path.relative_to(images).with_suffix("")
        rows = list(_rows(labels / f"{stem}.txt", classes)) if stem in used else []
        rows = [row for row in rows if row[0] == face]
        height, width = size_of(path) if rows else (0, 0)
        name = path.relative_to(images).as_posix()
        found.append(ImageRecord(path, name, [_box(row, height, width) for row in rows]))
    unused = used - {path.relative_to(images).with_suffix("") for path in files}
    if unused:
        raise DatasetError(f"{labels}: {min(unused)}.txt belongs to no image in {images}")
    return found


def _classes(folder: Path) -> tuple[int, int]:
    """The number of classes, and the class of faces."""
    names = _class_names(folder)
    if len(names) <= 1:
        return 1, 0
    faces = [index for index, name in enumerate(names) if name.lower() == "face"]
    if not faces:
        raise DatasetError(f'{folder}: one of its classes must be called "face", got {", ".join(names[:20])}')
    return len(names), faces[0]


def _class_names(folder: Path) -> list[str]:
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if file.is_file():
            return [line.strip() for line in read_lines(file) if line.strip()]
    for file in (folder / "data.yaml", folder.parent / "data.yaml"):
        if file.is_file():
            return _names_in_yaml(file)
    return []


def _names_in_yaml(file: Path) -> list[str]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"the class names in {file} need the package PyYAML: pip install pyyaml") from error
    try:
        content = yaml.safe_load("\n".join(read_lines(file)))
    except yaml.YAMLError as error:
        raise DatasetError(f"{file} cannot be read as YAML ({' '.join(str(error).split())})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and all(isinstance(index, int) for index in names):
        return [str(names.get(index, "")) for index in range(max(names, default=-1) + 1)]
    return [str(name) for name in names] if isinstance(names, list) else []


def yolo_rows(image: AnnotatedImage, height: int, width: int) -> str:
    """The content of an image's label file; rows have landmarks if one of its faces does. Ignore boxes are lost."""
    rows = []
    marked = bool(np.isfinite(image.landmarks).any())
    for (x1, y1, x2, y2), points in zip(image.faces.tolist(), image.landmarks, strict=True):
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        for x, y in points.tolist() if marked else []:
            numbers += [x / width, y / height, 2] if math.isfinite(x) and math.isfinite(y) else [0, 0, 0]
        rows.append("0 " + " ".join(f"{number:.8g}" for number in numbers) + "\n")
    return "".join(rows)


def _rows(file: Path, classes: int) -> Iterator[list[float]]:
    for k, line in enumerate(read_lines(file), 1):
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
        if numbers[0] not in range(classes):
            allowed = "0, a face" if classes == 1 else f"from 0 to {classes - 1}"
            raise DatasetError(f"{file}, line {k}: the class must be {allowed}, got {numbers[0]:g}")
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
