"""The views that a network runs on: scales of the papers' multi-scale tests, tiles, and mapping back to the image."""

import math
from dataclasses import replace

import pytest
import torch

from pyface.models.inference import canvas_of, group_views
from pyface.models.views import (
    MULTISCALE,
    S3FD_PIXELS,
    View,
    halvings,
    pyramid,
    s3fd_views,
    scale_for,
    srn_views,
    ssh_views,
    tiles,
    whole,
    whole_faces,
)


def plan(paper, height, width):
    views = MULTISCALE[paper](whole(0, height, width, 1.0))
    assert all(view.region == (0, 0, width, height) for view in views)
    return [(view.scale, view.mirror, view.longer_above, view.shorter_below, view.levels) for view in views]


@pytest.mark.parametrize(
    ("size", "height", "width", "scale"),
    [
        ("native", 100, 200, 1.0),
        (640, 480, 1280, 0.5),
        (640, 320, 160, 2.0),
        ((1200, 1600), 600, 700, 2.0),
        ((1200, 1600), 600, 1600, 1.0),
    ],
)
def test_scale_for(size, height, width, scale):
    assert scale_for(size, height, width) == scale


def test_s3fd_runs_on_an_image_of_usual_size_at_five_scales():
    limit = math.sqrt(S3FD_PIXELS / (768 * 1024))
    assert 2 < limit < 4
    assert plan("s3fd", 768, 1024) == [
        (1.0, False, 0.0, math.inf, None),
        (1.0, True, 0.0, math.inf, None),
        (0.5, False, 29.0, math.inf, None),
        (2.0, False, 0.0, 99.0, None),
        (limit, False, 0.0, 99.0, None),
    ]


def test_s3fd_doubles_small_images_up_to_its_limit():
    scales = [view.scale for view in s3fd_views(whole(0, 400, 300, 1.0))]
    assert scales == [1.0, 1.0, 0.5, 2.0, 4.0, math.sqrt(S3FD_PIXELS / (400 * 300))]


def test_s3fd_reduces_large_images():
    limit = math.sqrt(S3FD_PIXELS / (3000 * 4000))
    assert plan("s3fd", 3000, 4000) == [
        (limit, False, 0.0, math.inf, None),
        (limit, True, 0.0, math.inf, None),
        (limit / 2, False, 29.0, math.inf, None),
        (0.75 * limit, False, 29.0, math.inf, None),
    ]


def test_srn_enlarges_by_one_and_a_half_until_its_limit():
    limit = 1400**2 / (400 * 300)
    steps = [1.5, 2.25, 3.375]
    assert math.floor(math.log(limit, 2.25)) == len(steps)
    scales = [1.0, 1.0, 0.5, *steps, math.sqrt(limit)]
    assert [view.scale for view in srn_views(whole(0, 400, 300, 1.0))] == scales
    assert [row[1] for row in plan("srn", 400, 300)] == [False, True, *[False] * 5]
    assert [row[2:4] for row in plan("srn", 400, 300)[2:4]] == [(30.0, math.inf), (0.0, 100.0)]


def test_srn_reduces_large_images():
    limit = math.sqrt(1400**2 / (3000 * 4000))
    rows = plan("srn", 3000, 4000)
    assert [row[0] for row in rows] == [limit, limit, limit * 0.75, limit * 0.5]
    assert [row[2] for row in rows] == [0.0, 0.0, 30.0, 30.0]


def test_ssh_pyramid_leaves_its_last_module_out_at_the_largest_scale():
    views = ssh_views(whole(0, 600, 800, 1.0))
    assert [view.scale * 600 for view in views] == pytest.approx([500, 800, 1200, 1600])
    assert [view.levels for view in views] == [None, None, None, -1]
    wide = ssh_views(whole(0, 400, 2400, 1.0))
    assert wide[1].scale * 2400 == pytest.approx(1200)


def test_halvings_end_where_the_image_fits():
    assert [view.scale for view in halvings(whole(0, 1000, 4000, 1.0), 1024)] == [1.0, 0.5, 0.25]


def test_a_pyramid_ends_where_no_face_is_too_large():
    view = whole(0, 300, 400, 2.0)
    assert [seen.scale for seen in pyramid(view, 2.0, 100.0)] == [2.0, 1.0, 0.5, 0.25]
    assert [seen.scale for seen in pyramid(view, 2.0, 99.0)] == [2.0, 1.0, 0.5, 0.25, 0.125]
    assert [seen.scale for seen in pyramid(view, 2.0, 100.0, 2)] == [2.0, 1.0]
    assert list(pyramid(view, 2.0, 1000.0)) == [view]
    assert list(pyramid(view, 2.0, 1.0, 1)) == [view]


def test_small_views_of_a_pyramid_share_a_batch():
    views = list(pyramid(whole(0, 480, 640, 1.0), 2.0, 30.0))
    assert [max(view.content) for view in views] == [640, 320, 160, 80, 40, 20]
    assert [len(group) for group in group_views(views)] == [1, 1, 1, 3]
    assert canvas_of(views[-1]) == (96, 96)


@pytest.mark.parametrize(("height", "width", "scale"), [(1000, 4000, 1.0), (777, 1333, 0.61), (90, 90, 8.0)])
@pytest.mark.parametrize("side", [64, 200, 256, 320])
def test_tiles_cover_the_view_and_share_a_quarter(height, width, scale, side):
    parts = list(tiles(whole(0, height, width, scale), side))
    seen = torch.zeros(height, width, dtype=torch.int32)
    for part in parts:
        left, top, right, bottom = part.region
        assert max(part.content) <= side
        for start in (left, top):  # on the cells of the network's maps
            cells = start * scale / (64 if side > 64 else 32)
            assert abs(cells - round(cells)) <= 0.5 * scale / 32
        assert part.cut == (left > 0, top > 0, right < width, bottom < height)
        seen[top:bottom, left:right] += 1
    assert seen.min() > 0
    for part in parts:  # a face in the shared quarter is whole in one of two neighbours
        right = part.region[2]
        if right < width:
            after = min(p.region[0] for p in parts if p.region[0] > part.region[0] and p.region[1] == part.region[1])
            assert right - after >= 0.25 * side / scale - 2


def test_points_come_back_from_a_scaled_mirrored_region():
    view = View(0, (10, 20, 110, 70), 2.0, mirror=True)
    assert view.content == (100, 200)
    points = torch.tensor([[0.0, 0.0], [200.0, 100.0]])
    assert view.to_picture(points).tolist() == [[110.0, 20.0], [10.0, 70.0]]
    picture = torch.arange(80 * 120 * 3).reshape(80, 120, 3).to(torch.uint8)
    assert torch.equal(view.pixels(picture), picture[20:70, 10:110].flip(1))


def keeps(*found):
    """Whether each box of each view, with its score, remains."""
    views, boxes, scores = zip(*found, strict=True)
    boxes = [torch.tensor(of, dtype=torch.float32).reshape(-1, 4) for of in boxes]
    return [kept.tolist() for kept in whole_faces(views, boxes, [torch.tensor(of) for of in scores])]


LEFT = View(0, (0, 0, 100, 100), 1.0, cut=(False, False, True, False))
RIGHT = View(0, (75, 0, 175, 100), 1.0, cut=(True, False, False, False))
COARSE = View(0, (0, 0, 175, 100), 0.5, stand_in=True)
PYRAMID = View(0, (0, 0, 175, 100), 0.5)  # a view of the whole image, as without tiles


def test_a_part_of_a_face_gives_way_to_the_whole():
    part, whole_face = [70.0, 10, 98, 50], [70.0, 10, 110, 50]
    assert keeps((LEFT, [part], [0.99]), (COARSE, [whole_face], [0.3])) == [[False], [True]]
    assert keeps((LEFT, [part], [0.99]), (RIGHT, [[120.0, 10, 160, 50]], [0.9])) == [[True], [True]]  # another face
    assert keeps((LEFT, [part], [0.9]), (RIGHT, [[77.0, 10, 110, 50]], [0.9])) == [[True], [True]]  # whole nowhere
    assert keeps((LEFT, [[20.0, 10, 60, 50], [25.0, 20, 45, 40]], [0.9, 0.8])) == [[True, True]]  # far from the edge


def test_a_finer_view_is_preferred_for_whole_faces():
    fine, coarse = [20.0, 10, 60, 50], [18.0, 8, 60, 52]
    assert keeps((LEFT, [fine], [0.8]), (COARSE, [coarse], [0.95])) == [[True], [False]]
    assert keeps((LEFT, [fine], [0.1]), (COARSE, [coarse], [0.95])) == [[True], [True]]  # suppression decides
    assert keeps((LEFT, [fine], [0.8]), (COARSE, [[30.0, 8, 90, 90]], [0.95])) == [[True], [True]]
    assert keeps((LEFT, [], []), (COARSE, [], [])) == [[], []]
    assert keeps((LEFT, [fine], [0.8]), (PYRAMID, [coarse], [0.95])) == [[True], [True]]  # suppression, or they vote


def test_the_tile_that_shows_a_face_deepest_decides():
    face, shifted = [78.0, 10, 88, 20], [78.0, 10, 89, 21]  # 12 px from the left tile's edge, 3 px from the right one's
    assert keeps((LEFT, [face], [0.6]), (RIGHT, [shifted], [0.9])) == [[True], [False]]
    assert keeps((LEFT, [face], [0.4]), (RIGHT, [shifted], [0.9])) == [[True], [False]]
    assert keeps((LEFT, [], []), (RIGHT, [shifted], [0.9])) == [[], [False]]  # there is no face
    middle = [82.0, 10, 92, 20]  # 8 px and 7 px from the edges: too close to call
    assert keeps((LEFT, [], []), (RIGHT, [middle], [0.9])) == [[], [True]]
    assert keeps((LEFT, [middle], [0.6]), (RIGHT, [middle], [0.9])) == [[True], [False]]
    assert keeps((LEFT, [face], [0.6]), (replace(RIGHT, mirror=True), [shifted], [0.9])) == [[True], [True]]


def test_a_box_near_a_cut_edge_needs_the_next_stand_in():
    torso = [40.0, 53, 90, 100]
    below = View(0, (0, 50, 100, 150), 1.0, cut=(False, True, False, False))
    assert keeps((below, [torso], [0.8]), (COARSE, [], [])) == [[False], []]
    assert keeps((below, [torso], [0.8]), (PYRAMID, [], [])) == [[True], []]
    assert keeps((below, [torso], [0.8]), (replace(COARSE, scale=0.25), [], [])) == [[True], []]  # too small there


def test_which_boxes_count():
    boxes = torch.tensor([[10.0, 10, 40, 20], [10, 10, 200, 210], [0, 50, 20, 70], [80, 50, 99, 70]])
    small = View(0, (0, 0, 300, 300), 1.0, shorter_below=99.0)
    large = View(0, (0, 0, 300, 300), 1.0, longer_above=29.0)
    assert small.counts(boxes).tolist() == [True, False, True, True]
    assert large.counts(boxes).tolist() == [True, True, False, False]
    tile = View(0, (0, 0, 100, 100), 1.0, cut=(False, False, True, True))
    assert tile.counts(boxes[[0, 2, 3]]).tolist() == [True, True, False]
