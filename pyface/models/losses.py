"""Parts that the detectors' losses share: predictions per anchor, targets, and the loss terms.

Anchors are in the order of `ops.anchor_boxes`: level by level, cells row by row, the K anchors of a cell side by side.
Sums use masks instead of selections with data-dependent sizes, so nothing here waits for the device. All terms are
float32, whatever the maps' dtype. Masks exclude targets that are not finite (of boxes without area, of unknown
landmarks), from the gradient too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pyface import ops
from pyface.models.base import GroundTruth

BoxLoss = Literal["smooth_l1", "diou"]
"""The loss of a box: smooth L1 of the four encoded numbers, or the distance-IoU loss."""


def check_truth(truth: GroundTruth, images: int) -> None:
    """Checks that the ground truth is for this number of images.

    Raises:
        TypeError: Its boxes are not floating point.
        ValueError: It is for a different number of images.
    """
    if not truth.boxes.is_floating_point():
        raise TypeError(f"the truth's boxes must be float32, got {truth.boxes.dtype}")
    if truth.splits.shape != (images + 1,):
        raise ValueError(
            f"the truth's splits must be [{images + 1}] for a batch of {images}, got {list(truth.splits.shape)}"
        )


def check_maps(maps: Sequence[ops.LevelMaps], levels: Sequence[ops.AnchorLevel], truth: GroundTruth) -> None:
    """Checks that the maps of all levels are given, and that the ground truth is for their images.

    Raises:
        TypeError, ValueError: As for `check_truth`, or the number of maps is wrong.
    """
    if len(maps) != len(levels):
        raise ValueError(f"maps must be those of all {len(levels)} levels, got {len(maps)}")
    check_truth(truth, len(maps[0].logits))


def anchors_on(levels: Sequence[ops.AnchorLevel], maps: Sequence[ops.LevelMaps]) -> Tensor:
    """The anchors of the maps, float32 [A, 4]; cached by size, since making them copies to the device."""
    sizes = tuple((level.logits.shape[2], level.logits.shape[3]) for level in maps)
    # Anchors made while a network is traced with fake tensors must not be cached.
    make = _anchors if type(maps[0].logits) is Tensor else _anchors.__wrapped__
    return make(tuple(levels[: len(maps)]), sizes, maps[0].logits.device)


@lru_cache(maxsize=64)
def _anchors(levels: tuple[ops.AnchorLevel, ...], sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the first caller may be validating, the next one training
        return ops.anchor_boxes(levels, sizes, device)


# --- predictions -----------------------------------------------------------------------------------------------------


def by_anchor(maps: Sequence[Tensor], levels: Sequence[ops.AnchorLevel]) -> Tensor:
    """Rearranges maps [B, K * n, H, W], where an anchor's n values are side by side, to float32 [B, A, n]."""
    return torch.cat([_by_anchor(x, len(level.anchors)) for x, level in zip(maps, levels, strict=True)], dim=1)


def _by_anchor(x: Tensor, num_anchors: int) -> Tensor:
    parts = x.unflatten(1, (num_anchors, x.shape[1] // num_anchors))
    return parts.permute(0, 3, 4, 1, 2).flatten(1, 3).float()


def face_evidence(maps: Sequence[Tensor], levels: Sequence[ops.AnchorLevel]) -> Tensor:
    """The face logit minus the largest background logit, float32 [B, A]; its sigmoid is the face probability."""
    return torch.cat([_face_evidence(x, level) for x, level in zip(maps, levels, strict=True)], dim=1)


def _face_evidence(logits: Tensor, level: ops.AnchorLevel) -> Tensor:
    classes = logits.float().unflatten(1, (level.num_background + 1, len(level.anchors)))
    if level.num_background > 1:
        classes = ops.maxout_background(classes, level.num_background)
    evidence = classes[:, 0] if level.num_background == 0 else classes[:, 1] - classes[:, 0]
    return evidence.permute(0, 2, 3, 1).flatten(1)


# --- targets ---------------------------------------------------------------------------------------------------------


def matched(values: Tensor, splits: Tensor, index: Tensor) -> Tensor:
    """Looks up the values of each anchor's face: float32 [B, A, ...], detached.

    Args:
        values: `GroundTruth.boxes` or `GroundTruth.landmarks` of a batch, [G, ...].
        splits: `GroundTruth.splits`, int64 [B + 1].
        index: int32 [B, A], the face within the image, as from `ops.assign_anchors`. Negative entries get the values of
            an arbitrary face.
    """
    values = values.detach().float()
    if len(values) == 0:
        return values.new_zeros(*index.shape, *values.shape[1:])
    # The split of an image without faces points at the next image's faces, or past the end: hence the clamp.
    return values[(splits[:-1, None] + index.clamp(min=0)).clamp(max=len(values) - 1)]


def encode_boxes(anchors: Tensor, boxes: Tensor, variances: tuple[float, float]) -> Tensor:
    """The deltas (dx, dy, dw, dh) that turn anchors [..., 4] into boxes [..., 4]; `decode_boxes` is the inverse.

    dx and dy are the centre's offset in anchor sides / variances[0]; dw and dh are log(side / anchor side) /
    variances[1]. Not finite where a side is 0.
    """
    sides, box_sides = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    distance = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([distance / sides / variances[0], (box_sides / sides).log() / variances[1]], dim=-1)


def decode_boxes(anchors: Tensor, deltas: Tensor, variances: tuple[float, float]) -> Tensor:
    """Moves and scales anchors [..., 4] by deltas [..., 4], like `ops.decode_anchors`."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + sides / 2 + deltas[..., :2] * variances[0] * sides
    half = sides * (deltas[..., 2:] * variances[1]).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encode_landmarks(anchors: Tensor, landmarks: Tensor, variance: float) -> Tensor:
    """Encodes points [..., 5, 2] relative to anchors [..., 4], as x1, y1, x2 ... [..., 10].

    A coordinate becomes (coordinate - centre) / side / variance.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    sides = anchors[..., 2:] - anchors[..., :2]
    return ((landmarks - centre[..., None, :]) / sides[..., None, :] / variance).flatten(-2)


# --- terms -----------------------------------------------------------------------------------------------------------


def cross_entropy(evidence: Tensor, is_face: Tensor) -> Tensor:
    """The cross-entropy of each anchor, [B, A]: -log of the probability of its true class."""
    return F.softplus(torch.where(is_face, -evidence, evidence))


def focal(evidence: Tensor, is_face: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """The focal loss (Lin et al., arXiv 1708.02002): [B, A].

    It is `cross_entropy` times (1 - p)^gamma, where p is the probability of the true class, times alpha for faces and
    1 - alpha for background.
    """
    doubt = torch.where(is_face, -evidence, evidence).sigmoid()
    weight = torch.where(is_face, alpha, 1 - alpha)
    return weight * doubt.pow(gamma) * cross_entropy(evidence, is_face)


def smooth_l1(predictions: Tensor, targets: Tensor, where: Tensor, sigma: float = 1.0) -> Tensor:
    """The sum of the smooth L1 loss of x = predictions - targets [B, A, n] where `where` [B, A] is true.

    The loss is (sigma x)^2 / 2 for |x| < 1 / sigma^2, else |x| - 1 / (2 sigma^2).
    """
    # Masked before any arithmetic on the difference, since some targets are not finite.
    difference = torch.where(where[..., None], predictions - targets, 0)
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=1 / sigma**2, reduction="sum")


def box_term(
    predictions: Tensor,
    anchors: Tensor,
    truth: GroundTruth,
    index: Tensor,
    variances: tuple[float, float],
    kind: BoxLoss = "smooth_l1",
    *,
    sigma: float = 1.0,
) -> Tensor:
    """The loss of the boxes of matched anchors, summed over them.

    Args:
        predictions: [B, A, 4], encoded as by `encode_boxes`.
        anchors: [A, 4] or [B, A, 4].
        truth: The faces.
        index: int32 [B, A], as from `ops.assign_anchors`.
        variances: Units of the encoding.
        kind: "smooth_l1" of the encoded numbers, or "diou" of the decoded boxes.
        sigma: As in `smooth_l1`.
    """
    is_face = index >= 0
    faces = matched(truth.boxes, truth.splits, index)
    if kind == "smooth_l1":
        return smooth_l1(predictions, encode_boxes(anchors, faces, variances), is_face, sigma)
    boxes = decode_boxes(anchors, predictions, variances)
    # Masked before any division: where there is no face, both boxes become the same square.
    square = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes, faces = (torch.where(is_face[..., None], x, square) for x in (boxes, faces))
    return diou(boxes, faces).sum()


def diou(boxes: Tensor, faces: Tensor) -> Tensor:
    """The distance-IoU loss (Zheng et al., arXiv 1911.08287) of pairs of boxes [..., 4]: [...], from 0 to 2.

    It is 1 - IoU, plus the squared distance of the centres over the squared diagonal of the enclosing box.
    """
    shared = torch.minimum(boxes[..., 2:], faces[..., 2:]) - torch.maximum(boxes[..., :2], faces[..., :2])
    around = torch.maximum(boxes[..., 2:], faces[..., 2:]) - torch.minimum(boxes[..., :2], faces[..., :2])
    intersection = shared.clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (boxes, faces)]
    union = areas[0] + areas[1] - intersection
    distance = (boxes[..., :2] + boxes[..., 2:] - faces[..., :2] - faces[..., 2:]).square().sum(-1) / 4
    return 1 - intersection / union.clamp(min=1e-6) + distance / around.square().sum(-1).clamp(min=1e-6)


def total(values: Tensor, where: Tensor) -> Tensor:
    """The sum of values where a mask of the same shape is true, or where they are not finite.

    Mining skips values that are not finite. Without them, the loss of a network that returns NaN would be 0.
    """
    return torch.where(where | ~values.isfinite(), values, 0).sum()


def count(mask: Tensor) -> Tensor:
    """The number of true entries, at least 1: the divisor of a sum."""
    return mask.sum().clamp(min=1)


def landmark_term(
    predictions: Tensor,
    anchors: Tensor,
    truth: GroundTruth,
    index: Tensor,
    variance: float,
    weight: float,
    divisor: Tensor | None = None,
) -> Tensor:
    """Smooth L1 loss of the landmarks of matched anchors.

    Only anchors of faces with all five points known count; without any, the term is 0.

    Args:
        predictions: [B, A, 10].
        anchors: [A, 4] or [B, A, 4].
        truth: The faces.
        index: int32 [B, A], as from `ops.assign_anchors`.
        variance: Unit of the encoding, in anchor sides.
        weight: Weight of the term.
        divisor: Divisor of the sum; None: the number of anchors that count.

    Raises:
        ValueError: The truth's landmarks are not [G, 5, 2].
    """
    points, expected = truth.landmarks, (len(truth.boxes), 5, 2)
    if points is None:
        points = truth.boxes.new_full(expected, torch.nan)
    elif points.shape != expected:
        raise ValueError(f"landmarks must be [G, 5, 2] = {list(expected)}, got {list(points.shape)}")
    targets = encode_landmarks(anchors, matched(points, truth.splits, index), variance)
    known = (index >= 0) & targets.isfinite().all(-1)
    return weight * smooth_l1(predictions, targets, known) / (count(known) if divisor is None else divisor)


def hardest(losses: Tensor, where: Tensor, most: int, wanted: Tensor | None = None) -> Tensor:
    """Selects each image's entries with the largest loss: bool [B, A]. NaN counts as largest.

    Args:
        losses: [B, A].
        where: bool [B, A], which entries may be chosen.
        most: Largest number of entries per image.
        wanted: int64 [B], number of entries to choose from each image, at most `most`; None: `most`.
    """
    losses = losses.detach().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    losses = losses.masked_fill(~where, -torch.inf)
    values, order = losses.topk(min(most, losses.shape[1]), dim=1)
    chosen = values > -torch.inf
    if wanted is not None:
        chosen &= torch.arange(values.shape[1], device=values.device) < wanted[:, None]
    return torch.zeros_like(where).scatter_(1, order, chosen)
