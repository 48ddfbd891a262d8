"""Evaluation of a detector on data folders: average precision, speed, and the images with the most mistakes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage, DatasetError
from pyface.detections import Detections
from pyface.evaluation.average_precision import SIZES, best_f1, box_iou, outcomes, precision_recall
from pyface.evaluation.curves import Curve

if TYPE_CHECKING:
    from pyface.detector import FaceDetector


WORST = 20  # largest number of images that `save_worst` saves
_MISSED, _FALSE, _IGNORED = (255, 220, 0), (230, 40, 40), (128, 128, 128)


@dataclass(frozen=True)
class Report:
    """The results of a detector on a set of images.

    Attributes:
        pictures, faces: Number of images and of faces.
        average_precision: Average precision by IoU threshold.
        by_size: For each bucket of `SIZES`, the number of faces, and average precision by IoU threshold.
        best_threshold, best_f1: The score threshold with the best F1 at the first IoU threshold, and that F1.
        pictures_per_second: Images per second, including decoding; None if not measured.
        landmark_error: Mean distance of the five points from the truth, as a share of the square root of the face's
            area. It covers faces with known landmarks that are found at `best_threshold`; None if there are none, or
            the detector has no landmarks.
    """

    pictures: int
    faces: int
    average_precision: dict[float, float]
    by_size: dict[str, dict[str, Any]]
    best_threshold: float
    best_f1: float
    pictures_per_second: float | None
    landmark_error: float | None = None

    @property
    def score_threshold(self) -> float:
        """A threshold for detectors, which keep scores > this: just below `best_threshold`, to three decimals."""
        return max(0, math.ceil((self.best_threshold - 1e-6) * 1000) - 1) / 1000

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def detect_all(detector: FaceDetector, images: Sequence[AnnotatedImage]) -> Iterator[Detections]:
    """Yields the faces of every image, in order.

    Raises:
        DatasetError: An image cannot be read.
    """
    for outcome in detector.stream([image.path for image in images]):
        if outcome.detections is None:
            raise DatasetError(f"{outcome.error}; all images must be readable to be evaluated")
        yield outcome.detections


def evaluate(
    detector: FaceDetector,
    images: Sequence[AnnotatedImage],
    iou_thresholds: Sequence[float] = (0.5, 0.4),
    *,
    track: Callable[[Iterator[Detections]], Iterable[Detections]] = iter,
) -> tuple[Report, list[Detections]]:
    """Runs a detector on images and scores it.

    Args:
        detector: A detector with a low score threshold; otherwise the curve ends early.
        images: Images from `read_folder`, of one folder or several.
        iou_thresholds: A match has an IoU >= these.
        track: Wraps the iterator of results, for example in a progress bar.

    Returns:
        The report, and the detections of every image.

    Raises:
        ValueError: There are no images.
        DatasetError: An image cannot be read.
    """
    if not images:
        raise ValueError("there are no images to evaluate on")
    for _ in detect_all(detector, images[:1]):  # warm up: memory, threads and CUDA
        pass
    start = time.perf_counter()
    found = list(track(detect_all(detector, images)))
    seconds = time.perf_counter() - start
    return score(images, found, iou_thresholds, len(images) / seconds), found


def score(
    images: Sequence[AnnotatedImage],
    found: Sequence[Detections],
    iou_thresholds: Sequence[float],
    pictures_per_second: float | None = None,
) -> Report:
    """Scores existing detections."""
    boxes, scores = [of.boxes.numpy() for of in found], [of.scores.numpy() for of in found]

    def by_iou(size: tuple[float, float]) -> dict[float, float]:
        return {iou: precision_recall(images, boxes, scores, iou, size).average_precision for iou in iou_thresholds}

    sides = np.concatenate([np.sqrt((p.faces[:, 2:] - p.faces[:, :2]).prod(1)) for p in images])
    threshold, f1 = best_f1(precision_recall(images, boxes, scores, iou_thresholds[0]))
    return Report(
        pictures=len(images),
        faces=len(sides),
        average_precision=by_iou((0.0, float("inf"))),
        by_size={
            name: {"faces": int(((sides >= low) & (sides < high)).sum()), "average_precision": by_iou((low, high))}
            for name, (low, high) in SIZES.items()
        },
        best_threshold=threshold,
        best_f1=f1,
        pictures_per_second=pictures_per_second,
        landmark_error=landmark_error(images, found, threshold, iou_thresholds[0]),
    )


def curves(
    images: Sequence[AnnotatedImage], found: Sequence[Detections], iou_thresholds: Sequence[float]
) -> dict[str, Curve]:
    """The precision-recall curve at each IoU threshold, by a name for plots."""
    boxes, scores = [of.boxes.numpy() for of in found], [of.scores.numpy() for of in found]
    return {f"IoU {iou:g}": precision_recall(images, boxes, scores, iou) for iou in iou_thresholds}


def landmark_error(
    images: Sequence[AnnotatedImage], found: Sequence[Detections], threshold: float, iou_threshold: float
) -> float | None:
    """Computes `Report.landmark_error`; a face's detection is the best-scoring one with an IoU >= the threshold."""
    errors = []
    for image, of in zip(images, found, strict=True):
        of = of[of.scores >= threshold]
        if of.landmarks is None or len(of) == 0 or len(image.faces) == 0:
            continue
        is_hit = box_iou(of.boxes.numpy(), image.faces) >= iou_threshold
        known = np.isfinite(image.landmarks).all((1, 2)) & is_hit.any(0)
        points = of.landmarks.numpy()[is_hit.argmax(0)[known]]  # detections are sorted, the best first
        distance = np.linalg.norm(points - image.landmarks[known], axis=2).mean(1)
        faces = image.faces[known]
        errors.append(distance / np.sqrt((faces[:, 2:] - faces[:, :2]).prod(1)))
    together = np.concatenate(errors) if errors else np.zeros(0)
    return float(together.mean()) if len(together) else None


def mistakes(
    image: AnnotatedImage, found: Detections, threshold: float, iou_threshold: float = 0.5
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Finds the missed faces of an image, and the false detections among those with a score >= threshold.

    Returns:
        Two bool arrays: one entry per face of the image, and one per detection. A second detection of a face is a
        mistake. A detection of an ignore box, or one below the threshold, is not.
    """
    is_false = found.scores.numpy() >= threshold
    boxes = found.boxes.numpy().astype(np.float64)[is_false]
    outcome, _ = outcomes(image, boxes, iou_threshold)
    is_false[is_false] = outcome == 0
    is_missed = np.ones(len(image.faces), bool)
    if (outcome == 1).any():
        is_missed[box_iou(boxes[outcome == 1], image.faces.astype(np.float64)).argmax(1)] = False
    return is_missed, is_false


def save_worst(
    folder: Path,
    images: Sequence[AnnotatedImage],
    found: Sequence[Detections],
    threshold: float,
    iou_threshold: float = 0.5,
) -> tuple[list[Path], int]:
    """Saves the `WORST` images with the most mistakes: missed faces yellow, false red, found green, ignored grey.

    Detections count if their score is >= threshold, and match if their IoU is >= iou_threshold. Files of earlier calls
    in the folder are deleted.

    Returns:
        The files, worst first, and the number of images with mistakes.
    """
    import cv2

    from pyface.draw import draw, frame
    from pyface.io.images import read_image

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9]_*_mistakes_*.jpg"):
        old.unlink()
    wrong = [mistakes(image, of, threshold, iou_threshold) for image, of in zip(images, found, strict=True)]
    counts = [int(is_missed.sum() + is_false.sum()) for is_missed, is_false in wrong]
    order = sorted((k for k, count in enumerate(counts) if count), key=lambda k: -counts[k])
    paths = []
    for rank, k in enumerate(order[:WORST]):
        is_missed, is_false = wrong[k]
        is_right = (found[k].scores.numpy() >= threshold) & ~is_false
        canvas = draw(read_image(images[k].path), found[k][torch.from_numpy(is_right)])
        canvas = draw(canvas, found[k][torch.from_numpy(is_false)], colour=_FALSE)
        for boxes, colour in ((images[k].ignore, _IGNORED), (images[k].faces[is_missed], _MISSED)):
            for box in boxes.tolist():
                frame(canvas, box, colour)
        path = folder / f"{rank:02d}_{counts[k]}_mistakes_{images[k].path.stem}.jpg"
        path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))[1].tobytes())
        paths.append(path)
    return paths, len(order)
