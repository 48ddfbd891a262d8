"""Detectors that look once: a network gives maps, one fused op turns them into candidates, suppression leaves faces."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pyface import ops
from pyface.models.base import FaceModel


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input: (pixel - mean) / std per channel of the network's order.

    Attributes:
        mean: In units of pixel values, 0 to 255, in RGB order whatever the network's order.
        std: Likewise.
        bgr: The network takes blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False


@dataclass(frozen=True)
class Limits:
    """How many boxes live how long.

    Attributes:
        candidates: Before suppression, best first, over all levels.
        detections: After it.
    """

    candidates: int
    detections: int


class SingleShot(FaceModel):
    """A fully convolutional detector.

    Attributes:
        preprocessing: How pixels become its input.
        stride: Of its coarsest map: canvases are padded to multiples of it.
        limits: The presets of the paper, "ap" and "fast".
        score_threshold: A candidate's score is > this.
        nms_threshold: A candidate is dropped when its IoU with a better one is > this.
    """

    preprocessing: Preprocessing
    stride: int
    limits: dict[str, Limits]
    score_threshold: float
    nms_threshold: float

    @abstractmethod
    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Preprocessed images [B, 3, H, W] -> the head maps, and nothing else: exportable, compilable."""

    @abstractmethod
    def candidates(
        self,
        maps: list[ops.LevelMaps],
        *,
        score_threshold: float,
        max_candidates: int,
        sizes: Tensor | None = None,
    ) -> ops.Candidates:
        """Head maps -> boxes in the pixels of the network's input, by `ops.decode_anchors`.

        Args:
            maps: What `forward` gave.
            score_threshold: Candidates have a score > this.
            max_candidates: The best so many are kept.
            sizes: float32 [B, 2], height and width of each picture's part of the canvas; boxes are clipped to it.
        """
