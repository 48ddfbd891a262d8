"""assign_anchors: the kernel against the reference, each rule by hand, hostile input, memory."""

import copy
import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import matching, reference

SETTINGS = {
    "ssh": {"positive": 0.5, "negative": 0.3},
    "srn first step": {"positive": 0.7, "negative": 0.3},
    "srn second step": {"positive": 0.5, "negative": 0.4},
    "s3fd": {"positive": 0.35, "negative": 0.35, "force_best": True, "compensate": "mean"},
    "s3fd, six each": {"positive": 0.35, "negative": 0.35, "force_best": True, "compensate": 6},
}


def square_anchors(size: int, levels: int = 6, scale: float = 4) -> torch.Tensor:
    """S3FD's anchors: one square per cell, of sides scale x stride, at strides 4, 8, ..."""
    found = []
    for stride in (4 * 2**level for level in range(levels)):
        centre = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        points = torch.stack([x, y], -1).view(-1, 2)
        found.append(torch.cat([points - scale * stride / 2, points + scale * stride / 2], 1))
    return torch.cat(found)


def random_faces(n: int, size: float, seed: int = 0) -> torch.Tensor:
    """Many small faces, few large ones, some reaching beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, generator=generator) * size
    side = 6 + 0.5 * size * torch.rand(n, 1, generator=generator) ** 4
    side = side * (0.8 + 0.4 * torch.rand(n, 2, generator=generator))
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def lattice_boxes(n: int, rng: np.random.Generator, hostile: bool) -> torch.Tensor:
    """Boxes on a small integer lattice, with many duplicates and ties; hostile ones are invalid."""
    corner = rng.integers(0, 14, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0 if hostile else 1, 9, (n, 2))], 1).astype(np.float32)
    if hostile:
        kind = rng.integers(0, 24, n)
        boxes[kind == 0] = boxes[kind == 0][:, [2, 1, 0, 3]]
        boxes[kind == 1, 2] = np.inf
        boxes[kind == 2, 0] = np.nan
        boxes[kind == 3] = [-1e30, -1e30, 1e30, 1e30]
        boxes[kind == 4] *= 1e18
        boxes[kind == 5] *= 1e-20
        boxes[kind == 6] *= 1e-23
        boxes[kind == 7] = [0, 3, 3000, 4]
    return torch.from_numpy(boxes)


def random_call(seed: int):
    """Random arguments of assign_anchors, as a tuple and a dictionary."""
    rng = np.random.default_rng(seed)

    def maybe(value):
        return value if rng.random() < 0.5 else None

    batch, num_anchors = int(rng.integers(0, 4)), int(rng.choice([0, 1, 5, 63, 64, 65, 200, 1024, 1100, 2300]))
    sizes = rng.choice([0, 0, 1, 2, 7, 20, 60], batch)
    splits = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    num_boxes = int(splits[-1])
    if rng.random() < 0.4:
        anchors = lattice_boxes(batch * num_anchors, rng, rng.random() < 0.7).view(batch, num_anchors, 4)
    else:
        anchors = lattice_boxes(num_anchors, rng, rng.random() < 0.7)
    boxes = lattice_boxes(num_boxes, rng, rng.random() < 0.7)
    positive = float(rng.choice([0.1, 0.25, 1 / 3, 0.35, 0.5, 0.7, 1]))
    return (anchors, boxes, splits), {
        "positive": positive,
        "negative": min(positive, float(rng.choice([0, 0.1, 1 / 3, 0.35, 0.5, 1]))),
        "force_best": bool(rng.random() < 0.5),
        "compensate": (None, "mean", 1, 3, 6, 50)[rng.integers(6)],
        "ignore": maybe(torch.from_numpy(rng.random(num_boxes) < 0.3)),
        "valid": maybe(torch.from_numpy(rng.random((batch, num_anchors)[rng.integers(2) :]) < 0.8)),
    }


def moved(value, device: str):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def check(tensors, options, device: str = "cpu"):
    """The op's result on the device, after a comparison with the reference."""
    tensors = [moved(tensor, device) for tensor in tensors]
    options = {name: moved(value, device) for name, value in options.items()}
    index, overlap = ops.assign_anchors(*tensors, **options)
    expected_index, expected_overlap = reference.assign_anchors(*tensors, **options)
    assert index.dtype == torch.int32
    assert overlap.dtype == torch.float32
    assert torch.equal(index, expected_index)
    assert torch.equal(overlap, expected_overlap)
    return index, overlap


def match(anchors, boxes, device: str = "cpu", **options):
    """Anchors and boxes of one image, as lists -> index and overlap as lists."""
    options = {"positive": 0.5, "negative": 0.5} | options
    for name in ("ignore", "valid"):
        if name in options:
            options[name] = torch.tensor(options[name])
    anchors, boxes = (torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in (anchors, boxes))
    index, overlap = check((anchors, boxes, torch.tensor([0, len(boxes)])), options, device)
    return index[0].tolist(), overlap[0].tolist()


def bar(length: float, at: float = 0) -> list[float]:
    """A box of height 1; the IoU of two such boxes with the same start is the ratio of their lengths."""
    return [at, 0, at + length, 1]


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(120))
def test_equals_reference_on_hostile_boxes(seed, device):
    check(*random_call(seed), device)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_equals_reference_on_any_floats(data):
    number = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.integers(0, 9).map(float)
    anchors, boxes = (
        torch.tensor(data.draw(st.lists(st.tuples(*[number] * 4), max_size=16)), dtype=torch.float32).reshape(-1, 4)
        for _ in range(2)
    )
    positive = data.draw(st.floats(0, 1, exclude_min=True))
    middle = data.draw(st.integers(0, len(boxes)))
    options = {
        "positive": positive,
        "negative": data.draw(st.floats(0, positive)),
        "force_best": data.draw(st.booleans()),
        "compensate": data.draw(st.sampled_from([None, "mean", 1, 4])),
        "ignore": torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))).bool(),
        "valid": torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(anchors), max_size=len(anchors)))).bool(),
    }
    check((anchors, boxes, torch.tensor([0, middle, len(boxes)])), options)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_reference_in_the_papers_settings(name, device):
    anchors = square_anchors(320)
    faces = torch.cat([random_faces(n, 320, seed=n) for n in (1, 40, 7)])
    splits = torch.tensor([0, 1, 1, 41, 48])
    options = dict(SETTINGS[name])
    if name == "ssh":  # anchors within the image
        options["valid"] = (anchors >= 0).all(1) & (anchors <= 320).all(1)
    if name.startswith("srn"):  # anchors that a first step moved, differently in each image
        generator = torch.Generator().manual_seed(1)
        anchors = anchors + 4 * torch.randn(4, len(anchors), 4, generator=generator)
        options["valid"] = torch.rand(4, len(anchors[0]), generator=generator) < 0.7
    index, _ = check((anchors, faces, splits), options, device)
    assert (index[1] < 0).all()
    assert (index[2] >= 0).any()


@pytest.mark.large
@pytest.mark.parametrize("name", SETTINGS)
def test_five_thousand_faces_in_an_image(name, device):
    faces = random_faces(5003, 640)
    index, _ = check((square_anchors(640)[::37], faces, torch.tensor([0, 3, 5003])), SETTINGS[name], device)
    assert index[1].max() > 4000


def test_order_of_anchors_does_not_matter(device):
    # Shuffled anchors make the blocks' bounds useless: slower, and the same result.
    anchors, faces, splits = square_anchors(320), random_faces(100, 320), torch.tensor([0, 100])
    order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))
    arguments = [moved(tensor, device) for tensor in (faces, splits)]
    plain = ops.assign_anchors(moved(anchors, device), *arguments, positive=0.5, negative=0.3)
    shuffled = ops.assign_anchors(moved(anchors[order], device), *arguments, positive=0.5, negative=0.3)
    assert all(torch.equal(a[:, order.to(device)], b) for a, b in zip(plain, shuffled, strict=True))


# --- the rules -------------------------------------------------------------------------------------------------------


def test_thresholds_are_inclusive_above_and_strict_below(device):
    third = float(torch.tensor(1.0) / torch.tensor(3.0))  # as float32, which is above the double 1 / 3
    anchors = [bar(1), bar(2), bar(3)]  # IoU with bar(4): 1/4, 1/2, 3/4
    assert match(anchors, [bar(4)], device, positive=0.5, negative=0.25)[0] == [-2, 0, 0]
    assert match(anchors, [bar(4)], device, positive=math.nextafter(0.5, 1), negative=0.25)[0] == [-2, -2, 0]
    assert match(anchors, [bar(4)], device, positive=0.75, negative=math.nextafter(0.25, 1))[0] == [-1, -2, 0]
    assert match([bar(1)], [bar(3)], device, positive=third, negative=third)[0] == [0]
    assert match([bar(1)], [bar(3)], device, positive=1 / 3, negative=1 / 3)[0] == [0]
    assert match([bar(1)], [bar(3)], device, positive=math.nextafter(third, 1), negative=1 / 3)[0] == [-2]
    assert match([bar(1), bar(1, 9)], [bar(3)], device, positive=0.5, negative=0.0)[0] == [-2, -2]


def test_ties_go_to_the_lower_face(device):
    assert match([bar(4), bar(4)], [bar(2), bar(4), bar(4)], device)[0] == [1, 1]
    assert match([bar(4)], [[2.0, 0, 4, 1], bar(2)], device)[0] == [0]


def test_a_face_forces_its_best_anchor_and_ties_go_to_the_lower_one(device):
    anchors = [bar(1), bar(2), bar(2), bar(1)]
    assert match(anchors, [bar(8)], device)[0] == [-1, -1, -1, -1]
    assert match(anchors, [bar(8)], device, force_best=True) == ([-1, 0, -1, -1], [0.125, 0.25, 0.25, 0.125])
    assert match(anchors, [bar(8, 50)], device, force_best=True)[0] == [-1] * 4  # IoU 0 forces nothing


def test_of_two_faces_that_force_one_anchor_the_higher_iou_wins(device):
    assert match([bar(4)], [bar(20), bar(10)], device, force_best=True) == ([1], [pytest.approx(0.4)])
    assert match([bar(4)], [bar(10), bar(20)], device, force_best=True) == ([0], [pytest.approx(0.4)])
    # Equal: the lower face. The loser gets nothing, not even its second best.
    assert match([bar(4), bar(3)], [bar(10), bar(10), bar(10)], device, force_best=True)[0] == [0, -1]


def test_a_forced_anchor_leaves_its_face(device):
    # Face 0 fits both anchors, the second one best; face 1 meets both a little, the first one most, and takes it.
    anchors, faces = [[0, 0, 10, 10], [0, 0, 10, 9]], [[0, 0, 10, 9.2], [9, 0, 12, 10]]
    index, overlap = match(anchors, faces, device, force_best=True)
    assert index == [1, 0]
    assert overlap[0] == pytest.approx(10 / 120)


def test_a_face_with_few_anchors_gets_the_best_unmatched_ones(device):
    anchors = [bar(1.2), bar(3), bar(2), bar(3), bar(1), bar(0.9), bar(10)]  # IoU .12 .3 .2 .3 .1 .09 1 with bar(10)
    assert match(anchors, [bar(10)], device, compensate=1)[0] == [-1, -1, -1, -1, -1, -1, 0]
    assert match(anchors, [bar(10)], device, compensate=2)[0] == [-1, 0, -1, -1, -1, -1, 0]
    assert match(anchors, [bar(10)], device, compensate=4)[0] == [-1, 0, 0, 0, -1, -1, 0]
    # The threshold is strict, and compared as a double: 1 / 10 in float32 is above it.
    index, overlap = match(anchors, [bar(10)], device, compensate=99)
    assert index == [0, 0, 0, 0, 0, -1, 0]
    assert overlap == pytest.approx([0.12, 0.3, 0.2, 0.3, 0.1, 0.09, 1])
    # Those between the thresholds are unmatched as well.
    assert match(anchors, [bar(10)], device, negative=0.15, compensate=2)[0] == [-1, 0, -2, -2, -1, -1, 0]


def test_more_faces_than_threads_with_too_many_anchors(device):
    # A block has 1,024 threads, so that faces beyond 2,048 are its third turn.
    some = range(0, 2100, 30)
    anchors = [bar(4, 20 * face) for face in some for _ in range(2)]
    index, _ = match(anchors, [bar(10, 20 * face) for face in range(2100)], device, compensate=1)
    assert index == [chosen for face in some for chosen in (face, -1)]


def test_compensation_leaves_anchors_with_their_best_face(device):
    # Both faces have few anchors; the second anchor's best face is 1, so face 0 does not get it.
    anchors = [[0, 0, 4, 1], [5, 0, 9, 1]]
    assert match(anchors, [[0, 0, 10, 1], [5, 0, 13, 1]], device, positive=0.9, compensate=5)[0] == [0, 1]


def test_the_mean_is_rounded_half_up_and_at_least_one(device):
    def scene(counts):
        """Faces with these numbers of equal anchors, then a face without any that has five with an IoU of 0.4."""
        faces = [bar(10, 100 * f) for f in range(len(counts) + 1)]
        anchors = [bar(10, 100 * f) for f, count in enumerate(counts) for _ in range(count)]
        return anchors + [bar(4, 100 * len(counts))] * 5, faces

    for counts, mean in (([2], 1), ([3], 2), ([4, 3], 2), ([4, 4], 3), ([], 1), ([0, 0, 0, 1], 1), ([12], 6)):
        anchors, faces = scene(counts)
        index, _ = match(anchors, faces, device, compensate="mean")
        assert index[len(anchors) - 5 :] == ([len(counts)] * mean + [-1] * 5)[:5]
    # A face without area, or one to ignore, is not counted: the mean of 3 and 0 alone is 2 with rounding.
    anchors, faces = scene([3])
    for extra, ignore in (([0, 0, 0, 5], False), ([0, 500, 9, 509], True)):
        index, _ = match(anchors, [*faces, extra], device, compensate="mean", ignore=[False, False, ignore])
        assert index[3:] == [1, 1, -1, -1, -1]


def test_an_ignore_box_hides_anchors_that_it_covers_by_half(device):
    anchors = [bar(4), bar(4, 2), bar(4, 1.9), bar(4, 2.1), bar(4, 50)]
    hidden = [bar(4), [-9, -9, 4, 9]]
    assert match(anchors, hidden, device, ignore=[False, True])[0] == [0, -2, -2, -1, -1]
    # It is no face, and it does not take a face's anchor away.
    assert match(anchors, hidden, device, ignore=[True, True], force_best=True, compensate=3)[0] == [-2, -2, -2, -1, -1]
    assert match([bar(4)], [bar(4), bar(4)], device, ignore=[True, False])[0] == [1]
    # Anchors without area are not covered; two boxes that cover a quarter each do not add up.
    assert match([[1, 1, 1, 1]], [[0, 0, 5, 5]], device, ignore=[True])[0] == [-1]
    assert match([bar(8)], [bar(2), bar(2, 6)], device, ignore=[True, True])[0] == [-1]


def test_invalid_anchors_get_no_face(device):
    anchors, options = [bar(4), bar(3), bar(4)], {"force_best": True, "compensate": 3}
    index, overlap = match(anchors, [bar(4)], device, valid=[False, True, False], **options)
    assert index == [-2, 0, -2]
    assert overlap == [0, 0.75, 0]
    anchors = [[math.nan, 0, 4, 1], bar(3), [0, 0, math.inf, 1]]
    assert match(anchors, [bar(4)], device, **options) == ([-2, 0, -2], [0, 0.75, 0])


def test_invalid_faces_match_nothing(device):
    faces = [[0, 0, 0, 4], [4, 1, 0, 0], [0, 0, math.nan, 1], [0, 0, math.inf, 1], [-3e38, -3e38, 3e38, 3e38], bar(4)]
    assert match([bar(4), bar(4, 9)], faces, device, force_best=True, compensate=3)[0] == [5, -1]
    assert match([bar(4)], faces[:5], device, force_best=True, compensate="mean") == ([-1], [0])


def test_empty_inputs(device):
    none = torch.zeros(0, 4)
    for options in SETTINGS.values():
        for anchors in (square_anchors(64), none, none.expand(2, 0, 4)):
            check((anchors, none, torch.tensor([0, 0, 0])), options, device)
        check((square_anchors(64), none, torch.tensor([0])), options, device)
    index, overlap = ops.assign_anchors(square_anchors(64), none, torch.tensor([0, 0]), positive=0.5, negative=0.3)
    assert (index == -1).all()
    assert (overlap == 0).all()


# --- the torch face --------------------------------------------------------------------------------------------------

ANCHORS, BOXES, SPLITS = torch.zeros(5, 4), torch.zeros(3, 4), torch.tensor([0, 1, 3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_dtypes_are_computed_in_float32(dtype, device):
    anchors, faces = (moved(t, device).to(dtype) for t in (square_anchors(128), random_faces(20, 128)))
    check((anchors, faces, torch.tensor([0, 20])), SETTINGS["s3fd"], device)


def test_strided_and_differentiable_inputs(device):
    anchors, faces = (moved(t, device) for t in (square_anchors(128), random_faces(20, 128)))
    splits = torch.tensor([0, 5, 20], device=device)
    expected = ops.assign_anchors(anchors, faces, splits, **SETTINGS["s3fd"])
    strided = ops.assign_anchors(
        anchors.t().contiguous().t().requires_grad_(),
        faces.repeat(1, 2)[:, 4:].requires_grad_(),
        splits.repeat_interleave(2)[::2],
        ignore=torch.zeros(40, dtype=torch.bool, device=device)[::2],
        valid=torch.ones(2, len(anchors) * 2, dtype=torch.bool, device=device)[:, ::2],
        **SETTINGS["s3fd"],
    )
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(expected, strided, strict=True))
    shared = ops.assign_anchors(anchors.expand(2, -1, -1), faces, splits, **SETTINGS["s3fd"])
    assert all(torch.equal(a, b) for a, b in zip(expected, shared, strict=True))


def call(anchors=ANCHORS, boxes=BOXES, splits=SPLITS, **options):
    return ops.assign_anchors(anchors, boxes, splits, **({"positive": 0.5, "negative": 0.3} | options))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"anchors": ANCHORS.numpy()}, TypeError, "anchors must be a torch.Tensor, got ndarray"),
        ({"splits": [0, 1, 3]}, TypeError, "splits must be a torch.Tensor, got list"),
        ({"anchors": ANCHORS.int()}, TypeError, "anchors must be one of float32.*got torch.int32"),
        ({"boxes": BOXES.long()}, TypeError, "boxes must be one of float32.*got torch.int64"),
        ({"splits": SPLITS.int()}, TypeError, "splits must be one of int64, got torch.int32"),
        ({"ignore": torch.zeros(3)}, TypeError, "ignore must be one of bool, got torch.float32"),
        ({"valid": torch.ones(5).int()}, TypeError, "valid must be one of bool, got torch.int32"),
        ({"anchors": torch.zeros(5, 5)}, ValueError, r"\[A, 4\] or \[B, A, 4\] with B = 2 as in splits, got \[5, 5\]"),
        ({"anchors": torch.zeros(3, 5, 4)}, ValueError, r"with B = 2 as in splits, got \[3, 5, 4\]"),
        ({"anchors": torch.zeros(4)}, ValueError, r"anchors must have the shape .* got \[4\]"),
        ({"boxes": torch.zeros(3, 3)}, ValueError, r"boxes must have the shape \[G, 4\], got \[3, 3\]"),
        ({"boxes": torch.tensor(1.0)}, ValueError, r"boxes must have the shape \[G, 4\], got \[\]"),
        ({"splits": SPLITS[None]}, ValueError, r"splits must have the shape \[B \+ 1\], got \[1, 3\]"),
        ({"splits": SPLITS[:0]}, ValueError, r"splits must have the shape \[B \+ 1\], got \[0\]"),
        ({"splits": torch.tensor([0, 1, 4])}, ValueError, r"splits must rise from 0 to G = 3, got \[0, 1, 4\]"),
        ({"splits": torch.tensor([1, 1, 3])}, ValueError, r"splits must rise from 0 to G = 3, got \[1, 1, 3\]"),
        ({"splits": torch.tensor([0, 2, 1, 3])}, ValueError, r"got \[0, 2, 1, 3\]; image b has"),
        ({"splits": torch.arange(30)}, ValueError, r"got \[0, 1, 2, 3\] ... \[26, 27, 28, 29\]"),
        ({"ignore": torch.zeros(2).bool()}, ValueError, r"ignore must have the shape \[G\] = \[3\] .*got \[2\]"),
        ({"valid": torch.ones(2).bool()}, ValueError, r"\[A\] = \[5\] or \[B, A\] = \[2, 5\], got \[2\]"),
        ({"valid": torch.ones(3, 5).bool()}, ValueError, r"\[A\] = \[5\] or \[B, A\] = \[2, 5\], got \[3, 5\]"),
        ({"boxes": BOXES.to("meta")}, ValueError, "anchors and boxes must be on one device, got cpu and meta"),
        ({"positive": 1.5}, ValueError, "positive must be between 0 and 1, got 1.5"),
        ({"positive": math.nan}, ValueError, "positive must be between 0 and 1, got nan"),
        ({"negative": -0.1}, ValueError, "negative must be between 0 and 1, got -0.1"),
        ({"positive": 0.2}, ValueError, "positive must be > 0 and >= negative, got 0.2 and 0.3"),
        ({"positive": 0.0, "negative": 0.0}, ValueError, "positive must be > 0 and >= negative, got 0.0 and 0.0"),
        ({"compensate": 0}, ValueError, "compensate must be None, 'mean' or a number of anchors .*got 0"),
        ({"compensate": "median"}, ValueError, "compensate must be None, 'mean' or .*got 'median'"),
        ({"compensate": True}, ValueError, "compensate must be None, 'mean' or .*got True"),
        ({"compensate": 2.5}, ValueError, "compensate must be None, 'mean' or .*got 2.5"),
        ({"positive": "0.5"}, TypeError, "positive must be a number, got str"),
        ({"negative": None}, TypeError, "negative must be a number, got NoneType"),
        ({"force_best": "no"}, TypeError, "force_best must be True or False, got 'no'"),
    ],
)
def test_error_messages(arguments, error, words):
    with pytest.raises(error, match=words):
        call(**arguments)


def test_numpy_integers_are_accepted():
    for expected, index in zip(call(compensate=3), call(compensate=np.int64(3)), strict=True):
        assert torch.equal(expected, index)


def test_examples_in_docstrings_run():
    assert doctest.testmod(matching).failed == 0


def test_direct_calls_are_checked_too():
    op = torch.ops.pyface.assign_anchors.default
    with pytest.raises(ValueError, match="all tensors must be on one device, got cpu and meta"):
        op(ANCHORS, BOXES, SPLITS, 0.5, 0.3, False, -1, None, torch.ones(5, dtype=torch.bool, device="meta"))
    with pytest.raises(
        ValueError, match=r"compensate must be -1 \(no face\), 0 \(the mean\) or a number of anchors, got -2"
    ):
        op(ANCHORS, BOXES, SPLITS, 0.5, 0.3, False, -2, None, None)


@pytest.mark.parametrize("seed", range(6))
def test_opcheck(seed, device):
    (anchors, boxes, splits), options = random_call(seed + 1000)
    numbers = {None: -1, "mean": 0}
    options["compensate"] = numbers.get(options["compensate"], options["compensate"])
    arguments = (anchors, boxes, splits, *options.values())
    torch.library.opcheck(torch.ops.pyface.assign_anchors.default, tuple(moved(value, device) for value in arguments))


def test_compiles_as_a_full_graph(device):
    anchors, faces, splits = (
        moved(t, device) for t in (square_anchors(128), random_faces(20, 128), torch.tensor([0, 5, 20]))
    )

    def targets(anchors, boxes, splits):
        index, overlap = ops.assign_anchors(anchors * 2, boxes * 2, splits, **SETTINGS["s3fd"])
        return (index >= 0).sum(1), overlap.amax(1)

    compiled = torch.compile(targets, fullgraph=True, backend="aot_eager")
    for count in (20, 12):  # the second call with another number of faces
        arguments = (anchors, faces[:count], splits.clamp(max=count))
        for expected, got in zip(targets(*arguments), compiled(*arguments), strict=True):
            assert torch.equal(got, expected)


def test_memory_is_that_of_anchors_and_faces():
    # A matrix of a million anchors and 5,000 faces has 20 GB as floats and 625 MB as bits.
    program = (
        "import resource, torch, pyface\n"
        "torch.set_num_threads(2); torch.manual_seed(0)\n"
        "centre = torch.arange(1000) * 4.0\n"
        "y, x = torch.meshgrid(centre, centre, indexing='ij')\n"
        "points = torch.stack([x, y], -1).view(-1, 2)\n"
        "anchors = torch.cat([points - 8, points + 8], 1)\n"
        "faces = torch.rand(5000, 4) * 4000; faces[:, 2:] = faces[:, :2] + 6 + 60 * torch.rand(5000, 1)\n"
        "call = lambda a: pyface.ops.assign_anchors(a, faces, torch.tensor([0, 5000]), positive=0.35, negative=0.35,\n"
        "    force_best=True, compensate='mean', ignore=torch.arange(5000) % 9 == 0)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "call(anchors[:1000]); before = peak()\n"
        "index, overlap = call(anchors)\n"
        "assert (index >= 0).sum() > 10_000\n"
        "print((peak() - before) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    per_anchor_or_face = 32  # bytes; results take 8, candidates of compensation at most 8
    assert int(done.stdout) < per_anchor_or_face * 1_005_000


# --- CUDA only -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["ssh", "s3fd", "s3fd, six each"])
@pytest.mark.parametrize("splits", [[0, -5, 99], [7, 3, 20], [-(2**60), 2**60, 5], [-(2**63), 2**63 - 1]])
def test_splits_are_clamped_on_a_gpu(splits, rule, gpu_without_checks):
    # Reading them on the host would synchronise; whatever they hold, nothing beyond the boxes is read.
    anchors, faces = square_anchors(64), random_faces(20, 64)
    arguments = (x.to(gpu_without_checks) for x in (anchors, faces, torch.tensor(splits)))
    index, overlap = ops.assign_anchors(*arguments, **SETTINGS[rule])
    for image in range(len(splits) - 1):
        begin = min(max(splits[image], 0), 20)
        end = min(max(splits[image + 1], begin), 20)
        alone = reference.assign_anchors(anchors, faces[begin:end], torch.tensor([0, end - begin]), **SETTINGS[rule])
        assert torch.equal(index[image].cpu(), alone[0][0])
        assert torch.equal(overlap[image].cpu(), alone[1][0])


def test_splits_that_share_faces_stay_in_bounds(gpu_without_checks, request, monkeypatch):
    # Two images then write the state of one face: which of them is first decides the result.
    if gpu_without_checks == "cpu":
        monkeypatch.setattr(request.getfixturevalue("emulated_gpu"), "checks_values", False)
    anchors, faces = square_anchors(64), random_faces(20, 64)
    for splits in ([0, 10, 5, 20], [0, 20, -1, 20, 3, 99], [19, 2**62, 0, 20]):
        arguments = (x.to(gpu_without_checks) for x in (anchors, faces, torch.tensor(splits)))
        index, _ = ops.assign_anchors(*arguments, **SETTINGS["s3fd"])
        assert index.min() >= -2
        assert index.max() < 20


@pytest.mark.cuda
def test_never_synchronises_and_runs_in_a_cuda_graph(cuda):
    arguments = [t.to(cuda) for t in (square_anchors(320), random_faces(60, 320), torch.tensor([0, 20, 20, 60]))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = copy.deepcopy(ops.assign_anchors(*arguments, **SETTINGS["s3fd"]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index, overlap = ops.assign_anchors(*arguments, **SETTINGS["s3fd"])
    index.zero_(), overlap.zero_()
    graph.replay()
    assert torch.equal(index, expected[0])
    assert torch.equal(overlap, expected[1])


@pytest.mark.cuda
def test_memory_on_cuda_is_that_of_anchors_and_faces(cuda):
    # A matrix of these would hold 20 GB.
    generator = torch.Generator().manual_seed(0)
    centre = torch.stack(torch.meshgrid(*[torch.arange(1000) * 4.0] * 2, indexing="xy"), -1).view(-1, 2)
    anchors = torch.cat([centre - 8, centre + 8], 1).to(cuda)
    corner = 4000 * torch.rand(5000, 2, generator=generator)
    faces = torch.cat([corner, corner + 6 + 60 * torch.rand(5000, 1, generator=generator)], 1).to(cuda)
    splits, ignore = torch.tensor([0, 5000], device=cuda), torch.arange(5000, device=cuda) % 9 == 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    index, _ = ops.assign_anchors(anchors, faces, splits, **SETTINGS["s3fd"], ignore=ignore)
    per_anchor_or_face = 32  # bytes; results take 8, what is kept of an anchor 16
    assert torch.cuda.max_memory_allocated() - before < per_anchor_or_face * 1_005_000
    assert (index >= 0).sum() > 10_000


@pytest.mark.cuda
def test_crowds_on_cuda_equal_the_cpu_every_time(cuda):
    """Thousands of atomics on few faces, and on few anchors."""
    anchors = square_anchors(640)
    for boxes in (random_faces(3_000, 640), random_faces(3_000, 640).div(40).round() * 40):
        splits = torch.tensor([0, 5, 5, 3_000])
        expected = ops.assign_anchors(anchors, boxes, splits, **SETTINGS["s3fd"])
        on_cuda = [t.to(cuda) for t in (anchors, boxes, splits)]
        for _ in range(20):
            for got, value in zip(ops.assign_anchors(*on_cuda, **SETTINGS["s3fd"]), expected, strict=True):
                assert torch.equal(got.cpu(), value)
