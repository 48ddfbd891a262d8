"""Choosing the anchors or samples that count in a loss: hard_negatives, balanced_sample and online_hard.

``index`` is the result of assign_anchors: >= 0 a face, -1 background, -2 ignored. Losses may be float32, float64,
float16 or bfloat16 (computed in float32). Entries with a non-finite loss are never chosen and do not count, except that
positives stay positive whatever their loss. The results have no gradient.
"""

import math

import torch
from torch import Tensor

from pyface.ops.extension import (
    FLOATS,
    check_dtype,
    check_fraction,
    check_int,
    check_numbers,
    check_one_device,
    check_shape,
    check_size,
    check_tensors,
    contiguous_as,
    launch,
    register,
)


def hard_negatives(losses: Tensor, index: Tensor, *, ratio: float = 3.0, minimum: int = 16) -> Tensor:
    """Chooses each image's background anchors with the largest losses (S3FD, SSD).

    Each image gets ``max(minimum, floor(ratio * positives))`` of them, or all if it has fewer. Ties go to the lower
    index.

    Args:
        losses: [B, A], any float dtype; the values of positive and ignored anchors have no effect.
        index: int32 or int64 [B, A]: >= 0 positive, -1 background, other values ignored.
        ratio: Number of negatives per positive, >= 0.
        minimum: Number of negatives for images with few or no faces, >= 0.

    Returns:
        bool [B, A]: the chosen negatives.

    Raises:
        TypeError: An argument is not a tensor, or has the wrong dtype or type.
        ValueError: Shapes or devices do not match, the ratio is negative or infinite, or the minimum is negative.

    Example:
        >>> import torch, pyface
        >>> losses = torch.tensor([[0.9, 0.1, 0.4, 0.3, 0.8]])
        >>> index = torch.tensor([[0, -1, -1, -1, -2]])
        >>> pyface.ops.hard_negatives(losses, index, ratio=2, minimum=1)
        tensor([[False, False,  True,  True, False]])
    """
    check_tensors("hard_negatives", ("losses", "index"), (losses, index))
    check_numbers("hard_negatives", ratio=ratio)
    check_int("hard_negatives", "minimum", minimum)
    return torch.ops.pyface.hard_negatives.default(losses.detach(), index, ratio, minimum)


def balanced_sample(
    losses: Tensor,
    index: Tensor,
    *,
    ratio: float = 1.0,
    hard_fraction: float = 0.01,
    minimum: int = 16,
    seed: int,
) -> Tensor:
    """Chooses all positives and ``ratio`` times as many negatives, half of them hard (docs/detectors.md 1.3).

    The hard set of an image is the ``hard_fraction`` of its background (rounded up) with the largest losses; it is
    larger if half of the negatives would not fit into it. Half of the negatives (rounded up) are drawn from it, the
    others from the rest. If the rest has too few, more come from the hard set.

    Args:
        losses: [B, A], any float dtype; the values of positive and ignored entries have no effect.
        index: int32 or int64 [B, A]: >= 0 positive, -1 background, other values ignored.
        ratio: Number of negatives per positive, >= 0.
        hard_fraction: Share of the background in the hard set, in [0, 1].
        minimum: Number of negatives for images with few or no faces, >= 0.
        seed: Random seed in [0, 2**63). The random numbers depend only on it, so use a different one for every step.

    Returns:
        bool [B, A]: the positives and the chosen negatives.

    Raises:
        TypeError, ValueError: As for hard_negatives; also if hard_fraction or seed is out of range.

    Example:
        >>> import torch, pyface
        >>> losses = torch.tensor([[0.9, 0.1, 0.4, 0.3, 0.8]])
        >>> index = torch.tensor([[0, -1, -1, -1, -2]])
        >>> pyface.ops.balanced_sample(losses, index, minimum=1, seed=7)
        tensor([[ True, False,  True, False, False]])
    """
    check_tensors("balanced_sample", ("losses", "index"), (losses, index))
    check_numbers("balanced_sample", ratio=ratio, hard_fraction=hard_fraction)
    check_int("balanced_sample", "minimum", minimum)
    check_int("balanced_sample", "seed", seed)
    _check_seed(seed)
    return torch.ops.pyface.balanced_sample.default(losses.detach(), index, ratio, hard_fraction, minimum, seed)


def online_hard(losses: Tensor, *, keep: float = 0.7, valid: Tensor | None = None) -> Tensor:
    """Chooses the ``ceil(keep * count)`` samples with the largest losses (MTCNN's online hard sample mining).

    Ties go to the lower index.

    Args:
        losses: [N], any float dtype.
        keep: Share of the samples to choose, in [0, 1].
        valid: bool [N], the samples that count; None: all.

    Returns:
        bool [N]: the chosen samples.

    Raises:
        TypeError: An argument is not a tensor, or has the wrong dtype or type.
        ValueError: Shapes or devices do not match, or keep is outside [0, 1].

    Example:
        >>> import torch, pyface
        >>> pyface.ops.online_hard(torch.tensor([0.1, 0.9, 0.5, 0.7]), keep=0.5)
        tensor([False,  True, False,  True])
    """
    tensors = (losses,) if valid is None else (losses, valid)
    check_tensors("online_hard", ("losses", "valid")[: len(tensors)], tensors)
    check_numbers("online_hard", keep=keep)
    return torch.ops.pyface.online_hard.default(losses.detach(), keep, valid)


# --- implementations -------------------------------------------------------------------------------------------------


def _check_negatives(op: str, losses: Tensor, index: Tensor, ratio: float, minimum: int) -> None:
    check_one_device(op, losses, index)
    check_dtype(op, "losses", losses, FLOATS)
    check_dtype(op, "index", index, (torch.int32, torch.int64))
    check_shape(op, "losses", losses, losses.ndim == 2, "[B, A]")
    check_shape(op, "index", index, index.shape == losses.shape, f"[B, A] = {list(losses.shape)} as in losses")
    check_size(op, losses.shape[0] * losses.shape[1])
    if not 0 <= ratio < math.inf:
        raise ValueError(f"{op}: ratio must be a number of negatives per positive, 0 or more, got {ratio}.")
    if not minimum >= 0:
        raise ValueError(f"{op}: minimum must be a number of negatives, 0 or more, got {minimum}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"balanced_sample: seed must be a number from 0 to 2**63 - 1, got {seed}.")


def _check_balanced(losses: Tensor, index: Tensor, ratio: float, hard_fraction: float, minimum: int, seed: int) -> None:
    _check_negatives("balanced_sample", losses, index, ratio, minimum)
    check_fraction("balanced_sample", "hard_fraction", hard_fraction)
    _check_seed(seed)


def _check_online(losses: Tensor, keep: float, valid: Tensor | None) -> None:
    check_dtype("online_hard", "losses", losses, FLOATS)
    check_shape("online_hard", "losses", losses, losses.ndim == 1, "[N]")
    check_size("online_hard", losses.shape[0])
    check_fraction("online_hard", "keep", keep)
    if valid is not None:
        check_one_device("online_hard", losses, valid)
        check_dtype("online_hard", "valid", valid, (torch.bool,))
        fits = valid.shape == losses.shape
        check_shape("online_hard", "valid", valid, fits, f"[N] = {list(losses.shape)} as in losses")


def _kinds(index: Tensor) -> Tensor:
    """The index in the kernels' form. Only its sign and -1 matter, so int64 is clamped before conversion."""
    return contiguous_as(index if index.dtype == torch.int32 else index.clamp(-2, 0), torch.int32)


def _hard_negatives(losses: Tensor, index: Tensor, ratio: float, minimum: int) -> Tensor:
    _check_negatives("hard_negatives", losses, index, ratio, minimum)
    losses, index = contiguous_as(losses, torch.float32), _kinds(index)
    selected = torch.empty(losses.shape, dtype=torch.bool, device=losses.device)
    launch(
        "hard_negatives",
        losses.device,
        losses,
        index,
        losses.shape[0],
        losses.shape[1],
        ratio,
        minimum,
        selected,
        workspace=tuple(losses.shape),
    )
    return selected


def _balanced_sample(
    losses: Tensor, index: Tensor, ratio: float, hard_fraction: float, minimum: int, seed: int
) -> Tensor:
    _check_balanced(losses, index, ratio, hard_fraction, minimum, seed)
    losses, index = contiguous_as(losses, torch.float32), _kinds(index)
    selected = torch.empty(losses.shape, dtype=torch.bool, device=losses.device)
    launch(
        "balanced_sample",
        losses.device,
        losses,
        index,
        losses.shape[0],
        losses.shape[1],
        ratio,
        hard_fraction,
        minimum,
        seed,
        selected,
        workspace=tuple(losses.shape),
    )
    return selected


def _online_hard(losses: Tensor, keep: float, valid: Tensor | None) -> Tensor:
    _check_online(losses, keep, valid)
    losses = contiguous_as(losses, torch.float32)
    valid = None if valid is None else contiguous_as(valid, torch.bool)
    selected = torch.empty(losses.shape, dtype=torch.bool, device=losses.device)
    launch(
        "online_hard",
        losses.device,
        losses,
        valid,
        len(losses),
        keep,
        selected,
        workspace=(len(losses),),
    )
    return selected


def _fake_hard_negatives(losses: Tensor, index: Tensor, ratio: float, minimum: int) -> Tensor:
    _check_negatives("hard_negatives", losses, index, ratio, minimum)
    return losses.new_empty(losses.shape, dtype=torch.bool)


def _fake_balanced_sample(
    losses: Tensor, index: Tensor, ratio: float, hard_fraction: float, minimum: int, seed: int
) -> Tensor:
    _check_balanced(losses, index, ratio, hard_fraction, minimum, seed)
    return losses.new_empty(losses.shape, dtype=torch.bool)


def _fake_online_hard(losses: Tensor, keep: float, valid: Tensor | None) -> Tensor:
    _check_online(losses, keep, valid)
    return losses.new_empty(losses.shape, dtype=torch.bool)


register(
    "hard_negatives(Tensor losses, Tensor index, float ratio, SymInt minimum) -> Tensor",
    _hard_negatives,
    _fake_hard_negatives,
)
register(
    "balanced_sample(Tensor losses, Tensor index, float ratio, float hard_fraction, SymInt minimum, SymInt seed) "
    "-> Tensor",
    _balanced_sample,
    _fake_balanced_sample,
)
register("online_hard(Tensor losses, float keep, Tensor? valid) -> Tensor", _online_hard, _fake_online_hard)
