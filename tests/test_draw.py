"""Drawn results: on the right pixels, on images of any size."""

import numpy as np
import pytest
import torch

from pyface.detections import Detections
from pyface.draw import draw


def faces(box, width, height, landmarks=None):
    return Detections([box], [0.987], landmarks, width, height)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 5), (40, 40), (640, 480), (4000, 3000), (5000, 20)])
def test_any_size(width, height):
    image = np.full((height, width, 3), 90, np.uint8)
    box = [width * 0.3, height * 0.3, width * 0.7, height * 0.7]
    drawn = draw(image, faces(box, width, height, torch.full((1, 5, 2), height / 2)))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != 90).any()
    assert (image == 90).all()  # a copy


def test_lines_lie_on_the_box_and_points_on_the_landmarks():
    image = np.zeros((300, 400, 3), np.uint8)
    landmarks = torch.tensor([[[120, 120], [160, 120], [140, 150], [125, 170], [155, 170]]])
    drawn = draw(image, faces([100, 80, 180, 200], 400, 300, landmarks)).astype(int)
    for x, y in ((100, 140), (180, 140), (140, 200)):
        assert drawn[y, x, 1] > 150
    for x, y in landmarks[0].tolist():
        assert drawn[y, x].min() < drawn[y, x].max()
    assert drawn[140, 110].sum() == 0  # inside the box, nothing else
    assert drawn[250:, :].sum() == 0


def test_no_faces_is_a_copy():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    drawn = draw(image, Detections([], [], None, 30, 20))
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


def test_faces_beyond_the_image():
    image = np.zeros((50, 60, 3), np.uint8)
    for box in ([-1e9, -1e9, 1e9, 1e9], [-40, -40, -20, -20], [55, 45, 90, 90], [30, 30, 20, 20]):
        draw(image, faces(box, 60, 50, torch.full((1, 5, 2), -1e9)))


def test_another_image_is_refused():
    with pytest.raises(ValueError, match="got 60 x 50"):
        draw(np.zeros((50, 60, 3), np.uint8), faces([1, 1, 9, 9], 61, 50))


def test_tracks_have_colours_of_their_own():
    image = np.zeros((300, 400, 3), np.uint8)
    two = Detections([[50, 80, 120, 200], [200, 80, 300, 200]], [0.9, 0.8], None, 400, 300)
    tracked = draw(image, two, ids=[1, 2])
    assert tracked[150, 50].tolist() != tracked[150, 200].tolist()
    np.testing.assert_array_equal(draw(image, two, ids=[None, None]), draw(image, two))
    with pytest.raises(ValueError, match="ids must be one per face, got 1 for 2 faces"):
        draw(image, two, ids=[1])


def test_a_score_below_1_is_not_labelled_1():
    image = np.zeros((300, 400, 3), np.uint8)
    nearly, lower, certain = (
        draw(image, Detections([[100, 80, 180, 200]], [score], None, 400, 300)) for score in (0.9996, 0.99, 1)
    )
    np.testing.assert_array_equal(nearly, lower)
    assert (nearly != certain).any()
