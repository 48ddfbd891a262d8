"""WIDER FACE's annotation format (docs/detectors.md 6.3): `bbx_gt.txt` and, if landmarks are known, `landmarks.txt` in
RetinaFace's format, where a row belongs to the box with the same image, x, y, w and h."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage, Box, DatasetError, ImageRecord, is_coordinate, read_lines

Row = tuple[float, ...]


def read_wider(folder: Path) -> list[ImageRecord]:
    """Reads a data folder with `images/` and `bbx_gt.txt`; the images themselves are not opened.

    Rows of `bbx_gt.txt` marked invalid are ignore boxes.

    Raises:
        DatasetError: A file is missing, a row is malformed (file and line are named), or an image is listed twice
            (both lines are named).
    """
    images, annotations = folder / "images", folder / "bbx_gt.txt"
    points = read_landmarks(folder / "landmarks.txt") if (folder / "landmarks.txt").exists() else {}
    found = []
    for name, rows in read_boxes(annotations):
        path = images / name
        if not os.path.isfile(path):  # unlike `Path.is_file`, False for names that no file system accepts
            raise DatasetError(f"{annotations} names {name}, which is not in {images}")
        of = points.get(name, {})
        boxes = [Box((row[0], row[1], row[2], row[3]), row[7] != 0, of.get(row[:4])) for row in rows]
        found.append(ImageRecord(path, name, boxes))
    marked = any(np.isfinite(of).all() for boxes in points.values() for of in boxes.values())
    if marked and not any(_has_landmarks(box) for image in found for box in image.boxes):
        raise DatasetError(f"{folder / 'landmarks.txt'}: no row has the name and x y w h of a face in bbx_gt.txt")
    return found


def _has_landmarks(box: Box) -> bool:
    return not box.ignore and box.landmarks is not None and bool(np.isfinite(box.landmarks).any())


def read_boxes(path: Path) -> Iterator[tuple[str, list[Row]]]:
    """The names and rows (x, y, w, h, blur, expression, illumination, invalid, occlusion, pose) of `bbx_gt.txt`.

    A name is followed by the number of its rows; 0 may be followed by one row of zeros, as in WIDER FACE.
    """
    lines = _lines(path)
    listed: dict[str, int] = {}
    k = 0
    while k < len(lines):
        number, name = lines[k]
        _refuse_second_block(path, listed, name, number)
        if k + 1 == len(lines) or not re.fullmatch("[0-9]{1,9}", lines[k + 1][1]):
            raise DatasetError(f"{path}, line {number + 1} must be the number of boxes of {name}")
        count = int(lines[k + 1][1])
        k += 2
        if count == 0 and k < len(lines) and set(lines[k][1].split()) == {"0"}:
            k += 1
        rows = lines[k : k + count]
        if len(rows) < count:
            raise DatasetError(f"{path}: {name} must have {count} rows, got {len(rows)}")
        yield name, [_numbers(path, line, 10, "x y w h and six marks") for line in rows]
        k += count


def read_landmarks(path: Path) -> dict[str, dict[Row, NDArray[np.float32]]]:
    """The landmarks of `landmarks.txt`, by file and box (x, y, w, h): float32 [5, 2], NaN where absent."""
    found: dict[str, dict[Row, NDArray[np.float32]]] = {}
    listed: dict[str, int] = {}
    name = None
    for line in _lines(path):
        if line[1].startswith("#"):
            name = line[1][1:].strip()
            _refuse_second_block(path, listed, name, line[0])
            found[name] = {}
            continue
        if name is None:
            raise DatasetError(f"{path}, line {line[0]} must be `# file`, the image of the rows below, got a row")
        numbers = _numbers(path, line, 20, "x y w h, five times x y flag, and a last number")
        points = np.array(numbers[4:19], np.float32).reshape(5, 3)
        found[name][numbers[:4]] = np.where(points[:, 2:] < 0, np.nan, points[:, :2]).astype(np.float32)
    return found


def _refuse_second_block(path: Path, listed: dict[str, int], name: str, line: int) -> None:
    """Raises DatasetError if an image is listed twice, since faces of one block would be background in the other.

    `listed` keeps the line of each image.
    """
    first = listed.setdefault(posixpath.normpath(name), line)
    if first != line:
        raise DatasetError(
            f"{path}: {name} must be listed once, got lines {first} and {line}; put its rows into one block"
        )


def _lines(path: Path) -> list[tuple[int, str]]:
    return [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def _numbers(path: Path, line: tuple[int, str], count: int, meaning: str) -> Row:
    try:
        numbers = tuple(float(value) for value in line[1].split())
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(is_coordinate, numbers)):
        raise DatasetError(f"{path}, line {line[0]} must be {count} numbers, {meaning}, got {line[1]!r}")
    return numbers


def wider_rows(image: AnnotatedImage, name: str) -> tuple[str, str]:
    """An image's part of `bbx_gt.txt` and of `landmarks.txt`."""
    boxes, points = [], [f"# {name}"]
    for box, face in zip(image.faces.tolist(), image.landmarks, strict=True):
        place = _place(box)
        boxes.append(f"{place} 0 0 0 0 0 0")
        if np.isfinite(face).any():
            triples = " ".join(f"{x:.8g} {y:.8g} 0" if np.isfinite([x, y]).all() else "-1 -1 -1" for x, y in face)
            points.append(f"{place} {triples} 1")
    boxes += [f"{_place(box)} 0 0 0 1 0 0" for box in image.ignore.tolist()]
    rows = [name, str(len(boxes)), *(boxes or ["0 0 0 0 0 0 0 0 0 0"])]
    return "\n".join(rows) + "\n", "\n".join(points) + "\n"


def _place(box: list[float]) -> str:
    x1, y1, x2, y2 = box
    return f"{x1:.8g} {y1:.8g} {x2 - x1:.8g} {y2 - y1:.8g}"
