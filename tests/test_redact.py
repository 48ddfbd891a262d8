"""Covered faces: wholly, wherever they lie, and nothing else."""

import numpy as np
import pytest
import torch

from pyface.detections import ARCFACE_LANDMARKS, Detections
from pyface.redact import redact

TEMPLATE = np.array(ARCFACE_LANDMARKS)
HOW = pytest.mark.parametrize("how", ["blur", "pixelate", "box"])


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


def covered(image, faces, how="box", **options):
    """Which pixels were changed [H, W]."""
    return (redact(image, faces, how, **options) != image).any(2)


def detections(*boxes, landmarks=None):
    return Detections(list(boxes), [0.9] * len(boxes), landmarks, 300, 200)


@HOW
def test_a_face_is_covered_wholly_and_nothing_else(noise, how):
    before = noise.copy()
    changed = covered(noise, detections([100, 50, 150, 120]), how)
    assert changed[50:120, 100:150].mean() > 0.98  # a mean may be the pixel's own value
    changed[43:127, 95:155] = False
    assert not changed.any()
    assert (noise == before).all()


@HOW
@pytest.mark.parametrize("side", [1, 3, 8, 20, 60, 150])
def test_nothing_fine_is_left(how, side):
    """Of a face, however small, at most 6 x 6 colours remain, and never more than a sixteenth of its pixels."""
    image = np.tile(np.array([[0, 255], [255, 0]], np.uint8)[..., None], (100, 150, 3))  # a chequerboard
    inside = redact(image, detections([20, 20, 20 + side, 20 + side]), how, margin=0)[20 : 20 + side, 20 : 20 + side]
    assert inside.min() >= (0 if how == "box" else 100 if side > 3 else 0)
    assert inside.max() <= (0 if how == "box" else 155 if side > 3 else 255)
    if how == "pixelate":
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) <= max(1, min(36, side * side // 16))


@HOW
def test_borders_and_overlaps(noise, how):
    faces = detections(
        [-30, -20, 30, 40], [280, 180, 340, 260], [20, 30, 70, 90], [-50, -50, -10, -10], [9, 9, 9.5, 9.2]
    )
    changed = covered(noise, faces, how)
    for y, x in ((slice(0, 40), slice(0, 30)), (slice(180, 200), slice(280, 300)), (slice(30, 90), slice(20, 70))):
        assert changed[y, x].mean() > 0.98
    huge = redact(noise, detections([-1e6, -1e6, 1e6, 1e6]), how)
    assert huge.shape == noise.shape
    assert (huge != noise).any(2).mean() > 0.98
    assert not covered(noise, detections([-50, -50, -10, -10], [30, 30, 30, 30]), "blur", margin=0).any()
    assert not covered(noise, Detections([], [], None, 300, 200)).any()


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 180])
def test_tilted_faces_are_covered_from_hair_to_chin(degrees):
    """The box of a tilted face may be as small as that of its landmarks."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def place(points):
        return (np.asarray(points) - 56) @ rotation.T + [150, 100]

    marks = place(TEMPLATE)
    box = [*(marks.min(0) - 15), *(marks.max(0) + 15)]
    image = np.full((200, 300, 3), 255, np.uint8)
    changed = covered(image, detections(box, landmarks=torch.tensor(marks)[None]))
    for x, y in place([[56, 10], [56, 110], [18, 60], [94, 60]]).round().astype(int):  # hair, chin, both cheeks
        assert changed[y, x]
    assert changed.sum() < 160 * 160


def test_wrong_landmarks_do_not_cover_the_image():
    image = np.full((200, 300, 3), 255, np.uint8)
    marks = torch.tensor([[[0, 0], [290, 0], [150, 100], [0, 190], [290, 190]], [[9, 9]] * 5], dtype=torch.float32)
    changed = covered(image, detections([100, 50, 140, 90], [200, 50, 240, 90], landmarks=marks))
    assert changed[50:90, 100:140].all()
    assert changed[50:90, 200:240].all()
    changed[29:111, 79:161] = changed[29:111, 179:261] = False
    assert not changed.any()


def test_what_is_refused(noise):
    faces = detections([1, 1, 9, 9])
    with pytest.raises(ValueError, match=r"how must be 'blur', 'pixelate' or 'box', got 'emoji'"):
        redact(noise, faces, "emoji")
    with pytest.raises(ValueError, match="margin must be a fraction of the box, 0 or more, got -1"):
        redact(noise, faces, margin=-1)
    with pytest.raises(ValueError, match="got 20 x 20"):
        redact(noise[:20, :20], faces)
