"""S3FD: anchors for small faces (Zhang et al., "S3FD: Single Shot Scale-invariant Face Detector", 2017, arXiv
1708.05237; docs/detectors.md 2).

Six maps with strides from 4 to 128 px have square anchors of four times their stride, so anchors are equally dense for
faces of all sizes. Three quarters of the anchors are on the first map, which has little context. There, background has
three logits, and the largest counts ("max-out").

Where to find the paper's mechanisms:

- scale-equitable anchors: `S3FDConfig.strides`, `anchor_scale`, and `S3FD.levels`;
- max-out background label: `S3FDConfig.num_background` -> `AnchorLevel.num_background` of level 0 -> `decode_anchors`;
- matching that gives every face anchors, and hard negatives: `S3FD.loss`;
- L2 normalisation of the first three maps: `layers.L2Norm` in `S3FDVGG16` and `S3FDLite`;
- VGG16 with convolutional fc6 and fc7, and the extra layers: `backbones.VGG16` and `S3FDVGG16`;
- the same mechanisms on a compact network, with landmarks: `S3FDLite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pyface import ops
from pyface.models import losses
from pyface.models.anchors import anchors_around
from pyface.models.backbones import VGG16, Context, SlimResNet, TopDown, convolution, extra_level, pool
from pyface.models.base import GroundTruth
from pyface.models.heads import Predictor
from pyface.models.inference import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pyface.models.layers import L2Norm, xavier
from pyface.models.single_shot import AnchorDetector, Limits
from pyface.models.views import Size


@dataclass(frozen=True)
class S3FDConfig:
    """The settings of the detector; the defaults are the paper's (docs/detectors.md 2).

    Attributes:
        strides: Pixels between the cells of each map (2.1).
        anchor_scale: Side of an anchor in strides (2.1).
        num_background: Number of background logits of the first map; the others have one (2.1).
        variances: Units of the box offsets: of centres and of sizes (2.1).
        mean, std: The input is (pixel - mean) / std, in RGB order (2.6).
        bgr: Whether the network takes blue first (2.6).
        score_threshold: Faces have a score > this (2.6).
        nms_threshold: Faces are dropped if their IoU with a better one is > this (2.6).
        match_iou: An anchor is assigned to a face if their IoU is >= this; otherwise it is background (2.3).
        compensate: A face with fewer anchors than this gets its next best ones with an IoU above 0.1, up to this many:
            a number (6 in the author's code), or "mean", the mean number of anchors per face in the image (2.3). None:
            no compensation.
        negative_ratio: Number of background anchors, the hardest of an image, per face anchor in training (2.4).
        min_negatives: Smallest number of background anchors per image, so that images without faces count too.
        box_loss: "smooth_l1" as in the paper (2.4), or "diou", the distance-IoU loss.
        box_weight: Weight of the box loss.
        landmark_weight: Weight of the landmark loss, if the network has landmarks.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    anchor_scale: float = 4.0
    num_background: int = 3
    variances: tuple[float, float] = (0.1, 0.2)
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = True
    score_threshold: float = 0.05
    nms_threshold: float = 0.3
    match_iou: float = 0.35
    compensate: Literal["mean"] | int | None = "mean"
    negative_ratio: float = 3.0
    min_negatives: int = 16
    box_loss: losses.BoxLoss = "smooth_l1"
    box_weight: float = 1.0
    landmark_weight: float = 0.25


@dataclass(frozen=True)
class S3FDVGG16Config(S3FDConfig):
    """Additional settings of the VGG16 network.

    Attributes:
        norm_scales: Initial scales of the three `L2Norm`s (2.1).
        fc6_padding, fc6_dilation: Padding and dilation of the 3 x 3 convolution fc6. Checkpoints differ: 1 and 1 in the
            author's training files, 3 and 1 in the released weights (whose maps are larger by 2 ... 4 cells), 6 and 6
            in yxlijun's (2.7).
    """

    norm_scales: tuple[float, float, float] = (10.0, 8.0, 5.0)
    fc6_padding: int = 1
    fc6_dilation: int = 1


class S3FD(AnchorDetector):
    """Base class of the S3FD networks: anchors and loss.

    Attributes:
        config: The settings.
        levels: The anchors of each map.
    """

    # The limits of the deploy file, and of the speed measurement (docs/detectors.md 2.6).
    limits: ClassVar[dict[str, Limits]] = {"ap": Limits(5000, 750), "fast": Limits(400, 200)}

    def __init__(self, config: S3FDConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing(config.mean, config.std, config.bgr)
        self.score_threshold, self.nms_threshold = config.score_threshold, config.nms_threshold
        self.variances = config.variances
        self.levels = tuple(
            ops.AnchorLevel(
                stride=stride,
                # Cell i is centred at (i + 0.5) * stride, whatever the map's size.
                anchors=anchors_around(stride / 2, [(config.anchor_scale * stride,) * 2]),
                num_background=config.num_background if level == 0 else 1,
            )
            for level, stride in enumerate(config.strides)
        )

    def loss(self, maps: Sequence[ops.LevelMaps], truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Returns the loss terms; see `SingleShot.loss`.

        Each term is divided by the number of face anchors in the batch, as in the author's code. With its weights of 1
        this equals the paper's formula with lambda = 4, since a quarter of the anchors that count are face anchors
        (docs/detectors.md 2.4).

        Args:
            maps: The complete output of `forward`.
            truth: The faces.
            seed: Has no effect: nothing is sampled at random.

        Returns:
            "classification": softmax cross-entropy of face anchors and the hardest background anchors.
            "box": smooth L1 or distance-IoU loss of face anchors, times `box_weight`.
            "landmarks", if the maps have them: smooth L1, divided by the number of anchors with known landmarks.
        """
        config = self.config
        losses.check_maps(maps, self.levels, truth)
        anchors = losses.anchors_on(self.levels, maps)
        index, _ = ops.assign_anchors(
            anchors,
            truth.boxes,
            truth.splits,
            positive=config.match_iou,
            negative=config.match_iou,
            force_best=True,
            compensate=config.compensate,
            ignore=truth.ignore,
        )
        is_face = index >= 0
        faces = losses.count(is_face)
        evidence = losses.face_evidence([level.logits for level in maps], self.levels)
        # The loss of a background anchor rises with its evidence, so mining can use the evidence.
        negatives = ops.hard_negatives(evidence, index, ratio=config.negative_ratio, minimum=config.min_negatives)
        entropy = losses.cross_entropy(evidence, is_face)
        predictions = losses.by_anchor([level.boxes for level in maps], self.levels)
        box = losses.box_term(predictions, anchors, truth, index, config.variances, config.box_loss)
        terms = {
            "classification": losses.total(entropy, is_face | negatives) / faces,
            "box": config.box_weight * box / faces,
        }
        landmarks = [level.landmarks for level in maps if level.landmarks is not None]
        if landmarks:
            points = losses.by_anchor(landmarks, self.levels)
            variance, weight = config.variances[0], config.landmark_weight
            terms["landmarks"] = losses.landmark_term(points, anchors, truth, index, variance, weight)
        return terms


class S3FDVGG16(S3FD):
    """The paper's network (docs/detectors.md 2.1). Layers have the author's names.

    Takes images [B, 3, H, W] of any size; the maps have strides 4, 8, 16, 32, 64, 128, and their sizes are rounded up.
    At 640 x 640 there are 34,125 anchors (34,356 with fc6_padding=3).
    """

    # The maps that have heads, and their channels.
    SOURCES = (
        ("conv3_3_norm", 256),
        ("conv4_3_norm", 512),
        ("conv5_3_norm", 512),
        ("fc7", 1024),
        ("conv6_2", 512),
        ("conv7_2", 256),
    )

    def __init__(self, config: S3FDVGG16Config | None = None) -> None:
        config = config or S3FDVGG16Config()
        super().__init__(config)
        self.backbone = VGG16()
        padding, dilation = config.fc6_padding, config.fc6_dilation
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=padding, dilation=dilation)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, stride=2, padding=1)
        for (name, channels), scale in zip(self.SOURCES, config.norm_scales, strict=False):
            self.add_module(name, L2Norm(channels, scale))
        for (name, channels), level in zip(self.SOURCES, self.levels, strict=True):
            self.add_module(f"{name}_mbox_conf", nn.Conv2d(channels, level.num_background + 1, 3, padding=1))
            self.add_module(f"{name}_mbox_loc", nn.Conv2d(channels, 4, 3, padding=1))
        xavier(self)

    def features(self, images: Tensor) -> list[Tensor]:
        """The six maps that have heads, in the order of `SOURCES`."""
        conv3_3, conv4_3, conv5_3 = self.backbone(images)
        fc6 = F.relu(self.fc6(pool(conv5_3)), inplace=True)
        fc7 = F.relu(self.fc7(fc6), inplace=True)
        conv6_2 = F.relu(self.conv6_2(F.relu(self.conv6_1(fc7), inplace=True)), inplace=True)
        conv7_2 = F.relu(self.conv7_2(F.relu(self.conv7_1(conv6_2), inplace=True)), inplace=True)
        shallow = zip(self.SOURCES, (conv3_3, conv4_3, conv5_3), strict=False)
        return [*(self.get_submodule(name)(x) for (name, _), x in shallow), fc7, conv6_2, conv7_2]

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Computes logits (4 or 2 channels) and boxes (4) of the six maps from preprocessed images [B, 3, H, W]."""
        return [
            ops.LevelMaps(self.get_submodule(f"{name}_mbox_conf")(x), self.get_submodule(f"{name}_mbox_loc")(x))
            for (name, _), x in zip(self.SOURCES, self.features(images), strict=True)
        ]


@dataclass(frozen=True)
class S3FDLiteConfig(S3FDConfig):
    """The settings of the lite network, where they differ: RGB input with ImageNet's mean and deviation, and landmarks.

    Attributes:
        nms_threshold: More than the paper's 0.3: best for average precision at IoU 0.4 and F1 on faces/val, measured
            with earlier weights. At IoU 0.5, average precision would rise further (0.863, 0.868, 0.873 with thresholds
            of 0.3, 0.4, 0.5).
        negative_ratio: More than the paper's 3; this measured better, as did the distance-IoU loss (docs/training.md).
        norm_scales: Initial scales of the three `L2Norm`s.
        landmarks: Whether every anchor also predicts five landmarks; the paper's network has none.
        prior: Face probability that the untrained network returns everywhere.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False
    nms_threshold: float = 0.4
    negative_ratio: float = 20.0
    box_loss: losses.BoxLoss = "diou"
    box_weight: float = 2.0
    norm_scales: tuple[float, float, float] = (10.0, 8.0, 5.0)
    landmarks: bool = True
    prior: float = 0.01


class S3FDLite(S3FD):
    """S3FD on `backbones.SlimResNet`: the same six levels and anchors, `L2Norm` and max-out.

    The paper's shallow maps have 256 and 512 channels, these 32 and 48. A feature pyramid, which the paper does not
    have, gives them context from deeper maps. That costs less than widening them. Each head at strides 8 to 128 has a
    `Context` block before it, based on SSH's context modules. The pyramid passes the results of these blocks on, so
    the finest map, which is too large for a block of its own, gets the context of the coarser ones.

    Takes images [B, 3, H, W] of any size; the sizes of maps are rounded up. At 640 x 640 there are 34,125 anchors.
    """

    size: ClassVar[Size] = 640
    channels_last: ClassVar[bool] = True
    smallest_face = 24.0  # measured: when scaled to 10 px, an eighth to a third of all 40 px faces were missed

    PYRAMID = (32, 48, 64)  # channels at strides 4, 8, 16
    EXTRA = 96  # channels at strides 64 and 128

    def __init__(self, config: S3FDLiteConfig | None = None) -> None:
        config = config or S3FDLiteConfig()
        super().__init__(config)
        self.has_landmarks = config.landmarks
        c2, c3, c4, c5 = SlimResNet.WIDTHS
        p2, p3, p4 = self.PYRAMID
        self.backbone = SlimResNet()
        self.level6 = extra_level(c5, self.EXTRA)
        self.level7 = extra_level(self.EXTRA, self.EXTRA)
        self.down4, self.smooth4 = TopDown(c4, c5, p4), convolution(p4, p4)
        self.down3, self.smooth3 = TopDown(c3, p4, p3), convolution(p3, p3)
        self.down2 = TopDown(c2, p3, p2)  # no smoothing: at this map's size, a second convolution costs too much
        self.norms = nn.ModuleList(
            L2Norm(channels, scale) for channels, scale in zip(self.PYRAMID, config.norm_scales, strict=True)
        )
        self.contexts = nn.ModuleList(Context(channels) for channels in (p3, p4, c5, self.EXTRA, self.EXTRA))
        self.predictors = nn.ModuleList(
            Predictor(
                channels, level, kernel=3, landmarks=config.landmarks, prior=config.prior, own_points=level.stride == 4
            )
            for channels, level in zip((*self.PYRAMID, c5, self.EXTRA, self.EXTRA), self.levels, strict=True)
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """The six maps that have heads."""
        c2, c3, c4, c5 = self.backbone(images)
        context3, context4, context5, context6, context7 = self.contexts
        c6 = self.level6(c5)
        c7 = self.level7(c6)
        m5 = context5(c5)
        m4 = context4(self.smooth4(self.down4(c4, m5)))
        m3 = context3(self.smooth3(self.down3(c3, m4)))
        shallow = (self.down2(c2, m3), m3, m4)
        return [*(norm(x) for norm, x in zip(self.norms, shallow, strict=True)), m5, context6(c6), context7(c7)]

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Preprocessed images [B, 3, H, W] -> logits (4 or 2 channels), boxes (4) and landmarks (10) of six levels."""
        return [predict(x) for predict, x in zip(self.predictors, self.features(images), strict=True)]
