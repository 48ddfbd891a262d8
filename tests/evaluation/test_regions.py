"""Overlaps of ellipses and rectangles: cases with known areas, and FDDB's painted masks one by one."""

import cv2
import numpy as np
import pytest

from pyface.evaluation import regions
from pyface.evaluation.regions import box_to_ellipse, ellipses, exact_overlap, pixel_overlap, rectangles

CIRCLE = ellipses([[60, 60, 0.3, 100, 100]])
OVERLAPS = pytest.mark.parametrize(("overlap", "tolerance"), [(exact_overlap, 1e-9), (pixel_overlap, 0.02)])


@OVERLAPS
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (ellipses([[60, 40, 0.7, 100, 90]]), ellipses([[60, 40, 0.7, 100, 90]]), 1),
        (ellipses([[60, 40, 0.7, 100, 90]]), ellipses([[60, 40, 0.7 - np.pi, 100, 90]]), 1),
        (ellipses([[60, 40, 0.7, 100, 90]]), ellipses([[40, 60, 0.7 - np.pi / 2, 100, 90]]), 1),
        (rectangles([[10, 20, 60, 80]]), rectangles([[10, 20, 60, 80]]), 1),
        (CIRCLE, ellipses([[60, 60, 0, 300, 100]]), 0),
        (CIRCLE, rectangles([[170, 0, 60, 200]]), 0),
        (rectangles([[0, 0, 100, 100]]), rectangles([[101, 0, 100, 100]]), 0),
        (CIRCLE, ellipses([[30, 30, 2, 100, 100]]), 0.25),  # concentric: (r / R) ** 2
        (CIRCLE, ellipses([[54, 54, 2, 100, 100]]), 0.81),
        (ellipses([[60, 40, 0, 100, 90]]), rectangles([[40, 50, 120, 80]]), np.pi / 4),  # and the rectangle around it
        (ellipses([[60, 40, np.pi / 2, 100, 90]]), rectangles([[60, 30, 80, 120]]), np.pi / 4),
        (rectangles([[0, 0, 200, 200]]), rectangles([[100, 0, 200, 200]]), 1 / 3),
    ],
)
def test_known_areas(overlap, tolerance, a, b, expected):
    assert overlap(a, b).item() == pytest.approx(expected, abs=tolerance if expected not in (0, 1) else 1e-9)
    assert overlap(b, a).item() == pytest.approx(expected, abs=tolerance if expected not in (0, 1) else 1e-9)


@OVERLAPS
def test_circles_that_cut_each_other(overlap, tolerance):
    distance, radius = 50.0, 60.0
    lens = 2 * radius**2 * np.arccos(distance / 2 / radius) - distance / 2 * np.sqrt(4 * radius**2 - distance**2)
    expected = lens / (2 * np.pi * radius**2 - lens)
    for angle in (0, 0.5, 2):
        other = ellipses([[60, 60, 1, 100 + distance * np.cos(angle), 100 + distance * np.sin(angle)]])
        assert overlap(CIRCLE, other).item() == pytest.approx(expected, abs=max(tolerance, 1e-4))


def test_the_first_radius_lies_along_the_angle():
    long = ellipses([[60, 10, np.pi / 4, 100, 100]])  # towards larger x and larger y
    assert exact_overlap(long, rectangles([[125, 125, 10, 10]])).item() > 0
    assert exact_overlap(long, rectangles([[125, 65, 10, 10]])).item() == 0
    assert pixel_overlap(long, rectangles([[125, 125, 10, 10]])).item() > 0
    assert pixel_overlap(long, rectangles([[125, 65, 10, 10]])).item() == 0
    assert long.bounds()[0] == pytest.approx([56.988, 56.988, 143.012, 143.012], abs=1e-3)


@OVERLAPS
def test_regions_end_at_the_borders(overlap, tolerance):
    quarter = ellipses([[60, 60, 0, 0, 0]])
    square = rectangles([[-60, -60, 120, 120]])
    assert overlap(quarter, square, (300, 300)).item() == pytest.approx(np.pi / 4, abs=tolerance)
    assert overlap(rectangles([[-50, 0, 100, 100]]), rectangles([[0, 0, 50, 100]]), (300, 300)).item() == 1
    assert overlap(rectangles([[-50, 0, 40, 40]]), rectangles([[-50, 0, 40, 40]]), (300, 300)).item() == 0  # outside


@OVERLAPS
def test_nothing_and_regions_of_no_size(overlap, tolerance):
    assert overlap(ellipses([]), CIRCLE).shape == (0, 1)
    assert overlap(CIRCLE, rectangles([]), (10, 10)).shape == (1, 0)
    point = overlap(CIRCLE, rectangles([[100, 100, 0, 0]])).item()
    assert 0 <= point < 1e-3  # a pixel at most
    assert 0 <= overlap(CIRCLE, ellipses([[0, 0, 1, 100, 100]])).item() < 1e-3


def random_regions(random, count=20):
    round_ones = np.concatenate([random.uniform(1, 40, (count, 2)), random.uniform(-4, 4, (count, 1))], 1)
    round_ones = np.concatenate([round_ones, random.uniform(-10, 110, (count, 2))], 1)
    boxes = np.concatenate([random.uniform(-20, 90, (count, 2)), random.uniform(0, 60, (count, 2))], 1)
    return regions.Regions(np.concatenate([ellipses(round_ones).rows, rectangles(boxes).rows]))


def test_pixels_are_those_of_whole_masks():
    """FDDB's program step by step: every region painted into a mask of the image."""
    random = np.random.default_rng(0)
    a, b = random_regions(random), random_regions(random)
    width, height = 100, 80

    def mask(row):
        first, second, _, cx, cy = np.float32(row)
        picture = np.zeros((height, width), np.uint8)
        if np.isnan(cy):
            x, y, w, h = row[:4]
            corners = [tuple(int(np.rint(np.float32(v))) for v in point) for point in ((x, y), (x + w, y + h))]
            cv2.rectangle(picture, *corners, 255, -1)
        else:
            centre, radii = (int(np.rint(cx)), int(np.rint(cy))), (int(first), int(second))
            cv2.ellipse(picture, centre, radii, np.degrees(row[2]), 0, 360, 255, -1)
        return picture > 0

    masks = [[mask(row) for row in of.rows] for of in (a, b)]
    expected = [[(m & n).sum() / max((m | n).sum(), 1) for n in masks[1]] for m in masks[0]]
    np.testing.assert_allclose(pixel_overlap(a, b, (width, height)), expected, atol=1e-12)


def test_the_integral_has_converged(monkeypatch):
    random = np.random.default_rng(1)
    a, b = random_regions(random), random_regions(random)
    nodes, weights = np.polynomial.legendre.leggauss(800)
    for size in (None, (100, 80)):
        coarse = exact_overlap(a, b, size)
        with monkeypatch.context() as patch:
            patch.setattr(regions, "_NODES", nodes)
            patch.setattr(regions, "_WEIGHTS", weights)
            np.testing.assert_allclose(coarse, exact_overlap(a, b, size), atol=2e-4)


def test_pixels_and_shapes_agree_on_large_regions():
    random = np.random.default_rng(2)
    a, b = (regions.Regions(random_regions(random, 8).rows * [[10, 10, of, 10, 10]]) for of in (1, 1))
    a.rows[8:, 2] *= 10
    b.rows[8:, 2] *= 10
    np.testing.assert_allclose(pixel_overlap(a, b), exact_overlap(a, b), atol=0.02)


def test_box_to_ellipse():
    # The mean box gives the mean ellipse, upright.
    mean = box_to_ellipse(rectangles([[156.1395, 78.3978, 84.9308, 116.1129]])).rows[0]
    assert mean == pytest.approx([70.9118, 46.7305, np.pi / 2 - 0.01539, 198.4824, 127.6634])
    # One deviation more in x, by hand: -0.00386 * 37.4232, 0.00169 * 24.517, 0.00772 * 0.13649, 1.05155 * 95.6061, ...
    moved = box_to_ellipse(rectangles([[156.1395 + 100.3134, 78.3978, 84.9308, 116.1129]])).rows[0]
    assert moved - mean == pytest.approx([-0.144454, 0.041434, 0.001054, 100.534595, 0.157671], abs=1e-5)
    # A positive angle turns the other way: z = (0, 0, -1, 1) gives -0.01539 + 0.13649 * (0.31514 + 0.29616).
    turned = box_to_ellipse(rectangles([[156.1395, 78.3978, 84.9308 - 44.3353, 116.1129 + 62.0197]])).rows[0]
    assert turned[2] == pytest.approx(0.068047 - np.pi / 2, abs=1e-5)
    assert (box_to_ellipse(rectangles([[0, 0, 0, 0]])).rows[:, :2] >= 0).all()
    assert box_to_ellipse(CIRCLE).rows.tolist() == CIRCLE.rows.tolist()
