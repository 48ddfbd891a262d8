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
    instead of three, and its output is cut in parts, which `ops.decode_anchors` reads where they lie. Where that would
    be just over sixteen, on the largest map, landmarks have a 1 x 1 convolution of their own (`own_points`), which
    halves the time.

    Args:
        channels: Of the map that comes in.
        level: Its anchors.
        kernel: Side of the convolution, odd.
        landmarks: Whether the level has them.
        own_points: Whether these come from a convolution of their own.
        prior: Face probability that a fresh layer answers everywhere. A low one keeps the many background anchors from
            swamping the first steps of training.
    """

    def __init__(
        self,
        channels: int,
        level: ops.AnchorLevel,
        *,
        kernel: int,
        landmarks: bool,
        prior: float,
        own_points: bool = False,
    ) -> None:
        super().__init__()
        num_anchors, background = len(level.anchors), level.num_background
        self.parts = [(background + 1) * num_anchors, 4 * num_anchors]
        self.points: nn.Module | None = None
        if landmarks and own_points:
            self.points = nn.Conv2d(channels, LANDMARKS * num_anchors, 1)
            gaussian(self.points)
        elif landmarks:
            self.parts.append(LANDMARKS * num_anchors)
        self.conv = nn.Conv2d(channels, sum(self.parts), kernel, padding=kernel // 2)
        gaussian(self.conv)
        with torch.no_grad():
            self.conv.bias[: background * num_anchors] = math.log(1 / prior - 1)  # type: ignore[index]

    def forward(self, x: Tensor) -> ops.LevelMaps:
        maps = ops.LevelMaps(*self.conv(x).split(self.parts, dim=1))
        return maps if self.points is None else maps._replace(landmarks=self.points(x))
