"""Our average precision beside that of other packages, on cases where the protocols coincide.

COCO's protocol differs from ours in two ways. A detection whose best face is found already may take its second best one
there, which makes no difference where faces do not overlap. And the area is sampled at 101 recalls: asked for the
recalls k / F of F faces instead, its mean is the area under the envelope, when all scores differ.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyface.data.annotations import AnnotatedImage
from pyface.evaluation.average_precision import SIZES, precision_recall


def make_case(seed, pictures=12):
    """Faces of 8 to 180 px, one in each cell of a grid, with good, bad and false detections of distinct scores."""
    random = np.random.default_rng(seed)
    truth, boxes = [], []
    for k in range(pictures):
        cells = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)
        cells = cells[random.permutation(len(cells))[: random.integers(0, 9)]] * 250.0
        sides = np.exp(random.uniform(np.log(8), np.log(180), (len(cells), 1))) * random.uniform(
            0.8, 1.2, (len(cells), 2)
        )
        faces = np.concatenate([cells, cells + sides], 1).astype(np.float32)
        points = np.full((len(faces), 5, 2), np.nan, np.float32)
        truth.append(AnnotatedImage(Path(f"{k}.jpg"), faces, np.zeros((0, 4), np.float32), points))
        scale = np.tile(sides, 2)
        near = faces + random.normal(0, 0.12, faces.shape) * scale
        false = random.uniform(0, 600, (5, 2))
        boxes.append(np.concatenate([near, false_boxes(random, false)]))
    count = sum(map(len, boxes))
    scores = np.split(random.permutation(count) / count, np.cumsum([len(of) for of in boxes])[:-1])
    return truth, boxes, scores


def false_boxes(random, corners):
    return np.concatenate([corners, corners + random.uniform(5, 150, corners.shape)], 1)


def double(truth, boxes, scores, seed):
    """Adds second detections of the same faces."""
    random = np.random.default_rng(seed)
    more = [of.faces[: len(of.faces) // 2] + random.normal(0, 0.5, (len(of.faces) // 2, 4)) for of in truth]
    boxes = [np.concatenate(pair) for pair in zip(boxes, more, strict=True)]
    count = sum(map(len, boxes))
    return boxes, np.split(random.permutation(count) / count, np.cumsum([len(of) for of in boxes])[:-1])


def coco(truth, boxes, scores, iou_threshold, size=(0, np.inf)):
    """AP over 101 recalls and over all recalls, and the last recall, by faster-coco-eval."""
    import faster_coco_eval as package

    images = [{"id": k, "width": 1000, "height": 1000, "file_name": str(k)} for k in range(len(truth))]
    annotations = []
    for k, of in enumerate(truth):
        for x1, y1, x2, y2 in of.faces.astype(float).tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            area = box[2] * box[3]
            entry = {
                "id": len(annotations) + 1,
                "image_id": k,
                "category_id": 1,
                "bbox": box,
                "area": area,
                "iscrowd": 0,
            }
            annotations.append(entry)
    found = [
        {"image_id": k, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for k in range(len(truth))
        for (x1, y1, x2, y2), score in zip(boxes[k].tolist(), scores[k].tolist(), strict=True)
    ]
    dataset = package.COCO({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]})
    counted = sum(size[0] ** 2 <= of["area"] < size[1] ** 2 for of in annotations)
    results = []
    for recalls in (np.linspace(0, 1, 101), np.arange(1, counted + 1) / counted):
        evaluation = package.COCOeval_faster(dataset, dataset.loadRes(found), "bbox", print_function=lambda *_: None)
        evaluation.params.iouThrs = np.array([iou_threshold])
        evaluation.params.recThrs = recalls
        evaluation.params.maxDets = [1000]
        evaluation.params.areaRng = [[size[0] ** 2, min(size[1], 1e5) ** 2]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        results.append(float(evaluation.eval["precision"].mean()))
    return *results, float(evaluation.eval["recall"].item())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou_threshold", [0.4, 0.5, 0.75])
def test_faster_coco_eval(seed, iou_threshold):
    truth, boxes, scores = make_case(seed)
    boxes, scores = double(truth, boxes, scores, seed)
    at_101, at_all, recall = coco(truth, boxes, scores, iou_threshold)
    curve = precision_recall(truth, boxes, scores, iou_threshold)
    assert 0.05 < curve.average_precision < 0.95
    assert curve.average_precision == pytest.approx(at_all, abs=1e-9)
    assert curve.recall[-1] == pytest.approx(recall)
    # A falling curve's mean at 0, 0.01, ..., 1 is within one step of the area under it.
    assert abs(curve.average_precision - at_101) < 0.011


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_faster_coco_eval_by_size(seed, size):
    truth, boxes, scores = make_case(seed, pictures=40)
    _, expected, recall = coco(truth, boxes, scores, 0.5, SIZES[size])
    curve = precision_recall(truth, boxes, scores, 0.5, SIZES[size])
    assert curve.average_precision == pytest.approx(expected, abs=1e-9)
    assert curve.recall[-1] == pytest.approx(recall)


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics(seed):
    # Not every version of torch has a torchvision, which torchmetrics needs for boxes.
    pytest.importorskip("torchvision", reason="torchvision is not installed: torchmetrics is not compared")
    detection = pytest.importorskip("torchmetrics.detection", reason="torchmetrics is not installed: not compared")
    truth, boxes, scores = make_case(seed)
    faces = sum(len(of.faces) for of in truth)
    metric = detection.MeanAveragePrecision(
        iou_thresholds=[0.5],
        rec_thresholds=(np.arange(1, faces + 1) / faces).tolist(),
        max_detection_thresholds=[1, 10, 1000],
        backend="faster_coco_eval",
    )
    metric.update(
        [
            {"boxes": torch.tensor(b), "scores": torch.tensor(s), "labels": torch.zeros(len(s), dtype=torch.long)}
            for b, s in zip(boxes, scores, strict=True)
        ],
        [
            {"boxes": torch.tensor(of.faces).double(), "labels": torch.zeros(len(of.faces), dtype=torch.long)}
            for of in truth
        ],
    )
    expected = metric.compute()
    curve = precision_recall(truth, boxes, scores, 0.5)
    assert curve.average_precision == pytest.approx(float(expected["map"]), abs=1e-6)
    assert curve.recall[-1] == pytest.approx(float(expected["mar_1000"]), abs=1e-6)
