"""The NMS family: kernels against the reference, contracts, hostile input."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import reference

OVERLAPS = ["union", "min"]
TORCHVISION_KEPT = {
    0.0: [24, 32, 35, 31, 27, 18],
    0.25: [24, 32, 35, 7, 8, 11, 26, 31, 19, 33, 10, 27, 37, 15, 1, 18],
    0.5: [
        24,
        32,
        35,
        7,
        8,
        11,
        16,
        20,
        26,
        31,
        3,
        19,
        23,
        33,
        36,
        0,
        6,
        10,
        17,
        27,
        37,
        39,
        38,
        4,
        9,
        13,
        15,
        21,
        1,
        18,
        25,
        34,
        5,
    ],
}


def random_boxes(n: int, seed: int = 0, extent: float = 1000, sides: tuple[float, float] = (10, 70)):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * extent
    side = sides[0] + (sides[1] - sides[0]) * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + side], 1), torch.rand(n, generator=generator)


def hostile_boxes(n: int, seed: int = 0):
    """Ties, duplicates, degenerate, reversed, huge, tiny, thin and non-finite boxes on a small integer lattice."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (n, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.integers(0, 9, (n, 2))], 1).astype(np.float32)
    scores = (rng.integers(-3, 6, n) / 4).astype(np.float32)
    kind = rng.integers(0, 24, n)
    boxes[kind == 0] = boxes[kind == 0][:, [2, 1, 0, 3]]
    boxes[kind == 1, 2] = np.inf
    boxes[kind == 2, 0] = np.nan
    scores[kind == 3] = np.nan
    scores[kind == 4] = -np.inf
    scores[kind == 5] = np.inf
    boxes[kind == 6] = [-1e30, -1e30, 1e30, 1e30]
    boxes[kind == 7] *= 1e18
    boxes[kind == 8] = [0, 3, 3000, 4]
    boxes[kind == 9] = [3, 0, 4, 3000]
    boxes[kind == 10] *= 1e-20
    scores[kind == 11] = -0.0
    return torch.from_numpy(boxes), torch.from_numpy(scores)


def on(device: str, *tensors: torch.Tensor):
    return tuple(tensor.to(device) for tensor in tensors)


# --- nms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(
    "n",
    [
        *(0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 513, 2049),
        *(pytest.param(n, marks=pytest.mark.slow_emulated) for n in (511, 512, 2047, 2048)),
        pytest.param(4097, marks=pytest.mark.large),
    ],
)
def test_nms_equals_reference(n, overlap, device, some):
    boxes, scores = on(device, *random_boxes(n, seed=n, extent=30 * max(n, 1) ** 0.5))
    for threshold in some((0.0, 0.7, 1.0, 0.3)):
        expected = reference.nms(boxes, scores, threshold, overlap=overlap)
        assert torch.equal(ops.nms(boxes, scores, threshold, overlap=overlap), expected)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seed", range(8))
def test_nms_equals_reference_on_hostile_boxes(seed, overlap, device, some):
    for n in some((40, 3000, 300)):
        boxes, scores = on(device, *hostile_boxes(n, seed))
        for threshold in some((0.0, 0.25, 1.0, 0.5)):
            expected = reference.nms(boxes, scores, threshold, overlap=overlap)
            assert torch.equal(ops.nms(boxes, scores, threshold, overlap=overlap), expected)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nms_equals_reference_on_any_floats(data):
    width = st.floats(width=32, allow_nan=True, allow_infinity=True)
    rows = data.draw(st.lists(st.tuples(width, width, width, width, width), max_size=24))
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    threshold = data.draw(st.floats(0, 1))
    for overlap in OVERLAPS:
        expected = reference.nms(table[:, :4], table[:, 4], threshold, overlap=overlap)
        assert torch.equal(ops.nms(table[:, :4], table[:, 4], threshold, overlap=overlap), expected)


@pytest.mark.large
def test_nms_equals_torchvision(device):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed: the peer is not compared")
    for n in (1, 100, 1000, 5000):
        boxes, scores = random_boxes(n, seed=n)
        scores = (scores * 50).round() / 50  # ties
        for threshold in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
            expected = torchvision.ops.nms(boxes, scores, threshold)
            assert torch.equal(ops.nms(*on(device, boxes, scores), threshold).cpu(), expected)


def test_nms_equals_stored_results_of_torchvision():
    """Indices that torchvision 0.27.1 kept of 40 boxes on a small lattice, with ties in scores and overlaps."""
    generator = torch.Generator().manual_seed(7)
    corner = torch.randint(0, 24, (40, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(4, 14, (40, 2), generator=generator)], 1).float()
    scores = torch.randint(0, 8, (40,), generator=generator) / 8
    for threshold, kept in TORCHVISION_KEPT.items():
        assert ops.nms(boxes, scores, threshold).tolist() == kept


def test_threshold_is_strict_and_compared_as_double(device):
    # IoU is exactly 1/2, then exactly float32(1/3), which is greater than the double 1/3 and less than the next float.
    boxes, scores = on(device, torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([0.9, 0.8]))
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, math.nextafter(0.5, 0)).tolist() == [0]
    boxes = torch.tensor([[0.0, 0, 3, 1], [0, 0, 1, 1]], device=device)
    third = float(torch.tensor(1.0) / torch.tensor(3.0))
    assert third > 1 / 3
    assert ops.nms(boxes, scores, 1 / 3).tolist() == [0]
    assert ops.nms(boxes, scores, third).tolist() == [0, 1]


def test_ties_go_by_index_and_minus_zero_equals_zero(device):
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(6, 1) + torch.arange(6)[:, None] * 10
    scores = torch.tensor([0.0, -0.0, 0.5, 0.0, 0.5, -0.0])
    assert ops.nms(*on(device, boxes, scores), 0.5).tolist() == [2, 4, 0, 1, 3, 5]


def test_reversed_boxes_overlap_nothing(device):
    boxes, scores = on(device, torch.tensor([[0.0, 0, 9, 9], [9, 9, 0, 0], [9, 0, 0, 9], [0, 0, 9, 9]]), torch.ones(4))
    assert ops.nms(boxes, scores, 0.0).tolist() == [0, 1, 2]


def test_non_finite_entries_are_dropped(device):
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(5, 1)
    boxes[1, 2], boxes[2, 0] = math.inf, math.nan
    scores = torch.tensor([math.nan, 1, 1, math.inf, 0.1])
    assert ops.nms(*on(device, boxes, scores), 0.5).tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_dtypes_are_computed_in_float32(dtype, device):
    boxes, scores = on(device, *random_boxes(500))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    assert torch.equal(ops.nms(boxes, scores, 0.3), ops.nms(boxes.float(), scores.float(), 0.3))


def test_strided_and_differentiable_inputs(device):
    boxes, scores = on(device, *random_boxes(400))
    expected = ops.nms(boxes, scores, 0.3)
    wide = torch.zeros(400, 9, device=device)
    wide[:, 1::2], wide[:, 0] = boxes, scores
    assert torch.equal(ops.nms(wide[:, 1::2], wide[:, 0], 0.3), expected)
    keep = ops.nms(boxes.clone().requires_grad_(), scores.clone().requires_grad_(), 0.3)
    assert torch.equal(keep, expected)
    assert not keep.requires_grad


@pytest.mark.large
def test_a_million_boxes(device):
    boxes, scores = on(device, *random_boxes(1_000_000, extent=4000))
    keep = ops.nms(boxes, scores, 0.5)
    kept, values = boxes[keep], scores[keep]
    assert (values.diff() <= 0).all()
    assert keep.unique().numel() == keep.numel()
    # No two of a sample of kept boxes overlap too much, and every dropped one of a sample has a better kept neighbour.
    for i in range(0, len(keep), max(1, len(keep) // 50)):
        assert (reference.overlap_with(kept[i], kept, "union") > 0.5).sum() == 1
    dropped = torch.ones(len(boxes), dtype=torch.bool, device=device)
    dropped[keep] = False
    for i in torch.where(dropped)[0][::40_000].tolist():
        overlap = reference.overlap_with(boxes[i], kept, "union")
        assert ((overlap > 0.5) & (values >= scores[i])).any()


# --- batched_nms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("classes", [1, pytest.param(3, marks=pytest.mark.slow_emulated), 200])
def test_batched_nms_equals_nms_per_class(classes, overlap, device):
    boxes, scores = random_boxes(2000, extent=400)
    scores = (scores * 100).round() / 100
    idxs = torch.randint(-classes // 2, classes, (2000,))
    idxs[idxs == 1] = 2**62  # any values, not just small ones
    boxes, scores, idxs = on(device, boxes, scores, idxs)
    expected = reference.batched_nms(boxes, scores, idxs, 0.3, overlap=overlap)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.3, overlap=overlap), expected)
    assert torch.equal(
        ops.batched_nms(boxes, scores, idxs.clamp(-99, 99).to(torch.int16), 1.0), ops.nms(boxes, scores, 1.0)
    )


def test_several_tiles_with_classes_equal_reference(device):
    boxes, scores = on(device, *random_boxes(4200, extent=900))
    idxs = torch.arange(4200, device=device) % 3
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.3), reference.batched_nms(boxes, scores, idxs, 0.3))


def test_batched_nms_loses_nothing_at_large_coordinates(device):
    # Offsets of class x 1e6 would merge what lies 0.1 pixels apart here.
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.4, 0, 1.4, 1], [1e6, 0, 1e6 + 1, 1]], device=device).repeat(2, 1)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], device=device)
    idxs = torch.tensor([0, 0, 0, 1, 1, 1], device=device)
    assert ops.batched_nms(boxes, scores, idxs, 0.45).tolist() == [0, 1, 2, 3, 4, 5]
    assert ops.batched_nms(boxes, scores, idxs, 0.4).tolist() == [0, 2, 3, 5]


# --- nms_padded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 60, 700, pytest.param(5000, marks=pytest.mark.large)])
def test_nms_padded_equals_reference(n, device, some):
    for batch in some((0, 1, 9, 3)):
        boxes, scores = on(device, *random_boxes(batch * n, seed=n, extent=300))
        boxes, scores = boxes.reshape(batch, n, 4), scores.reshape(batch, n)
        counts = torch.randint(0, n + 1, (batch,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
        for m in (0, 7, n + 5):
            for given_counts in (None, counts.to(device)):
                arguments = {"max_detections": m, "score_threshold": 0.2, "overlap": "min"}
                keep, count = ops.nms_padded(boxes, scores, given_counts, 0.4, **arguments)
                expected_keep, expected_count = reference.nms_padded(boxes, scores, given_counts, 0.4, **arguments)
                assert keep.dtype == torch.int64
                assert count.dtype == torch.int32
                assert torch.equal(keep, expected_keep)
                assert torch.equal(count, expected_count)


def test_nothing_beyond_count_is_read(device):
    boxes, scores = on(device, *random_boxes(3 * 500, extent=300))
    boxes, scores = boxes.view(3, 500, 4), scores.view(3, 500)
    counts = torch.tensor([200, 0, 500], dtype=torch.int32, device=device)
    clean = ops.nms_padded(boxes, scores, counts, 0.4, max_detections=100)
    for poison in (math.nan, 1e30):
        boxes[0, 200:], scores[0, 200:], boxes[1], scores[1] = poison, poison, poison, poison
        poisoned = ops.nms_padded(boxes, scores, counts, 0.4, max_detections=100)
        assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))


def test_score_threshold_is_strict(device):
    boxes, scores = on(device, torch.tensor([[[0.0, 0, 1, 1], [5, 5, 6, 6]]]), torch.tensor([[0.5, 0.6]]))
    keep, count = ops.nms_padded(boxes, scores, None, 0.5, max_detections=2, score_threshold=0.5)
    assert keep.tolist() == [[1, -1]]
    assert count.tolist() == [1]


# --- soft_nms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize(
    ("n", "threshold"),
    # Beyond 2,048 boxes, CUDA uses global in place of shared memory. Few of them pass, since each takes a step.
    [(0, 0.05), (1, 0.05), (50, 0.05), (1000, 0.05), (2100, 0.98)],
)
def test_soft_nms_equals_reference(n, threshold, method, overlap, device):
    boxes, scores = on(device, *random_boxes(n, seed=n, extent=300))
    arguments = {"method": method, "overlap": overlap, "score_threshold": threshold}
    keep, values = ops.soft_nms(boxes, scores, 0.3, **arguments)
    expected, expected_values = reference.soft_nms(boxes, scores, 0.3, **arguments)
    assert torch.equal(keep, expected)
    torch.testing.assert_close(values, expected_values, rtol=3e-6, atol=1e-7)


def test_soft_nms_on_hostile_boxes(device):
    for seed in range(6):
        boxes, scores = on(device, *hostile_boxes(300, seed))
        keep, values = ops.soft_nms(boxes, scores, 0.2)
        expected, expected_values = reference.soft_nms(boxes, scores, 0.2)
        assert torch.equal(keep, expected)
        torch.testing.assert_close(values, expected_values)


@pytest.mark.large
def test_soft_nms_keeps_scores_in_descending_order(device):
    keep, values = ops.soft_nms(*on(device, *random_boxes(3000)), method="gaussian", sigma=0.2)
    assert (values.diff() <= 0).all()
    assert keep.unique().numel() == keep.numel()


def test_gaussian_weight_is_the_exponential():
    # Two boxes whose overlap is i / 100: the second's score becomes exp(-overlap^2 / sigma).
    overlap = torch.arange(1, 101) / 100
    for sigma in (0.02, 0.5, 3.0):
        for ratio in overlap.tolist():
            boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, ratio, 1]])
            _, values = ops.soft_nms(
                boxes, torch.tensor([1.0, 0.999]), method="gaussian", sigma=sigma, score_threshold=0
            )
            if len(values) == 2:
                assert values[1].item() == pytest.approx(0.999 * math.exp(-(ratio**2) / sigma), rel=1e-5, abs=1e-37)
            else:
                assert ratio**2 / sigma > 80


# --- box_voting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("drop_singletons", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_box_voting_equals_reference(threshold, drop_singletons, overlap, device):
    for n in (0, 1, 40, 1500):
        boxes, scores = on(device, *random_boxes(n, seed=n, extent=400))
        arguments = {"drop_singletons": drop_singletons, "overlap": overlap}
        voted = ops.box_voting(boxes, scores, threshold, **arguments)
        expected = reference.box_voting(boxes, scores, threshold, **arguments)
        torch.testing.assert_close(voted[0], expected[0], rtol=1e-6, atol=1e-4)
        assert torch.equal(voted[1], expected[1])


def test_box_voting_on_hostile_boxes(device):
    for seed in range(6):
        boxes, scores = on(device, *hostile_boxes(300, seed))
        voted, expected = (module.box_voting(boxes, scores, 0.25) for module in (ops, reference))
        torch.testing.assert_close(voted, expected, rtol=1e-6, atol=1e-4)


def test_box_voting_threshold_is_inclusive(device):
    boxes, scores = on(device, torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([0.9, 0.9]))
    assert len(ops.box_voting(boxes, scores, 0.5)[0]) == 1
    assert len(ops.box_voting(boxes, scores, math.nextafter(0.5, 1))[0]) == 2
    assert len(ops.box_voting(boxes, scores, 0.6, drop_singletons=True)[0]) == 0


@pytest.mark.parametrize("sizes", [(1, 32, 33, 64), (1030, 40)])
def test_box_voting_of_long_clusters(sizes, device):
    generator = torch.Generator().manual_seed(0)
    corner = torch.cat([torch.full((size, 1), 200.0 * k) for k, size in enumerate(sizes)])
    boxes = torch.cat([corner, corner, corner + 100, corner + 100], 1) + torch.rand(len(corner), 4, generator=generator)
    scores = torch.rand(len(boxes), generator=generator)
    voted, values = ops.box_voting(boxes.to(device), scores.to(device), 0.5)
    assert len(voted) == len(sizes)
    of = (voted[:, 0].cpu() / 200).round().long()
    for k, (box, score) in enumerate(zip(boxes.split(sizes), scores.split(sizes), strict=True)):
        mean = (box * score[:, None]).double().sum(0) / score.double().sum()
        torch.testing.assert_close(voted[of == k][0].cpu(), mean.float())
        assert values[of == k].item() == score.max()


def test_box_voting_without_positive_weights_returns_the_best_box(device):
    boxes, scores = on(device, torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([-1.0, 0.0]))
    voted, values = ops.box_voting(boxes, scores, 0.5)
    assert voted.tolist() == [[0, 0, 1, 1]]
    assert values.tolist() == [0]


# --- errors and the torch face ---------------------------------------------------------------------------------------

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ops.nms(torch.zeros(3, 5), SCORES, 0.5),
            ValueError,
            r"boxes must have the shape \[N, 4\], got \[3, 5\]",
        ),
        (lambda: ops.nms(torch.zeros(4), SCORES, 0.5), ValueError, r"got \[4\]"),
        (
            lambda: ops.nms(BOXES, torch.zeros(2), 0.5),
            ValueError,
            r"scores must have the shape \[N\] = \[3\].*got \[2\]",
        ),
        (lambda: ops.nms(BOXES, torch.zeros(3, 1), 0.5), ValueError, r"got \[3, 1\]"),
        (lambda: ops.nms(BOXES.long(), SCORES, 0.5), TypeError, "boxes must be one of float32.*got torch.int64"),
        (lambda: ops.nms(BOXES, SCORES.bool(), 0.5), TypeError, "scores must be one of .*got torch.bool"),
        (lambda: ops.nms(BOXES.numpy(), SCORES, 0.5), TypeError, "boxes must be a torch.Tensor, got ndarray"),
        (lambda: ops.nms(BOXES, [0.1, 0.2, 0.3], 0.5), TypeError, "scores must be a torch.Tensor, got list"),
        (lambda: ops.nms(BOXES.to_sparse(), SCORES, 0.5), TypeError, "dense"),
        (
            lambda: ops.nms(BOXES, SCORES.to("meta"), 0.5),
            ValueError,
            "boxes and scores must be on one device, got cpu and meta",
        ),
        (lambda: ops.nms(BOXES, SCORES, 1.5), ValueError, "iou_threshold must be between 0 and 1, got 1.5"),
        (lambda: ops.nms(BOXES, SCORES, -0.1), ValueError, "got -0.1"),
        (lambda: ops.nms(BOXES, SCORES, math.nan), ValueError, "got nan"),
        (
            lambda: ops.nms(BOXES, SCORES, 0.5, overlap="iou"),
            ValueError,
            "overlap must be one of 'union', 'min', got 'iou'",
        ),
        (lambda: ops.batched_nms(BOXES, SCORES, torch.zeros(3), 0.5), TypeError, "idxs must be one of int64"),
        (lambda: ops.batched_nms(BOXES, SCORES, torch.zeros(2).long(), 0.5), ValueError, r"idxs must have .*got \[2\]"),
        (lambda: ops.nms_padded(BOXES, SCORES, None, 0.5, max_detections=1), ValueError, r"\[B, N, 4\], got \[3, 4\]"),
        (
            lambda: ops.nms_padded(BOXES[None], SCORES[None], None, 0.5, max_detections=-1),
            ValueError,
            "max_detections must be a number from 0 to .*, got -1",
        ),
        (
            lambda: ops.nms_padded(BOXES[None], SCORES[None], torch.tensor([-1]), 0.5, max_detections=1),
            ValueError,
            "counts must be between 0 and N = 3, got -1",
        ),
        (
            lambda: ops.nms_padded(BOXES[None], SCORES[None], torch.tensor([4]), 0.5, max_detections=1),
            ValueError,
            "counts must be between 0 and N = 3, got 4",
        ),
        (
            lambda: ops.nms_padded(BOXES[None], SCORES[None], torch.tensor([1, 1]), 0.5, max_detections=1),
            ValueError,
            r"counts must have the shape \[B\]",
        ),
        (
            lambda: ops.nms_padded(BOXES[None], SCORES[None], None, 0.5, max_detections=1, score_threshold=math.nan),
            ValueError,
            "score_threshold must be a number",
        ),
        (lambda: ops.soft_nms(BOXES, SCORES, sigma=0.0), ValueError, "sigma must be a positive number, got 0.0"),
        (lambda: ops.soft_nms(BOXES, SCORES, method="cubic"), ValueError, "method must be one of"),
        (lambda: ops.soft_nms(BOXES, SCORES, score_threshold=-1.0), ValueError, "score_threshold must be 0 or more"),
        (lambda: ops.box_voting(BOXES, torch.zeros(4), 0.5), ValueError, r"got \[4\]"),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_direct_calls_are_checked_too():
    meta = torch.zeros(1, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match="all tensors must be on one device, got cpu and meta"):
        torch.ops.pyface.nms_padded.default(BOXES[None], SCORES[None], meta, 0.5, 1, None, "union")
    with pytest.raises(ValueError, match="boxes must have the shape"):
        torch.ops.pyface.nms.default(SCORES, SCORES, 0.5, "union")


@pytest.mark.parametrize("name", ["nms", "box_voting", "soft_nms"])
def test_distant_clusters_do_not_slow_the_grid_down(name):
    # With a grid stretched between the clusters, all boxes of one would share a cell: hours instead of a second.
    boxes, scores = random_boxes(100_000, extent=3000)
    boxes[::33] += 1e6
    function = getattr(ops, name)
    near = function(boxes, scores, 0.5)
    moved = boxes.clone()
    moved[::33] += 1e6
    kept = [result[0] if isinstance(result, tuple) else result for result in (near, function(moved, scores, 0.5))]
    assert abs(len(kept[0]) - len(kept[1])) < 0.01 * len(kept[0])


# They give the longest and shortest sides, also inverted ones, sides of 0, and NaN.
EXTREMES = (-math.inf, -3e38, -1e15, -20.0, 0.0, 1e-38, 9.0, 1e9, 3e38, math.inf, math.nan)


def extreme_boxes(n: int, seed: int):
    """Boxes whose coordinates are EXTREMES, among ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(EXTREMES)[torch.randint(len(EXTREMES), (n, 4), generator=generator)]
    boxes, scores = random_boxes(n, seed=seed, extent=60)
    chosen[::3] = boxes[::3]
    return chosen, scores


def test_boxes_of_any_numbers_come_to_an_end():
    # In a process of its own: a loop over as many grid cells as a box is long would never return.
    script = """
import math, torch
from pyface import ops
turned = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [30, 0, 0, 1e38], [0, 30, 1e38, 0], [9, 9, -3e38, 3e38]])
scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
for boxes in (turned, turned.repeat(60, 1)):
    for op in (ops.nms, ops.soft_nms, ops.box_voting):
        op(boxes, scores.repeat(len(boxes) // 5), 0.3)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_of_any_numbers_equal_reference(seed, device):
    boxes, scores = on(device, *extreme_boxes(300, seed))
    for threshold in (0.0, 0.4):
        assert torch.equal(ops.nms(boxes, scores, threshold), reference.nms(boxes, scores, threshold))
        keep, values = ops.soft_nms(boxes, scores, threshold)
        expected, expected_values = reference.soft_nms(boxes, scores, threshold)
        assert torch.equal(keep, expected)
        torch.testing.assert_close(values, expected_values)
        voted, expected = (module.box_voting(boxes, scores, threshold) for module in (ops, reference))
        torch.testing.assert_close(voted, expected, rtol=1e-6, atol=1e-4, equal_nan=True)


def samples():
    boxes, scores = random_boxes(40, extent=60)
    idxs, counts = torch.arange(40) % 3, torch.tensor([30], dtype=torch.int32)
    return {
        "nms": (boxes, scores, 0.5, "union"),
        "batched_nms": (boxes, scores, idxs, 0.5, "union"),
        "nms_padded": (boxes[None], scores[None], counts, 0.5, 10, 0.1, "min"),
        "soft_nms": (boxes, scores, 0.3, "linear", 0.5, 0.01, "union"),
        "box_voting": (boxes, scores, 0.3, False, "union"),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name, device):
    arguments = [value.to(device) if isinstance(value, torch.Tensor) else value for value in samples()[name]]
    torch.library.opcheck(getattr(torch.ops.pyface, name).default, tuple(arguments))


def test_compiles_as_a_full_graph(device):
    def chain(boxes, scores):
        keep, count = ops.nms_padded(boxes * 2, scores, None, 0.4, max_detections=20)
        return boxes.gather(1, keep.clamp(min=0)[..., None].expand(-1, -1, 4)), count

    boxes, scores = on(device, *random_boxes(2 * 300, extent=300))
    boxes, scores = boxes.view(2, 300, 4), scores.view(2, 300)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for expected, got in zip(chain(boxes, scores), compiled(boxes, scores), strict=True):
        assert torch.equal(got, expected)
    ragged = torch.compile(lambda b, s: ops.nms(b, s, 0.4) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(ragged(boxes[0], scores[0]), ops.nms(boxes[0], scores[0], 0.4) + 1)


def test_kernels_survive_threads_and_fork():
    # Many callers at once, then a child process that starts with none of the parent's threads.
    program = (
        "import os, torch, pyface\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "torch.set_num_threads(2); boxes = torch.rand(8, 400, 4) * 50; boxes[..., 2:] += boxes[..., :2]\n"
        "scores = torch.rand(8, 400)\n"
        "call = lambda _: pyface.ops.nms_padded(boxes, scores, None, 0.3, max_detections=50)[1].tolist()\n"
        "expected = call(0)\n"
        "with ThreadPoolExecutor(8) as pool: assert all(c == expected for c in pool.map(call, range(200)))\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if call(0) == expected else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.cuda
def test_nms_padded_never_synchronises(cuda):
    boxes, scores = on(cuda, *random_boxes(4 * 1000))
    boxes, scores = boxes.view(4, 1000, 4), scores.view(4, 1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.nms_padded(boxes, scores, None, 0.3, max_detections=100, score_threshold=0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_nms_padded_in_a_cuda_graph(cuda):
    boxes, scores = on(cuda, *random_boxes(4 * 1000))
    boxes, scores = boxes.view(4, 1000, 4), scores.view(4, 1000)
    expected = copy.deepcopy(ops.nms_padded(boxes, scores, None, 0.3, max_detections=100))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep, count = ops.nms_padded(boxes, scores, None, 0.3, max_detections=100)
    keep.zero_(), count.zero_()
    graph.replay()
    assert torch.equal(keep, expected[0])
    assert torch.equal(count, expected[1])
