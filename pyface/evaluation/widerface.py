"""The WIDER FACE protocol, as implemented in its authors' MATLAB code (docs/detectors.md 6.1)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyface.evaluation.curves import Curve, columns_of
from pyface.evaluation.detecting import Report, Track, detect_files
from pyface.evaluation.files import EvaluationError, text_files
from pyface.io.sources import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from pyface.detector import FaceDetector

SUBSETS = ("easy", "medium", "hard")
THRESHOLDS = 1 - np.arange(1, 1001) / 1000

ImageKey = tuple[str, str]
"""Event and image without its suffix: ("0--Parade", "0_Parade_marchingband_1_465")."""


class Image(NamedTuple):
    """One image's ground truth: boxes float64 [G, 4] (x, y, w, h), and per subset which of them count, bool [G]."""

    boxes: NDArray[np.float64]
    counted: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        curves: The curve of each subset.
        missing: Images without a prediction file; they count as images without detections.
        unknown: Images with a prediction file but without ground truth; their predictions are ignored.
    """

    curves: dict[str, Curve]
    missing: list[ImageKey]
    unknown: list[ImageKey]

    def average_precision(self) -> dict[str, float]:
        """Average precision per subset."""
        return {name: curve.average_precision for name, curve in self.curves.items()}

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        curves = {name: columns_of(curve) for name, curve in self.curves.items()}
        return {"average_precision": self.average_precision(), "curves": curves}


def evaluate(
    predictions: Mapping[ImageKey, NDArray[np.float64]], truth: Mapping[ImageKey, Image], iou_threshold: float = 0.5
) -> Result:
    """Scores predictions.

    Args:
        predictions: Per image float64 [N, 5]: x, y, w, h, score, in any order.
        truth: The ground truth per image.
        iou_threshold: A prediction is a match if its best IoU (+1 in widths, as in the authors' code) is >= this.

    Raises:
        EvaluationError: There are no predictions at all.
    """
    found = {key: rows for key, rows in predictions.items() if key in truth}
    scores = np.concatenate([rows[:, 4] for rows in predictions.values()]) if predictions else np.zeros(0)
    if not len(scores):
        raise EvaluationError("there are no predictions, so there is nothing to score")
    low, span = scores.min(), np.ptp(scores)
    columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SUBSETS}
    for key, rows in found.items():
        if not len(rows) or not len(truth[key].boxes):
            continue
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        # If all scores are equal, they cannot be normalised: all predictions count from the first threshold on.
        normal = (rows[:, 4] - low) / span if span > 0 else np.ones(len(rows))
        best, is_matched = best_boxes(rows[:, :4], truth[key].boxes, iou_threshold)
        for name in SUBSETS:
            columns[name].append(np.stack([normal, *outcomes(best, is_matched, truth[key].counted[name])]))
    faces = {name: sum(int(image.counted[name].sum()) for image in truth.values()) for name in SUBSETS}
    return Result(
        {name: curve_of(columns[name], faces[name]) for name in SUBSETS},
        [key for key in truth if key not in predictions],
        [key for key in predictions if key not in truth],
    )


def best_boxes(
    rows: NDArray[np.float64], boxes: NDArray[np.float64], iou_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Finds each prediction's box of highest IoU (ties: the first), and whether that IoU is >= the threshold."""
    sides = np.minimum(rows[:, None, :2] + rows[:, None, 2:], boxes[None, :, :2] + boxes[None, :, 2:])
    sides = sides - np.maximum(rows[:, None, :2], boxes[None, :, :2]) + 1
    inter = np.where((sides > 0).all(2), sides.prod(2), 0.0)
    areas = (rows[:, 2:] + 1).prod(1)[:, None] + (boxes[:, 2:] + 1).prod(1)[None]
    union = areas - inter
    overlap = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)  # empty boxes overlap nothing
    best = overlap.argmax(1)
    return best, overlap[np.arange(len(rows)), best] >= iou_threshold


def outcomes(
    best: NDArray[np.int64], is_matched: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which predictions, in score order, are proposals, and which of these are the first to find a face."""
    hits = is_matched & counted[best]
    first = np.zeros(len(best), dtype=bool)
    first[np.unique(np.where(hits, best, -1), return_index=True)[1]] = True
    return ~(is_matched & ~counted[best]), first & hits


def curve_of(columns: list[NDArray[np.float64]], faces: int) -> Curve:
    """Sums proposals and found faces over all images, for each threshold."""
    scores, proposals, finds = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0))
    order = np.argsort(-scores, kind="stable")
    counts = np.searchsorted(-scores[order], -THRESHOLDS, side="right")  # score >= threshold
    proposed, found = (np.concatenate([[0.0], np.cumsum(of[order])])[counts] for of in (proposals, finds))
    return Curve(THRESHOLDS, found / np.maximum(proposed, 1), found / max(faces, 1))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_ground_truth(folder: Path) -> dict[ImageKey, Image]:
    """Reads the official wider_face_val.mat and wider_{easy,medium,hard}_val.mat.

    Raises:
        EvaluationError: A file is missing or malformed.
        ImportError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("WIDER FACE's ground truth needs scipy: pip install scipy") from error
    names = {"all": "wider_face_val.mat"} | {name: f"wider_{name}_val.mat" for name in SUBSETS}
    files = {}
    for name, file in names.items():
        if not (folder / file).is_file():
            raise EvaluationError(f"{folder} must hold {', '.join(names.values())}, got no {file}")
        try:
            files[name] = loadmat(folder / file)
        except Exception as error:  # damaged files raise all kinds of errors
            raise EvaluationError(f"{folder / file} cannot be read as a MATLAB file: {error}") from error
    try:
        return dict(_images(files))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{folder}: {', '.join(names.values())} must be the files of WIDER FACE's evaluation tools, got "
            f"others ({error})"
        ) from error


def _images(files: Mapping[str, Any]) -> Iterator[tuple[ImageKey, Image]]:
    for e, event in enumerate(files["all"]["event_list"][:, 0]):
        images = files["all"]["file_list"][e, 0][:, 0]
        for k, image in enumerate(images):
            boxes = files["all"]["face_bbx_list"][e, 0][k, 0].astype(np.float64).reshape(-1, 4)
            counted = {}
            for name in SUBSETS:
                counted[name] = np.zeros(len(boxes), dtype=bool)
                counted[name][files[name]["gt_list"][e, 0][k, 0].ravel().astype(np.int64) - 1] = True
            yield (str(event[0]), str(image[0])), Image(boxes, counted)


def read_predictions(source: Path) -> dict[ImageKey, NDArray[np.float64]]:
    """Reads text files in the official format, event/image.txt, from a folder or a tar archive.

    A file holds the image's name, the number of detections, and rows of `x y w h score`. Blank lines, Windows line
    endings and any order are accepted.

    Raises:
        EvaluationError: A row is malformed or not finite (the message names file and line), there are no files, or two
            files are for the same image.
    """
    predictions: dict[ImageKey, NDArray[np.float64]] = {}
    places: dict[ImageKey, str] = {}
    for name, text in text_files(source):
        path = Path(name)
        key = path.parent.name, path.stem
        if key in predictions:
            raise EvaluationError(
                f"{name}: predictions of {'/'.join(key)} must be given once, got others in {places[key]}"
            )
        places[key] = name
        predictions[key] = parse_predictions(text, name)
    if not predictions:
        raise EvaluationError(f"{source} holds no prediction files, event/image.txt")
    return predictions


def parse_predictions(text: str, name: str) -> NDArray[np.float64]:
    """Parses the rows of one file, float64 [N, 5]; `name` is for messages."""
    lines = text.splitlines()
    rows = [row.split() for row in lines[2:] if row.strip()]
    table = None
    if all(len(row) == 5 for row in rows):
        with contextlib.suppress(ValueError):
            table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    if table is None or not np.isfinite(table).all():
        _refuse_row(lines, name)
    if len(lines) < 2 or lines[1].split() != [str(len(rows))]:
        got = repr(lines[1]) if len(lines) > 1 else "nothing"
        raise EvaluationError(f"{name}, line 2 must be the number of rows, {len(rows)}, got {got}")
    return table


def _refuse_row(lines: list[str], name: str) -> NoReturn:
    """Raises an error that names the first malformed line."""
    for number, line in enumerate(lines[2:], 3):
        try:
            is_row = len(line.split()) == 5 and all(math.isfinite(float(value)) for value in line.split())
        except ValueError:
            is_row = False
        if line.strip() and not is_row:
            raise EvaluationError(f"{name}, line {number} must be five finite numbers x y w h score, got {line!r}")
    raise AssertionError("a table that could not be read has a malformed line")


def rows_and_faces(
    predictions: Mapping[ImageKey, NDArray[np.float64]], truth: Mapping[ImageKey, Image]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yields, for `explain_low`, the predictions of each image of the ground truth, and its faces as corners."""
    for key, rows in predictions.items():
        if key in truth:
            boxes = truth[key].boxes
            yield rows, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def find_images(folder: Path, truth: Iterable[ImageKey]) -> list[Path]:
    """The images below a folder, event/image.jpg; those that are not in the ground truth are included.

    Raises:
        EvaluationError: None of them is in the ground truth, or two would share one prediction file.
    """
    paths: dict[ImageKey, Path] = {}
    for path in sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES):
        key = path.parent.name, path.stem
        if key in paths:
            raise EvaluationError(f"{path} and {paths[key]} would share one prediction file; give the folder of events")
        paths[key] = path
    if not paths.keys() & set(truth):
        raise EvaluationError(f"{folder} must hold the ground truth's images, event/image.jpg, got none")
    return list(paths.values())


def predict(detector: FaceDetector, paths: Sequence[Path], folder: Path, report: Report, track: Track) -> None:
    """Runs a detector and writes a prediction file for every image; one that cannot be read gets none.

    Args:
        detector: A detector with a low score threshold; otherwise the curve ends early.
        paths: The images, event/image.jpg.
        folder: The folder of all predictions.
        report: Called with the reason for each image that cannot be read.
        track: Wraps the iterator of results.
    """
    for path, found in detect_files(detector, paths, report, track):
        write_predictions(folder, (path.parent.name, path.stem), found.boxes.tolist(), found.scores.tolist())


def write_predictions(folder: Path, key: ImageKey, boxes: Iterable[Iterable[float]], scores: Iterable[float]) -> None:
    """Writes one text file in the official format, best score first.

    Args:
        folder: The folder of all predictions; the event's folder is created inside.
        key: Event and image.
        boxes: (x1, y1, x2, y2) in continuous pixels.
        scores: One per box.
    """
    rows = sorted(zip(scores, boxes, strict=True), key=lambda row: -row[0])
    lines = [f"{x1:.2f} {y1:.2f} {x2 - x1:.2f} {y2 - y1:.2f} {score:.6g}" for score, (x1, y1, x2, y2) in rows]
    path = folder / key[0] / f"{key[1]}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([key[1], str(len(lines)), *lines]) + "\n", encoding="utf-8")
