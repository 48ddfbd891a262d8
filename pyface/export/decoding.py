"""The decoding ops in plain torch, as operations that every exporter supports.

The kernels compact their results, so their output sizes depend on the image size. Here all sizes except those of maps
are fixed: candidates that do not pass get the score `NONE`, and `best` pads what is too short. So one graph serves all
image sizes. Arithmetic is float32 throughout, since many runtimes lack float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyface.models.mtcnn_kernels import convnet_in_torch, pnet_in_torch
from pyface.ops.anchors import AnchorLevel, anchor_boxes

NONE = -1e9  # the evidence of anything but a candidate; finite, since not every runtime sorts infinities


class PlainOps(TorchFunctionMode):
    """A context manager in which models decode with the functions of this module instead of pyface's kernels."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


def decode_anchors(
    logits: Sequence[Tensor],
    boxes: Sequence[Tensor],
    landmarks: Sequence[Tensor],
    gates: Sequence[Tensor | None],
    offsets: Sequence[Tensor | None],
    sizes: Tensor | None,
    anchors: Sequence[float],
    num_anchors: Sequence[int],
    strides: Sequence[int],
    num_background: Sequence[int],
    level_limits: Sequence[int],
    score_thresholds: Sequence[float],
    gate_threshold: float,
    variances: tuple[float, float],
    min_side: float,
    max_candidates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`torch.ops.pyface.decode_anchors`; `ops.decode_anchors` documents it."""
    corners = [tuple(anchors[first : first + 4]) for first in range(0, len(anchors), 4)]
    parts = []
    for i, k in enumerate(num_anchors):
        height, width = logits[i].shape[2:]
        first = sum(num_anchors[:i])
        level = AnchorLevel(strides[i], tuple(corners[first : first + k]))  # type: ignore[arg-type]
        evidence = face_evidence(logits[i], num_background[i], k)
        passes = evidence > logit(score_thresholds[i])
        gate, moves = gates[i], offsets[i]
        if gate is not None:
            passes = passes & (by_anchor(gate, k).squeeze(2) > logit(gate_threshold))
        start = anchor_boxes([level], [(height, width)], logits[i].device)[None]
        if moves is not None:
            start = decode_boxes(start, by_anchor(moves, k), variances)
        found = clip(decode_boxes(start, by_anchor(boxes[i], k), variances), sizes)
        evidence = torch.where(passes & has_side(found, min_side), evidence, NONE)
        points = [by_anchor(landmarks[i], k)] if landmarks else []
        rows = [found, start.expand_as(found), *points]
        if level_limits[i] >= 0:
            evidence, index = best(evidence, level_limits[i])
            rows = [take_along_dim(row, index[..., None], 1) for row in rows]
        parts.append((evidence, *rows))
    all_evidence, *columns = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    evidence, index = best(all_evidence, max_candidates)
    found, start, *points = (take_along_dim(column, index[..., None], 1) for column in columns)
    placed = place_points(start, points[0], variances[0]) if points else found.new_zeros(*found.shape[:2], 0, 2)
    return found, evidence.sigmoid(), placed, index, (evidence > NONE).sum(1, dtype=torch.int32)


def decode_densebox(
    scores: Tensor,
    offsets: Tensor,
    sizes: Tensor | None,
    score_threshold: float,
    stride: int,
    unit: float,
    min_side: float,
    max_candidates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`torch.ops.pyface.decode_densebox`; `ops.decode_densebox` documents it."""
    height, width = scores.shape[2:]
    cell = AnchorLevel(1, ((0.0, 0.0, 1.0, 1.0),))
    corner = anchor_boxes([cell], [(height, width)], scores.device)[:, :2].repeat(1, 2)
    found = clip((corner - unit * by_anchor(offsets, 1)) * stride + stride * 0.5, sizes)
    raw = scores.float().flatten(1)
    raw, index = best(torch.where((raw > score_threshold) & has_side(found, min_side), raw, NONE), max_candidates)
    found = take_along_dim(found, index[..., None], 1)
    count = (raw > NONE).sum(1, dtype=torch.int32)
    return found, raw.clamp(0, 1), found.new_zeros(*found.shape[:2], 0, 2), index, count


def upsample_bilinear(x: Tensor, size: Sequence[int], align_corners: bool, *scales: float | None) -> Tensor:
    """`torch.ops.aten.upsample_bilinear2d` with both a size and factors; the exporter ignores the factors."""
    factors = [factor for factor in scales if factor is not None]
    if not factors:
        return torch.ops.aten.upsample_bilinear2d.default(x, size, align_corners, *scales)
    grown = F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=align_corners)
    return grown[:, :, : size[0], : size[1]]


def take_along_dim(rows: Tensor, index: Tensor, dim: int) -> Tensor:
    """`Tensor.take_along_dim` for indices of length 1 after `dim`; tracing the original would fix the batch size."""
    return rows.gather(dim, index.expand(*index.shape[: dim + 1], *rows.shape[dim + 1 :]))


PLAIN: dict[Any, Callable[..., Any]] = {
    torch.ops.pyface.pnet.default: pnet_in_torch,
    torch.ops.pyface.convnet.default: convnet_in_torch,
    torch.ops.pyface.decode_anchors.default: decode_anchors,
    torch.ops.pyface.decode_densebox.default: decode_densebox,
    torch.ops.aten.upsample_bilinear2d: upsample_bilinear,
    torch.Tensor.take_along_dim: take_along_dim,
}


def logit(probability: float) -> float:
    """The logit of a probability, finite even for 0 and 1."""
    if probability in (0, 1):
        return -NONE if probability else NONE
    return math.log(probability / (1 - probability))


def face_evidence(logits: Tensor, num_background: int, k: int) -> Tensor:
    """The face logits minus the largest background logits, [B, H * W * K]."""
    classes = logits.float().unflatten(1, (num_background + 1, k)).flatten(3)
    face = classes[:, num_background]
    evidence = face - classes[:, :num_background].amax(1) if num_background else face
    return evidence.transpose(1, 2).flatten(1)


def by_anchor(tensor: Tensor, k: int) -> Tensor:
    """Rearranges a map [B, K * n, H, W] to [B, H * W * K, n]."""
    return tensor.float().unflatten(1, (k, -1)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2)


def decode_boxes(anchors: Tensor, deltas: Tensor, variances: tuple[float, float]) -> Tensor:
    """Anchors [..., 4] moved and stretched by deltas (dx, dy, dw, dh) [..., 4]."""
    start, sides = anchors[..., :2], anchors[..., 2:] - anchors[..., :2]
    centre = start + sides * 0.5 + deltas[..., :2] * variances[0] * sides
    half = sides * (deltas[..., 2:] * variances[1]).exp() * 0.5
    return torch.cat([centre - half, centre + half], -1)


def place_points(anchors: Tensor, deltas: Tensor, variance: float) -> Tensor:
    """Places points [B, M, 5, 2] by deltas [B, M, 10] from anchors [B, M, 4]."""
    start, sides = anchors[..., None, :2], (anchors[..., 2:] - anchors[..., :2])[..., None, :]
    return start + sides * 0.5 + deltas.unflatten(2, (5, 2)) * variance * sides


def clip(boxes: Tensor, sizes: Tensor | None) -> Tensor:
    """Clips boxes [B, A, 4] to (height, width) [B, 2]."""
    if sizes is None:
        return boxes
    width, height = sizes.float()[:, None, 1:], sizes.float()[:, None, :1]
    return torch.minimum(boxes.clamp(min=0), torch.cat([width, height, width, height], 2))


def has_side(boxes: Tensor, min_side: float) -> Tensor:
    """Which boxes [B, A, 4] have sides > 0 and >= min_side: bool [B, A]."""
    shorter = (boxes[..., 2:] - boxes[..., :2]).amin(2)
    return (shorter > 0) & (shorter >= min_side)


def best(evidence: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The largest `limit` of evidence [B, A] and their indices, best first, padded with `NONE` and index 0."""
    # Padded, so that the limit never exceeds the number of entries.
    padded = torch.cat([evidence, torch.full_like(evidence[:, :1], NONE).expand(-1, limit)], 1)
    values, index = padded.topk(limit, dim=1)
    return values, torch.where(values > NONE, index, 0)
