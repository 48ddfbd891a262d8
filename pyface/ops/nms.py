"""Suppression: nms, batched_nms, nms_padded, soft_nms and box_voting.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixels, of width ``x2 - x1``. If x2 and y2 are the last pixels inside a
box, add 1 to them first. ``overlap="union"`` is intersection over union, ``"min"`` intersection over the smaller area.

All ops take float32, float64, float16 or bfloat16 and compute in float32. They drop entries whose score or coordinate
is not finite, and process boxes by descending score, ties by index. A box with x2 < x1 or y2 < y1 overlaps nothing.
"""

import math

import torch
from torch import Tensor

from pyface.ops.extension import (
    FLOATS,
    INTEGERS,
    OVERLAPS,
    check_choice,
    check_dtype,
    check_fraction,
    check_not_nan,
    check_one_device,
    check_shape,
    check_size,
    check_tensors,
    contiguous_as,
    launch,
    register,
)

_METHODS = ("linear", "gaussian")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, overlap: str = "union") -> Tensor:
    """Greedy non-maximum suppression, with the results of torchvision.ops.nms.

    Args:
        boxes: [N, 4], any float dtype.
        scores: [N], any float dtype.
        iou_threshold: In [0, 1]; a box is dropped if its overlap with a kept one is > this.
        overlap: "union" or "min".

    Returns:
        int64 [K]: indices of the kept boxes, by descending score.

    Raises:
        TypeError: An argument is not a tensor, or not of a float dtype.
        ValueError: Shapes or devices do not match, the threshold is outside [0, 1], or the overlap is unknown.

    Example:
        >>> import torch, pyface
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
        >>> pyface.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])
    """
    check_tensors("nms", ("boxes", "scores"), (boxes, scores))
    return torch.ops.pyface.nms.default(boxes, scores, iou_threshold, overlap)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, overlap: str = "union") -> Tensor:
    """nms within each class (or image, or pyramid level), merged by score.

    The result is exactly that of nms per class. Classes are segments instead of coordinate offsets, so large
    coordinates keep their precision.

    Args:
        boxes: [N, 4], any float dtype.
        scores: [N], any float dtype.
        idxs: [N], any integer dtype, any values; boxes with different values never suppress each other.
        iou_threshold: In [0, 1]; a box is dropped if its overlap with a kept one of its class is > this.
        overlap: "union" or "min".

    Returns:
        int64 [K]: indices of the kept boxes, by descending score.

    Raises:
        TypeError, ValueError: As for nms.

    Example:
        >>> import torch, pyface
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [1, 1, 11, 11]])
        >>> pyface.ops.batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), 0.5)
        tensor([0, 2])
    """
    check_tensors("batched_nms", ("boxes", "scores", "idxs"), (boxes, scores, idxs))
    return torch.ops.pyface.batched_nms.default(boxes, scores, idxs, iou_threshold, overlap)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor | None,
    iou_threshold: float,
    *,
    max_detections: int,
    score_threshold: float | None = None,
    overlap: str = "union",
) -> tuple[Tensor, Tensor]:
    """nms for a whole batch with static shapes, without host synchronisation; suits torch.compile and CUDA graphs.

    Args:
        boxes: [B, N, 4], any float dtype.
        scores: [B, N], any float dtype.
        counts: Integer [B], the number of valid entries of each image, which come first; None: all. On the CPU, a count
            outside [0, N] raises. On CUDA, where checking would need a synchronisation, it is clamped.
        iou_threshold: In [0, 1]; a box is dropped if its overlap with a kept one is > this.
        max_detections: M >= 0, the largest number of boxes to keep per image.
        score_threshold: Boxes with a score that is not > this are dropped; None: all finite scores count.
        overlap: "union" or "min".

    Returns:
        keep, int64 [B, M]: indices of the kept boxes, by descending score, padded with -1.
        count, int32 [B]: the number of kept boxes.

    Raises:
        TypeError, ValueError: As for nms; also if max_detections is negative.

    Example:
        >>> import torch, pyface
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]])
        >>> pyface.ops.nms_padded(boxes, torch.tensor([[0.9, 0.8, 0.7]]), None, 0.5, max_detections=4)
        (tensor([[ 0,  2, -1, -1]]), tensor([2], dtype=torch.int32))
    """
    tensors = (boxes, scores) if counts is None else (boxes, scores, counts)
    check_tensors("nms_padded", ("boxes", "scores", "counts")[: len(tensors)], tensors)
    return torch.ops.pyface.nms_padded.default(
        boxes, scores, counts, iou_threshold, max_detections, score_threshold, overlap
    )


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    overlap: str = "union",
) -> tuple[Tensor, Tensor]:
    """Soft suppression (Bodla et al., arXiv 1704.04503): overlapping boxes get lower scores instead of being dropped.

    Repeatedly keeps the best remaining box and multiplies the score of every other box by ``1 - overlap`` where overlap
    > iou_threshold ("linear"), or by ``exp(-overlap^2 / sigma)`` ("gaussian").

    Args:
        boxes: [N, 4], any float dtype.
        scores: [N], any float dtype.
        iou_threshold: In [0, 1]; used by "linear" only.
        method: "linear" or "gaussian".
        sigma: > 0; used by "gaussian" only.
        score_threshold: >= 0; a box is dropped once its score is not > this.
        overlap: "union" or "min".

    Returns:
        keep, int64 [K]: indices of the kept boxes, in descending order of their lowered scores.
        scores, float32 [K]: their lowered scores.

    Raises:
        TypeError, ValueError: As for nms; also if sigma <= 0, score_threshold < 0, or the method is unknown.

    Example:
        >>> import torch, pyface
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
        >>> pyface.ops.soft_nms(boxes, torch.tensor([0.9, 0.8]))
        (tensor([0, 1]), tensor([0.9000, 0.4000]))
    """
    check_tensors("soft_nms", ("boxes", "scores"), (boxes, scores))
    return torch.ops.pyface.soft_nms.default(
        boxes.detach(), scores.detach(), iou_threshold, method, sigma, score_threshold, overlap
    )


def box_voting(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, drop_singletons: bool = False, overlap: str = "union"
) -> tuple[Tensor, Tensor]:
    """Box voting as in S3FD and SRN (docs/detectors.md 2.6d): replaces clusters of boxes with weighted means.

    The best remaining box and all boxes whose overlap with it is >= iou_threshold form a cluster. It becomes one box:
    the mean weighted by ``max(score, 0)`` (the best box itself if all weights are 0), with the best score.

    Args:
        boxes: [N, 4], any float dtype.
        scores: [N], any float dtype.
        iou_threshold: In [0, 1]; note the >=, unlike nms.
        drop_singletons: Whether to drop clusters of one box, as the papers' code does.
        overlap: "union" or "min".

    Returns:
        boxes, float32 [K, 4], and scores, float32 [K], by descending score.

    Raises:
        TypeError, ValueError: As for nms.

    Example:
        >>> import torch, pyface
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10]])
        >>> pyface.ops.box_voting(boxes, torch.tensor([0.5, 0.5]), 0.3)
        (tensor([[ 1.,  0., 11., 10.]]), tensor([0.5000]))
    """
    check_tensors("box_voting", ("boxes", "scores"), (boxes, scores))
    return torch.ops.pyface.box_voting.default(boxes.detach(), scores.detach(), iou_threshold, drop_singletons, overlap)


# --- implementations -------------------------------------------------------------------------------------------------


def _check(op: str, boxes: Tensor, scores: Tensor, iou_threshold: float, overlap: str) -> None:
    check_one_device(op, boxes, scores)
    check_dtype(op, "boxes", boxes, FLOATS)
    check_dtype(op, "scores", scores, FLOATS)
    check_shape(op, "boxes", boxes, boxes.ndim == 2 and boxes.shape[1] == 4, "[N, 4]")
    if scores.shape != boxes.shape[:1]:  # building the message takes longer than all checks
        check_shape(op, "scores", scores, False, f"[N] = {list(boxes.shape[:1])} as in boxes")
    check_size(op, boxes.shape[0])
    check_fraction(op, "iou_threshold", iou_threshold)
    check_choice(op, "overlap", overlap, OVERLAPS)


def _check_idxs(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, overlap: str) -> None:
    _check("batched_nms", boxes, scores, iou_threshold, overlap)
    check_one_device("batched_nms", boxes, idxs)
    check_dtype("batched_nms", "idxs", idxs, INTEGERS)
    fits = idxs.shape == boxes.shape[:1]
    check_shape("batched_nms", "idxs", idxs, fits, f"[N] = {list(boxes.shape[:1])} as in boxes")


def _check_padded(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor | None,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float | None,
    overlap: str,
) -> None:
    op = "nms_padded"
    check_one_device(op, boxes, scores, *([] if counts is None else [counts]))
    check_dtype(op, "boxes", boxes, FLOATS)
    check_dtype(op, "scores", scores, FLOATS)
    check_shape(op, "boxes", boxes, boxes.ndim == 3 and boxes.shape[2] == 4, "[B, N, 4]")
    batch, n = boxes.shape[:2]
    check_shape(op, "scores", scores, scores.shape == boxes.shape[:2], f"[B, N] = [{batch}, {n}] as in boxes")
    check_size(op, batch * n)
    if counts is not None:
        check_dtype(op, "counts", counts, INTEGERS)
        check_shape(op, "counts", counts, counts.shape == boxes.shape[:1], f"[B] = [{batch}] as in boxes")
    check_fraction(op, "iou_threshold", iou_threshold)
    check_choice(op, "overlap", overlap, OVERLAPS)
    if not 0 <= max_detections < 2**31:
        raise ValueError(f"{op}: max_detections must be a number from 0 to 2**31 - 1, got {max_detections}.")
    if score_threshold is not None:
        check_not_nan(op, "score_threshold", score_threshold)


def _check_soft(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    method: str,
    sigma: float,
    score_threshold: float,
    overlap: str,
) -> None:
    _check("soft_nms", boxes, scores, iou_threshold, overlap)
    check_choice("soft_nms", "method", method, _METHODS)
    # In float32, as the kernels take it: a sigma that rounds to 0 would divide 0 by 0.
    if not 1e-30 < sigma < 1e30:
        raise ValueError(f"soft_nms: sigma must be a positive number, got {sigma}.")
    if not score_threshold >= 0:
        raise ValueError(f"soft_nms: score_threshold must be 0 or more, got {score_threshold}.")


def _suppress(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    counts: Tensor | None,
    batch: int,
    n: int,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float,
    overlap: str,
) -> tuple[Tensor, Tensor]:
    """Calls the kernel of nms, batched_nms and nms_padded on boxes [B * N, 4]; returns keep [B * M] and count [B]."""
    boxes, scores = contiguous_as(boxes, torch.float32), contiguous_as(scores, torch.float32)
    classes = None if classes is None else contiguous_as(classes, torch.int64)
    counts = None if counts is None else contiguous_as(counts, torch.int32)
    keep = boxes.new_empty(batch * max_detections, dtype=torch.int64)
    keep_count = boxes.new_empty(batch, dtype=torch.int32)
    launch(
        "nms",
        boxes.device,
        boxes,
        scores,
        classes,
        counts,
        batch,
        n,
        iou_threshold,
        score_threshold,
        OVERLAPS.index(overlap),
        max_detections,
        keep,
        keep_count,
        workspace=(batch, n),
    )
    return keep, keep_count


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, overlap: str) -> Tensor:
    _check("nms", boxes, scores, iou_threshold, overlap)
    n = boxes.shape[0]
    keep, count = _suppress(boxes, scores, None, None, 1, n, iou_threshold, n, -math.inf, overlap)
    return keep[: count.item()]


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, overlap: str) -> Tensor:
    _check_idxs(boxes, scores, idxs, iou_threshold, overlap)
    n = boxes.shape[0]
    keep, count = _suppress(boxes, scores, idxs, None, 1, n, iou_threshold, n, -math.inf, overlap)
    return keep[: count.item()]


def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor | None,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float | None,
    overlap: str,
) -> tuple[Tensor, Tensor]:
    _check_padded(boxes, scores, counts, iou_threshold, max_detections, score_threshold, overlap)
    if counts is not None and counts.device.type == "cpu" and counts.numel():
        low, high = (int(value) for value in counts.aminmax())
        if low < 0 or high > boxes.shape[1]:
            raise ValueError(
                f"nms_padded: counts must be between 0 and N = {boxes.shape[1]}, got {low if low < 0 else high}."
            )
    limit = -math.inf if score_threshold is None else score_threshold
    batch, n = boxes.shape[:2]
    keep, count = _suppress(boxes, scores, None, counts, batch, n, iou_threshold, max_detections, limit, overlap)
    return keep.view(batch, max_detections), count


def _soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    method: str,
    sigma: float,
    score_threshold: float,
    overlap: str,
) -> tuple[Tensor, Tensor]:
    _check_soft(boxes, scores, iou_threshold, method, sigma, score_threshold, overlap)
    n = len(boxes)
    boxes, scores = contiguous_as(boxes, torch.float32), contiguous_as(scores, torch.float32)
    keep = torch.empty(n, dtype=torch.int64, device=boxes.device)
    kept_scores = torch.empty(n, dtype=torch.float32, device=boxes.device)
    count = torch.empty(1, dtype=torch.int32, device=boxes.device)
    launch(
        "soft_nms",
        boxes.device,
        boxes,
        scores,
        n,
        _METHODS.index(method),
        iou_threshold,
        sigma,
        score_threshold,
        OVERLAPS.index(overlap),
        keep,
        kept_scores,
        count,
        workspace=(n,),
    )
    kept = count.item()
    return keep[:kept], kept_scores[:kept]


def _box_voting(
    boxes: Tensor, scores: Tensor, iou_threshold: float, drop_singletons: bool, overlap: str
) -> tuple[Tensor, Tensor]:
    _check("box_voting", boxes, scores, iou_threshold, overlap)
    n = len(boxes)
    boxes, scores = contiguous_as(boxes, torch.float32), contiguous_as(scores, torch.float32)
    voted_boxes, voted_scores = torch.empty_like(boxes), torch.empty_like(scores)
    count = torch.empty(1, dtype=torch.int32, device=boxes.device)
    launch(
        "box_voting",
        boxes.device,
        boxes,
        scores,
        n,
        iou_threshold,
        OVERLAPS.index(overlap),
        drop_singletons,
        voted_boxes,
        voted_scores,
        count,
        workspace=(n,),
    )
    kept = count.item()
    return voted_boxes[:kept], voted_scores[:kept]


# --- registration, for tracing ----------------------------------------------------------------------------------------


def _any_size() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


def _fake_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, overlap: str) -> Tensor:
    _check("nms", boxes, scores, iou_threshold, overlap)
    return boxes.new_empty(_any_size(), dtype=torch.int64)


def _fake_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, overlap: str) -> Tensor:
    _check_idxs(boxes, scores, idxs, iou_threshold, overlap)
    return boxes.new_empty(_any_size(), dtype=torch.int64)


def _fake_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor | None,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float | None,
    overlap: str,
) -> tuple[Tensor, Tensor]:
    _check_padded(boxes, scores, counts, iou_threshold, max_detections, score_threshold, overlap)
    batch = boxes.shape[0]
    return (
        boxes.new_empty((batch, max_detections), dtype=torch.int64),
        boxes.new_empty(batch, dtype=torch.int32),
    )


def _fake_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    method: str,
    sigma: float,
    score_threshold: float,
    overlap: str,
) -> tuple[Tensor, Tensor]:
    _check_soft(boxes, scores, iou_threshold, method, sigma, score_threshold, overlap)
    size = _any_size()
    return boxes.new_empty(size, dtype=torch.int64), boxes.new_empty(size, dtype=torch.float32)


def _fake_box_voting(
    boxes: Tensor, scores: Tensor, iou_threshold: float, drop_singletons: bool, overlap: str
) -> tuple[Tensor, Tensor]:
    _check("box_voting", boxes, scores, iou_threshold, overlap)
    size = _any_size()
    return boxes.new_empty((size, 4), dtype=torch.float32), boxes.new_empty(size, dtype=torch.float32)


register("nms(Tensor boxes, Tensor scores, float iou_threshold, str overlap) -> Tensor", _nms, _fake_nms)
register(
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, str overlap) -> Tensor",
    _batched_nms,
    _fake_batched_nms,
)
register(
    "nms_padded(Tensor boxes, Tensor scores, Tensor? counts, float iou_threshold, SymInt max_detections, "
    "float? score_threshold, str overlap) -> (Tensor, Tensor)",
    _nms_padded,
    _fake_nms_padded,
)
register(
    "soft_nms(Tensor boxes, Tensor scores, float iou_threshold, str method, float sigma, float score_threshold, "
    "str overlap) -> (Tensor, Tensor)",
    _soft_nms,
    _fake_soft_nms,
)
register(
    "box_voting(Tensor boxes, Tensor scores, float iou_threshold, bool drop_singletons, str overlap) "
    "-> (Tensor, Tensor)",
    _box_voting,
    _fake_box_voting,
)
