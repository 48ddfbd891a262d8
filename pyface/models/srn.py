"""SRN: detection in two steps (Chi et al., "Selective Refinement Network for High Performance Face Detection", 2018,
arXiv 1809.02693; docs/detectors.md 4).

The first step runs on the backbone's maps, the second on a feature pyramid. On the three low levels, which have nearly
all anchors, the first step filters out obvious background. On the three high levels, it moves the anchors, and the
second step moves them again.

Where to find the paper's mechanisms:

- selective two-step classification (STC): `LevelMaps.gate` of the low levels, `SRNConfig.gate_threshold`;
- selective two-step regression (STR): `LevelMaps.offsets` of the high levels;
- receptive field enhancement (RFE): `RFE` in `subnet`;
- the training targets of each step: `SRN.loss`;
- the layers that the two steps share: `SRN.forward`, `SRNConfig.separate_prediction`;
- the pyramid: `SRNResNet50.pyramid`, on `backbones.ResNet50`;
- the same mechanisms on a compact network, with landmarks: `SRNLite`.

Every image of a batch keeps its own moved anchors (the released code overwrites them from image to image).

**Coordinates.** The author's anchors include both end pixels, x2 - x1 = w - 1, but his decoding takes x2 - x1 as their
width. Here his anchors are decoded in the same way. His results are written with w = x2 - x1 + 1, so
`SRNResNet50.candidates` adds the pixel at the right and the bottom and returns continuous pixels; `SRN.loss` subtracts
it from the faces.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyface import ops
from pyface.models import losses
from pyface.models.anchors import anchors_around
from pyface.models.backbones import ResNet50, SlimResNet, TopDown, convolution, extra_level
from pyface.models.base import GroundTruth
from pyface.models.heads import LANDMARKS
from pyface.models.inference import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pyface.models.layers import gaussian
from pyface.models.single_shot import AnchorDetector, Limits
from pyface.models.views import Size


@dataclass(frozen=True)
class SRNConfig:
    """The settings of the detector; the defaults are those of the author's code (docs/detectors.md 4).

    Attributes:
        strides: Pixels between the cells of each level (4.2).
        anchor_scales: Sizes of the anchors, in base boxes of about one stride (4.2).
        anchor_ratio: Height over width (4.2).
        low_levels: Number of levels, from the finest, that the first step filters; on the others it moves the anchors
            (4.5).
        gate_threshold: Anchors of low levels must have a first-step score > this (4.5).
        small_map: Maps with fewer cells than this have no score threshold; see `SRNResNet50.candidates` (4.5).
        level_candidates: Number of candidates per level, best first; the paper has 2,000 (4.5).
        separate_prediction: Whether the first step has its own prediction layers, as in the paper; otherwise all layers
            are shared, as in the released code (4.1).
        prior: Face probability that the untrained network returns everywhere; with 0.01 the bias is -log 99 (4.1).
        mean, std: The input is (pixel - mean) / std, in RGB order (4.5).
        bgr: Whether the network takes blue first (4.5).
        score_threshold: Faces have a second-step score > this (4.5).
        nms_threshold: Faces are dropped if their IoU with a better one is > this; the paper has 0.5 (4.5).
        first_iou, second_iou: IoU thresholds of each step in training: an anchor is a face's if the IoU is >= the first
            number, background if it is < the second, and ignored in between (4.3).
        force_first: In the first step, assign a face's best anchor to it, whatever their IoU. Few faces have an anchor
            with an IoU of 0.7, and anchors that the first step never accepts are lost to the second. The quoted
            sources do not mention this, but the paper's 22 face anchors in the first step for 69 in the second are only
            possible with it (4.3).
        focal_gamma, focal_alpha: Parameters of the focal loss of both steps (4.3).
        landmark_weight: Weight of the landmark loss, if the network has landmarks.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    anchor_scales: tuple[float, ...] = (2.0, 2.828427)
    anchor_ratio: float = 1.25
    low_levels: int = 3
    gate_threshold: float = 0.01
    small_map: int = 120
    level_candidates: int = 6000
    separate_prediction: bool = False
    prior: float = 0.01
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False
    score_threshold: float = 0.05
    nms_threshold: float = 0.4
    first_iou: tuple[float, float] = (0.7, 0.3)
    second_iou: tuple[float, float] = (0.5, 0.4)
    force_first: bool = True
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    landmark_weight: float = 0.25

    def __post_init__(self) -> None:
        if not (self.focal_gamma == 0 or 1 <= self.focal_gamma < math.inf):  # between them the slope at 0 is infinite
            raise ValueError(f"focal_gamma must be 0 or at least 1, got {self.focal_gamma}")


class SRN(AnchorDetector):
    """Base class of the SRN networks: the heads of both steps, anchors and loss.

    Args:
        config: The settings.

    Attributes:
        config: The settings.
        levels: The anchors of each level.
        variances: Factors of the box offsets, one for centres and one for sizes.
    """

    # The candidates of all levels, at most 6 x 6,000 (docs/detectors.md 4.5); "fast" is as for S3FD (2.6).
    limits: ClassVar[dict[str, Limits]] = {"ap": Limits(36000, 750), "fast": Limits(400, 200)}

    def __init__(self, config: SRNConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing(config.mean, config.std, config.bgr)
        self.score_threshold, self.nms_threshold = config.score_threshold, config.nms_threshold
        self.variances, self.gate_threshold = (1.0, 1.0), config.gate_threshold
        self.levels = tuple(
            ops.AnchorLevel(
                stride=stride,
                anchors=anchors_of(stride, config.anchor_scales, config.anchor_ratio),
                num_background=0,
                max_candidates=config.level_candidates,
            )
            for stride in config.strides
        )

    def add_heads(self, channels: int) -> None:
        """Adds the paper's heads of both steps, for maps with `channels` channels, a multiple of 4."""
        config = self.config
        num_anchors = len(config.anchor_scales)
        self.cls_subnet, self.box_subnet = subnet(channels), subnet(channels)
        bias = -math.log(1 / config.prior - 1)
        self.cls_subnet_pred = fresh(channels, num_anchors, 1, bias=bias)
        self.box_subnet_pred = fresh(channels, 4 * num_anchors, 1)
        if config.separate_prediction:
            self.cls_first_pred = fresh(channels, num_anchors, 1, bias=bias)
            self.box_first_pred = fresh(channels, 4 * num_anchors, 1)

    @abstractmethod
    def pyramid(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Computes the maps of the first step and those of the second, all [B, channels, h, w], from images."""

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Computes the maps of six levels from preprocessed images [B, 3, H, W].

        All levels have second-step logits (2 channels) and boxes (8). Low levels also have first-step logits (`gate`,
        2 channels), high ones first-step boxes (`offsets`, 8).
        """
        maps = []
        for level, (first, second) in enumerate(zip(*self.pyramid(images), strict=True)):
            low = level < self.config.low_levels
            maps.append(
                ops.LevelMaps(
                    logits=self.cls_subnet_pred(self.cls_subnet(second)),
                    boxes=self.box_subnet_pred(self.box_subnet(second)),
                    gate=self.first_logits(first) if low else None,
                    offsets=None if low else self.first_boxes(first),
                )
            )
        return maps

    def first_logits(self, x: Tensor) -> Tensor:
        """The first step's classification of one level (STC), [B, 2, h, w]."""
        layer = self.cls_first_pred if self.config.separate_prediction else self.cls_subnet_pred
        return layer(self.cls_subnet(x))

    def first_boxes(self, x: Tensor) -> Tensor:
        """The first step's regression of one level (STR), [B, 8, h, w]."""
        layer = self.box_first_pred if self.config.separate_prediction else self.box_subnet_pred
        return layer(self.box_subnet(x))

    def loss(self, maps: Sequence[ops.LevelMaps], truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Returns the loss terms; see `SingleShot.loss`.

        The first step only classifies on the low levels, and only regresses on the high ones. Anchors of low levels
        that it takes for background (gate score <= `config.gate_threshold`, the paper's theta) do not count in the
        second step. The first step also moves the anchors of high levels, image by image, before they are matched
        again. No gradient flows through the moved anchors. Each term is divided by the number of its face anchors.

        Args:
            maps: The complete output of `forward`.
            truth: The faces.
            seed: Has no effect: nothing is sampled at random.

        Returns:
            "first_classification", "classification": focal loss of each step (L_STC).
            "first_box", "box": smooth L1 of each step (L_STR).
            "landmarks", if the maps have them: smooth L1 of the second step, divided by the number of anchors with
                known landmarks.
        """
        losses.check_maps(maps, self.levels, truth)
        truth = truth._replace(boxes=self.in_anchor_pixels(truth.boxes))
        low = self.config.low_levels
        gates = [level.gate for level in maps[:low] if level.gate is not None]
        offsets = [level.offsets for level in maps[low:] if level.offsets is not None]
        gate = losses.face_evidence(gates, self.levels[:low])
        moves = losses.by_anchor(offsets, self.levels[low:])
        near, far = losses.anchors_on(self.levels[:low], maps[:low]), losses.anchors_on(self.levels[low:], maps[low:])
        first = assign(torch.cat([near, far]), truth, self.config.first_iou, force_best=self.config.force_first)
        first_low, first_high = first.split([len(near), len(far)], dim=1)

        moved = losses.decode_boxes(far, moves.detach(), self.variances)
        anchors = torch.cat([near.expand(len(moved), -1, 4), moved], dim=1)
        passed = gate.detach().sigmoid() > self.config.gate_threshold
        valid = torch.cat([passed, passed.new_ones(moved.shape[:2])], dim=1)
        second = assign(anchors, truth, self.config.second_iou, valid=valid)
        evidence = losses.face_evidence([level.logits for level in maps], self.levels)
        predictions = losses.by_anchor([level.boxes for level in maps], self.levels)
        terms = {
            "first_classification": self._classification(gate, first_low),
            "first_box": self._regression(moves, far, truth, first_high),
            "classification": self._classification(evidence, second),
            "box": self._regression(predictions, anchors, truth, second),
        }
        landmarks = [level.landmarks for level in maps if level.landmarks is not None]
        if landmarks:
            points = losses.by_anchor(landmarks, self.levels)
            variance, weight = self.variances[0], self.config.landmark_weight
            terms["landmarks"] = losses.landmark_term(points, anchors, truth, second, variance, weight)
        return terms

    def _classification(self, evidence: Tensor, index: Tensor) -> Tensor:
        is_face, config = index >= 0, self.config
        each = losses.focal(evidence, is_face, gamma=config.focal_gamma, alpha=config.focal_alpha)
        return losses.total(each, index >= -1) / losses.count(is_face)

    def _regression(self, predictions: Tensor, anchors: Tensor, truth: GroundTruth, index: Tensor) -> Tensor:
        return losses.box_term(predictions, anchors, truth, index, self.variances) / losses.count(index >= 0)

    def in_anchor_pixels(self, boxes: Tensor) -> Tensor:
        """Converts boxes [G, 4] from continuous pixels to those of the anchors; only the paper's network differs."""
        return boxes


def assign(
    anchors: Tensor,
    truth: GroundTruth,
    iou: tuple[float, float],
    *,
    force_best: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """Assigns faces to anchors by two IoU thresholds: int32 [B, A]; see `ops.assign_anchors`."""
    positive, negative = iou
    index, _ = ops.assign_anchors(
        anchors,
        truth.boxes,
        truth.splits,
        positive=positive,
        negative=negative,
        force_best=force_best,
        ignore=truth.ignore,
        valid=valid,
    )
    return index


def anchors_of(stride: int, scales: Sequence[float], ratio: float) -> tuple[tuple[float, float, float, float], ...]:
    """The anchors of cell (0, 0), in the author's pixels: x2 - x1 = width - 1, centred at (stride - 1) / 2.

    The sides of the base box are rounded, halves to even, before scaling: 4 x 5, 7 x 9, 14 x 18, 29 x 36, 57 x 71,
    114 x 142.
    """
    width = round(math.sqrt(stride * stride / ratio))
    height = round(width * ratio)
    return anchors_around((stride - 1) / 2, [(width * scale - 1, height * scale - 1) for scale in scales])


class RFE(nn.Module):
    """Receptive field enhancement: branches with 1 x 5, 5 x 1, 1 x 3 and 3 x 1 kernels, added to the input.

    Oblong receptive fields fit poses and occlusions better than square ones. Input and output are [B, C, H, W], where C
    is a multiple of 4.
    """

    KERNELS = ((1, 5), (5, 1), (1, 3), (3, 1))

    def __init__(self, channels: int) -> None:
        super().__init__()
        for k, kernel in enumerate(self.KERNELS):
            self.add_module(f"branch{k}", branch(channels, channels // len(self.KERNELS), kernel))
        self.cated_conv = nn.Sequential(fresh(channels, channels, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        views = [self.get_submodule(f"branch{k}")(x) for k in range(len(self.KERNELS))]
        return x + self.cated_conv(torch.cat(views, dim=1))


def branch(channels: int, width: int, kernel: tuple[int, int]) -> nn.Sequential:
    """One of RFE's branches: 1 x 1 down to `width`, the oblong kernel, 1 x 1."""
    return nn.Sequential(
        fresh(channels, width, 1),
        nn.ReLU(inplace=True),
        fresh(width, width, kernel),
        nn.ReLU(inplace=True),
        fresh(width, width, 1),
        nn.ReLU(inplace=True),
    )


def subnet(channels: int) -> nn.Sequential:
    """The layers before a prediction layer: 3 x 3, RFE, 3 x 3."""
    return nn.Sequential(
        fresh(channels, channels, 3),
        nn.ReLU(inplace=True),
        RFE(channels),
        fresh(channels, channels, 3),
        nn.ReLU(inplace=True),
    )


def fresh(channels: int, width: int, kernel: int | tuple[int, int], *, stride: int = 1, bias: float = 0.0) -> nn.Conv2d:
    """A convolution with an odd kernel that keeps the map's size (or divides it by `stride`, rounding up).

    Its weights are initialised with N(0, 0.01).
    """
    height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
    layer = nn.Conv2d(channels, width, (height, breadth), stride=stride, padding=(height // 2, breadth // 2))
    gaussian(layer, bias=bias)
    return layer


class SRNResNet50(SRN):
    """The paper's network (docs/detectors.md 4.1). Layers have the author's names.

    Takes images [B, 3, H, W] of any size; the levels have strides 4, 8, 16, 32, 64, 128, and their sizes are rounded
    up. At 640 x 640 there are 68,250 anchors.
    """

    def __init__(self, config: SRNConfig | None = None) -> None:
        super().__init__(config or SRNConfig())
        self.add_heads(256)
        self.backbone = ResNet50()
        # c6 and c7, without normalisation or ReLU.
        self.layer5 = fresh(2048, 1024, 3, stride=2)
        self.layer6 = fresh(1024, 256, 3, stride=2)
        # The maps of the first step.
        self.c2_conv = fresh(256, 256, 1)
        self.c3_conv = fresh(512, 256, 1)
        self.c4_conv = fresh(1024, 256, 1)
        self.c5_conv = fresh(2048, 256, 1)
        self.c6_conv = fresh(1024, 256, 1)
        self.c7_conv = fresh(256, 256, 1)
        # The pyramid's lateral connections, and the maps of the second step.
        self.c2_lateral = fresh(256, 256, 1)
        self.c3_lateral = fresh(512, 256, 1)
        self.c4_lateral = fresh(1024, 256, 1)
        self.c5_lateral = fresh(2048, 256, 1)
        self.p2_conv = fresh(256, 256, 3)
        self.p3_conv = fresh(256, 256, 3)
        self.p4_conv = fresh(256, 256, 3)
        self.p5_conv = fresh(256, 256, 3)
        self.p6_conv = fresh(256, 256, 3, stride=2)
        self.p7_conv = fresh(256, 256, 3, stride=2)

    def candidates(
        self,
        maps: Sequence[ops.LevelMaps],
        *,
        score_threshold: float,  # type: ignore[override]
        max_candidates: int,
        sizes: Tensor | None = None,
    ) -> ops.Candidates:
        """Decodes head maps to boxes; see `SingleShot.candidates`.

        In the author's code, maps with fewer cells than `config.small_map` have no threshold. Here that is so only if
        `score_threshold` is not higher than the model's default; a higher one applies to all maps. A threshold passed
        to `detect` or `find` always applies to all faces.
        """
        small = [level.logits.shape[2] * level.logits.shape[3] < self.config.small_map for level in maps]
        lenient = score_threshold <= self.score_threshold
        thresholds = [0.0 if lenient and few else score_threshold for few in small]
        found = super().candidates(maps, score_threshold=thresholds, max_candidates=max_candidates, sizes=sizes)
        # From the author's pixels to continuous ones; see the top of this file.
        last = found.boxes[..., 2:] + 1
        if sizes is not None:
            last = torch.minimum(last, sizes.to(last.dtype).flip(1)[:, None])
        return found._replace(boxes=torch.cat([found.boxes[..., :2], last], dim=-1))

    def in_anchor_pixels(self, boxes: Tensor) -> Tensor:
        """Converts boxes [G, 4] from continuous pixels to the author's, without the last pixel (top of this file)."""
        return torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1)

    def pyramid(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Computes first-step maps from c2 ... c7, and second-step maps p2 ... p7."""
        c2, c3, c4, c5 = self.backbone(images)
        c6 = self.layer5(c5)
        c7 = self.layer6(c6)
        first = (
            self.c2_conv(c2),
            self.c3_conv(c3),
            self.c4_conv(c4),
            self.c5_conv(c5),
            self.c6_conv(c6),
            self.c7_conv(c7),
        )
        top5 = self.c5_lateral(c5)
        top4 = add_upsampled(top5, self.c4_lateral(c4))
        top3 = add_upsampled(top4, self.c3_lateral(c3))
        top2 = add_upsampled(top3, self.c2_lateral(c2))
        p6 = self.p6_conv(top5)  # takes the lateral's output, not p5
        second = (self.p2_conv(top2), self.p3_conv(top3), self.p4_conv(top4), self.p5_conv(top5), p6, self.p7_conv(p6))
        return first, second


def add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """Adds `coarse`, upsampled, to `fine`; corners are aligned, as in the torch version that the author used."""
    return fine + F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class SRNLiteConfig(SRNConfig):
    """The settings of the lite network, where they differ: plain anchors, and landmarks.

    Attributes:
        separate_prediction: As in the paper. The steps run on different maps, and separate layers cost nothing.
        second_iou: As in S3FD. With anchors two strides wide, a face between cells has no IoU of 0.5 with any of them,
            and anchors of low levels are not moved.
        variances: Factors of the box offsets in both steps, one for centres and one for sizes. They are twice S3FD's,
            since boxes would otherwise outweigh the small values of the focal loss.
        landmark_weight: Less than elsewhere, for the same reason.
        landmarks: Whether the second step also predicts five landmarks per anchor; the paper's network has none.
    """

    separate_prediction: bool = True
    second_iou: tuple[float, float] = (0.35, 0.3)
    variances: tuple[float, float] = (0.2, 0.4)
    landmark_weight: float = 0.1
    landmarks: bool = True


class SRNLite(SRN):
    """SRN on `backbones.SlimResNet`: both steps, STC on the three low levels, STR on the three high ones, and RFE.

    Three quarters of all cells are at stride 4, for faces of 8 to 11 px. So this level has its own narrow heads; the
    other five levels share theirs. Anchors are plain: in continuous pixels, not rounded, centred on their cells.

    Takes images [B, 3, H, W] of any size; the sizes of maps are rounded up. At 640 x 640 there are 68,250 anchors.
    """

    config: SRNLiteConfig
    size: ClassVar[Size] = 640
    channels_last: ClassVar[bool] = True
    smallest_face = 24.0  # measured: when scaled to 10 px, an eighth to a third of all 40 px faces were missed

    FINE, WIDTH = 16, 32  # input channels of the heads at stride 4, and elsewhere
    EXTRA = 96  # channels of the backbone at strides 64 and 128

    def __init__(self, config: SRNLiteConfig | None = None) -> None:
        config = config or SRNLiteConfig()
        super().__init__(config)
        self.has_landmarks = config.landmarks
        self.variances = config.variances
        self.levels = tuple(
            replace(level, anchors=plain_anchors(level.stride, config.anchor_scales, config.anchor_ratio))
            for level in self.levels
        )
        trunk = (*SlimResNet.WIDTHS, self.EXTRA, self.EXTRA)
        c2, c3, c4, c5, *_ = trunk
        fine, width = self.FINE, self.WIDTH
        self.backbone = SlimResNet()
        self.level6 = extra_level(c5, self.EXTRA)
        self.level7 = extra_level(self.EXTRA, self.EXTRA)
        widths = (fine, *(width,) * (len(trunk) - 1))
        self.first = nn.ModuleList(convolution(c, w, 1) for c, w in zip(trunk, widths, strict=True))
        self.top5 = convolution(c5, width, 1)
        self.top4, self.top3 = TopDown(c4, width, width), TopDown(c3, width, width)
        self.top2 = TopDown(c2, width, fine)
        self.p2, self.p3 = convolution(fine, fine), convolution(width, width)
        self.p4, self.p5 = convolution(width, width), convolution(width, width)
        self.p6, self.p7 = convolution(width, width, stride=2), convolution(width, width, stride=2)
        self.fine_heads = LiteHeads(fine, config, levels=range(1))
        self.heads = LiteHeads(width, config, levels=range(1, len(trunk)))

    def pyramid(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Maps of the first and of the second step, at strides 4 to 128; stride 4 is narrower than the others."""
        c2, c3, c4, c5 = self.backbone(images)
        c6 = self.level6(c5)
        trunk = (c2, c3, c4, c5, c6, self.level7(c6))
        first = [layer(x) for layer, x in zip(self.first, trunk, strict=True)]
        top5 = self.top5(c5)
        top4 = self.top4(c4, top5)
        top3 = self.top3(c3, top4)
        p6 = self.p6(top5)  # takes the lateral's output, not p5
        second = [self.p2(self.top2(c2, top3)), self.p3(top3), self.p4(top4), self.p5(top5), p6, self.p7(p6)]
        return first, second

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Computes the maps of six levels from preprocessed images [B, 3, H, W].

        All levels have second-step logits (2 channels), boxes (8) and landmarks (20). Low levels also have first-step
        logits (`gate`, 2 channels), high ones first-step boxes (`offsets`, 8).
        """
        maps = []
        for level, (first, second) in enumerate(zip(*self.pyramid(images), strict=True)):
            heads = self.heads if level else self.fine_heads
            found = heads(second)
            if level < self.config.low_levels:
                maps.append(found._replace(gate=heads.first_logits(first)))
            else:
                maps.append(found._replace(offsets=heads.first_boxes(first)))
        return maps


class LiteHeads(nn.Module):
    """The heads of both steps for maps [B, channels, H, W] of one width; a call returns the second step's `LevelMaps`.

    Args:
        channels: The width, a multiple of 4.
        config: The settings.
        levels: The levels that share these heads. Low ones need the first step's classification, high ones its
            regression.
    """

    def __init__(self, channels: int, config: SRNLiteConfig, levels: Sequence[int]) -> None:
        super().__init__()
        num_anchors = len(config.anchor_scales)
        bias = -math.log(1 / config.prior - 1)
        self.parts = [4 * num_anchors] + [LANDMARKS * num_anchors] * config.landmarks
        self.cls_subnet, self.box_subnet = lite_subnet(channels), lite_subnet(channels)
        self.cls_pred = fresh(channels, num_anchors, 1, bias=bias)
        self.box_pred = fresh(channels, sum(self.parts), 1)
        gates = config.separate_prediction and any(level < config.low_levels for level in levels)
        moves = config.separate_prediction and any(level >= config.low_levels for level in levels)
        self.cls_first_pred = fresh(channels, num_anchors, 1, bias=bias) if gates else None
        self.box_first_pred = fresh(channels, 4 * num_anchors, 1) if moves else None

    def forward(self, x: Tensor) -> ops.LevelMaps:
        return ops.LevelMaps(
            self.cls_pred(self.cls_subnet(x)), *self.box_pred(self.box_subnet(x)).split(self.parts, dim=1)
        )

    def first_logits(self, x: Tensor) -> Tensor:
        """The first step's classification (STC)."""
        return (self.cls_first_pred or self.cls_pred)(self.cls_subnet(x))

    def first_boxes(self, x: Tensor) -> Tensor:
        """The first step's regression (STR)."""
        return (self.box_first_pred or self.box_pred)(self.box_subnet(x))[:, : self.parts[0]]


class OblongConv2d(nn.Conv2d):
    """RFE's four oblong kernels as one depthwise 5 x 5 convolution.

    Each kernel has a quarter of the channels: 1 x 5, 5 x 1, 1 x 3 and 3 x 1. The other weights are masked. This runs
    one kernel instead of four, and does not split or concatenate maps.
    """

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 5, padding=2, groups=channels)
        mask = oblong_mask(channels)
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            fan = mask.sum((1, 2, 3), keepdim=True)
            self.weight.copy_(torch.randn_like(mask) * (2 / fan).sqrt() * mask)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=2, groups=self.groups)

    def folded(self) -> nn.Conv2d:
        """An equivalent plain convolution, for `fold_batch_norms`."""
        plain = nn.Conv2d(self.in_channels, self.in_channels, 5, padding=2, groups=self.groups).to(self.weight)
        plain.load_state_dict({"weight": self.weight * self.mask, "bias": self.bias})
        return plain.train(self.training)


def oblong_mask(channels: int) -> Tensor:
    """The mask of a [channels, 1, 5, 5] kernel: 1 for weights that the channel uses, else 0."""
    mask = torch.zeros(channels, 1, 5, 5)
    for part, (height, width) in zip(mask.chunk(len(RFE.KERNELS)), RFE.KERNELS, strict=True):
        top, left = 2 - height // 2, 2 - width // 2
        part[:, :, top : top + height, left : left + width] = 1
    return mask


class LiteRFE(nn.Module):
    """`RFE` in three convolutions: 1 x 1, the oblong ones, 1 x 1, added to the input [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            kaiming(channels, 1),
            nn.ReLU(inplace=True),
            OblongConv2d(channels),
            nn.ReLU(inplace=True),
            kaiming(channels, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x


def lite_subnet(channels: int) -> nn.Sequential:
    """The layers before a prediction layer: 3 x 3, RFE. No normalisation, since levels and steps share them."""
    return nn.Sequential(kaiming(channels, 3), nn.ReLU(inplace=True), LiteRFE(channels))


def kaiming(channels: int, kernel: int) -> nn.Conv2d:
    """A convolution initialised as by He et al.: with N(0, 0.01), the activations of narrow layers would vanish."""
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def plain_anchors(stride: int, scales: Sequence[float], ratio: float) -> tuple[tuple[float, float, float, float], ...]:
    """The anchors of cell (0, 0): areas (stride * scale) ** 2, height / width = ratio, centred on the cell."""
    slim = math.sqrt(ratio)
    return anchors_around(stride / 2, [(stride * scale / slim, stride * scale * slim) for scale in scales])
