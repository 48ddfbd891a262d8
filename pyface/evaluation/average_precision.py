"""Average precision on data folders, with ignore boxes and by face size.

The detections of all images are processed in score order. Each is compared with the box of highest IoU among its
image's faces and ignore boxes. If that IoU is >= the threshold, the detection is dropped if the box is an ignore box,
and is a hit if it is a face not found before. All others are false positives. Average precision is the area under the
curve's monotone envelope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage
from pyface.evaluation.curves import Curve

SIZES = {
    "<16": (0.0, 16.0),
    "16-32": (16.0, 32.0),
    "32-64": (32.0, 64.0),
    "64-128": (64.0, 128.0),
    ">128": (128.0, math.inf),
}
"""Buckets of face size, the square root of the area in pixels: from (inclusive), to (exclusive)."""

Boxes = NDArray[np.floating]


def precision_recall(
    images: Sequence[AnnotatedImage],
    boxes: Sequence[Boxes],
    scores: Sequence[Boxes],
    iou_threshold: float = 0.5,
    size: tuple[float, float] = (0.0, math.inf),
) -> Curve:
    """Computes the curve of a set of detections, with one threshold per distinct score.

    Args:
        images: The ground truth.
        boxes: Per image [N, 4], (x1, y1, x2, y2) in its pixels.
        scores: Per image [N].
        iou_threshold: A match has an IoU >= this.
        size: Only faces with a size in [from, to) count. Others are ignored, and so are detections of other sizes that
            match nothing.

    Returns:
        The curve; if no face counts, precision and recall are 0.

    Raises:
        ValueError: The numbers of images, boxes and scores differ, or a score is NaN.

    Example:
        >>> from pathlib import Path
        >>> image = AnnotatedImage(Path("a.jpg"), np.array([[0, 0, 9, 9.0]]), np.zeros((0, 4)), np.zeros((1, 5, 2)))
        >>> found = [np.array([[0, 0, 9, 8.0], [20, 20, 30, 30]])], [np.array([0.9, 0.8])]
        >>> precision_recall([image], *found).average_precision
        1.0
    """
    if not len(images) == len(boxes) == len(scores):
        raise ValueError(
            f"there must be boxes and scores for each image, got {len(images)} images, {len(boxes)} boxes and "
            f"{len(scores)} scores"
        )
    all_scores: list[NDArray[np.float64]] = []
    hits: list[NDArray[np.int64]] = []
    faces = 0
    for image, detected, confidence in zip(images, boxes, scores, strict=True):
        confidence = np.asarray(confidence, np.float64).reshape(-1)
        if np.isnan(confidence).any():
            raise ValueError(f"{image.path}: scores must be numbers, got NaN")
        order = np.argsort(-confidence, kind="stable")
        detected = np.asarray(detected, np.float64).reshape(-1, 4)[order]
        outcome, counted = outcomes(image, detected, iou_threshold, size)
        keep = outcome >= 0
        all_scores.append(confidence[order][keep])
        hits.append(outcome[keep])
        faces += counted
    if not images:
        return Curve(*np.zeros((3, 0)))
    return _curve(np.concatenate(all_scores), np.concatenate(hits), faces)


def outcomes(
    image: AnnotatedImage, detected: Boxes, iou_threshold: float, size: tuple[float, float] = (0.0, math.inf)
) -> tuple[NDArray[np.int64], int]:
    """Which detections, in score order, are hits (1), false positives (0) or dropped (-1), and how many faces count."""
    truth = np.concatenate([image.faces, image.ignore]).astype(np.float64)
    counts = np.zeros(len(truth), bool)
    counts[: len(image.faces)] = _in_range(truth[: len(image.faces)], size)
    if not len(truth):
        return np.where(_in_range(detected, size), 0, -1), 0
    overlap = box_iou(detected, truth)
    best = overlap.argmax(1)
    is_matched = overlap[np.arange(len(detected)), best] >= iou_threshold
    outcome = np.where(_in_range(detected, size), 0, -1)
    outcome[is_matched] = np.where(counts[best[is_matched]], 0, -1)
    # The first detection of each face that counts is a hit.
    places = np.flatnonzero(is_matched & counts[best])
    outcome[places[np.unique(best[places], return_index=True)[1]]] = 1
    return outcome, int(counts.sum())


def _in_range(boxes: Boxes, size: tuple[float, float]) -> NDArray[np.bool_]:
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1))
    return (side >= size[0]) & (side < size[1])


def _curve(scores: NDArray[np.float64], hits: NDArray[np.int64], faces: int) -> Curve:
    # Detections of equal scores pass a threshold together, so that the order of images does not matter.
    thresholds = np.unique(scores)[::-1]
    order = np.argsort(-scores, kind="stable")
    counts = np.searchsorted(-scores[order], -thresholds, side="right")
    found = np.concatenate([[0.0], np.cumsum(hits[order])])[counts]
    return Curve(thresholds, found / np.maximum(counts, 1), found / max(faces, 1))


def box_iou(a: Boxes, b: Boxes) -> Boxes:
    """IoU of boxes [A, 4] and [B, 4] (x1, y1, x2, y2): [A, B]; 0 for empty boxes."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inter = sides.clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def best_f1(curve: Curve) -> tuple[float, float]:
    """The threshold (scores are >= it) with the best F1, and that F1; (1, 0) if nothing is found."""
    total = curve.precision + curve.recall
    if not len(total) or total.max() == 0:
        return 1.0, 0.0
    f1 = 2 * curve.precision * curve.recall / np.maximum(total, 1e-12)
    return float(curve.thresholds[f1.argmax()]), float(f1.max())
