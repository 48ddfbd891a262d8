"""Matching anchors with annotated faces: assign_anchors."""

from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from pyface.ops.extension import (
    FLOATS,
    check_dtype,
    check_fraction,
    check_numbers,
    check_one_device,
    check_shape,
    check_size,
    check_splits,
    check_tensors,
    contiguous_as,
    launch,
    register,
)

_COMPENSATE_NOBODY, _COMPENSATE_MEAN = -1, 0  # csrc/ops.h's Matching
_COMPENSATE_ABOVE = 0.1  # S3FD's threshold (docs/detectors.md 2.3)


def assign_anchors(
    anchors: Tensor,
    boxes: Tensor,
    splits: Tensor,
    *,
    positive: float,
    negative: float,
    force_best: bool = False,
    compensate: Literal["mean"] | int | None = None,
    ignore: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Assigns a face, or background, to every anchor of a batch by IoU, without a matrix of anchors and faces.

    SSH's rule is ``positive=0.5, negative=0.3``, with ``valid`` for the border. SRN's is 0.7 and 0.3, then 0.5 and 0.4
    for moved anchors. S3FD's is 0.35 and 0.35 with ``force_best`` and ``compensate`` (docs/detectors.md 5.2, 4.3, 2.3).
    The rules, in order:

    1. An anchor gets the face with the highest IoU, ties to the lower index, if that IoU is >= positive. It is
       background if the IoU is < negative, otherwise ignored.
    2. ``force_best``: every face also gets the anchor with the highest IoU (> 0), ties to the lower index, even if that
       anchor had another face. If two faces claim one anchor, the higher IoU wins, then the lower index; the other face
       gets none.
    3. ``compensate``: a face with fewer than N anchors gets more, up to N: unmatched anchors for which it is the best
       face, with an IoU > 0.1, by descending IoU, ties to the lower index.
    4. An anchor without a face is ignored if an ignore box covers at least half of its area.

    Faces that are not finite or have no area match nothing. A face's index counts all boxes of its image, ignore boxes
    included.

    Args:
        anchors: [A, 4] for all images or [B, A, 4], any float dtype; anchors that are not finite count as invalid.
        boxes: [G, 4], any float dtype: the boxes of all images, image by image.
        splits: int64 [B + 1]; image b has the boxes splits[b] ... splits[b + 1] - 1. On the CPU, splits that do not
            rise from 0 to G raise. On CUDA, where checking would need a synchronisation, they are clamped to [0, G].
        positive: In (0, 1]; an anchor belongs to a face if its IoU is >= this.
        negative: In [0, positive]; an anchor is background if its IoU is < this.
        force_best: Whether rule 2 applies.
        compensate: N >= 1; "mean" for the mean number of anchors that the image's faces have after rule 2, rounded
            half up, at least 1; None: rule 3 does not apply.
        ignore: bool [G], boxes that are neither faces nor background; None: all are faces.
        valid: bool [A] or [B, A]; other anchors are ignored, and no face gets them. None: all are valid.

    Returns:
        index, int32 [B, A]: the face; -1: background; -2: ignored.
        overlap, float32 [B, A]: IoU with that face, or with the best one where index < 0; 0 for invalid anchors.

    Raises:
        TypeError: A tensor has the wrong type or dtype, a threshold is not a number, or force_best is not a bool.
        ValueError: Shapes or devices do not match, or thresholds, splits or compensate are out of range.

    Example:
        >>> import torch, pyface
        >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 5], [50, 50, 60, 60]])
        >>> faces, splits = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0, 1, 1])
        >>> index, overlap = pyface.ops.assign_anchors(anchors, faces, splits, positive=0.6, negative=0.5)
        >>> index
        tensor([[ 0, -2, -2, -1],
                [-1, -1, -1, -1]], dtype=torch.int32)
        >>> overlap[0]
        tensor([1.0000, 0.5000, 0.5000, 0.0000])
    """
    names = ["anchors", "boxes", "splits"]
    tensors = [anchors, boxes, splits]
    for name, tensor in (("ignore", ignore), ("valid", valid)):
        if tensor is not None:
            names.append(name)
            tensors.append(tensor)
    check_tensors("assign_anchors", names, tensors)
    check_numbers("assign_anchors", positive=positive, negative=negative)
    if not isinstance(force_best, bool):
        raise TypeError(f"assign_anchors: force_best must be True or False, got {force_best!r}.")
    return torch.ops.pyface.assign_anchors.default(
        anchors.detach(), boxes.detach(), splits, positive, negative, force_best, _number(compensate), ignore, valid
    )


def _number(compensate: str | int | None) -> int:
    """compensate in the kernel's form, a field of csrc/ops.h's Matching."""
    if compensate is None:
        return _COMPENSATE_NOBODY
    if compensate == "mean":
        return _COMPENSATE_MEAN
    if isinstance(compensate, bool) or not isinstance(compensate, Integral) or not 1 <= compensate < 2**31:
        raise ValueError(
            f"assign_anchors: compensate must be None, 'mean' or a number of anchors from 1 to 2**31 - 1, "
            f"got {compensate!r}."
        )
    return int(compensate)


# --- implementation --------------------------------------------------------------------------------------------------


def _check(
    anchors: Tensor,
    boxes: Tensor,
    splits: Tensor,
    positive: float,
    negative: float,
    compensate: int,
    ignore: Tensor | None,
    valid: Tensor | None,
) -> None:
    op = "assign_anchors"
    check_one_device(op, anchors, boxes, splits, *(t for t in (ignore, valid) if t is not None))
    check_dtype(op, "anchors", anchors, FLOATS)
    check_dtype(op, "boxes", boxes, FLOATS)
    check_dtype(op, "splits", splits, (torch.int64,))
    check_shape(op, "splits", splits, splits.ndim == 1 and splits.shape[0] >= 1, "[B + 1]")
    batch, num_boxes = splits.shape[0] - 1, boxes.shape[0] if boxes.ndim else 0
    fits = anchors.ndim in (2, 3) and anchors.shape[-1] == 4 and (anchors.ndim == 2 or anchors.shape[0] == batch)
    check_shape(op, "anchors", anchors, fits, f"[A, 4] or [B, A, 4] with B = {batch} as in splits")
    check_shape(op, "boxes", boxes, boxes.ndim == 2 and boxes.shape[1] == 4, "[G, 4]")
    num_anchors = anchors.shape[-2]
    check_size(op, batch * num_anchors)
    check_size(op, num_boxes)
    if ignore is not None:
        check_dtype(op, "ignore", ignore, (torch.bool,))
        check_shape(op, "ignore", ignore, ignore.shape == boxes.shape[:1], f"[G] = [{num_boxes}] as in boxes")
    if valid is not None:
        check_dtype(op, "valid", valid, (torch.bool,))
        fits = valid.shape in ((num_anchors,), (batch, num_anchors))
        check_shape(op, "valid", valid, fits, f"[A] = [{num_anchors}] or [B, A] = [{batch}, {num_anchors}]")
    check_fraction(op, "positive", positive)
    check_fraction(op, "negative", negative)
    if not 0 < positive >= negative:
        raise ValueError(f"{op}: positive must be > 0 and >= negative, got {positive} and {negative}.")
    if compensate < _COMPENSATE_NOBODY:
        raise ValueError(
            f"{op}: compensate must be -1 (no face), 0 (the mean) or a number of anchors, got {compensate}."
        )


def _assign_anchors(
    anchors: Tensor,
    boxes: Tensor,
    splits: Tensor,
    positive: float,
    negative: float,
    force_best: bool,
    compensate: int,
    ignore: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(anchors, boxes, splits, positive, negative, compensate, ignore, valid)
    check_splits("assign_anchors", splits, len(boxes))
    anchors, boxes, splits = (
        contiguous_as(anchors, torch.float32),
        contiguous_as(boxes, torch.float32),
        contiguous_as(splits, torch.int64),
    )
    ignore = None if ignore is None else contiguous_as(ignore, torch.bool)
    valid = None if valid is None else contiguous_as(valid, torch.bool)
    batch, num_anchors = len(splits) - 1, anchors.shape[-2]
    index = torch.empty(batch, num_anchors, dtype=torch.int32, device=anchors.device)
    overlap = torch.empty(batch, num_anchors, dtype=torch.float32, device=anchors.device)
    launch(
        "assign_anchors",
        anchors.device,
        anchors,
        num_anchors if anchors.ndim == 3 else 0,
        num_anchors,
        boxes,
        len(boxes),
        ignore,
        splits,
        batch,
        valid,
        num_anchors if valid is not None and valid.ndim == 2 else 0,
        (positive, negative, force_best, compensate, _COMPENSATE_ABOVE),
        index,
        overlap,
        workspace=(batch, num_anchors, len(boxes)),
    )
    return index, overlap


def _fake(
    anchors: Tensor,
    boxes: Tensor,
    splits: Tensor,
    positive: float,
    negative: float,
    force_best: bool,
    compensate: int,
    ignore: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(anchors, boxes, splits, positive, negative, compensate, ignore, valid)
    shape = (splits.shape[0] - 1, anchors.shape[-2])
    return anchors.new_empty(shape, dtype=torch.int32), anchors.new_empty(shape, dtype=torch.float32)


register(
    "assign_anchors(Tensor anchors, Tensor boxes, Tensor splits, float positive, float negative, bool force_best, "
    "SymInt compensate, Tensor? ignore, Tensor? valid) -> (Tensor, Tensor)",
    _assign_anchors,
    _fake,
)
