"""COCO's average precision and recall (cocodataset.org/#detection-eval), computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyface.data.annotations import ImageRecord
from pyface.detections import Detections

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Mean over IoU thresholds from 0.5 to 0.95, or at 0.5 or 0.75; by area, small (up to 32 x 32), medium, large (from
96 x 96); recall with at most 1, 10 or 100 detections per image. All others allow 100."""


def coco_figures(images: Sequence[ImageRecord], rows: Sequence[NDArray[np.float64]]) -> dict[str, float | None]:
    """Computes COCO's twelve figures, as pycocotools prints them.

    Ignore boxes are COCO's crowds: any number of detections may match one, and none of these counts.

    Args:
        images: The ground truth.
        rows: The detections of each image [N, 5]: x, y, width and height in pixels, and the score.

    Returns:
        The figures by name, as in `FIGURES`; None if there are no faces to count.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError('COCO\'s figures need faster-coco-eval: pip install "pyface-engine[evaluation]"') from error
    found = [
        {"image_id": k, "category_id": 1, "bbox": row[:4], "score": row[4]}
        for k, of in enumerate(rows)
        for row in of.tolist()
    ]
    truth = COCO(_dataset(images))
    evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.run()
    stats = evaluation.stats[: len(FIGURES)]
    return {name: None if value < 0 else float(value) for name, value in zip(FIGURES, stats, strict=True)}


def rows_of(found: Detections) -> NDArray[np.float64]:
    """The rows of an image's detections, as `coco_figures` takes them."""
    columns = torch.cat([found.boxes, found.scores[:, None]], dim=1).double().numpy()
    columns[:, 2:4] -= columns[:, :2]
    return np.asarray(columns)


def _dataset(images: Sequence[ImageRecord]) -> dict[str, Any]:
    boxes = [(k, box) for k, image in enumerate(images) for box in image.boxes]
    annotations = [
        {
            "id": number,
            "image_id": k,
            "category_id": 1,
            "bbox": list(box.xywh),
            "area": box.xywh[2] * box.xywh[3] if box.area is None else box.area,
            "iscrowd": int(box.ignore),
        }
        for number, (k, box) in enumerate(boxes, 1)
    ]
    named = [{"id": k} for k in range(len(images))]
    return {"images": named, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]}
