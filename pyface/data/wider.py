"""Folders of annotated pictures, for evaluation and training (docs/detectors.md 6.3).

A data folder holds `images/`, `bbx_gt.txt` in WIDER FACE's format and, if there are any, `landmarks.txt` in
RetinaFace's, whose rows belong to the boxes of the same file with the same numbers. A folder with images and without
annotations holds pictures without faces.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyface.io.sources import IMAGE_SUFFIXES, is_picture

Row = tuple[float, ...]


class DatasetError(ValueError):
    """A data folder is not what it should be."""


class Picture(NamedTuple):
    """One picture and what is known about it.

    Attributes:
        path: The file.
        faces: float32 [F, 4], (x1, y1, x2, y2) in continuous pixels.
        ignore: float32 [I, 4]: what is neither a face nor background, such as blurred crowds.
        landmarks: float32 [F, 5, 2], NaN where unknown.
    """

    path: Path
    faces: NDArray[np.float32]
    ignore: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def read_folder(folder: str | Path) -> list[Picture]:
    """Reads a data folder; the images themselves are not opened.

    Rows of `bbx_gt.txt` marked invalid are ignore boxes, and boxes without width or height are left out.

    Raises:
        DatasetError: A file is missing, a row is malformed (file and line are named), or a picture is listed twice
            (both lines are named).
    """
    folder = Path(folder)
    images = folder / "images"
    if not images.is_dir():
        raise DatasetError(f"{folder} should hold a folder `images` and a file `bbx_gt.txt`, there is no {images}")
    annotations = folder / "bbx_gt.txt"
    if not annotations.exists():
        files = sorted(path for path in images.rglob("*") if is_picture(path.name))
        if not files:
            raise DatasetError(f"{images} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
        return [_picture(path, [], {}) for path in files]
    points = read_landmarks(folder / "landmarks.txt") if (folder / "landmarks.txt").exists() else {}
    pictures = []
    for name, rows in read_boxes(annotations):
        path = images / name
        if not path.is_file():
            raise DatasetError(f"{annotations} names {name}, which is not in {images}")
        pictures.append(_picture(path, rows, points.get(name, {})))
    marked = any(np.isfinite(of).all() for boxes in points.values() for of in boxes.values())
    if marked and not any(np.isfinite(picture.landmarks).any() for picture in pictures):
        raise DatasetError(f"{folder / 'landmarks.txt'}: no row's name and x y w h are those of a face in bbx_gt.txt")
    return pictures


def unlisted(folder: str | Path) -> list[str]:
    """The pictures in a data folder that its annotations do not name, none where it has no annotations."""
    folder = Path(folder)
    if not (folder / "bbx_gt.txt").exists():
        return []
    known = {name for name, _ in read_boxes(folder / "bbx_gt.txt")}
    files = (path for path in (folder / "images").rglob("*") if is_picture(path.name))
    return sorted(name for path in files if (name := path.relative_to(folder / "images").as_posix()) not in known)


def _picture(path: Path, rows: list[Row], points: dict[Row, NDArray[np.float32]]) -> Picture:
    rows = [row for row in rows if row[2] > 0 and row[3] > 0]
    faces = [row for row in rows if row[7] == 0]
    unknown = np.full((5, 2), np.nan, np.float32)
    landmarks = [points.get(row[:4], unknown) for row in faces]
    return Picture(
        path,
        _corners(faces),
        _corners([row for row in rows if row[7] != 0]),
        np.array(landmarks, np.float32).reshape(-1, 5, 2),
    )


def _corners(rows: list[Row]) -> NDArray[np.float32]:
    x, y, w, h = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4).T
    return np.stack([x, y, x + w, y + h], axis=1)


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
        if k + 1 == len(lines) or not lines[k + 1][1].isdecimal():
            raise DatasetError(f"{path}, line {number + 1}: should be the number of boxes of {name}")
        count = int(lines[k + 1][1])
        k += 2
        if count == 0 and k < len(lines) and set(lines[k][1].split()) == {"0"}:
            k += 1
        rows = lines[k : k + count]
        if len(rows) < count:
            raise DatasetError(f"{path}: {name} should have {count} rows, the file ends after {len(rows)}")
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
            raise DatasetError(f"{path}, line {line[0]}: should name a picture, # file, before its rows")
        numbers = _numbers(path, line, 20, "x y w h, five times x y flag, and a last number")
        points = np.array(numbers[4:19], np.float32).reshape(5, 3)
        found[name][numbers[:4]] = np.where(points[:, 2:] < 0, np.nan, points[:, :2]).astype(np.float32)
    return found


def _refuse_second_block(path: Path, listed: dict[str, int], name: str, line: int) -> None:
    """Each block's faces would count as background of the other; `listed` keeps the line of each picture."""
    first = listed.setdefault(posixpath.normpath(name), line)
    if first != line:
        raise DatasetError(f"{path}: {name} is listed twice, in lines {first} and {line}, put its rows into one block")


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows add a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error})") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _numbers(path: Path, line: tuple[int, str], count: int, meaning: str) -> Row:
    try:
        numbers = tuple(float(value) for value in line[1].split())
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise DatasetError(f"{path}, line {line[0]}: should be {count} numbers, {meaning}, got {line[1]!r}")
    return numbers
