"""Average precision over a folder of annotated photos: the one figure that tests and benchmarks check a model by.

Protocol: predictions of all images in score order; each takes the box of highest IoU among its image's faces and
ignore boxes; IoU >= threshold with an ignore box drops it, with a face not found before is a hit, anything else a
miss. The figure is the area under the precision-recall curve's monotone envelope.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FACES_VAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "faces" / "val"


class Picture(NamedTuple):
    """path; faces [F, 4] and ignore [I, 4], float64 (x1, y1, x2, y2) in pixels."""

    path: Path
    faces: np.ndarray
    ignore: np.ndarray


def read_pictures(folder: Path) -> list[Picture]:
    """Reads `annotations.json` (boxes x, y, w, h) of a folder with `images/`."""

    def corners(boxes: list[list[float]]) -> np.ndarray:
        x, y, w, h = np.asarray(boxes, np.float64).reshape(-1, 4).T
        return np.stack([x, y, x + w, y + h], 1)

    rows = json.loads((folder / "annotations.json").read_text())["images"]
    return [Picture(folder / "images" / r["file"], corners(r["faces"]), corners(r["ignore"])) for r in rows]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[A, 4] x [B, 4] -> [A, B]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inter = sides.clip(0).prod(2)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - inter)


def average_precision(
    pictures: Sequence[Picture], boxes: Sequence[np.ndarray], scores: Sequence[np.ndarray], iou: float
) -> float:
    """AP at one IoU threshold, in [0, 1].

    Args:
        pictures: The truth.
        boxes: Per picture [N, 4], (x1, y1, x2, y2) in its pixels.
        scores: Per picture [N].
        iou: A match has an IoU >= this.
    """
    order = sorted(((-s, k, i) for k, part in enumerate(scores) for i, s in enumerate(part.tolist())))
    truth = [np.concatenate([p.faces, p.ignore]) for p in pictures]
    overlaps = [box_iou(np.asarray(b, np.float64).reshape(-1, 4), t) for b, t in zip(boxes, truth, strict=True)]
    found: set[tuple[int, int]] = set()
    hits = []
    for _, k, i in order:
        row = overlaps[k][i]
        best = int(row.argmax()) if len(row) else -1
        matched = best >= 0 and row[best] >= iou
        if matched and best >= len(pictures[k].faces):
            continue
        hits.append(matched and (k, best) not in found)
        if matched:
            found.add((k, best))
    hit = np.cumsum(hits)
    recall = hit / sum(len(p.faces) for p in pictures)
    precision = np.maximum.accumulate((hit / np.arange(1, len(hit) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
