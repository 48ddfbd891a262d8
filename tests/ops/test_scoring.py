"""Max-out and face probabilities: kernels against the reference, gradients, memory formats, hostile input."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [
    *((2, 4), (3, 4, 7), (2, 4, 5, 9), (2, 4, 16, 17), (2, 4, 3, 4, 5), (1, 4, 2, 3, 4, 5)),
    pytest.param((1, 4, 160, 160), marks=pytest.mark.slow_emulated),
]


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.dtype == expected.dtype and torch.equal(got.nan_to_num(-77.0), expected.nan_to_num(-77.0))


def layouts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in different memory layouts, which must give the same result."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), math.nan, dtype=tensor.dtype)
    result = {"contiguous": tensor, "sliced": wide.to(tensor.device)[..., 1::2].copy_(tensor)}
    if tensor.ndim == 4:
        result["channels_last"] = tensor.contiguous(memory_format=torch.channels_last)
        result["transposed"] = tensor.transpose(2, 3).contiguous().transpose(2, 3)
        both = torch.cat([tensor, tensor], 1)
        result["channels sliced"] = both[:, : tensor.shape[1]]
        result["channels_last sliced"] = both.contiguous(memory_format=torch.channels_last)[:, tensor.shape[1] :]
    if tensor.ndim == 5:
        result["channels_last_3d"] = tensor.contiguous(memory_format=torch.channels_last_3d)
    return result


def hostile_logits(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Few different values, so that many are equal; with NaN and infinities."""
    values = torch.tensor([-1.0, 0.0, -0.0, 0.5, 2.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
    weights = torch.tensor([8.0, 8, 4, 8, 8, 1, 1, 1, 1, 1])
    generator = torch.Generator().manual_seed(seed)
    return values[torch.multinomial(weights, math.prod(shape), True, generator=generator)].reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_maxout_equals_reference(shape, dtype, device):
    logits = hostile_logits(shape).to(device, dtype)
    gradient = torch.randn(shape).to(device, dtype)
    backward = torch.ops.pyface.maxout_background_backward.default
    for num_background in range(1, shape[1] + 1):
        expected = reference.maxout_background(logits, num_background)
        some = gradient[:, : expected.shape[1]]
        expected_back = reference.maxout_background_backward(some, logits, num_background)
        for layout in layouts(logits).values():
            assert same(ops.maxout_background(layout, num_background), expected)
            for gradient_layout in layouts(some).values():
                assert same(backward(gradient_layout, layout, num_background), expected_back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_face_probability_equals_reference(shape, dtype, device):
    for num_background in (0, 1, 3):
        shape = (shape[0], num_background + 1, *shape[2:])
        logits = torch.cat([hostile_logits(shape), 10 * torch.randn(shape)]).to(device, dtype)
        expected = reference.face_probability(logits, num_background)
        for layout in layouts(logits).values():
            got = ops.face_probability(layout, num_background)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_maps_that_32_bits_cannot_reach(device, sparse):
    far = 2**31 + 6  # elements between two images
    logits = sparse(2 * (far + 24), device).view(torch.float16).as_strided((2, 4, 2, 3), (far, 6, 3, 1))
    logits.copy_(torch.randn(logits.shape))
    assert torch.equal(ops.face_probability(logits, 3), ops.face_probability(logits.contiguous(), 3))


def test_face_probability_is_softmax_after_maxout(device):
    logits = torch.randn(2, 4, 9, 9, device=device)
    expected = ops.maxout_background(logits, 3).softmax(1)[:, 1]
    torch.testing.assert_close(ops.face_probability(logits, 3), expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32), min_size=3, max_size=60), st.sampled_from(DTYPES[:3]))
def test_any_logits(values, dtype):
    logits = torch.tensor(values[: len(values) // 3 * 3], dtype=dtype).reshape(1, 3, -1)
    assert same(ops.maxout_background(logits, 2), reference.maxout_background(logits, 2))
    probability = ops.face_probability(logits, 2)
    torch.testing.assert_close(probability, reference.face_probability(logits, 2), rtol=0, atol=1e-6, equal_nan=True)


def test_every_half_is_converted_exactly(device):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).to(device)
    for dtype in (torch.float16, torch.bfloat16):
        logits = bits.view(dtype).reshape(1, 1, 256, 256)
        both = torch.cat([logits, logits.flip(2)], 1)
        assert same(ops.maxout_background(both, 2), reference.maxout_background(both, 2))


def test_memory_format_is_kept(device):
    for num_background in (1, 3):
        logits = torch.randn(2, 4, 5, 6, device=device)
        last = logits.contiguous(memory_format=torch.channels_last)
        assert ops.maxout_background(logits, num_background).is_contiguous()
        out = ops.maxout_background(last, num_background)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert out.data_ptr() != last.data_ptr()
    volume = torch.randn(2, 4, 3, 5, 6, device=device).contiguous(memory_format=torch.channels_last_3d)
    assert ops.maxout_background(volume, 2).is_contiguous(memory_format=torch.channels_last_3d)


def test_first_of_the_largest_gets_the_whole_gradient(device):
    nan = math.nan
    logits = torch.tensor([[1.0, 3, 3, 5], [2, 2, 2, 0], [1, nan, nan, 0]], device=device, requires_grad=True)
    ops.maxout_background(logits, 3).backward(torch.tensor([[10.0, 1], [20, 2], [30, 3]], device=device))
    assert logits.grad.tolist() == [[0, 10, 0, 1], [20, 0, 0, 2], [0, 30, 0, 3]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(layout, device):
    # A permutation's values lie 0.1 apart, so that no step of the check changes which one is largest.
    logits = (torch.randperm(2 * 4 * 3 * 5).double() / 10).reshape(2, 4, 3, 5).to(device)
    logits = layouts(logits)[layout].requires_grad_()
    for num_background in (1, 3, 4):
        assert torch.autograd.gradcheck(lambda x, n=num_background: ops.maxout_background(x, n), logits)


def test_differentiable_twice(device):
    # no 0, whose square is flat
    logits = (
        torch.arange(1.0, 121).double()[torch.randperm(120)].div(10).reshape(2, 4, 3, 5).to(device).requires_grad_()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's "an autograd kernel was not registered" among them
        assert torch.autograd.gradgradcheck(lambda x: ops.maxout_background(x, 3) ** 2, logits)
        for dtype in (torch.float32, torch.float16):
            x = logits.detach().to(dtype).requires_grad_()
            (first,) = torch.autograd.grad((ops.maxout_background(x, 3) ** 2).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x)
            assert torch.equal(second, 2.0 * (first != 0))


@pytest.mark.parametrize("num_background", [0, 1, 3])
def test_face_probability_is_differentiable(num_background, device):
    logits = torch.randn(2, num_background + 1, 7, 9, device=device, requires_grad=True)
    got = ops.face_probability(logits, num_background)
    with torch.no_grad():
        torch.testing.assert_close(got, ops.face_probability(logits, num_background), rtol=0, atol=1e-6)
    expected = torch.autograd.grad(reference.face_probability(logits, num_background).sum(), logits)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), logits), expected)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 0), (0, 4)])
def test_empty(shape, device):
    logits = torch.empty(shape, device=device, requires_grad=True)
    out = ops.maxout_background(logits, 3)
    assert out.shape == (shape[0], 2, *shape[2:])
    out.sum().backward()
    assert logits.grad.shape == shape
    assert ops.face_probability(logits.detach(), 3).shape == (shape[0], *shape[2:])


L = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.maxout_background([1.0], 1), TypeError, "logits must be a torch.Tensor, got list"),
        (lambda: ops.maxout_background(L.long(), 1), TypeError, "logits must be one of float32.*got torch.int64"),
        (lambda: ops.maxout_background(L, 1.0), TypeError, "num_background must be an int, got float"),
        (lambda: ops.maxout_background(L, 0), ValueError, "between 1 and the 4 channels of logits, got 0"),
        (lambda: ops.maxout_background(L, 5), ValueError, "between 1 and the 4 channels of logits, got 5"),
        (lambda: ops.maxout_background(torch.zeros(4), 1), ValueError, r"the shape \[B, C, ...\], got \[4\]"),
        (lambda: ops.maxout_background(L.to_sparse(), 1), TypeError, "must be a dense tensor"),
        (lambda: ops.face_probability("x", 1), TypeError, "logits must be a torch.Tensor, got str"),
        (lambda: ops.face_probability(L, 2), ValueError, r"\[B, 3, ...\] \(2 backgrounds and a face\), got \[2, 4"),
        (lambda: ops.face_probability(L, -1), ValueError, "num_background must be 0 or more, got -1"),
        (lambda: ops.face_probability(L, "3"), TypeError, "num_background must be an int, got str"),
        (lambda: ops.face_probability(L.int(), 3), TypeError, "logits must be one of"),
        (lambda: ops.face_probability(L.clone().requires_grad_(), 2), ValueError, r"\[B, 3, ...\]"),
        (
            lambda: torch.ops.pyface.maxout_background_backward.default(L, L, 3),
            ValueError,
            r"gradient must have the shape \[2, 2, 3, 3\], got \[2, 4, 3, 3\]",
        ),
        (
            lambda: torch.ops.pyface.maxout_background_backward.default(L[:, :2].half(), L, 3),
            TypeError,
            "gradient must be one of float32, got torch.float16",
        ),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow_emulated
@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])])
def test_opcheck(dtype, device):
    logits = torch.randn(2, 4, 5, 6).to(device, dtype)
    for layout in layouts(logits).values():
        torch.library.opcheck(torch.ops.pyface.maxout_background.default, (layout.detach().requires_grad_(), 3))
        torch.library.opcheck(torch.ops.pyface.maxout_background_backward.default, (logits[:, :2], layout, 3))
        torch.library.opcheck(torch.ops.pyface.face_probability.default, (layout, 3))


def test_compiles_as_a_full_graph(device):
    def loss(logits):
        return ops.maxout_background(logits * 2, 3).softmax(1)[:, 1].sum() + ops.face_probability(logits, 3).sum()

    logits = torch.randn(2, 4, 5, 6, device=device, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), loss(logits))
    torch.testing.assert_close(torch.autograd.grad(compiled(logits), logits), torch.autograd.grad(loss(logits), logits))


@pytest.mark.cuda
def test_cuda_equals_cpu(cuda):
    logits = hostile_logits((2, 4, 40, 41))
    for dtype in DTYPES[:3]:
        for layout in layouts(logits.to(dtype)).values():
            assert same(ops.maxout_background(layout.to(cuda), 3).cpu(), ops.maxout_background(layout, 3))
