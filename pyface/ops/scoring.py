"""Face probabilities from logits: max-out over background logits (S3FD, docs/detectors.md 2.1), forward and backward.

Channels 0 to num_background - 1 are background logits. Max-out replaces them with the largest, so that levels with many
small anchors give fewer false positives.
"""

from typing import Any

import torch
from torch import Tensor

from pyface.ops.extension import (
    FLOATS,
    check_dtype,
    check_int,
    check_one_device,
    check_shape,
    check_tensors,
    launch,
    library,
    register,
)


def maxout_background(logits: Tensor, num_background: int) -> Tensor:
    """Replaces the first num_background channels with their maximum; the others are copied.

    Differentiable: the largest background logit gets the whole gradient, the first one if several are largest. NaN
    counts as the largest, so it is not hidden.

    Args:
        logits: [B, C, ...] of any float dtype, with any number of further dimensions.
        num_background: 1 to C.

    Returns:
        A new tensor [B, 1 + C - num_background, ...] of the same dtype and memory format.

    Raises:
        TypeError: logits is not a tensor of a float dtype, or num_background is not an int.
        ValueError: There are fewer than two dimensions, or num_background is not from 1 to C.

    Source:
        S3FD (arXiv 1708.05237), section 3.3; docs/detectors.md 2.1.

    Example:
        >>> import torch, pyface
        >>> pyface.ops.maxout_background(torch.tensor([[1.0, 3.0, 2.0, 5.0]]), 3)
        tensor([[3., 5.]])
    """
    check_tensors("maxout_background", ("logits",), (logits,))
    check_int("maxout_background", "num_background", num_background)
    return torch.ops.pyface.maxout_background.default(logits, num_background)


def face_probability(logits: Tensor, num_background: int) -> Tensor:
    """Softmax over the largest background logit and the face logit; for num_background 0, the sigmoid of the logit.

    It takes one pass over the map if no gradient is needed. Otherwise the gradient is that of maxout_background.

    Args:
        logits: [B, num_background + 1, ...] of any float dtype, with any number of further dimensions.
        num_background: 0 or more; these channels come first.

    Returns:
        float32 [B, ...], accurate to 1e-6. NaN where a logit is NaN or both are the same infinity.

    Raises:
        TypeError: logits is not a tensor of a float dtype, or num_background is not an int.
        ValueError: The number of channels is wrong.

    Example:
        >>> import torch, pyface
        >>> pyface.ops.face_probability(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 3)
        tensor([0.5000])
    """
    op = "face_probability"
    check_tensors(op, ("logits",), (logits,))
    check_int(op, "num_background", num_background)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return torch.ops.pyface.face_probability.default(logits, num_background)
    _check_probability(logits, num_background)
    if num_background == 0:
        return logits[:, 0].float().sigmoid()
    background, face = maxout_background(logits, num_background).float().unbind(1)
    return (face - background).sigmoid()


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_maxout(logits: Tensor, num_background: int) -> None:
    op = "maxout_background"
    check_dtype(op, "logits", logits, FLOATS)
    check_shape(op, "logits", logits, logits.ndim >= 2, "[B, C, ...]")
    if not 1 <= num_background <= logits.shape[1]:
        raise ValueError(
            f"{op}: num_background must be between 1 and the {logits.shape[1]} channels of logits, "
            f"got {num_background}."
        )


def _check_backward(gradient: Tensor, logits: Tensor, num_background: int) -> None:
    op = "maxout_background_backward"
    _check_maxout(logits, num_background)
    check_one_device(op, logits, gradient)
    check_dtype(op, "gradient", gradient, (logits.dtype,))
    expected = (logits.shape[0], 1 + logits.shape[1] - num_background, *logits.shape[2:])
    check_shape(op, "gradient", gradient, gradient.shape == expected, str(list(expected)))


def _check_probability(logits: Tensor, num_background: int) -> None:
    op = "face_probability"
    check_dtype(op, "logits", logits, FLOATS)
    if num_background < 0:
        raise ValueError(f"{op}: num_background must be 0 or more, got {num_background}.")
    fits = logits.ndim >= 2 and logits.shape[1] == num_background + 1
    check_shape(op, "logits", logits, fits, f"[B, {num_background + 1}, ...] ({num_background} backgrounds and a face)")


# --- implementation --------------------------------------------------------------------------------------------------


def _as_map(tensor: Tensor) -> Tensor:
    """[B, C, ...] as [B, C, H, W], without a copy if the strides allow it."""
    if tensor.ndim == 4:
        return tensor
    if tensor.ndim < 4:
        return tensor[(...,) + (None,) * (4 - tensor.ndim)]
    return tensor.flatten(3)


def _empty_like(tensor: Tensor, channels: int) -> Tensor:
    """A new tensor like the given one, in its memory format, but with `channels` channels."""
    shape = (tensor.shape[0], channels, *tensor.shape[2:])
    for ndim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.ndim == ndim and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=memory_format):
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
    return tensor.new_empty(shape)


def _maxout_background(logits: Tensor, num_background: int) -> Tensor:
    _check_maxout(logits, num_background)
    batch, channels = logits.shape[:2]
    out = _empty_like(logits, 1 + channels - num_background)
    if out.numel() == 0:
        return out
    if logits.dtype == torch.float64:  # for gradcheck; no network runs in it
        out[:, 0] = logits[:, :num_background].amax(1)
        out[:, 1:] = logits[:, num_background:]
        return out
    source = _as_map(logits)
    launch(
        "maxout_background",
        logits.device,
        source,
        logits.dtype,
        batch,
        channels,
        *source.shape[2:],
        num_background,
        _as_map(out),
    )
    return out


def _maxout_background_backward(gradient: Tensor, logits: Tensor, num_background: int) -> Tensor:
    _check_backward(gradient, logits, num_background)
    batch, channels = logits.shape[:2]
    out = _empty_like(logits, channels)
    if out.numel() == 0:
        return out
    if logits.dtype == torch.float64:
        first_largest = logits[:, :num_background].argmax(1, keepdim=True)
        out[:, :num_background] = 0
        out[:, :num_background].scatter_(1, first_largest, gradient[:, :1])
        out[:, num_background:] = gradient[:, 1:]
        return out
    source, gradient = _as_map(logits), _as_map(gradient)
    launch(
        "maxout_background_backward",
        logits.device,
        source,
        gradient,
        logits.dtype,
        batch,
        channels,
        *source.shape[2:],
        num_background,
        _as_map(out),
    )
    return out


def _face_probability(logits: Tensor, num_background: int) -> Tensor:
    _check_probability(logits, num_background)
    if logits.dtype == torch.float64:
        logits = logits.float()
    out = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.float32)
    if out.numel() == 0:
        return out
    source = _as_map(logits)
    launch(
        "face_probability",
        logits.device,
        source,
        logits.dtype,
        logits.shape[0],
        *source.shape[2:],
        num_background,
        out,
    )
    return out


# --- registration ----------------------------------------------------------------------------------------------------


def _fake_maxout_background(logits: Tensor, num_background: int) -> Tensor:
    _check_maxout(logits, num_background)
    return _empty_like(logits, 1 + logits.shape[1] - num_background)


def _fake_maxout_background_backward(gradient: Tensor, logits: Tensor, num_background: int) -> Tensor:
    _check_backward(gradient, logits, num_background)
    return _empty_like(logits, logits.shape[1])


def _fake_face_probability(logits: Tensor, num_background: int) -> Tensor:
    _check_probability(logits, num_background)
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    logits, ctx.num_background = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (logits,) = ctx.saved_tensors
    return torch.ops.pyface.maxout_background_backward.default(gradient, logits, ctx.num_background), None


def _keep_for_second_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    _, logits, ctx.num_background = inputs
    ctx.save_for_backward(logits)


def _second_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """The backward's own backward: linear in the gradient, constant in the logits. Rarely needed, so in plain torch."""
    (logits,) = ctx.saved_tensors
    first_largest = logits[:, : ctx.num_background].argmax(1, keepdim=True)
    return torch.cat([gradient.gather(1, first_largest), gradient[:, ctx.num_background :]], 1), None, None


register("maxout_background(Tensor logits, int num_background) -> Tensor", _maxout_background, _fake_maxout_background)
register(
    "maxout_background_backward(Tensor gradient, Tensor logits, int num_background) -> Tensor",
    _maxout_background_backward,
    _fake_maxout_background_backward,
)
register("face_probability(Tensor logits, int num_background) -> Tensor", _face_probability, _fake_face_probability)
torch.library.register_autograd("pyface::maxout_background", _backward, setup_context=_keep_for_backward, lib=library)
torch.library.register_autograd(
    "pyface::maxout_background_backward", _second_backward, setup_context=_keep_for_second_backward, lib=library
)
