"""Average precision on hand-made cases whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from pyface.data.annotations import AnnotatedImage
from pyface.evaluation.average_precision import SIZES, best_f1, box_iou, precision_recall


def picture(faces, ignore=()):
    faces = np.array(faces, np.float32).reshape(-1, 4)
    points = np.full((len(faces), 5, 2), np.nan, np.float32)
    return AnnotatedImage(Path("a.jpg"), faces, np.array(ignore, np.float32).reshape(-1, 4), points)


FACES = [[0, 0, 20, 20], [100, 0, 140, 40]]


def ap(pictures, *detections, **options):
    """detections: per image rows (x1, y1, x2, y2, score)."""
    rows = [np.array(of, float).reshape(-1, 5) for of in detections]
    return precision_recall(pictures, [r[:, :4] for r in rows], [r[:, 4] for r in rows], **options).average_precision


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 0, 20, 20, 0.9], [100, 0, 140, 40, 0.8]], 1.0),
        ([[100, 0, 140, 40, 0.8], [0, 0, 20, 20, 0.9]], 1.0),
        ([[0, 0, 20, 20, 0.9], [60, 60, 80, 80, 0.8]], 0.5),
        ([[60, 60, 80, 80, 0.9], [0, 0, 20, 20, 0.8]], 0.25),
        ([[0, 0, 20, 20, 0.9], [1, 0, 20, 20, 0.8], [100, 0, 140, 40, 0.7]], 0.5 + 0.5 * 2 / 3),
        ([[0, 0, 20, 20, 0.9], [60, 60, 80, 80, 0.9], [100, 0, 140, 40, 0.9]], 2 / 3),  # equal scores pass together
        ([], 0.0),
    ],
)
def test_hand_made_cases(rows, expected):
    assert ap([picture(FACES)], rows) == pytest.approx(expected)


def test_ignore_boxes_count_neither_way():
    truth = picture(FACES[:1], [[50, 50, 90, 90]])
    rows = [[50, 50, 90, 90, 0.9], [51, 50, 90, 90, 0.9], [0, 0, 20, 20, 0.5]]
    assert ap([truth], rows) == 1.0
    assert ap([truth], [[50, 50, 70, 70, 0.9], [0, 0, 20, 20, 0.5]]) == 0.5  # IoU 0.25 is no match


def test_iou_threshold_is_inclusive():
    rows = [[0, 0, 20, 10, 0.9]]
    assert ap([picture(FACES[:1])], rows, iou_threshold=0.5) == 1.0
    assert ap([picture(FACES[:1])], rows, iou_threshold=0.51) == 0.0


def test_images_are_ranked_together():
    pictures = [picture(FACES[:1]), picture([]), picture(FACES[:1])]
    rows = [[[0, 0, 20, 20, 0.5]], [[0, 0, 9, 9, 0.7]], [[0, 0, 20, 20, 0.9]]]
    assert ap(pictures, *rows) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_sizes():
    rows = [[0, 0, 20, 20, 0.9], [300, 300, 320, 320, 0.95], [60, 60, 100, 100, 0.8], [100, 0, 140, 40, 0.7]]
    assert ap([picture(FACES)], rows, size=SIZES["16-32"]) == 0.5  # only the miss of that size counts
    assert ap([picture(FACES)], rows, size=SIZES["32-64"]) == 0.5
    assert ap([picture(FACES)], rows, size=SIZES["<16"]) == 0.0


def test_wrong_input():
    with pytest.raises(ValueError, match="got 1 images, 0 boxes and 0 scores"):
        precision_recall([picture(FACES)], [], [])
    with pytest.raises(ValueError, match=r"a.jpg: scores must be numbers, got NaN"):
        ap([picture(FACES)], [[0, 0, 20, 20, np.nan]])
    assert precision_recall([], [], []).average_precision == 0.0


def test_box_iou():
    assert box_iou(np.array([[0, 0, 2, 2.0], [5, 5, 5, 5]]), np.array([[1, 0, 3, 2.0], [5, 5, 5, 5]])).tolist() == [
        [pytest.approx(1 / 3), 0],
        [0, 0],
    ]


def test_best_f1():
    rows = np.array([[0, 0, 20, 20, 0.9], [100, 0, 140, 40, 0.6], [60, 60, 80, 80, 0.5], [60, 60, 80, 80, 0.4]])
    curve = precision_recall([picture(FACES)], [rows[:, :4]], [rows[:, 4]])
    assert best_f1(curve) == (0.6, 1.0)
    assert best_f1(precision_recall([picture(FACES)], [np.zeros((0, 4))], [np.zeros(0)])) == (1.0, 0.0)
