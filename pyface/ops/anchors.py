"""From the maps of an anchor detector's heads to candidates: decode_anchors.

A detector is described by levels: where its anchors lie and how its channels are laid out. The same op serves S3FD, SSH
and SRN, since they differ in descriptions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one head map.

    Attributes:
        stride: Pixels from one cell to the next.
        anchors: The K boxes (x1, y1, x2, y2) of cell (0, 0) in continuous pixels; those of (row, column) lie
            stride * (column, row) further.
        num_background: Background logits an anchor: 1 (softmax of two), more (max-out), 0 (the sigmoid of one logit).
        max_candidates: The best so many of this level go on; None: all.
    """

    stride: int
    anchors: tuple[tuple[float, float, float, float], ...]
    num_background: int = 1
    max_candidates: int | None = None


class LevelMaps(NamedTuple):
    """What a network says about one level, all [B, channels, H, W] of one float dtype and in any memory format.

    Attributes:
        logits: (num_background + 1) * K channels; logit c of anchor k is channel c * K + k, backgrounds first.
        boxes: 4 * K channels: dx, dy, dw, dh of anchor k from channel 4 * k.
        landmarks: 10 * K channels or None: x1, y1, ... x5, y5 of anchor k from channel 10 * k.
        gate: K channels or None: logits of a first step that an anchor must pass as well (SRN's STC).
        offsets: 4 * K channels or None: dx, dy, dw, dh of a first step, by which the anchor is moved before `boxes` is
            applied (SRN's STR).
    """

    logits: Tensor
    boxes: Tensor
    landmarks: Tensor | None = None
    gate: Tensor | None = None
    offsets: Tensor | None = None


class Candidates(NamedTuple):
    """Boxes before suppression, padded to a static size M, best first.

    Attributes:
        boxes: float32 [B, M, 4], (x1, y1, x2, y2) in continuous pixels of the network's input.
        scores: float32 [B, M], face probability.
        landmarks: float32 [B, M, 5, 2], or [B, M, 0, 2] where the detector has none.
        index: int64 [B, M], which anchor: counted level by level, cells by row, the K anchors of a cell side by side.
        count: int32 [B]; nothing beyond it means anything.
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor
    index: Tensor
    count: Tensor


def anchor_boxes(
    levels: Sequence[AnchorLevel], sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
) -> Tensor:
    """All anchors of an image as a tensor, in the order of `Candidates.index`; for training and for looking.

    Args:
        levels: The description.
        sizes: (height, width) of each level's map.
        device: Where to.

    Returns:
        float32 [A, 4].

    Example:
        >>> level = AnchorLevel(stride=4, anchors=((-6.0, -6.0, 10.0, 10.0),))
        >>> anchor_boxes([level], [(160, 160)]).shape
        torch.Size([25600, 4])
    """
    parts = []
    for level, (height, width) in zip(levels, sizes, strict=True):
        rows = torch.arange(height, device=device, dtype=torch.float32) * level.stride
        columns = torch.arange(width, device=device, dtype=torch.float32) * level.stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        parts.append((corner + torch.tensor(level.anchors, device=device)).reshape(-1, 4))
    return torch.cat(parts)


def decode_anchors(
    maps: Sequence[LevelMaps],
    levels: Sequence[AnchorLevel],
    *,
    score_threshold: float | Sequence[float],
    max_candidates: int,
    variances: tuple[float, float] = (0.1, 0.2),
    gate_threshold: float = 0.0,
    min_side: float = 0.0,
    sizes: Tensor | None = None,
) -> Candidates:
    """Head maps to candidates in one pass over the maps.  (being written)"""
    raise NotImplementedError
