"""The last layer of the lite detectors, which answers everything about a level at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.models.layers import gaussian

LANDMARKS = 10  # numbers per anchor: x and y of five points


class Predictor(nn.Module):
    """One convolution for the logits, the boxes and, where wanted, the landmarks of a level's anchors.

    A convolution with few outputs costs nearly as much as one with sixteen, on a CPU and on a GPU; so there is one
    instead of three, and its output is cut in parts, which `ops.decode_anchors` reads where they lie.

    Args:
        channels: Of the map that comes in.
        level: Its anchors.
        kernel: Side of the convolution, odd.
        landmarks: Whether the level has them.
        prior: Face probability that a fresh layer answers everywhere. A low one keeps the many background anchors from
            swamping the first steps of training.
    """

    def __init__(self, channels: int, level: ops.AnchorLevel, *, kernel: int, landmarks: bool, prior: float) -> None:
        super().__init__()
        num_anchors, background = len(level.anchors), level.num_background
        self.parts = [(background + 1) * num_anchors, 4 * num_anchors]
        if landmarks:
            self.parts.append(LANDMARKS * num_anchors)
        self.conv = nn.Conv2d(channels, sum(self.parts), kernel, padding=kernel // 2)
        gaussian(self.conv)
        with torch.no_grad():
            self.conv.bias[: background * num_anchors] = math.log(1 / prior - 1)  # type: ignore[index]

    def forward(self, x: Tensor) -> ops.LevelMaps:
        return ops.LevelMaps(*self.conv(x).split(self.parts, dim=1))
