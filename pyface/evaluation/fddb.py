"""The FDDB protocol, as implemented in its authors' C++ program (docs/detectors.md 6.2).

At every score, detections and faces are matched one to one so that the sum of IoUs is largest. The discrete score
counts matches with an IoU > 0.5; the continuous score sums the IoUs of all matches. Both are divided by the number of
faces. For both, detections without a match in the discrete score are false positives.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import DatasetError, size_of
from pyface.evaluation.curves import columns_of
from pyface.evaluation.detecting import Report, Track, detect_files
from pyface.evaluation.files import EvaluationError, text_files
from pyface.evaluation.regions import Regions, Size, box_to_ellipse, ellipses, pixel_overlap
from pyface.io.sources import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from pyface.detections import Detections
    from pyface.detector import FaceDetector

FALSE_POSITIVES = (100, 500, 1000, 2000)
"""Numbers of false positives at which papers report the curves."""

IMAGES = 2845
"""Number of images in all ten folds."""

_LARGEST = 1e4  # pixels; the longest side of FDDB's images is 450

Overlap = Callable[[Regions, Regions, Size | None], NDArray[np.float64]]


class Truth(NamedTuple):
    """The ground truth: faces by image ("2002/08/11/big/img_591"), and the images of each fold."""

    faces: dict[str, Regions]
    folds: list[list[str]]


class Detected(NamedTuple):
    """The detections of one image: N regions, and their scores, float64 [N]."""

    regions: Regions
    scores: NDArray[np.float64]


class Roc(NamedTuple):
    """The curves of true positive rates, from the highest score to the lowest.

    Attributes:
        thresholds: float64 [N]; detections with a score >= this count.
        discrete, continuous: float64 [N], true positive rates.
        false_positives: int64 [N].
    """

    thresholds: NDArray[np.float64]
    discrete: NDArray[np.float64]
    continuous: NDArray[np.float64]
    false_positives: NDArray[np.int64]

    def at(self, false_positives: float) -> tuple[float, float]:
        """The best discrete and continuous rates with at most `false_positives` false positives; 0 if there are none.

        Example:
            >>> Roc(np.array([0.9, 0.5]), np.array([0.5, 1.0]), np.array([0.4, 0.8]), np.array([0, 3])).at(2)
            (0.5, 0.4)
        """
        allowed = self.false_positives <= false_positives
        return float(self.discrete[allowed].max(initial=0)), float(self.continuous[allowed].max(initial=0))


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
        roc: The curves over all folds.
        faces: Number of faces.
        missing: Images without a block of detections; they count as images without detections.
        unknown: Images with detections but without annotations; these detections are ignored.
    """

    roc: Roc
    faces: int
    missing: list[str]
    unknown: list[str]

    def rates(self) -> dict[int, tuple[float, float]]:
        """The discrete and the continuous rate at each of `FALSE_POSITIVES`."""
        return {number: self.roc.at(number) for number in FALSE_POSITIVES}

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        rates = {str(n): {"discrete": discrete, "continuous": rest} for n, (discrete, rest) in self.rates().items()}
        return {
            "faces": self.faces,
            "true_positive_rate": rates,
            "roc": columns_of(self.roc),
            "missing": self.missing,
        }


def evaluate(
    detected: Mapping[str, Detected],
    truth: Truth,
    sizes: Mapping[str, Size] | None = None,
    overlap: Overlap = pixel_overlap,
) -> Result:
    """Scores detections.

    Args:
        detected: Detections by image, in any order.
        truth: The annotations.
        sizes: Sizes of the images. The authors' program clips regions to the image; in images without a size they are
            not clipped.
        overlap: `pixel_overlap` as in the authors' program, or `exact_overlap`.

    Raises:
        EvaluationError: There are no faces, or none of the images has detections.
        ImportError: scipy is not installed.
    """
    faces = sum(len(regions.rows) for regions in truth.faces.values())
    if not faces:
        raise EvaluationError("the annotations hold no faces, so there is nothing to score")
    steps = []
    for key, regions in truth.faces.items():
        if key in detected and len(detected[key].scores):
            found = detected[key]
            steps.append(gains(overlap(regions, found.regions, (sizes or {}).get(key)), found.scores))
    if not steps:
        raise EvaluationError("there are no detections in the annotated images, so there is nothing to score")
    return Result(
        _sum(np.concatenate(steps, axis=1), faces),
        faces,
        [key for key in truth.faces if key not in detected],
        [key for key in detected if key not in truth.faces],
    )


def gains(overlap: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The increments at each score of an image, float64 [4, N]: score, hits, sum of IoUs, false positives.

    Args:
        overlap: IoU of faces and detections, [F, D].
        scores: [D].

    Example:
        >>> gains(np.array([[0.8, 0.6]]), np.array([0.5, 0.9])).round(6).tolist()  # the second is better
        [[0.9, 0.5], [1.0, 0.0], [0.6, 0.2], [0.0, 1.0]]
    """
    assign = load_solver()
    order = np.argsort(-scores, kind="stable")
    scores, overlap = scores[order], overlap[:, order]
    overlap = overlap[overlap.max(axis=1, initial=0) > 0]  # the authors' program also drops faces that overlap nothing
    meets_face = overlap.max(axis=0, initial=0) > 0
    ends = np.append(np.flatnonzero(np.diff(scores)) + 1, len(scores))  # detections of equal scores count together
    totals = np.zeros((3, len(ends) + 1))
    start = 0
    for k, end in enumerate(ends.tolist(), 1):
        totals[:2, k] = totals[:2, k - 1]
        if meets_face[start:end].any():  # otherwise the matches stay as they are
            reached = overlap[:, :end][:, meets_face[:end]]
            matched = reached[assign(reached, maximize=True)]
            totals[:2, k] = (matched > 0.5).sum(), matched.sum()
        totals[2, k] = end - totals[0, k]
        start = end
    return np.stack([scores[ends - 1], *np.diff(totals)])


def load_solver() -> Callable[..., Any]:
    """Imports scipy's linear_sum_assignment.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("FDDB's matching needs scipy: pip install scipy") from error
    return linear_sum_assignment


def _sum(steps: NDArray[np.float64], faces: int) -> Roc:
    scores, *columns = steps[:, np.argsort(-steps[0], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits, overlaps, false = (np.cumsum(column)[ends] for column in columns)
    return Roc(scores[ends], hits / faces, overlaps / faces, np.rint(false).astype(np.int64))


# --- files -----------------------------------------------------------------------------------------------------------


def read_annotations(source: Path) -> Truth:
    """Reads the ellipse lists of a folder, FDDB-fold-XX-ellipseList.txt, or one such file.

    For every image, a list holds its name, the number of faces, and rows of `major minor angle cx cy 1`.

    Raises:
        EvaluationError: There are no lists, a row is malformed (the message names file and line), or an image occurs
            twice.
    """
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*.txt") if _is_annotation(path.name))
    else:
        paths = [source] if source.is_file() else []
    if not paths:
        raise EvaluationError(f"{source} must hold FDDB's ellipse lists, FDDB-fold-XX-ellipseList.txt, got none")
    faces: dict[str, Regions] = {}
    folds: list[list[str]] = []
    places: dict[str, str] = {}
    for path in paths:
        ((name, text),) = text_files(path, path.suffix)
        folds.append([])
        for line, key, rows in _blocks(text, name, {6: "an ellipse: major minor angle cx cy 1"}):
            if key in faces:
                raise EvaluationError(
                    f"{name}, line {line}: {key} must be annotated once, got it twice, first in "
                    f"{places[key]}; remove one of the two"
                )
            places[key] = f"{name}, line {line}"
            faces[key] = ellipses([row[:5] for row in rows])
            folds[-1].append(key)
    return Truth(faces, folds)


def read_detections(source: Path, *, fit_ellipses: bool = False) -> dict[str, Detected]:
    """Reads detections from one text file, or from a folder or tar archive of several, such as one per fold.

    For every image, a file holds its name, the number of detections, and one row per detection: `x y w h score` for a
    rectangle, `major minor angle cx cy score` for an ellipse. Any order, blank lines and Windows line endings are
    accepted.

    Args:
        source: The file, folder or archive.
        fit_ellipses: Convert rectangles to ellipses, see `box_to_ellipse`.

    Raises:
        EvaluationError: There are no files, a row is malformed (the message names file and line), or an image occurs
            twice.
    """
    meanings = {5: "a rectangle: x y w h score", 6: "an ellipse: major minor angle cx cy score"}
    detected: dict[str, Detected] = {}
    places: dict[str, str] = {}
    for name, text in text_files(source):
        if _is_annotation(name) and source.is_dir():
            continue
        for line, key, rows in _blocks(text, name, meanings):
            if key in detected:
                raise EvaluationError(
                    f"{name}, line {line}: detections of {key} must be given once, got others in {places[key]}"
                )
            places[key] = f"{name}, line {line}"
            regions = ellipses([[*row[:4], math.nan] if len(row) == 5 else row[:5] for row in rows])
            scores = np.array([row[-1] for row in rows], np.float64)
            detected[key] = Detected(box_to_ellipse(regions) if fit_ellipses else regions, scores)
    if not detected:
        raise EvaluationError(f"{source} must hold detections, text files in FDDB's format, got none")
    return detected


def _is_annotation(name: str) -> bool:
    return "ellipselist" in Path(name).name.lower()


def _blocks(text: str, name: str, meanings: dict[int, str]) -> Iterator[tuple[int, str, list[list[float]]]]:
    """Yields line, image and rows of each block.

    `meanings` maps the allowed numbers of values in a row to their descriptions, for messages.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    k = 0
    while k < len(lines):
        number, key = lines[k]
        if len(key.split()) in meanings and _numbers(key) is not None:
            raise EvaluationError(
                f"{name}, line {number} must be the name of an image, got {key!r}; check the number of rows before it"
            )
        if k + 1 == len(lines) or not re.fullmatch("[0-9]{1,9}", lines[k + 1][1]):
            place, got = (number + 1, "the end") if k + 1 == len(lines) else (lines[k + 1][0], repr(lines[k + 1][1]))
            raise EvaluationError(f"{name}, line {place} must be the number of rows of {key}, got {got}")
        count = int(lines[k + 1][1])
        rows = lines[k + 2 : k + 2 + count]
        if len(rows) < count:
            raise EvaluationError(f"{name}, line {number}: {key} must have {count} rows, got fewer")
        yield number, _key(key), [_row(line, f"{name}, line {at}", meanings) for at, line in rows]
        k += 2 + count


def _key(name: str) -> str:
    """An image's name as in the lists; some detection files add a suffix."""
    key = name.replace("\\", "/")
    return key[: key.rfind(".")] if key.lower().endswith(IMAGE_SUFFIXES) else key


def _row(line: str, place: str, meanings: dict[int, str]) -> list[float]:
    row = _numbers(line)
    if row is None or len(row) not in meanings or not all(map(math.isfinite, row)):
        raise EvaluationError(f"{place} must be finite numbers, {' or '.join(meanings.values())}, got {line!r}")
    is_box = len(row) == 5
    if max(map(abs, row[:5])) > _LARGEST or min(row[2:4] if is_box else row[:2]) < 0:
        sides = "width and height" if is_box else "radii"
        raise EvaluationError(f"{place}: {sides} must be at least 0 and nothing above {_LARGEST:g}, got {line!r}")
    return row


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(value) for value in line.split()]
    except ValueError:
        return None


def find_images(folder: Path, keys: Iterable[str]) -> dict[str, Path]:
    """Finds the image files, such as folder/2002/08/11/big/img_591.jpg; missing ones are left out.

    Raises:
        EvaluationError: All files are missing.
    """
    found = {}
    for key in keys:
        path = next((path for suffix in IMAGE_SUFFIXES if os.path.isfile(path := folder / f"{key}{suffix}")), None)
        if path is not None:
            found[key] = path
    if not found:
        raise EvaluationError(f"{folder} must hold FDDB's images, year/month/day/big/img_N.jpg, got none")
    return found


def rows_and_faces(
    detected: Mapping[str, Detected], truth: Truth
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yields, for `explain_low`, the rectangles (x, y, w, h, score) of each annotated image, and its faces' boxes."""
    for key, (regions, scores) in detected.items():
        if key in truth.faces:
            rows = np.column_stack([regions.rows[:, :4], scores])[~regions.is_ellipse]
            yield rows, truth.faces[key].bounds()


def bundled_sizes() -> dict[str, Size]:
    """Width and height of each of FDDB's images, for clipping regions when the images are not available.

    Example:
        >>> sizes = bundled_sizes()
        >>> len(sizes) == IMAGES, sizes["2002/08/11/big/img_591"]
        (True, (450, 431))
    """
    sizes = {}
    for line in (files("pyface") / "assets" / "fddb_sizes.txt").read_text(encoding="utf-8").splitlines()[1:]:
        day, *images = line.split()
        for image in images:
            number, size = image.split(":")
            width, height = size.split("x")
            sizes[f"{day}/big/img_{number}"] = int(width), int(height)
    return sizes


def image_sizes(paths: Mapping[str, Path], report: Report) -> dict[str, Size]:
    """Reads width and height of images; those that cannot be read are reported and left out."""
    sizes = {}
    for key, path in paths.items():
        try:
            height, width = size_of(path)
        except DatasetError as error:
            report(error)
        else:
            sizes[key] = width, height
    return sizes


def predict(
    detector: FaceDetector, paths: Mapping[str, Path], truth: Truth, folder: Path, report: Report, track: Track
) -> None:
    """Runs a detector and writes a file of detections for every fold; images that are missing are left out.

    Args:
        detector: A detector with a low score threshold; otherwise the curve ends early.
        paths: The files of the images, by name.
        truth: Names the images of each fold.
        folder: The folder of the files.
        report: Called with the reason for each image that cannot be read.
        track: Wraps the iterator of a fold's results.
    """
    for number, fold in enumerate(truth.folds, 1):
        keys = {paths[key]: key for key in fold if key in paths}
        label = f"Fold {number} of {len(truth.folds)}"
        found = detect_files(detector, list(keys), report, track, label)
        write_detections(folder / f"fold-{number:02d}-out.txt", {keys[path]: _rows(faces) for path, faces in found})


def _rows(found: Detections) -> list[tuple[float, ...]]:
    x1, y1, x2, y2 = found.boxes.unbind(1)
    columns = [x1, y1, x2 - x1, y2 - y1, found.scores]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def write_detections(path: Path, rows: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Writes a file of detections, for example of one fold.

    Args:
        path: The file.
        rows: By image, rows (x, y, w, h, score).
    """
    lines = []
    for key, found in rows.items():
        lines += [key, str(len(found))]
        lines += [f"{x:.2f} {y:.2f} {w:.2f} {h:.2f} {score:.6g}" for x, y, w, h, score in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
