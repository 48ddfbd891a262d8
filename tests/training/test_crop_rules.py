"""Crop rules: the parts of an image that each rule takes, and how often."""

import math
from pathlib import Path

import numpy as np
import pytest

from pyface.data.annotations import AnnotatedImage
from pyface.training.crop_rules import RULES, densebox, octaves, s3fd, srn, ssh

HEIGHT, WIDTH, SIZE = 300, 500, 256


def picture(*boxes):
    faces = np.array(boxes, np.float32).reshape(-1, 4)
    return AnnotatedImage(Path("x.jpg"), faces, faces[:0], np.full((len(faces), 5, 2), np.nan, np.float32))


PEOPLE = picture((10, 20, 40, 60), (300, 100, 380, 210), (200, 150, 208, 160))


def draw(rule, of=PEOPLE, count=300):
    rng = np.random.default_rng(1)
    return np.array([rule(rng, of, HEIGHT, WIDTH, SIZE) for _ in range(count)])


@pytest.mark.parametrize("rule", [*RULES.values(), densebox(50.0, (0.8, 1.25))])
@pytest.mark.parametrize("of", [PEOPLE, picture()])
def test_every_crop_shows_some_of_the_image(rule, of):
    left, top, side = draw(rule, of).T
    assert (side > 0).all()
    assert np.isfinite(left + top).all()
    assert ((left < WIDTH) & (top < HEIGHT) & (left + side > 0) & (top + side > 0)).all()


def test_octaves_spread_the_sizes_of_faces():
    large = picture((100, 100, 200, 200))
    left, top, side = draw(octaves, large, 2000).T
    shown = 100 * SIZE / side
    assert shown.min() == pytest.approx(100 * 0.75 * SIZE / WIDTH)  # a crop is at most 4 / 3 of the longer side
    assert shown.max() > 0.6 * SIZE
    assert side.max() <= max(WIDTH / 0.75, 2 * SIZE / 640 * WIDTH) + 1e-6
    holds = (left <= 100) & (left + side >= 200) & (top <= 100) & (top + side >= 200)
    assert holds.mean() > 0.6


def test_s3fd_patches_are_squares_of_the_shorter_side_or_parts_of_it():
    left, top, side = draw(s3fd).T
    assert 0.1 < np.isclose(side, HEIGHT).mean() < 0.3
    assert side.min() >= 0.3 * HEIGHT
    assert side.max() <= HEIGHT
    assert (left >= 0).all()
    assert (left + side <= WIDTH + 1e-6).all()
    assert (top >= 0).all()
    assert (top + side <= HEIGHT + 1e-6).all()


def test_srn_expands_up_to_twice():
    side = draw(srn)[:, 2]
    assert side.min() >= 0.5 * HEIGHT
    assert HEIGHT < side.max() <= 2 * HEIGHT


def test_ssh_has_one_scale():
    side = draw(ssh)[:, 2]
    assert side == pytest.approx(SIZE / min(1200 / HEIGHT, 1600 / WIDTH))


def test_densebox_centres_a_face_of_its_size_in_every_second_sample():
    one = picture((200, 100, 260, 180))
    left, top, side = draw(densebox(50.0, (0.8, 1.25)), one, 1000).T
    shown = 80 * SIZE / side
    x, y = (230 - left) / side * SIZE - SIZE / 2, (140 - top) / side * SIZE - SIZE / 2
    is_centred = (np.abs(x) <= 25) & (np.abs(y) <= 25) & (shown >= 40 - 1e-6) & (shown <= 62.5 + 1e-6)
    assert 0.45 < is_centred.mean() < 0.65
    assert math.isclose(shown[is_centred].max(), 62.5, rel_tol=0.05)
