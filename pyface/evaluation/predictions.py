"""Detections that any program wrote for the images of data folders: COCO results, JSON Lines or CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyface.data.annotations import DatasetError, ImageRecord, size_of
from pyface.data.names import ImageNames
from pyface.detections import Detections
from pyface.evaluation.files import EvaluationError
from pyface.io.results import CSV_COLUMNS, was_read

Rows = NDArray[np.float64]
SIZES, CORNERS = "x y w h score", "x1 y1 x2 y2 score"
_COLUMNS = ("x1", "y1", "x2", "y2", "score")


class _Row(NamedTuple):
    """One detection: the image's name or id, four numbers and the score, and five landmarks or None."""

    where: str
    image: int | float | str
    box: Any
    score: Any
    landmarks: Any


@dataclass
class Predictions:
    """The detections in a file.

    Attributes:
        form: How the file gives boxes: `SIZES` or `CORNERS`.
        rows: float64 [N, 5] for each image: x, y, width, height and score.
        landmarks: float64 [N, 5, 2] for each image; None: not all of its rows have them.
        missing: Images that the file does not name.
        unknown: Names and ids in the file that are not those of an image.
    """

    form: str
    rows: list[Rows]
    landmarks: list[Rows | None]
    missing: list[str]
    unknown: list[str]

    def detections(self, images: Sequence[ImageRecord]) -> list[Detections]:
        """The detections of each image, best score first; only the headers of images are read.

        Raises:
            DatasetError: An image cannot be read.
        """
        with ThreadPoolExecutor() as pool:
            sizes = pool.map(size_of, [image.path for image in images])
        found = []
        for rows, points, (height, width) in zip(self.rows, self.landmarks, sizes, strict=True):
            order = np.argsort(-rows[:, 4], kind="stable")
            corners = torch.from_numpy(_with_corners(rows[order]))
            landmarks = None if points is None else torch.from_numpy(points[order])
            found.append(Detections(corners[:, :4], corners[:, 4], landmarks, width, height))
        return found

    def rows_as_given(self) -> list[Rows]:
        """The rows in the file's form."""
        return self.rows if self.form == SIZES else [_with_corners(rows) for rows in self.rows]


def read_predictions(file: Path, images: Sequence[ImageRecord]) -> Predictions:
    """Reads the detections of images from COCO results (.json), lines of `pyface detect` (.jsonl) or CSV (.csv).

    Args:
        file: The file.
        images: Images of one or several data folders.

    Raises:
        EvaluationError: The file cannot be read, a row is malformed, or a name could be several images.
    """
    readers = {".json": _coco_rows, ".jsonl": _line_rows, ".csv": _csv_rows}
    read = readers.get(file.suffix.lower())
    if read is None:
        raise EvaluationError(f"{file} must end with .json (COCO results), .jsonl or .csv (as by pyface detect)")
    places = _Places(images)
    found: list[list[_Row]] = [[] for _ in images]
    named: set[int] = set()
    unknown: dict[str, None] = {}
    for row in read(file):
        place = places.find(row)
        if place is None:
            unknown[str(row.image)] = None
            continue
        named.add(place)
        if row.box is not None:
            found[place].append(row)
    rows = [_numbers(of) for of in found]
    is_coco = read is _coco_rows
    return Predictions(
        form=SIZES if is_coco else CORNERS,
        rows=rows if is_coco else [_with_sizes(of) for of in rows],
        landmarks=[_landmarks(of) for of in found],
        missing=[image.name for k, image in enumerate(images) if k not in named],
        unknown=list(unknown),
    )


class _Places:
    """Finds the image of a row: by the ids of COCO files if the images have them, else by name."""

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        numbered = [(image.id, k) for k, image in enumerate(images) if image.id is not None]
        self._ids = dict(numbered)
        if len(self._ids) < len(numbered):  # several COCO files use the same ids
            self._ids = {}
        self._names = ImageNames([image.path for image in images], [image.name for image in images])
        self._known: dict[int | float | str, int | None] = {}

    def find(self, row: _Row) -> int | None:
        if row.image not in self._known:
            self._known[row.image] = self._look_up(row)
        return self._known[row.image]

    def _look_up(self, row: _Row) -> int | None:
        if row.image in self._ids or (self._ids and not isinstance(row.image, str)):
            return self._ids.get(row.image)
        try:
            return self._names.find(str(row.image))
        except DatasetError as error:
            raise EvaluationError(f"{row.where}: {error}") from error


def _with_corners(rows: Rows) -> Rows:
    """Rows of corners, from rows of sizes."""
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 4:]], axis=1)


def _with_sizes(rows: Rows) -> Rows:
    """Rows of sizes, from rows of corners."""
    return np.concatenate([rows[:, :2], rows[:, 2:4] - rows[:, :2], rows[:, 4:]], axis=1)


def _numbers(rows: Sequence[_Row]) -> Rows:
    for row in rows:
        values = [*row.box, row.score] if isinstance(row.box, list) else [row.box]
        if len(values) != 5 or not all(map(_is_finite, values)):
            raise EvaluationError(f"{row.where}: the box must be four finite numbers and the score one, got {values!r}")
    return np.array([[*row.box, row.score] for row in rows], np.float64).reshape(-1, 5)


def _landmarks(rows: Sequence[_Row]) -> Rows | None:
    """The landmarks of an image's rows; None unless each row has five points."""
    try:
        points = np.array([row.landmarks for row in rows], np.float64).reshape(len(rows), 5, 2)
    except (TypeError, ValueError):
        return None
    return points if len(rows) and np.isfinite(points).all() else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- formats ---------------------------------------------------------------------------------------------------------


def _coco_rows(file: Path) -> Iterator[_Row]:
    """COCO's results, a list; or a whole COCO file whose annotations have scores. The latter names its images."""
    content = _parse(_text(file), str(file))
    names: dict[Any, str] = {}
    if isinstance(content, dict):
        listed = content.get("images")
        for image in listed if isinstance(listed, list) else []:
            if isinstance(image, dict) and "file_name" in image and isinstance(image.get("id"), int | float | str):
                names[image["id"]] = str(image["file_name"])
                yield _Row(str(file), names[image["id"]], None, None, None)
        content = content.get("annotations")
    if not isinstance(content, list):
        raise EvaluationError(f"{file} must be COCO results, a list of objects with image_id, bbox and score")
    categories = {json.dumps(entry.get("category_id")) for entry in content if isinstance(entry, dict)}
    if len(categories) > 1:
        some = ", ".join(sorted(categories)[:10])
        raise EvaluationError(f"{file} must hold one category, faces, got category_id {some}; leave out the others")
    for number, entry in enumerate(content):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict) or not {"image_id", "bbox", "score"} <= entry.keys():
            raise EvaluationError(f"{where} must have image_id, bbox and score, got {json.dumps(entry)[:200]}")
        if not isinstance(entry["image_id"], int | float | str):
            raise EvaluationError(f"{where}: image_id must be a number or text, got {entry['image_id']!r}")
        image = names.get(entry["image_id"], entry["image_id"])
        keypoints = entry.get("keypoints") or []
        points = [keypoints[k : k + 2] for k in range(0, 15, 3)] if len(keypoints) == 15 else None
        yield _Row(where, image, entry["bbox"], entry["score"], points)


def _line_rows(file: Path) -> Iterator[_Row]:
    """One line per image, as `pyface detect` writes it; images that could not be read are not named."""
    seen: dict[str, int] = {}
    for number, text in enumerate(_text(file).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{file}, line {number}"
        line = _parse(text, where)
        faces = line.get("faces") if isinstance(line, dict) else None
        if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces) or not line.get("source"):
            raise EvaluationError(f"{where} must have source and faces, as pyface detect writes them, got {text[:200]}")
        if not was_read(line):
            continue
        source = str(line["source"])
        if seen.setdefault(source, number) != number:
            raise EvaluationError(f"{where}: an image must have one line, got {source} in line {seen[source]} already")
        yield _Row(where, source, None, None, None)
        for face in faces:
            yield _Row(where, source, face.get("box", []), face.get("score"), face.get("landmarks"))


def _csv_rows(file: Path) -> Iterator[_Row]:
    """One row per face, as `pyface detect` writes it, with columns in any order; images without faces have no box."""
    rows = csv.DictReader(_text(file).splitlines())
    absent = [name for name in ("source", *_COLUMNS) if name not in (rows.fieldnames or [])]
    if absent:
        raise EvaluationError(f"{file} must have the columns source, {', '.join(_COLUMNS)}, got no {absent[0]}")
    for row in rows:
        if not was_read(row):
            continue
        where = f"{file}, line {rows.line_num}"
        *box, score = (_number(row[name]) for name in _COLUMNS)
        yield _Row(where, row["source"], box if any(row[name] for name in _COLUMNS) else None, score, _points(row))


def _points(row: dict[str, str]) -> list[Any]:
    return [_number(row.get(name)) for name in CSV_COLUMNS if name.endswith(("_x", "_y"))]


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{file} must be UTF-8 text, got other bytes at {error.start}") from None
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where} must be JSON, got {text.strip()[:80]!r} ({error})") from None
