"""The lite detectors' output layer, which predicts everything about a level at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.models.layers import gaussian

LANDMARKS = 10  # numbers per anchor: x and y of five points


class Predictor(nn.Module):
    """One convolution for the logits, boxes and (optionally) landmarks of a level's anchors.

    A convolution with few outputs costs nearly as much as one with sixteen, on CPUs and GPUs. So there is one instead
    of three; its output is split into views, which `ops.decode_anchors` reads without a copy. On the largest map it
    would have just over sixteen outputs. There, landmarks have their own 1 x 1 convolution (`own_points`), which halves
    the time.

    Args:
        channels: Channels of the input map.
        level: The level's anchors.
        kernel: Side of the convolution, odd.
        landmarks: Whether the level predicts landmarks.
        own_points: Whether landmarks have their own convolution.
        prior: Face probability that the untrained layer returns everywhere. A low one keeps the many background anchors
            from dominating the first steps of training.
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
