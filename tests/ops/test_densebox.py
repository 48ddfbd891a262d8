"""decode_densebox and densebox_targets: kernels against the reference, round trips, hostile input."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BAD = (math.nan, math.inf, -math.inf, 3e38, -3e38)


def random_maps(size=(40, 56), batch=2, share=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 0.2 * torch.randn(batch, 1, *size, generator=generator)
    scores += (torch.rand(scores.shape, generator=generator) < share).float()
    corners = torch.tensor([0.5, 0.5, -0.5, -0.5])[None, :, None, None]
    return scores, corners + 0.2 * torch.randn(batch, 4, *size, generator=generator)


def make_hostile(tensor, seed=0):
    """Coarse values with many ties, and a few that are not finite or overflow when decoded."""
    which = torch.randint(0, 300, tensor.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(which < len(BAD), torch.tensor(BAD)[which.clamp(max=len(BAD) - 1)], (tensor * 4).round() / 4)


def assert_same(got, expected):
    assert torch.equal(got.count, expected.count)
    assert torch.equal(got.index, expected.index)
    assert torch.equal(got.scores, expected.scores)
    torch.testing.assert_close(got.boxes, expected.boxes, rtol=1e-6, atol=1e-4)
    for value, other in zip(got, expected, strict=True):
        assert (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)


def check(scores, offsets, **options):
    """Compares the kernel with the reference, and returns the kernel's result."""
    got = ops.decode_densebox(scores, offsets, **options)
    assert_same(got, reference.decode_densebox(scores, offsets, **options))
    return got


# --- decode_densebox -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [False, True], ids=["random", "hostile"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_equals_reference(dtype, hostile, device):
    sizes = torch.tensor([[160.0, 224.0], [90.5, 130.0]], device=device)
    for seed, options in enumerate(
        [
            {"score_threshold": 0.5, "max_candidates": 10_000},
            {"score_threshold": 0.0, "max_candidates": 150, "sizes": sizes},
            {"score_threshold": 0.3, "max_candidates": 300, "sizes": sizes.double(), "min_side": 9.0},
            {"score_threshold": 0.9, "max_candidates": 500, "stride": 8, "unit": 3.3},
        ]
    ):
        maps = random_maps(seed=seed)
        maps = [make_hostile(x, seed) for x in maps] if hostile else maps
        found = check(*(x.to(device, dtype) for x in maps), **options)
        assert found.count.min() > 20


def test_maps_of_any_strides(device):
    options = {"score_threshold": 0.5, "max_candidates": 400}
    scores, offsets = (x.to(device) for x in random_maps())
    expected = ops.decode_densebox(scores, offsets, **options)
    together = torch.cat([offsets, scores, offsets], 1).contiguous(memory_format=torch.channels_last)
    layouts = [
        (together[:, 4:5], together[:, 5:]),
        (scores, together[:, :4]),
        tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (scores, offsets)),
        tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (scores, offsets)),
    ]
    wide = torch.full((2, 7, 42, 113), math.nan, device=device)
    gaps = wide[:, 1:6, 1:-1, 1::2].copy_(torch.cat([scores, offsets], 1))
    for layout in [*layouts, (gaps[:, :1], gaps[:, 1:])]:
        for value, same in zip(ops.decode_densebox(*layout, **options), expected, strict=True):
            assert torch.equal(value, same)
    check(scores[:1].expand(3, -1, -1, -1), offsets[:1].expand(3, -1, -1, -1), **options)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 257), (257, 1), (3, 65), pytest.param((130, 129), marks=pytest.mark.large)]
)
def test_any_map_size(size, device):
    check(*(x.to(device) for x in random_maps(size)), score_threshold=0.1, max_candidates=10**6)


def test_decode_formula(device):
    scores, offsets = torch.zeros(1, 1, 5, 7, device=device), torch.zeros(1, 4, 5, 7, device=device)
    scores[0, 0, 3, 2] = 7.0  # a regression may give more than 1
    offsets[0, :, 3, 2] = torch.tensor([0.1, 0.2, -0.3, -0.4])
    found = check(scores, offsets, score_threshold=0.5, max_candidates=3)
    expected = [10 - 0.1 * 50, 14 - 0.2 * 50, 10 + 0.3 * 50, 14 + 0.4 * 50]
    assert found.boxes[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.scores.tolist() == [[1.0, 0.0, 0.0]]
    assert found.index.tolist() == [[3 * 7 + 2, -1, -1]]
    assert found.landmarks.shape == (1, 3, 0, 2)


def row_of(scores, device):
    """A map of one row in which every box has an area."""
    scores = torch.tensor(scores, device=device).reshape(1, 1, 1, -1)
    offsets = torch.tensor([0.5, 0.5, -0.5, -0.5], device=device)[:, None, None].expand(1, 4, 1, scores.shape[3])
    return scores, offsets


def test_threshold_is_strict_and_compared_as_double(device):
    for threshold in (0.0, 0.05, 0.3, 0.7, 1.0):
        nearest = torch.tensor(threshold, dtype=torch.float64).float()
        around = [nearest.nextafter(torch.tensor(-math.inf)), nearest, nearest.nextafter(torch.tensor(math.inf))]
        found = check(*row_of([float(x) for x in around], device), score_threshold=threshold, max_candidates=3)
        passing = [k for k, x in enumerate(around) if float(x) > threshold]
        assert sorted(found.index[0, : found.count[0]].tolist()) == passing


def test_order_is_of_raw_scores_then_of_the_index(device):
    scores = [1.5, 0.9, 2.5, 1.5, math.inf, math.nan, 0.9, -0.0, 0.0]
    found = check(*row_of(scores, device), score_threshold=0.0, max_candidates=9)
    assert found.index.tolist() == [[2, 0, 3, 1, 6, -1, -1, -1, -1]]
    assert found.scores[0, :5].tolist() == pytest.approx([1, 1, 1, 0.9, 0.9])


def test_boxes_are_clipped_and_small_ones_dropped(device):
    sizes = torch.tensor([[20.0, 9.0]], device=device)
    maps = row_of([0.9, 0.8, 0.7], device)
    found = check(*maps, score_threshold=0.5, max_candidates=3, sizes=sizes)
    assert found.boxes.tolist() == [[[0, 0, 9, 20], [0, 0, 9, 20], [0, 0, 9, 20]]]
    assert check(*maps, score_threshold=0.5, max_candidates=3, sizes=sizes, min_side=9.0).count == 3
    above = math.nextafter(9.0, 10.0)
    assert check(*maps, score_threshold=0.5, max_candidates=3, sizes=sizes, min_side=above).count == 0
    assert check(maps[0], -maps[1], score_threshold=0.5, max_candidates=3).count == 0


def test_empty_maps(device):
    for batch, size in ((0, (4, 4)), (2, (0, 4)), (2, (4, 0))):
        found = check(*(x.to(device) for x in random_maps(size, batch)), score_threshold=0.1, max_candidates=5)
        assert found.boxes.shape == (batch, 5 if all(size) else 0, 4)
    assert check(*(x.to(device) for x in random_maps()), score_threshold=0.1, max_candidates=0).count.tolist() == [0, 0]


def test_no_gradient_flows_through_decoding(device):
    scores, offsets = (x.to(device).requires_grad_() for x in random_maps())
    found = ops.decode_densebox(scores, offsets, score_threshold=0.5, max_candidates=5)
    assert not any(value.requires_grad for value in found)


def test_threads_do_not_change_the_result():
    maps, before, results = random_maps((170, 161), 3), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.decode_densebox(*maps, score_threshold=0.5, max_candidates=900))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- densebox_targets ------------------------------------------------------------------------------------------------


def random_faces(count, extent=240.0, sides=(20.0, 100.0), seed=0, points=5):
    """Boxes [G, 4] and landmarks [G, N, 2], a fifth of them unknown."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    centre, height = extent * uniform(count, 2), sides[0] + (sides[1] - sides[0]) * uniform(count, 1)
    half = torch.cat([height * (0.6 + 0.6 * uniform(count, 1)), height], 1) / 2
    landmarks = centre[:, None] + half[:, None] * (2 * uniform(count, points, 2) - 1)
    landmarks[uniform(count, points) < 0.2] = math.nan
    return torch.cat([centre - half, centre + half], 1), landmarks


def check_targets(boxes, splits, size, **options):
    got = ops.densebox_targets(boxes, splits, size, **options)
    expected = reference.densebox_targets(boxes, splits, size, **options)
    for value, other in zip(got, expected, strict=True):
        assert (value.dtype, value.device) == (other.dtype, other.device)
        assert torch.equal(value, other)
    return got


def one(*boxes, device="cpu", size=(60, 60), **options):
    """The maps of one image with these boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32, device=device).reshape(-1, 4)
    options = {k: torch.tensor(v, device=device) if isinstance(v, list) else v for k, v in options.items()}
    return check_targets(boxes, torch.tensor([0, len(boxes)], device=device), size, **options)


@pytest.mark.parametrize("seed", range(4))
def test_targets_equal_reference(seed, device):
    boxes, landmarks = (x.to(device) for x in random_faces(40, seed=seed))
    splits = torch.tensor([0, 7, 7, 20, 40], device=device)
    ignore = torch.arange(40, device=device) % 7 == 3
    check_targets(boxes, splits, (60, 57))
    maps = check_targets(boxes, splits, (60, 60), ignore=ignore, landmarks=landmarks)
    for label in (maps.label, *maps.landmark_label.unbind(1)):
        assert label.unique().tolist() == [-1, 0, 1]
        assert not label[1].any()
    check_targets(
        boxes,
        splits,
        (31, 30),
        stride=8,
        face=33.3,
        radius=0.21,
        gray=1.5,
        positive_band=(0.7, 1.5),
        ignore_band=(0.5, 2.0),
        unit=7.7,
        ignore=ignore,
        landmarks=landmarks[:, :2],
        landmark_radius=0.4,
    )


def test_a_centred_face_has_the_papers_disc(device):
    """240 x 240 with a face of 50 px in the middle: 60 x 60 cells, radius 3.75 (docs/detectors.md 1.2)."""
    maps = one((95, 95, 145, 145), device=device)
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    distance = ((x - 29.5) ** 2 + (y - 29.5) ** 2).sqrt()
    positive = maps.label[0].cpu() == 1
    assert torch.equal(positive, distance <= 3.75)
    near = torch.cdist(torch.stack([y, x], -1).reshape(-1, 2), positive.nonzero().float()).amin(1).reshape(60, 60)
    assert torch.equal(maps.label[0].cpu() == -1, (near <= 2.0 + 1e-5) & ~positive)
    assert maps.offsets[0, :, 29, 31].tolist() == pytest.approx([31 / 50, 23 / 50, -19 / 50, -27 / 50], abs=1e-6)
    assert not maps.offsets[0].cpu()[:, ~positive].any()
    assert maps.landmark_label.shape == (1, 0, 60, 60)


@pytest.mark.parametrize(
    ("height", "label"),
    [(29.9, 0), (30, -1), (39.9, -1), (40, 1), (50, 1), (62.5, 1), (62.6, -1), (83.4, -1), (83.6, 0), (200, 0)],
)
def test_the_height_decides_and_bounds_belong_to_the_band(height, label, device):
    for width in (20, 90):
        box = (120 - width / 2, 120 - height / 2, 120 + width / 2, 120 + height / 2)
        assert one(box, device=device).label[0, 30, 30] == label


def test_cells_belong_to_the_nearest_face_in_units_of_its_radius(device):
    # Two faces of different sizes, whose discs overlap, then the same twice.
    left, right = (90, 100, 130, 140), (95, 90, 155, 150)
    maps = one(left, right, device=device, gray=0.0)
    cells = (maps.label[0] == 1).nonzero().tolist()
    both = 0
    for i, j in cells:
        relative = []
        for x1, y1, x2, y2 in (left, right):
            distance = math.hypot(4 * j + 2 - (x1 + x2) / 2, 4 * i + 2 - (y1 + y2) / 2)
            relative.append(distance / (0.3 * (y2 - y1)))
        both += max(relative) <= 1
        owner = left if relative[0] <= relative[1] else right
        assert maps.offsets[0, 0, i, j].item() == pytest.approx((4 * j + 2 - owner[0]) / 50, abs=1e-6)
    assert both > 5
    first = one(left, (88, 100, 132, 140), device=device)  # one centre, one height
    assert torch.equal(first.offsets, one(left, device=device).offsets)


def test_the_cell_of_the_centre_is_always_positive(device):
    small = {"face": 4.0, "radius": 0.01, "gray": 0.0}
    assert (one((11, 19, 14, 23), device=device, **small).label[0] == 1).nonzero().tolist() == [[5, 3]]
    # The cell (0, 0) reaches from pixel 0 to 4; a centre beside the map has no cell.
    assert (one((-1, -1, 1.5, 3), device=device, **small).label[0] == 1).nonzero().tolist() == [[0, 0]]
    assert not one((-4, -1, 1.5, 3), device=device, **small).label.any()
    assert not one((239, 100, 243, 104), device=device, **small).label.any()


def test_ignored_cells(device):
    box, around = (95, 95, 145, 145), (100, 100, 132, 300)
    maps = one(box, around, device=device, ignore=[False, True])
    assert (maps.label[0] == 1).sum() == (one(box, device=device).label == 1).sum()
    assert (maps.label[0, 25:33, 25:33] != 0).all()
    assert maps.label[0, 50].tolist() == [0] * 25 + [-1] * 8 + [0] * 27  # cell 25 lies at pixel 102, cell 33 at 134
    # An ignored face of nearly the right size does not take a positive cell away, in either order.
    near = (85, 85, 160, 160)
    for pair in ((box, near), (near, box)):
        label = one(*pair, device=device).label
        assert (label == 1).sum() == (maps.label == 1).sum()
        assert label[0, 30, 24] == -1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 31), (5, 33), (9, 65), (17, 32)])
def test_gray_zone_of_maps_of_any_size(size, device):
    # A face at the last cell and one at the first, whose labels end in the middle of four bytes.
    last = torch.tensor([4.0 * size[1], 4.0 * size[0], 4.0 * size[1], 4.0 * size[0]])
    boxes = (torch.stack([last, torch.zeros(4)]) + torch.tensor([-12.0, -12, 8, 8])).to(device)
    splits = torch.tensor([0, 2, 2], device=device)
    for gray in (1.0, 2.9, 40.0):
        maps = check_targets(boxes, splits, size, face=20.0, radius=0.1, gray=gray, landmarks=boxes.view(2, 2, 2))
        assert (maps.label[0] == 1).any()
        assert (maps.label[0] == -1).any() == (size != (1, 1))


def test_landmarks(device):
    box = (95, 95, 145, 145)
    points = [[[110.0, 112.0], [math.nan, 100.0]]]
    maps = one(box, device=device, landmarks=points)
    known, unknown = maps.landmark_label[0]
    # The point lies at cell (row 27.5, column 27): within one cell of it are these.
    assert (known == 1).nonzero().tolist() == [[27, 27], [28, 27]]
    assert (known == -1).sum() == 16
    inside = torch.zeros(60, 60, dtype=torch.int8)
    inside[24:36, 24:36] = -1  # pixels 98 ... 142
    assert torch.equal(unknown.cpu(), inside)
    nearly = one((85, 85, 160, 160), device=device, landmarks=points).landmark_label[0]
    assert (nearly[0] == -1).nonzero().tolist() == [[27, 27], [28, 27]]
    assert not (nearly == 1).any()
    other = one((100, 100, 110, 110), device=device, landmarks=points)
    assert not other.landmark_label.any()
    ignored = one(box, device=device, landmarks=points, ignore=[True])
    assert torch.equal(ignored.landmark_label[0, 0].cpu(), inside)
    assert torch.equal(ignored.landmark_label[0, 1].cpu(), inside)


def test_invalid_boxes_have_no_effect(device):
    bad = [
        (95, 95, 145, math.nan),
        (95, math.inf, 145, 145),
        (95, 95, 95, 145),
        (95, 145, 145, 95),
        (-3e38, -3e38, 3e38, 3e38),
        (3e38, 95, 3.2e38, 145),
    ]
    maps = one(*bad, device=device, landmarks=[[[100.0, 100.0]]] * len(bad))
    assert not maps.label.any()
    assert not maps.offsets.any()
    ignored = one(*bad, device=device, ignore=[True] * len(bad))
    assert (ignored.label == -1).all()  # one of them covers everything
    assert one(device=device).label.shape == (1, 60, 60)


def test_encoding_then_decoding_returns_the_boxes(device):
    centre = torch.tensor([[x, y] for y in range(60, 1000, 120) for x in range(60, 1000, 120)])
    generator = torch.Generator().manual_seed(0)
    sides = 40 + 22.5 * torch.rand(len(centre), 2, generator=generator)
    centre = centre + 20 * torch.rand(len(centre), 2, generator=generator)
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], 1).to(device)
    maps = check_targets(boxes, torch.tensor([0, len(boxes)], device=device), (256, 256))
    scores = (maps.label[:, None] == 1).float()
    found = ops.decode_densebox(scores, maps.offsets, score_threshold=0.5, max_candidates=5000)
    assert found.count.item() == int(scores.sum()) > 30 * len(boxes)
    decoded = found.boxes[0, : found.count[0]]
    distance = (decoded[:, None] - boxes[None]).abs().amax(2)
    assert (distance.amin(1) < 1e-3).all()
    assert (distance.amin(0) < 1e-3).all()


WIDE = st.one_of(st.floats(width=32), st.sampled_from([*BAD, 0.0, 10.0, 60.0]), st.floats(-20, 120, width=32))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_boxes(data):
    batch, points = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch)))
    count = cuts[-1] if cuts else 0
    boxes = data.draw(st.lists(st.tuples(WIDE, WIDE, WIDE, WIDE), min_size=count, max_size=count))
    values = data.draw(st.lists(WIDE, min_size=2 * points * count, max_size=2 * points * count))
    check_targets(
        torch.tensor(boxes).reshape(-1, 4).float(),
        torch.tensor([0, *cuts]),
        (data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))),
        stride=data.draw(st.integers(1, 9)),
        face=data.draw(st.floats(1, 100)),
        radius=data.draw(st.floats(1e-3, 2)),
        gray=data.draw(st.floats(0, 4)),
        ignore=torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool),
        landmarks=torch.tensor(values).reshape(count, points, 2).float(),
        landmark_radius=data.draw(st.floats(1e-3, 3)),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_boxes_of_any_float_dtype(dtype, device):
    boxes, landmarks = (x.to(device, dtype) for x in random_faces(12))
    splits = torch.tensor([0, 12], device=device)
    maps = check_targets(boxes, splits, (60, 60), landmarks=landmarks.requires_grad_())
    assert not any(value.requires_grad for value in maps)
    shuffled = boxes.T.contiguous().T
    assert torch.equal(check_targets(shuffled, splits, (60, 60)).label, maps.label)


def test_all_outputs_are_written(device):
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        check(*(x.to(device) for x in random_maps(share=0.01)), score_threshold=0.8, max_candidates=500)
        boxes, landmarks = (x.to(device) for x in random_faces(9))
        check_targets(boxes, torch.tensor([0, 0, 9], device=device), (40, 41), landmarks=landmarks)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


# --- errors ----------------------------------------------------------------------------------------------------------

Z = torch.zeros


SCORES, OFFSETS, BOXES, SPLITS = Z(2, 1, 3, 3), Z(2, 4, 3, 3), Z(2, 4), torch.tensor([0, 1, 2])


def decode(scores=SCORES, offsets=OFFSETS, score_threshold=0.5, max_candidates=5, **options):
    return ops.decode_densebox(
        scores, offsets, score_threshold=score_threshold, max_candidates=max_candidates, **options
    )


def targets(boxes=BOXES, splits=SPLITS, size=(3, 3), **options):
    return ops.densebox_targets(boxes, splits, size, **options)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: decode([1.0]), TypeError, "scores must be a torch.Tensor, got list"),
        (lambda: decode(Z(2, 1, 3, 3).to_sparse()), TypeError, "scores must be a dense tensor"),
        (lambda: decode(Z(2, 2, 3, 3)), ValueError, r"scores must have the shape \[B, 1, H, W\], got \[2, 2, 3, 3\]"),
        (lambda: decode(Z(2, 3, 3)), ValueError, r"scores must have the shape .* got \[2, 3, 3\]"),
        (lambda: decode(offsets=Z(2, 4, 3, 4)), ValueError, r"\[2, 4, 3, 3\], got \[2, 4, 3, 4\]"),
        (lambda: decode(Z(2, 1, 3, 3).double()), TypeError, "scores must be one of float32, float16, bfloat16"),
        (
            lambda: decode(offsets=Z(2, 4, 3, 3).half()),
            TypeError,
            "scores and offsets must have one dtype, got torch.float32 and torch.float16",
        ),
        (
            lambda: decode(offsets=Z(2, 4, 3, 3, device="meta")),
            ValueError,
            "scores and offsets must be on one device, got cpu and meta",
        ),
        (lambda: decode(score_threshold=1.5), ValueError, "score_threshold must be between 0 and 1, got 1.5"),
        (lambda: decode(score_threshold="0"), TypeError, "score_threshold must be a number, got str"),
        (lambda: decode(max_candidates=-1), ValueError, "max_candidates must be 0 or more, got -1"),
        (lambda: decode(max_candidates=1.0), TypeError, "max_candidates must be an int, got float"),
        (lambda: decode(stride=0), ValueError, "stride must be 1 or more, got 0"),
        (lambda: decode(stride=2**31), ValueError, "stride must be 2147483647 or less, got 2147483648"),
        (lambda: decode(max_candidates=2**63), ValueError, "max_candidates must be 9223372036854775807 or less"),
        (lambda: decode(unit=0.0), ValueError, "unit must be a finite number > 0, got 0"),
        (lambda: decode(unit=math.nan), ValueError, "unit must be a finite number > 0, got nan"),
        (lambda: decode(min_side=-1.0), ValueError, "min_side must be a finite number of 0 or more"),
        (lambda: decode(sizes=Z(2, 3)), ValueError, r"sizes must have the shape \[B, 2\] = \[2, 2\]"),
        (lambda: decode(sizes=Z(2, 2).int()), TypeError, "sizes must be one of float32"),
        (lambda: targets(Z(2, 5)), ValueError, r"boxes must have the shape \[G, 4\], got \[2, 5\]"),
        (lambda: targets(Z(2, 4).int()), TypeError, "boxes must be one of float32"),
        (lambda: targets(splits=torch.tensor([0, 2]).int()), TypeError, "splits must be one of int64"),
        (lambda: targets(splits=torch.tensor(0)), ValueError, r"splits must have the shape \[B \+ 1\], got \[\]"),
        (lambda: targets(splits=torch.tensor([0, 1])), ValueError, r"splits must rise from 0 to G = 2, got \[0, 1\]"),
        (lambda: targets(splits=torch.tensor([0, 3, 2])), ValueError, "splits must rise"),
        (lambda: targets(splits=torch.tensor([-1, 2])), ValueError, "splits must rise"),
        (
            lambda: targets(splits=torch.arange(99)),
            ValueError,
            r"got \[0, 1, 2, 3\] ... \[95, 96, 97, 98\]; image b has",
        ),
        (lambda: targets(ignore=Z(2)), TypeError, "ignore must be one of bool"),
        (lambda: targets(ignore=Z(3).bool()), ValueError, r"ignore must have the shape \[G\] = \[2\], got \[3\]"),
        (lambda: targets(landmarks=Z(2, 5)), ValueError, r"landmarks must have the shape \[G, N, 2\]"),
        (
            lambda: targets(landmarks=Z(2, 5, 2, device="meta")),
            ValueError,
            "boxes and landmarks must be on one device, got cpu and meta",
        ),
        (lambda: targets(size=60), TypeError, "size must be two numbers, got 60"),
        (lambda: targets(size=(3.0, 3)), TypeError, "size must be an int, got float"),
        (lambda: targets(size=(3, -1)), ValueError, "size must be 0 or more, got -1"),
        (lambda: targets(size=(2**70, 1)), ValueError, "size must be 2147483647 or less"),
        (lambda: targets(positive_band=(0, math.inf)), ValueError, "with 0 <= low <= high, finite, got"),
        (lambda: targets(face=0.0), ValueError, "face must be a finite number > 0, got 0"),
        (lambda: targets(radius=math.inf), ValueError, "radius must be a finite number > 0, got inf"),
        (lambda: targets(landmark_radius=-1.0), ValueError, "landmark_radius must be a finite number > 0"),
        (lambda: targets(gray=-1.0), ValueError, "gray must be a finite number of 0 or more, got -1"),
        (lambda: targets(gray="2"), TypeError, "gray must be a number, got str"),
        (lambda: targets(positive_band=(1.2, 0.8)), ValueError, r"positive_band must be \(low, high\) with"),
        (lambda: targets(ignore_band=(math.nan, 1.0)), ValueError, r"ignore_band must be \(low, high\) with"),
        (lambda: targets(ignore_band=0.6), TypeError, "ignore_band must be two numbers, got 0.6"),
    ],
)
def test_error_messages(function, error, words):
    with pytest.raises(error, match=words) as raised:
        function()
    assert "\n" not in str(raised.value)


# --- tracing and devices ---------------------------------------------------------------------------------------------


def target_arguments(device, points=2):
    """The arguments of torch.ops.pyface.densebox_targets."""
    boxes, landmarks = (x.to(device) for x in random_faces(9, points=points))
    splits = torch.tensor([0, 4, 9], device=device)
    numbers = [50.0, 0.8, 1.25, 0.6, 1.67, 0.3, 2.0, 1.0]
    return boxes, splits, boxes[:, 0] > 100, landmarks, [30, 31], 4, 12.5, numbers


def test_opcheck(device):
    maps, sizes = (x.to(device) for x in random_maps((9, 12))), torch.full((2, 2), 40.0, device=device)
    torch.library.opcheck(torch.ops.pyface.decode_densebox.default, (*maps, sizes, 0.5, 4, 12.5, 1.0, 30))
    torch.library.opcheck(torch.ops.pyface.densebox_targets.default, target_arguments(device))


def there_and_back(boxes, splits):
    maps = ops.densebox_targets(boxes, splits, (60, 60))
    scores = (maps.label[:, None] == 1).float()
    return ops.decode_densebox(scores, maps.offsets, score_threshold=0.5, max_candidates=100)


def test_compiles_as_a_full_graph(device):
    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    for count in (9, 5):
        boxes = random_faces(count, sides=(40.0, 60.0))[0].to(device)
        splits = torch.tensor([0, 3, count], device=device)
        for got, expected in zip(compiled(boxes, splits), there_and_back(boxes, splits), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("hostile", [False, True])
def test_cuda_equals_cpu(hostile, cuda):
    maps = random_maps((160, 161), 3)
    maps = [make_hostile(x) for x in maps] if hostile else maps
    options = {"score_threshold": 0.2, "max_candidates": 3000, "min_side": 2.0}
    found = ops.decode_densebox(*(x.to(cuda) for x in maps), **options)
    assert_same(ops.Candidates(*(x.cpu() for x in found)), ops.decode_densebox(*maps, **options))
    boxes, landmarks = random_faces(200, 640.0)
    boxes, landmarks = (make_hostile(x) if hostile else x for x in (boxes, landmarks))
    splits = torch.tensor([0, 50, 50, 200])
    ours = ops.densebox_targets(boxes, splits, (160, 161), landmarks=landmarks)
    theirs = ops.densebox_targets(boxes.to(cuda), splits.to(cuda), (160, 161), landmarks=landmarks.to(cuda))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.cuda
def test_never_synchronises_and_runs_in_a_cuda_graph(cuda):
    boxes, splits = random_faces(30, sides=(40.0, 60.0))[0].to(cuda), torch.tensor([0, 10, 30], device=cuda)
    other = random_faces(30, sides=(40.0, 60.0), seed=1)[0].to(cuda)
    there_and_back(boxes, splits)
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = copy.deepcopy(there_and_back(other, splits))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = there_and_back(boxes, splits)
    boxes.copy_(other)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("splits", [[0, 99], [-5, 10], [0, 7, 3, 10], [2**62, -(2**62), 0], [-(2**63), 2**63 - 1]])
def test_splits_are_clamped_on_a_gpu(splits, gpu_without_checks):
    boxes, landmarks = random_faces(10, extent=130.0)
    arguments = (x.to(gpu_without_checks) for x in (boxes, torch.tensor(splits)))
    found = ops.densebox_targets(*arguments, (21, 33), landmarks=landmarks.to(gpu_without_checks))
    for image in range(len(splits) - 1):
        begin = min(max(splits[image], 0), 10)
        end = min(max(splits[image + 1], begin), 10)
        own = torch.tensor([0, end - begin])
        alone = reference.densebox_targets(boxes[begin:end], own, (21, 33), landmarks=landmarks[begin:end])
        assert all(torch.equal(ours[image].cpu(), theirs[0]) for ours, theirs in zip(found, alone, strict=True))
