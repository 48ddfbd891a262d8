"""hard_negatives, balanced_sample, online_hard: against the reference, contracts, statistics of the draw."""

import copy
import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pyface import ops
from pyface.ops import mining, reference

KINDS = [-math.inf, math.nan, math.inf, -0.0, 0.0, 1e-40, -1.5, 3e38]


def random_batch(batch: int, n: int, seed: int = 0, device: str = "cpu"):
    """Losses with ties and non-finite values, and an index with all kinds of entries."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(batch, n, generator=generator)
    if seed % 2:
        losses = (losses * 2).round() / 2
    hostile = torch.tensor(KINDS)[torch.randint(0, len(KINDS), (batch, n), generator=generator)]
    losses = torch.where(torch.rand(batch, n, generator=generator) < 0.1, hostile, losses)
    kind = torch.rand(batch, n, generator=generator)
    index = torch.where(kind < 0.8, -1, torch.where(kind < 0.9, -2, (kind * 100).int()))
    index[::3] = index[::3].clamp(max=-1)  # images without faces
    return losses.to(device), index.int().to(device)


def hardest(losses: torch.Tensor, k: int) -> list[int]:
    return torch.argsort(losses, descending=True, stable=True)[:k].tolist()


def chosen(selected: torch.Tensor) -> list[int]:
    return torch.where(selected)[0].tolist()


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n",
    [
        *(0, 1, 33, 1025),
        *(pytest.param(n, marks=pytest.mark.slow_emulated) for n in (2, 31, 32, 255, 257, 1023, 1024, 5000)),
        pytest.param(34125, marks=pytest.mark.large),
    ],
)
def test_equal_the_reference(n, device, some):
    for batch in (0, 1, 5):
        for seed in some(range(4)):
            losses, index = random_batch(batch, n, seed, device)
            numbers = ((3.0, 16), (1.0, 0), (0.5, 1), (0.0, 0), (0.0, 2**40), (1e300, 3), (20.0, 100))
            for ratio, minimum in some(numbers):
                options = {"ratio": ratio, "minimum": minimum}
                expected = reference.hard_negatives(losses, index, **options)
                assert torch.equal(ops.hard_negatives(losses, index, **options), expected)
                for hard_fraction in some((0.0, 0.01, 1.0, 0.4)):
                    options |= {"hard_fraction": hard_fraction, "seed": seed * 2**61 + seed}
                    expected = reference.balanced_sample(losses, index, **options)
                    assert torch.equal(ops.balanced_sample(losses, index, **options), expected)
            for keep in some((0.0, 0.01, 1.0, 0.7)):
                for valid in (None, index.flatten() != -2):
                    expected = reference.online_hard(losses.flatten(), keep=keep, valid=valid)
                    assert torch.equal(ops.online_hard(losses.flatten(), keep=keep, valid=valid), expected)
        if n > 5000 and batch > 0:
            break


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_equal_the_reference_on_any_floats(data):
    number = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -0.0, 1.0])
    rows = data.draw(st.lists(st.tuples(number, st.sampled_from([-2, -1, -1, -1, 0, 7]), st.booleans()), max_size=40))
    losses = torch.tensor([[row[0] for row in rows]], dtype=torch.float32)
    index = torch.tensor([[row[1] for row in rows]], dtype=torch.int32)
    valid = torch.tensor([row[2] for row in rows], dtype=torch.bool)
    options = {"ratio": data.draw(st.floats(0, 50)), "minimum": data.draw(st.integers(0, 50))}
    expected = reference.hard_negatives(losses, index, **options)
    assert torch.equal(ops.hard_negatives(losses, index, **options), expected)
    options |= {"hard_fraction": data.draw(st.floats(0, 1)), "seed": data.draw(st.integers(0, 2**63 - 1))}
    expected = reference.balanced_sample(losses, index, **options)
    assert torch.equal(ops.balanced_sample(losses, index, **options), expected)
    keep = data.draw(st.floats(0, 1))
    expected = reference.online_hard(losses[0], keep=keep, valid=valid)
    assert torch.equal(ops.online_hard(losses[0], keep=keep, valid=valid), expected)


# --- hard_negatives --------------------------------------------------------------------------------------------------


def test_three_negatives_per_positive_by_loss(device):
    losses, index = torch.rand(2, 1000, device=device), torch.full((2, 1000), -1, dtype=torch.int32, device=device)
    index[0, 100:110] = 4
    index[0, 500:] = -2
    selected = ops.hard_negatives(losses, index, minimum=7)
    negatives = [i for i in hardest(losses[0], 1000) if i < 100 or 110 <= i < 500]
    assert chosen(selected[0]) == sorted(negatives[:30])
    assert chosen(selected[1]) == sorted(hardest(losses[1], 7))
    assert ops.hard_negatives(losses, index, ratio=0.29, minimum=0).sum(1).tolist() == [2, 0]
    assert ops.hard_negatives(losses, index, ratio=1e6, minimum=0).sum(1).tolist() == [490, 0]


def test_ties_go_by_index_and_minus_zero_equals_zero(device):
    losses = torch.tensor([[0.0, -0.0, 0.5, -0.0, 0.5, 0.0]], device=device)
    index = torch.full((1, 6), -1, dtype=torch.int32, device=device)
    for k, expected in enumerate([[], [2], [2, 4], [0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]):
        assert chosen(ops.hard_negatives(losses, index, minimum=k)[0]) == expected


def test_losses_that_are_not_finite_are_never_chosen(device):
    losses = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, 3e38, -3e38]], device=device)
    index = torch.full((1, 6), -1, dtype=torch.int32, device=device)
    assert chosen(ops.hard_negatives(losses, index, minimum=6)[0]) == [3, 4, 5]
    assert chosen(ops.balanced_sample(losses, index, minimum=6, seed=0)[0]) == [3, 4, 5]
    assert chosen(ops.online_hard(losses[0], keep=0.5)) == [3, 4]  # half of the three that count, rounded up
    index[0, 0] = 5  # a positive is one whatever its loss
    assert chosen(ops.hard_negatives(losses, index, ratio=1, minimum=0)[0]) == [4]
    assert chosen(ops.balanced_sample(losses, index, minimum=0, seed=0)[0]) == [0, 4]


# --- balanced_sample -------------------------------------------------------------------------------------------------


@pytest.mark.slow_emulated
def test_half_of_the_negatives_are_hard(device):
    # 100 positives, so 50 of the hardest 1 % of 20,000 and 50 of the others.
    n, positives = 20_100, 100
    losses = torch.rand(1, n, generator=torch.Generator().manual_seed(0)).to(device)
    index = torch.full((1, n), -1, dtype=torch.int32, device=device)
    index[0, ::201] = 0
    background = torch.where(index[0] < 0)[0]
    hard = torch.zeros(n, dtype=torch.bool, device=device)
    hard[background[losses[0, background].argsort(descending=True)[:200]]] = True
    drawn = torch.zeros(n, device=device)
    for seed in range(200):
        selected = ops.balanced_sample(losses, index, seed=seed)[0]
        assert selected[::201].all()
        assert selected.sum() == 2 * positives
        assert (selected & hard).sum() == 50
        drawn += selected
    # Each of the 200 hard ones is drawn with probability 1/4: 50 +- 6 times; each of the others with 50 in 19,800.
    times = drawn[hard]
    assert times.mean() == 50
    assert 4.5 < times.std() < 8
    others = drawn[background][~hard[background]]
    assert others.mean().item() == pytest.approx(200 * 50 / 19_800)
    assert others.std().item() == pytest.approx((200 * 50 / 19_800) ** 0.5, rel=0.05)
    # No part of the image is preferred.
    thirds = [part.mean().item() for part in others.chunk(3)]
    assert max(thirds) < 1.15 * min(thirds)


def test_the_draw_depends_on_seed_and_image_only(device):
    losses = torch.rand(1, 3000, device=device).expand(4, -1)
    index = torch.full((4, 3000), -1, dtype=torch.int32, device=device)
    index[:, :300] = 0
    first = ops.balanced_sample(losses, index, seed=7)
    assert torch.equal(ops.balanced_sample(losses, index, seed=7), first)
    assert torch.equal(ops.balanced_sample(losses[:2], index[:2], seed=7), first[:2])
    assert not torch.equal(ops.balanced_sample(losses, index, seed=8), first)
    assert not torch.equal(first[0], first[1])  # the same image twice in a batch
    # Two draws have no more in common than by chance: 150 of 2,550 each, so about 9.
    rest = torch.ones(3000, dtype=torch.bool, device=device)
    rest[:300] = False
    rest[300:][losses[0, 300:].argsort(descending=True)[:150]] = False
    assert 0 < (first[0] & first[1] & rest).sum() < 25


def test_the_hard_set_grows_to_half_of_the_negatives(device):
    losses, index = torch.rand(1, 1000, device=device), torch.full((1, 1000), -1, dtype=torch.int32, device=device)
    index[0, :100] = 0
    selected = ops.balanced_sample(losses, index, hard_fraction=0.001, seed=0)[0]
    by_loss = [i for i in hardest(losses[0], 1000) if i >= 100]
    assert selected[by_loss[:50]].all()
    assert selected[100:].sum() == 100
    # An odd number gives the hard ones one more, and too small a rest leaves more to the hard set.
    assert chosen(ops.balanced_sample(losses, index, ratio=0, hard_fraction=0, minimum=1, seed=0)[0, 100:]) == [
        by_loss[0] - 100
    ]
    for hard_fraction in (0.999, 1.0):
        assert ops.balanced_sample(losses, index, hard_fraction=hard_fraction, seed=0)[0, 100:].sum() == 100
    assert ops.balanced_sample(losses, index, ratio=100, seed=0).all()


def test_split_mix_equals_its_authors_values():
    # The first outputs of SplitMix64 from state 0, as published with Java's and xoshiro's implementations.
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([0, golden - 2**64, 2 * golden % 2**64])
    outputs = [value % 2**64 for value in reference.split_mix(states).tolist()]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


# --- online_hard -----------------------------------------------------------------------------------------------------


def test_the_hardest_seventy_percent_are_kept(device):
    losses = torch.rand(101, device=device)
    assert chosen(ops.online_hard(losses)) == sorted(hardest(losses, 71))
    valid = torch.arange(101, device=device) % 2 == 0
    expected = [i for i in hardest(losses, 101) if i % 2 == 0][:36]
    assert chosen(ops.online_hard(losses, valid=valid)) == sorted(expected)
    assert ops.online_hard(losses, keep=1.0).all()
    assert not ops.online_hard(losses, keep=0.0).any()


# --- the torch face --------------------------------------------------------------------------------------------------

LOSSES, INDEX = torch.zeros(2, 5), torch.full((2, 5), -1, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_strides_and_gradients(dtype, device):
    losses, index = random_batch(4, 700, 2, device)
    losses = losses.to(dtype)
    for call in (
        lambda losses, index: ops.hard_negatives(losses, index),
        lambda losses, index: ops.balanced_sample(losses, index, seed=3),
        lambda losses, index: ops.online_hard(losses[:, 3], valid=index[:, 3] != -2),
    ):
        expected = call(losses.float(), index)
        got = call(losses.t().contiguous().t().requires_grad_(), index.long().repeat(1, 2)[:, :700])
        assert torch.equal(got, expected)
        assert not got.requires_grad


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.hard_negatives([0.5], INDEX), TypeError, "losses must be a torch.Tensor, got list"),
        (lambda: ops.hard_negatives(LOSSES.int(), INDEX), TypeError, "losses must be one of float32.*got torch.int32"),
        (lambda: ops.hard_negatives(LOSSES, INDEX.float()), TypeError, "index must be one of int32, int64, got"),
        (lambda: ops.hard_negatives(LOSSES[0], INDEX), ValueError, r"losses must have the shape \[B, A\], got \[5\]"),
        (lambda: ops.hard_negatives(LOSSES, INDEX[:1]), ValueError, r"\[B, A\] = \[2, 5\] as in losses, got \[1, 5\]"),
        (
            lambda: ops.hard_negatives(LOSSES, INDEX.to("meta")),
            ValueError,
            "losses and index must be on one device, got cpu and meta",
        ),
        (lambda: ops.hard_negatives(LOSSES, INDEX, ratio=-1), ValueError, "ratio must be .* 0 or more, got -1"),
        (lambda: ops.hard_negatives(LOSSES, INDEX, ratio=math.nan), ValueError, "ratio must be .*got nan"),
        (lambda: ops.hard_negatives(LOSSES, INDEX, ratio=math.inf), ValueError, "ratio must be .*got inf"),
        (
            lambda: ops.hard_negatives(LOSSES, INDEX, minimum=2**63),
            ValueError,
            "minimum must be 9223372036854775807 or",
        ),
        (lambda: ops.hard_negatives(LOSSES, INDEX, minimum=-1), ValueError, "minimum must be .* 0 or more, got -1"),
        (lambda: ops.balanced_sample(LOSSES, INDEX, ratio=-1, seed=0), ValueError, "balanced_sample: ratio must be"),
        (lambda: ops.balanced_sample(LOSSES, INDEX, seed=-1), ValueError, r"seed must be .* 2\*\*63 - 1, got -1"),
        (
            lambda: ops.balanced_sample(LOSSES, INDEX, hard_fraction=1.1, seed=0),
            ValueError,
            "hard_fraction must be between 0 and 1, got 1.1",
        ),
        (lambda: ops.online_hard(LOSSES), ValueError, r"losses must have the shape \[N\], got \[2, 5\]"),
        (lambda: ops.online_hard(LOSSES[0].int()), TypeError, "losses must be one of float32.*got torch.int32"),
        (lambda: ops.online_hard(LOSSES[0], keep=1.5), ValueError, "keep must be between 0 and 1, got 1.5"),
        (lambda: ops.online_hard(LOSSES[0], keep=math.nan), ValueError, "keep must be between 0 and 1, got nan"),
        (
            lambda: ops.online_hard(LOSSES[0], valid=torch.ones(4).bool()),
            ValueError,
            r"valid must have the shape \[N\] = \[5\] as in losses, got \[4\]",
        ),
        (lambda: ops.online_hard(LOSSES[0], valid=torch.ones(5)), TypeError, "valid must be one of bool, got"),
        (lambda: ops.hard_negatives(LOSSES, INDEX, ratio="3"), TypeError, "ratio must be a number, got str"),
        (lambda: ops.hard_negatives(LOSSES, INDEX, minimum=2.5), TypeError, "minimum must be an int, got float"),
        (lambda: ops.balanced_sample(LOSSES, INDEX, seed=1.0), TypeError, "seed must be an int, got float"),
        (
            lambda: ops.balanced_sample(LOSSES, INDEX, seed=2**63),
            ValueError,
            "seed must be 9223372036854775807 or less",
        ),
        (lambda: ops.online_hard(LOSSES[0], keep=None), TypeError, "keep must be a number, got NoneType"),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_numpy_numbers_are_accepted():
    losses, index = random_batch(2, 40, 1, "cpu")
    expected = ops.balanced_sample(losses, index, ratio=2.0, minimum=3, seed=5)
    got = ops.balanced_sample(losses, index, ratio=np.float32(2), minimum=np.int32(3), seed=np.int64(5))
    assert torch.equal(got, expected)


def test_an_int64_index_is_clamped(device):
    """2**32 - 1 and 2**63 - 1 would both become -1, background."""
    kinds = torch.tensor([[2**32 - 1, 2**63 - 1, 2**31, -1, -1, -2, -(2**32) - 1, -(2**63)]], device=device)
    losses = torch.arange(8.0, device=device)[None]
    negatives = torch.tensor([[False] * 3 + [True] * 2 + [False] * 3], device=device)
    positives = torch.tensor([[True] * 3 + [False] * 5], device=device)
    assert torch.equal(ops.hard_negatives(losses, kinds), negatives)
    assert torch.equal(ops.balanced_sample(losses, kinds, seed=1), positives | negatives)


def test_examples_in_docstrings_run():
    assert doctest.testmod(mining).failed == 0


def test_direct_calls_are_checked_too():
    meta = torch.zeros(5, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="all tensors must be on one device, got cpu and meta"):
        torch.ops.pyface.online_hard.default(LOSSES[0], 0.7, meta)
    with pytest.raises(ValueError, match="index must have the shape"):
        torch.ops.pyface.hard_negatives.default(LOSSES, INDEX[0], 3.0, 16)


@pytest.mark.parametrize("name", ["hard_negatives", "balanced_sample", "online_hard"])
def test_opcheck(name, device):
    losses, index = random_batch(3, 50, 1, device)
    arguments = {
        "hard_negatives": (losses, index, 3.0, 16),
        "balanced_sample": (losses, index, 1.0, 0.01, 16, 5),
        "online_hard": (losses[0], 0.7, index[0] != -2),
    }[name]
    torch.library.opcheck(getattr(torch.ops.pyface, name).default, arguments)


@pytest.mark.slow_emulated
def test_compile_as_a_full_graph(device):
    losses, index = random_batch(3, 500, 1, device)

    def chosen_losses(losses, index, seed):
        hard, sample = ops.hard_negatives(losses, index), ops.balanced_sample(losses, index, seed=seed)
        best = ops.online_hard(losses.flatten(), valid=index.flatten() != -2)
        return tuple(torch.where(mask.view_as(losses), losses, 0).nan_to_num(0, 0, 0) for mask in (hard, sample, best))

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(chosen_losses, fullgraph=True, backend=counter)
    for seed in (1, 2, 3, 4, 2**62):
        expected = chosen_losses(losses, index, seed)
        assert all(torch.equal(a, b) for a, b in zip(expected, compiled(losses, index, seed), strict=True))
    assert counter.frame_count <= 2  # a seed is not compiled in


# --- CUDA only -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_never_synchronise_and_run_in_a_cuda_graph(cuda):
    losses, index = random_batch(8, 34_125, 1, cuda)

    def masks():
        return (
            ops.hard_negatives(losses, index),
            ops.balanced_sample(losses, index, seed=4),
            ops.online_hard(losses.view(-1)),
        )

    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = copy.deepcopy(masks())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = masks()
    for mask in captured:
        mask.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("n", [65_536, 65_537, 300_001, 5_000_000])
def test_many_blocks_on_cuda_equal_the_cpu_every_time(n, cuda):
    for seed in range(4):
        losses, index = random_batch(1, n, seed)
        losses, valid = losses[0], index[0] != -2
        for keep in (1e-6, 0.3, 0.7, 1.0):
            expected = ops.online_hard(losses, keep=keep, valid=valid).to(cuda)
            losses_there, valid_there = losses.to(cuda), valid.to(cuda)
            for _ in range(10):
                assert torch.equal(ops.online_hard(losses_there, keep=keep, valid=valid_there), expected)
