"""The landmark error of `pyface evaluate faces`, on faces whose errors are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyface.data.annotations import AnnotatedImage
from pyface.detections import Detections
from pyface.evaluation.faces import landmark_error, score

BOX = np.array([[10, 20, 50, 60]], np.float32)  # 40 x 40
POINTS = np.array([[[20, 30], [40, 30], [30, 40], [22, 50], [38, 50]]], np.float32)


def picture(box=BOX, points=POINTS):
    return AnnotatedImage(Path("x.jpg"), box, np.zeros((0, 4), np.float32), points)


def found(boxes, scores, points):
    landmarks = None if points is None else torch.as_tensor(np.stack(points))
    return Detections(boxes, scores, landmarks, 100, 100)


def test_landmark_error_is_a_share_of_the_face():
    off = POINTS[0] + np.array([3, 4])  # by five pixels of forty
    assert landmark_error([picture()], [found([[10, 20, 50, 60]], [0.9], [off])], 0.5, 0.5) == pytest.approx(5 / 40)


def test_the_best_detection_of_a_face_counts():
    boxes = [[12, 20, 50, 60], [10, 20, 50, 60], [60, 60, 90, 90]]
    points = [POINTS[0], POINTS[0] + 9, POINTS[0] + 50]
    assert landmark_error([picture()], [found(boxes, [0.9, 0.8, 0.95], points)], 0.5, 0.5) == pytest.approx(0)
    assert landmark_error([picture()], [found(boxes, [0.4, 0.8, 0.95], points)], 0.5, 0.5) > 0.2


@pytest.mark.parametrize(
    ("truth", "detections"),
    [
        (picture(), found([[10, 20, 50, 60]], [0.9], None)),
        (picture(), found([[60, 60, 90, 90]], [0.9], [POINTS[0]])),
        (picture(), found([[10, 20, 50, 60]], [0.3], [POINTS[0]])),
        (picture(points=np.full((1, 5, 2), np.nan, np.float32)), found([[10, 20, 50, 60]], [0.9], [POINTS[0]])),
        (picture(BOX[:0], POINTS[:0]), found([[10, 20, 50, 60]], [0.9], [POINTS[0]])),
    ],
)
def test_nothing_to_compare(truth, detections):
    assert landmark_error([truth], [detections], 0.5, 0.5) is None


def test_a_report_has_it_at_the_best_threshold():
    report = score([picture()], [found([[10, 20, 50, 60]], [0.5], [POINTS[0] + np.array([0, 4])])], (0.5,))
    assert report.landmark_error == pytest.approx(0.1)
    assert report.score_threshold == pytest.approx(0.499)
