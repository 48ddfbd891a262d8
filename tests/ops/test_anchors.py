"""decode_anchors: kernels against the reference on the layouts of S3FD, SSH and SRN, contracts, hostile input."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import AnchorLevel, LevelMaps, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def square(stride: int, *sides: float) -> tuple[tuple[float, float, float, float], ...]:
    centre = stride / 2
    return tuple((centre - side / 2, centre - side / 2, centre + side / 2, centre + side / 2) for side in sides)


def s3fd_levels(**options) -> list[AnchorLevel]:
    return [AnchorLevel(s, square(s, 4 * s), 3 if s == 4 else 1, **options) for s in (4, 8, 16, 32, 64, 128)]


def ssh_levels(**options) -> list[AnchorLevel]:
    return [AnchorLevel(s, square(s, 2 * s, 4 * s), 1, **options) for s in (8, 16, 32)]


def srn_levels(**options) -> list[AnchorLevel]:
    return [AnchorLevel(s, square(s, 2 * s, 2.828 * s), 0, **options) for s in (4, 8, 16, 32, 64, 128)]


def random_maps(levels, image=(160, 224), batch=2, extras=(), face=0.1, seed=0) -> list[LevelMaps]:
    """Maps of an image in which about the share `face` of the anchors has a large face logit."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for place, level in enumerate(levels):
        size = tuple(math.ceil(side / level.stride) for side in image)
        k = len(level.anchors)

        def normal(channels, size=size):
            return torch.randn(batch, channels, *size, generator=generator)

        logits = normal((level.num_background + 1) * k)
        is_face = torch.rand(batch, k, *size, generator=generator) < face
        logits[:, level.num_background * k :] += torch.where(is_face, 4, -8)
        maps.append(
            LevelMaps(
                logits,
                normal(4 * k),
                landmarks=normal(10 * k) if "landmarks" in extras else None,
                gate=normal(k) if "gate" in extras and place < 3 else None,
                offsets=normal(4 * k) if "offsets" in extras and place >= 3 else None,
            )
        )
    return maps


def make_hostile(maps: list[LevelMaps], seed: int = 0) -> list[LevelMaps]:
    """Coarse values with many ties, and a few that are not finite or overflow when decoded."""
    generator = torch.Generator().manual_seed(seed)
    bad = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1000.0, -1000.0])

    def spoil(tensor):
        coarse = (tensor * 2).round() / 2
        which = torch.randint(0, 400, coarse.shape, generator=generator)
        return torch.where(which < len(bad), bad[which.clamp(max=len(bad) - 1)], coarse)

    return [LevelMaps(*(None if tensor is None else spoil(tensor) for tensor in level)) for level in maps]


def each(maps: list[LevelMaps], function) -> list[LevelMaps]:
    return [LevelMaps(*(None if tensor is None else function(tensor) for tensor in level)) for level in maps]


def assert_same(got: ops.Candidates, expected: ops.Candidates) -> None:
    assert torch.equal(got.count, expected.count)
    assert torch.equal(got.index, expected.index)
    # Coordinates may be large where deltas are: then float32 itself is coarser than 1e-4 px.
    torch.testing.assert_close(got.boxes, expected.boxes, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(got.landmarks, expected.landmarks, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(got.scores, expected.scores, rtol=0, atol=1e-6)
    for name, value in got._asdict().items():
        assert value.dtype == getattr(expected, name).dtype
        assert value.shape == getattr(expected, name).shape
        assert value.device == getattr(expected, name).device


def check(maps, levels, **options) -> ops.Candidates:
    """Compares the kernel with the reference, and returns the kernel's result."""
    got = ops.decode_anchors(maps, levels, **options)
    assert_same(got, reference.decode_anchors(maps, levels, **options))
    return got


SIZES = torch.tensor([[160.0, 224.0], [90.5, 130.0]])
# Per detector: levels, extra maps, options.
DETECTORS = {
    "s3fd": (s3fd_levels, (), {"score_threshold": 0.05, "max_candidates": 400}),
    "s3fd with landmarks": (
        s3fd_levels,
        ("landmarks",),
        {"score_threshold": 0.05, "max_candidates": 5000, "sizes": SIZES, "min_side": 3.0},
    ),
    "ssh": (
        lambda: ssh_levels(max_candidates=60),
        (),
        {"score_threshold": 0.05, "max_candidates": 150, "variances": (1.0, 1.0), "sizes": SIZES},
    ),
    "srn": (
        lambda: srn_levels(max_candidates=100),
        ("gate", "offsets"),
        {
            "score_threshold": [0.05, 0.05, 0.05, 0.0, 0.0, 0.0],
            "gate_threshold": 0.3,
            "max_candidates": 300,
            "variances": (1.0, 1.0),
        },
    ),
    "srn with landmarks": (
        srn_levels,
        ("gate", "offsets", "landmarks"),
        {"score_threshold": 0.1, "gate_threshold": 0.01, "max_candidates": 1000, "sizes": SIZES},
    ),
}


def on(device: str, options: dict) -> dict:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}


@pytest.mark.parametrize("hostile", [False, True], ids=["random", "hostile"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DETECTORS)
def test_equals_reference(name, dtype, hostile, device, some):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    for seed in some(range(3)):
        maps = random_maps(levels, extras=extras, seed=seed)
        maps = make_hostile(maps, seed) if hostile else maps
        found = check(each(maps, lambda t: t.to(device, dtype)), levels, **on(device, options))
        assert found.count.min() > 20


@pytest.mark.parametrize("name", DETECTORS)
def test_maps_of_any_strides(name, device):
    make_levels, extras, options = DETECTORS[name]
    levels, options = make_levels(), on(device, options)
    maps = each(random_maps(levels, extras=extras), lambda t: t.to(device))
    expected = ops.decode_anchors(maps, levels, **options)

    def sliced(tensor):
        batch, channels, height, width = tensor.shape
        wide = torch.full((batch, channels + 3, height + 2, 2 * width + 1), math.nan, device=device)
        return wide[:, 2:-1, 1:-1, 1::2].copy_(tensor)

    layouts = [
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[:, t.shape[1] :],
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        sliced,
    ]
    for layout in layouts:
        for value, same in zip(ops.decode_anchors(each(maps, layout), levels, **options), expected, strict=True):
            assert torch.equal(value, same)
    # A gap in one map only, and one image for the whole batch.
    mixed = [level._replace(boxes=sliced(level.boxes)) for level in maps]
    assert torch.equal(ops.decode_anchors(mixed, levels, **options).boxes, expected.boxes)
    check(each(maps, lambda t: t[:1].expand_as(t)), levels, **options)


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 17),
        (17, 1),
        (5, 63),
        (4, 64),
        (3, 65),
        (1, 256),
        (1, 257),
        pytest.param((130, 129), marks=pytest.mark.large),
    ],
)
def test_any_map_size(size, device):
    for k, num_background in ((1, 0), (1, 3), (2, 1), (8, 2)):
        level = AnchorLevel(4, square(4, *range(4, 4 + k)), num_background)
        generator = torch.Generator().manual_seed(size[0])
        maps = [
            LevelMaps(*(torch.randn(2, c, *size, generator=generator).to(device) for c in channels))
            for channels in [((num_background + 1) * k, 4 * k)]
        ]
        check(maps, [level], score_threshold=0.5, max_candidates=10**6)


@pytest.mark.large
def test_large_levels_are_shared_out_in_order(device):
    # More than one share of work per level, and equal scores everywhere: the order is the index.
    level = AnchorLevel(4, square(4, 8, 16), 1)
    maps = [LevelMaps(torch.zeros(3, 4, 150, 151, device=device), torch.zeros(3, 8, 150, 151, device=device))]
    found = ops.decode_anchors(maps, [level], score_threshold=0.4, max_candidates=10**9)
    assert torch.equal(found.index, torch.arange(2 * 150 * 151, device=device).expand(3, -1))
    anchors = ops.anchor_boxes([level], [(150, 151)], device)
    torch.testing.assert_close(found.boxes[2], anchors)
    assert (found.scores == 0.5).all()


@pytest.mark.parametrize("wanted", [200, 5000])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_more_survivors_than_a_block_sorts(memory_format, wanted, device):
    # Two scores, many times each: the order is the score, then the index.
    level = AnchorLevel(4, square(4, 8, 16), 0)
    logits = torch.zeros(1, 2, 60, 50)
    logits[0, :, 30:] = 1
    maps = [
        LevelMaps(*(m.to(device).contiguous(memory_format=memory_format) for m in (logits, torch.zeros(1, 8, 60, 50))))
    ]
    found = ops.decode_anchors(maps, [level], score_threshold=0.4, max_candidates=wanted)
    order = torch.cat([torch.arange(3000, 6000), torch.arange(3000)])[:wanted]
    assert torch.equal(found.index[0].cpu(), order)
    torch.testing.assert_close(found.boxes[0].cpu(), ops.anchor_boxes([level], [(60, 50)])[order])


WIDE = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 3e38]))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_floats(data):
    k, num_background = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    has_landmarks = data.draw(st.booleans())
    batch = data.draw(st.integers(1, 2))
    levels, maps = [], []
    for stride in (4, 8)[: data.draw(st.integers(1, 2))]:
        levels.append(AnchorLevel(stride, square(stride, 4, 9, 30)[:k], num_background, data.draw(st.integers(0, 9))))
        height, width = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))

        def drawn(channels, height=height, width=width):
            n = batch * channels * height * width
            few = data.draw(st.lists(WIDE, min_size=1, max_size=12))
            values = torch.tensor(list(itertools.islice(itertools.cycle(few), n)), dtype=torch.float32)
            return values.reshape(batch, channels, height, width)

        gate = drawn(k) if data.draw(st.booleans()) else None
        offsets = drawn(4 * k) if data.draw(st.booleans()) else None
        landmarks = drawn(10 * k) if has_landmarks else None
        maps.append(LevelMaps(drawn((num_background + 1) * k), drawn(4 * k), landmarks, gate, offsets))
    sizes = torch.tensor(data.draw(st.lists(st.tuples(WIDE, WIDE), min_size=batch, max_size=batch)))
    check(
        maps,
        levels,
        score_threshold=data.draw(st.floats(0, 1)),
        gate_threshold=data.draw(st.floats(0, 1)),
        max_candidates=data.draw(st.integers(0, 20)),
        min_side=data.draw(st.floats(0, 10)),
        variances=(data.draw(st.floats(1e-3, 2)), data.draw(st.floats(1e-3, 2))),
        sizes=sizes if data.draw(st.booleans()) else None,
    )


# --- contracts -------------------------------------------------------------------------------------------------------

LEVEL = AnchorLevel(4, ((0.0, 0.0, 8.0, 8.0),), 0)


def one_row(logits, boxes=None, device="cpu", **others) -> list[LevelMaps]:
    """Maps of one level with one row of cells, one logit each."""
    logits = torch.as_tensor(logits, dtype=torch.float32, device=device).reshape(1, 1, 1, -1)
    if boxes is None:
        boxes = torch.zeros(1, 4, 1, logits.shape[3], device=device)
    return [LevelMaps(logits, boxes, **others)]


def test_score_threshold_is_strict_and_compared_as_double(device):
    for threshold in (0.05, 0.3, 0.5, 0.99):
        limit = torch.tensor(math.log(threshold / (1 - threshold)), dtype=torch.float64)
        nearest = limit.float()
        around = torch.stack(
            [nearest.nextafter(torch.tensor(-math.inf)), nearest, nearest.nextafter(torch.tensor(math.inf))]
        )
        found = check(one_row(around, device=device), [LEVEL], score_threshold=threshold, max_candidates=3)
        assert sorted(found.index[0, : found.count[0]].tolist()) == torch.where(around.double() > limit)[0].tolist()
    assert check(one_row([0.0], device=device), [LEVEL], score_threshold=0.5, max_candidates=1).count == 0


def test_thresholds_zero_and_one(device):
    maps = one_row([-3e38, 3e38, math.inf, -math.inf, math.nan, 0.0], device=device)
    found = check(maps, [LEVEL], score_threshold=0.0, max_candidates=9)
    assert found.index.tolist() == [[1, 5, 0, -1, -1, -1]]
    assert check(maps, [LEVEL], score_threshold=1.0, max_candidates=9).count == 0
    gated = one_row([1.0] * 6, device=device, gate=maps[0].logits)
    assert check(gated, [LEVEL], score_threshold=0.0, max_candidates=9).index.tolist() == [[0, 1, 5, -1, -1, -1]]
    assert check(gated, [LEVEL], score_threshold=0.0, gate_threshold=1.0, max_candidates=9).count == 0


def test_equal_scores_keep_the_order_of_the_logits(device):
    # The sigmoid of all of these is 1 in float32.
    found = check(one_row([40.0, 50.0, 40.0, 60.0], device=device), [LEVEL], score_threshold=0.5, max_candidates=9)
    assert found.index.tolist() == [[3, 1, 0, 2]]
    assert found.scores.tolist() == [[1.0] * 4]
    zeros = check(one_row([0.0, -0.0, 0.0], device=device), [LEVEL], score_threshold=0.1, max_candidates=2)
    assert zeros.index.tolist() == [[0, 1]]


def test_scores_are_rounded_once(device):
    # As a double's sigmoid is: the exponential is our own on both sides, and must be as good as a library's.
    random = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([torch.linspace(-120, 120, 1501), random * 4, random * 1e-4, torch.tensor([-3e38, 3e38, 1e-30])])
    found = check(one_row(logits, device=device), [LEVEL], score_threshold=0.0, max_candidates=len(logits))
    assert found.count == len(logits)
    assert torch.equal(found.scores[0].cpu(), logits[found.index[0].cpu()].double().sigmoid().float())


def test_best_of_each_level_then_best_of_all(device):
    levels = [AnchorLevel(4, ((0.0, 0.0, 8.0, 8.0),), 0, limit) for limit in (2, 0, None)]
    maps = one_row([5.0, 7, 6], device=device) + one_row([9.0], device=device) + one_row([1.0, 8, 6], device=device)
    found = check(maps, levels, score_threshold=0.1, max_candidates=4)
    assert found.index.tolist() == [[5, 1, 2, 6]]
    assert check(maps, levels, score_threshold=0.1, max_candidates=99).index.tolist() == [[5, 1, 2, 6, 4]]
    assert check(maps, levels, score_threshold=0.1, max_candidates=0).boxes.shape == (1, 0, 4)


def test_dropped_boxes_do_not_take_places(device):
    # The two best have no box inside the image, or no finite one: the level's two places go to the next.
    boxes = torch.zeros(1, 4, 1, 5, device=device)
    boxes[0, 0, 0, 0], boxes[0, 2, 0, 1] = -1000.0, 1000.0
    maps = one_row([9.0, 8, 3, 2, 1], boxes, device)
    level = AnchorLevel(4, LEVEL.anchors, 0, max_candidates=2)
    sizes = torch.tensor([[100.0, 100.0]], device=device)
    found = check(maps, [level], score_threshold=0.5, max_candidates=5, sizes=sizes)
    assert found.index.tolist() == [[2, 3]]


def test_boxes_are_clipped_and_landmarks_are_not(device):
    boxes = torch.zeros(1, 4, 1, 3, device=device)
    boxes[0, :2, 0, 0] = -5.0  # moved by -5 * 0.1 * 8 = 4 pixels left and up: half of it is outside
    landmarks = torch.full((1, 10, 1, 3), -10.0, device=device)
    maps = one_row([3.0, 2.0, 1.0], boxes, device, landmarks=landmarks)
    sizes = torch.tensor([[6.0, 9.0]], device=device)
    found = check(maps, [LEVEL], score_threshold=0.5, max_candidates=3, sizes=sizes)
    assert found.boxes.tolist() == [[[0, 0, 4, 4], [4, 0, 9, 6], [8, 0, 9, 6]]]
    assert found.landmarks[0, 0].tolist() == [[-4, -4]] * 5
    # The shorter side after clipping is compared, and a side equal to the limit stays.
    assert check(maps, [LEVEL], score_threshold=0.5, max_candidates=3, sizes=sizes, min_side=4.0).count == 2
    above = math.nextafter(4.0, 5.0)
    assert check(maps, [LEVEL], score_threshold=0.5, max_candidates=3, sizes=sizes, min_side=above).count == 1


def test_formulas(device):
    level = AnchorLevel(8, ((-4.0, 0.0, 12.0, 20.0),), 1)
    numbers = torch.zeros(1, 4, 2, 2, device=device)
    numbers[0, :, 1, 1] = torch.tensor([1.0, -2.0, 0.5, -0.5])
    logits = torch.full((1, 2, 2, 2), -9.0, device=device)
    logits[0, :, 1, 1] = torch.tensor([1.0, 2.0])
    points = torch.arange(10.0, device=device).reshape(1, 10, 1, 1).expand(1, 10, 2, 2)
    options = {"score_threshold": 0.6, "max_candidates": 1}
    found = check([LevelMaps(logits, numbers, points)], [level], **options)
    x, y, w, h = 12 + 0.1 * 16, 18 - 0.2 * 20, 16 * math.exp(0.1), 20 * math.exp(-0.1)
    expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    assert found.boxes[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.scores.item() == pytest.approx(math.e / (1 + math.e), abs=1e-6)
    assert found.landmarks[0, 0, 3].tolist() == pytest.approx([12 + 0.6 * 16, 18 + 0.7 * 20], abs=1e-4)
    assert found.index.item() == 3
    # A first step moves the anchor before the second does.
    moved = check([LevelMaps(logits, numbers, None, None, numbers)], [level], **options)
    x, y = x + 0.1 * w, y - 0.2 * h
    w, h = w * math.exp(0.1), h * math.exp(-0.1)
    expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    assert moved.boxes[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_index_counts_cells_by_row_and_anchors_within(device):
    levels = ssh_levels()
    maps = each(random_maps(levels, face=1.0), lambda t: t.to(device))
    maps = [level._replace(boxes=torch.zeros_like(level.boxes)) for level in maps]
    found = check(maps, levels, score_threshold=0.0, max_candidates=10**6)
    anchors = ops.anchor_boxes(levels, [tuple(level.logits.shape[2:]) for level in maps], device)
    assert found.count.tolist() == [len(anchors)] * 2
    torch.testing.assert_close(found.boxes, anchors[found.index], rtol=0, atol=1e-4)
    # Face logits of SSH lie in the last K channels: bg0, bg1, fg0, fg1.
    k1 = maps[0].logits[0, 3, 2, 5] - maps[0].logits[0, 1, 2, 5]
    place = (found.index[0] == (2 * maps[0].logits.shape[3] + 5) * 2 + 1).nonzero().item()
    assert found.scores[0, place].item() == pytest.approx(torch.sigmoid(k1).item(), abs=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_all_and_none_pass(name, device):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    maps = each(random_maps(levels, extras=extras), lambda t: t.to(device))
    options = on(device, options) | {"gate_threshold": 0.0}
    check(maps, levels, **options | {"score_threshold": 0.0})
    none = check(maps, levels, **options | {"score_threshold": 1.0})
    assert none.count.tolist() == [0, 0]
    assert (none.index == -1).all()
    assert not none.boxes.any()


def test_all_outputs_are_written(device):
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        for batch, image in ((2, (160, 224)), (0, (160, 224)), (2, (0, 224))):
            levels = s3fd_levels()
            maps = random_maps(levels, image, batch, ("landmarks",), face=0.01)
            found = check(each(maps, lambda t: t.to(device)), levels, score_threshold=0.5, max_candidates=500)
            if batch and image[0]:
                assert 0 < found.count.max() < 500
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_empty(device):
    levels = ssh_levels()
    for batch, image in ((0, (64, 64)), (2, (0, 64)), (2, (64, 0)), (0, (0, 0))):
        maps = each(random_maps(levels, image, batch), lambda t: t.to(device))
        found = check(maps, levels, score_threshold=0.1, max_candidates=10)
        assert found.boxes.shape == (batch, 10 if all(image) else 0, 4)
    # Levels without cells among others.
    maps = each(random_maps(levels), lambda t: t.to(device))
    maps[1] = LevelMaps(maps[1].logits[:, :, :0], maps[1].boxes[:, :, :0])
    check(maps, levels, score_threshold=0.1, max_candidates=100)
    maps[2] = LevelMaps(maps[2].logits[..., :0], maps[2].boxes[..., :0])
    check(maps, levels, score_threshold=0.1, max_candidates=100)


def test_no_gradient_flows(device):
    levels = s3fd_levels()
    maps = each(random_maps(levels, extras=("landmarks",)), lambda t: t.to(device).requires_grad_())
    sizes = SIZES.clone().to(device).requires_grad_()
    found = ops.decode_anchors(maps, levels, score_threshold=0.1, max_candidates=100, sizes=sizes)
    assert not any(value.requires_grad for value in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_sizes_of_any_float_dtype(dtype, device):
    levels = s3fd_levels()
    maps = each(random_maps(levels), lambda t: t.to(device))
    sizes = SIZES.to(device, dtype)
    check(maps, levels, score_threshold=0.1, max_candidates=100, sizes=sizes)
    check(maps, levels, score_threshold=0.1, max_candidates=100, sizes=sizes.T.contiguous().T)


def test_threads_do_not_change_the_result():
    levels = s3fd_levels()
    maps = random_maps(levels, (640, 640), 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.decode_anchors(maps, levels, score_threshold=0.1, max_candidates=700))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- errors ----------------------------------------------------------------------------------------------------------

TWO = [LEVEL, LEVEL]
MAPS = [LevelMaps(torch.zeros(2, 1, 3, 3), torch.zeros(2, 4, 3, 3)) for _ in TWO]


def call(maps=MAPS, levels=TWO, score_threshold=0.5, max_candidates=5, **options):
    return ops.decode_anchors(maps, levels, score_threshold=score_threshold, max_candidates=max_candidates, **options)


def second(**fields) -> list[LevelMaps]:
    return [MAPS[0], MAPS[1]._replace(**fields)]


Z = torch.zeros


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: call(MAPS[:1]), ValueError, "maps must be one per level, got 1 maps for 2 levels"),
        (lambda: call([], []), ValueError, "levels must be a list of 1 to 8, got 0"),
        (lambda: call(MAPS[:1] * 9, TWO[:1] * 9), ValueError, "levels must be a list of 1 to 8, got 9"),
        (lambda: call(MAPS[0]), TypeError, "maps must be a list of LevelMaps, one per level, got LevelMaps"),
        (lambda: call(levels=LEVEL), TypeError, "levels must be a list of AnchorLevel, got AnchorLevel"),
        (lambda: call([MAPS[0], tuple(MAPS[1])]), TypeError, r"maps\[1\] must be a LevelMaps, got tuple"),
        (lambda: call(levels=[LEVEL, 4]), TypeError, r"levels\[1\] must be an AnchorLevel, got int"),
        (lambda: call(second(boxes=None)), TypeError, r"boxes of maps\[1\] must be a dense torch.Tensor, got NoneType"),
        (lambda: call(second(gate=[1.0])), TypeError, r"gate of maps\[1\] must be a dense torch.Tensor, got list"),
        (lambda: call(second(boxes=MAPS[1].boxes.to_sparse())), TypeError, "got layout torch.sparse_coo"),
        (
            lambda: call(second(logits=Z(2, 2, 3, 3))),
            ValueError,
            r"logits of level 1 must .* \[2, 1, H, W\] \(1 logits for each of 1 anchors\), got \[2, 2, 3, 3\]",
        ),
        (lambda: call(second(logits=Z(3, 1, 3, 3), boxes=Z(3, 4, 3, 3))), ValueError, r"level 1 .*\[2, 1, .*\[3, 1"),
        (lambda: call(second(logits=Z(2, 1, 3))), ValueError, r"logits of level 1 must .*got \[2, 1, 3\]"),
        (lambda: call([LevelMaps(Z(()), Z(()))] * 2), ValueError, r"logits of level 0 must .*got \[\]"),
        (
            lambda: call(second(boxes=Z(2, 5, 3, 3))),
            ValueError,
            r"boxes of level 1 must have the shape \[2, 4, 3, 3\] \(4 for each of 1 anchors\), got \[2, 5, 3, 3\]",
        ),
        (lambda: call(second(boxes=Z(2, 4, 3, 4))), ValueError, r"boxes of level 1 .*got \[2, 4, 3, 4\]"),
        (lambda: call(second(gate=Z(2, 2, 3, 3))), ValueError, r"gate of level 1 .*\[2, 1, 3, 3\]"),
        (lambda: call(second(offsets=Z(1, 4, 3, 3))), ValueError, r"offsets of level 1 .*got \[1, 4, 3, 3\]"),
        (
            lambda: call([level._replace(landmarks=Z(2, 8, 3, 3)) for level in MAPS]),
            ValueError,
            r"landmarks of level 0 must have the shape \[2, 10, 3, 3\]",
        ),
        (
            lambda: call(second(landmarks=Z(2, 10, 3, 3))),
            ValueError,
            r"for all maps or for none, got None for maps\[0\]",
        ),
        (lambda: call(each(MAPS, torch.Tensor.double)), TypeError, "logits must be one of float32, float16, bfloat16"),
        (lambda: call(each(MAPS, torch.Tensor.int)), TypeError, "logits must be one of .* got torch.int32"),
        (
            lambda: call(second(boxes=Z(2, 4, 3, 3).half())),
            TypeError,
            "boxes of level 1 must have one dtype, got torch.float32 and torch.float16",
        ),
        (
            lambda: call([MAPS[0], each(MAPS, torch.Tensor.half)[1]]),
            TypeError,
            "level 1 must have one dtype, got torch.float32 and torch.float16",
        ),
        (
            lambda: call(second(boxes=Z(2, 4, 3, 3, device="meta"))),
            ValueError,
            "logits and boxes of level 1 must be on one device, got cpu and meta",
        ),
        (lambda: call(score_threshold=1.5), ValueError, "score_threshold must be between 0 and 1, got 1.5"),
        (lambda: call(score_threshold=math.nan), ValueError, "score_threshold must be between 0 and 1, got nan"),
        (lambda: call(score_threshold=[0.5, -0.1]), ValueError, "score_threshold must be between 0 and 1, got -0.1"),
        (
            lambda: call(score_threshold=[0.5]),
            ValueError,
            "score_threshold must be one number or one per level, got 1 for 2 levels",
        ),
        (lambda: call(score_threshold="0.5"), TypeError, "score_threshold must be a number or a list .*'0.5'"),
        (lambda: call(gate_threshold=2.0), ValueError, "gate_threshold must be between 0 and 1, got 2"),
        (lambda: call(gate_threshold="a"), TypeError, "gate_threshold must be a number, got str"),
        (lambda: call(max_candidates=-1), ValueError, "max_candidates must be 0 or more, got -1"),
        (lambda: call(max_candidates=1.5), TypeError, "max_candidates must be an int, got float"),
        (lambda: call(min_side=-1.0), ValueError, "min_side must be a finite number of 0 or more, got -1"),
        (lambda: call(min_side=math.nan), ValueError, "min_side must be a finite number"),
        (lambda: call(min_side="1"), TypeError, "min_side must be a number, got str"),
        (lambda: call(variances=(0.1, 0.0)), ValueError, r"variances must be two finite numbers > 0, got \(0.1, 0.0\)"),
        (lambda: call(variances=(math.inf, 0.1)), ValueError, "variances must be two finite numbers"),
        (lambda: call(variances=(0.1,)), ValueError, "variances must be two finite numbers"),
        (lambda: call(variances=0.1), TypeError, "variances must be two numbers, got 0.1"),
        (lambda: call(sizes=[3, 3]), TypeError, "sizes must be a torch.Tensor, got list"),
        (lambda: call(sizes=Z(2, 3)), ValueError, r"sizes must have the shape \[B, 2\] = \[2, 2\], .*got \[2, 3\]"),
        (lambda: call(sizes=Z(2, 2).long()), TypeError, "sizes must be one of float32"),
        (
            lambda: call(sizes=Z(2, 2, device="meta")),
            ValueError,
            "logits and sizes must be on one device, got cpu and meta",
        ),
        (lambda: call(variances=("a", 0.2)), TypeError, r"variances must be two numbers, got \('a', 0.2\)"),
        (lambda: ops.anchor_boxes([], []), ValueError, "sizes must be one per level, got 0 sizes for 0 levels"),
        (
            lambda: ops.anchor_boxes([LEVEL], [(2, 2)] * 2),
            ValueError,
            "sizes must be one per level, got 2 sizes for 1 levels",
        ),
        (lambda: ops.anchor_boxes([LEVEL], [(2, -1)]), ValueError, r"a height and a width of 0 or more, got \(2, -1\)"),
        (lambda: AnchorLevel(0, LEVEL.anchors), ValueError, "stride must be 1 or more, got 0"),
        (lambda: AnchorLevel(4.0, LEVEL.anchors), TypeError, "stride must be an int, got float"),
        (lambda: AnchorLevel(4, LEVEL.anchors, -1), ValueError, "num_background must be 0 or more, got -1"),
        (lambda: AnchorLevel(4, LEVEL.anchors, 1, -5), ValueError, "max_candidates must be 0 or more, got -5"),
        (lambda: AnchorLevel(4, ()), ValueError, "anchors must be 1 to 8 boxes, got 0"),
        (lambda: AnchorLevel(4, LEVEL.anchors * 9), ValueError, "anchors must be 1 to 8 boxes, got 9"),
        (lambda: AnchorLevel(4, [[0.0, 0, 1, 1]]), TypeError, "anchors must be a tuple of tuples"),
        (lambda: AnchorLevel(4, ((0.0, 0, 1),)), TypeError, "an anchor must be four numbers"),
        (lambda: AnchorLevel(4, ((5.0, 0.0, 5.0, 8.0),)), ValueError, "finite with x1 < x2 and y1 < y2, got"),
        (lambda: AnchorLevel(4, ((0.0, 0.0, math.inf, 8.0),)), ValueError, "finite with x1 < x2 and y1 < y2, got"),
    ],
)
def test_error_messages(function, error, words):
    with pytest.raises(error, match=words) as raised:
        function()
    assert "\n" not in str(raised.value)


def flat(maps, levels, sizes=None, max_candidates=30):
    """The arguments of torch.ops.pyface.decode_anchors."""
    return (
        [level.logits for level in maps],
        [level.boxes for level in maps],
        [level.landmarks for level in maps if level.landmarks is not None],
        [level.gate for level in maps],
        [level.offsets for level in maps],
        sizes,
        [float(value) for level in levels for box in level.anchors for value in box],
        [len(level.anchors) for level in levels],
        [level.stride for level in levels],
        [level.num_background for level in levels],
        [-1 if level.max_candidates is None else level.max_candidates for level in levels],
        [0.05] * len(levels),
        0.1,
        [0.1, 0.2],
        1.0,
        max_candidates,
    )


def test_direct_calls_are_checked_too():
    op = torch.ops.pyface.decode_anchors.default
    good = flat(MAPS, TWO)
    op(*good)
    changes = [
        (1, good[1][:1], "all lists as long, got 2"),
        (6, good[6][:4], "anchors must be 4 numbers for each of 2, got 4"),
        (7, [9, 1], "anchors must be 4 numbers for each of 10, got 8"),
        (8, [4, 0], "level 1 must have 1 to 8 anchors, .* got 1, 0 and"),
        (9, [-1, 0], "level 0 must have 1 to 8 anchors, .* got 1, 4 and -1"),
        (13, [0.1, 0.2, 0.3], "variances must be two"),
        (15, -1, "max_candidates must be 0 or more"),
    ]
    for place, value, words in changes:
        with pytest.raises(ValueError, match=words):
            op(*good[:place], value, *good[place + 1 :])


# --- tracing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_opcheck(name, device):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    maps = each(random_maps(levels, (64, 96), extras=extras), lambda t: t.to(device))
    sizes = options.get("sizes")
    arguments = flat(maps, levels, None if sizes is None else sizes.to(device))
    torch.library.opcheck(torch.ops.pyface.decode_anchors.default, arguments)


def detect(levels, options):
    """decode_anchors, then nms_padded, then the kept boxes."""

    def chain(maps):
        found = ops.decode_anchors(maps, levels, **options)
        keep, count = ops.nms_padded(found.boxes, found.scores, found.count, 0.3, max_detections=50)
        return found.boxes.gather(1, keep.clamp(min=0)[..., None].expand(-1, -1, 4)), keep, count

    return chain


@pytest.mark.slow_emulated
@pytest.mark.parametrize("name", DETECTORS)
def test_chain_compiles_as_a_full_graph(name, device):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    torch._dynamo.reset()  # the chains of all detectors are one code object, and may be compiled eight times
    chain = detect(levels, on(device, options))
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for image in ((160, 224), (96, 64)):  # the second with dynamic shapes
        maps = each(random_maps(levels, image, extras=extras), lambda t: t.to(device))
        for got, expected in zip(compiled(maps), chain(maps), strict=True):
            assert torch.equal(got, expected)


def test_nms_reads_nothing_beyond_count(device):
    levels = s3fd_levels()
    maps = each(random_maps(levels, face=0.01), lambda t: t.to(device))
    found = ops.decode_anchors(maps, levels, score_threshold=0.5, max_candidates=500)
    beyond = torch.arange(500, device=device) >= found.count[:, None]
    assert beyond.any()
    poisoned = found.boxes.masked_fill(beyond[..., None], math.nan), found.scores.masked_fill(beyond, math.nan)
    clean = ops.nms_padded(found.boxes, found.scores, found.count, 0.3, max_detections=50)
    for got, expected in zip(ops.nms_padded(*poisoned, found.count, 0.3, max_detections=50), clean, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DETECTORS)
def test_cuda_equals_cpu(name, dtype, hostile, cuda):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    maps = random_maps(levels, (320, 480), extras=extras)
    maps = each(make_hostile(maps) if hostile else maps, lambda t: t.to(dtype))
    found = ops.decode_anchors(each(maps, lambda t: t.to(cuda)), levels, **on(cuda, options))
    assert_same(
        ops.Candidates(*(value.cpu() for value in found)), ops.decode_anchors(maps, levels, **on("cpu", options))
    )


@pytest.mark.cuda
def test_chain_never_synchronises(cuda):
    make_levels, extras, options = DETECTORS["srn with landmarks"]
    levels = make_levels()
    maps = each(random_maps(levels, extras=extras), lambda t: t.to(cuda))
    chain = detect(levels, on(cuda, options))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        chain(maps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("name", DETECTORS)
def test_chain_in_a_cuda_graph(name, cuda):
    make_levels, extras, options = DETECTORS[name]
    levels = make_levels()
    maps = each(random_maps(levels, extras=extras), lambda t: t.to(cuda))
    other = each(random_maps(levels, extras=extras, seed=1), lambda t: t.to(cuda))
    chain = detect(levels, on(cuda, options))
    expected = copy.deepcopy(chain(other))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = chain(maps)
    for level, new in zip(maps, other, strict=True):
        for tensor, value in zip(level, new, strict=True):
            if tensor is not None:
                tensor.copy_(value)
    graph.replay()
    for got, value in zip(results, expected, strict=True):
        assert torch.equal(got, value)
