"""SSH: three detection modules on one backbone (Najibi et al., "SSH: Single Stage Headless Face Detector", 2017, arXiv
1708.03979; docs/detectors.md 5).

Each module detects its own range of face sizes on a map of its own stride. A context module widens its receptive field:
stacked 3 x 3 convolutions that cover 5 x 5 and 7 x 7 cells.

Where to find the paper's mechanisms:

- the modules M1, M2, M3 and their input maps: `SSHVGG16.forward`;
- fusion of conv4_3 and conv5_3 for M1: `SSHVGG16.fuse`, with `layers.BilinearUpsample`;
- context: `DetectionModule`;
- the training targets of each module, and hard mining by score: `SSH.loss`;
- anchors per module: `SSHConfig.sides` and `SSH.levels`; the best 1,000 of each: `AnchorLevel.max_candidates`;
- the same mechanisms on a compact network, with landmarks: `SSHLite`.

**Coordinates.** The author's boxes include both end pixels: the base anchor [0, 0, 15, 15] has its centre at 7.5 and is
16 wide, since widths are x2 - x1 + 1. In continuous pixels (pixel k covers [k, k + 1)) it is [0, 0, 16, 16] with centre
8. His decoding starts from x1 + width / 2, which is the continuous centre, and ends with centre -+ width / 2 without
subtracting the 1 again. So his results are already in continuous pixels, and the usual decoding of these anchors,
without any 1, gives the same numbers. The centre is 8 in all modules, though the middle of M3's cells is 16: released
weights expect that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyface import ops
from pyface.models import losses
from pyface.models.anchors import anchors_around
from pyface.models.backbones import VGG16, SlimResNet, TopDown, convolution, pool
from pyface.models.base import GroundTruth
from pyface.models.heads import Predictor
from pyface.models.inference import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pyface.models.layers import BilinearUpsample, gaussian
from pyface.models.single_shot import AnchorDetector, Limits
from pyface.models.views import Size


@dataclass(frozen=True)
class SSHConfig:
    """The settings of the detector; the defaults are the author's (docs/detectors.md 5).

    Attributes:
        strides: Pixels between the cells of each module's map (5.1).
        sides: Sides of the square anchors of each module, in pixels (5.2).
        anchor_centre: Centre of the anchors of cell (0, 0), in continuous pixels: the author's 7.5 is 8 (5.2).
            None: the middle of the cell, stride / 2.
        variances: Units of the box offsets: of centres and of sizes; the author has none (5.2).
        module_candidates: Number of candidates per module, best first (5.4).
        mean, std: The input is (pixel - mean) / std, in RGB order (5.3).
        bgr: Whether the network takes blue first (5.3).
        score_threshold: Faces have a score > this (5.4).
        nms_threshold: Faces are dropped if their IoU with a better one is > this (5.4).
        positive_iou, negative_iou: An anchor is a face's if their IoU is >= the first, background if it is < the
            second, and ignored in between (5.2).
        borders: Pixels by which each module's anchors may reach beyond the image and still count in training (5.2).
        module_samples: Largest number of anchors per module and image that count in training (5.2).
        positive_fraction: Largest share of face anchors among them (5.2).
        box_loss: "smooth_l1" as in the paper (5.3), or "diou", the distance-IoU loss.
        box_sigma: Sigma of the boxes' smooth L1, which is quadratic for errors below 1 / sigma^2 (5.3).
        box_weight: Weight of the box loss.
        landmark_weight: Weight of the landmark loss, if the network has landmarks.
    """

    strides: tuple[int, ...] = (8, 16, 32)
    sides: tuple[tuple[float, ...], ...] = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))
    anchor_centre: float | None = 8.0
    variances: tuple[float, float] = (1.0, 1.0)
    module_candidates: int = 1000
    mean: tuple[float, float, float] = (122.7717, 115.9465, 102.9801)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = True
    score_threshold: float = 0.05
    nms_threshold: float = 0.3
    positive_iou: float = 0.5
    negative_iou: float = 0.3
    borders: tuple[float, ...] = (0.0, 0.0, 512.0)
    module_samples: int = 256
    positive_fraction: float = 0.25
    box_loss: losses.BoxLoss = "smooth_l1"
    box_sigma: float = 3.0
    box_weight: float = 1.0
    landmark_weight: float = 0.25


class SSH(AnchorDetector):
    """Base class of the SSH networks: anchors and loss.

    Attributes:
        config: The settings.
        levels: The anchors of each module.
        nms_plus_one: Whether suppression measures widths as x2 - x1 + 1, as the author's code does.
    """

    # The author keeps all that suppression leaves of 3 x 1,000 boxes; "fast" is as for S3FD (docs/detectors.md 5.4,
    # 2.6).
    limits: ClassVar[dict[str, Limits]] = {"ap": Limits(3000, 3000), "fast": Limits(400, 200)}
    nms_plus_one = True

    def __init__(self, config: SSHConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing(config.mean, config.std, config.bgr)
        self.score_threshold, self.nms_threshold = config.score_threshold, config.nms_threshold
        self.variances = config.variances
        self.levels = tuple(
            ops.AnchorLevel(
                stride=stride,
                anchors=anchors_around(
                    stride / 2 if config.anchor_centre is None else config.anchor_centre,
                    [(side, side) for side in sides],
                ),
                max_candidates=config.module_candidates,
            )
            for stride, sides in zip(config.strides, config.sides, strict=True)
        )

    def loss(self, maps: Sequence[ops.LevelMaps], truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Returns the loss terms, each summed over the modules; see `SingleShot.loss`.

        Modules train independently: each on the faces that match its own anchors and on background anchors, at most
        256 anchors per image. Faces that match no anchor of a module are not assigned to it.

        The paper divides the box loss by the number of face anchors. The author's code, followed here, divides it by
        the number of all sampled anchors. At most a quarter of these are face anchors, so a box has at most a quarter
        of the weight in the paper, and less if there are few faces (docs/detectors.md 8, row 7).

        Args:
            maps: The complete output of `forward`. The image is assumed to be as large as the first map: H x stride.
            truth: The faces.
            seed: Has no effect: nothing is sampled at random.

        Returns:
            "classification": softmax cross-entropy, the mean over sampled anchors.
            "box": smooth L1 or distance-IoU loss of face anchors, divided by the number of sampled anchors, times
                `box_weight`.
            "landmarks", if the maps have them: smooth L1 of anchors with known landmarks, divided like "box".
        """
        losses.check_maps(maps, self.levels, truth)
        modules = zip(maps, self.levels, self.config.borders, strict=True)
        height, width = (cells * self.levels[0].stride for cells in maps[0].logits.shape[2:])
        terms = [self._module_loss(*module, (height, width), truth) for module in modules]
        return {name: torch.stack([of[name] for of in terms]).sum() for name in terms[0]}

    def _module_loss(
        self, maps: ops.LevelMaps, level: ops.AnchorLevel, border: float, size: tuple[int, int], truth: GroundTruth
    ) -> dict[str, Tensor]:
        config = self.config
        anchors = losses.anchors_on([level], [maps])
        index, _ = ops.assign_anchors(
            anchors,
            truth.boxes,
            truth.splits,
            positive=config.positive_iou,
            negative=config.negative_iou,
            ignore=truth.ignore,
            valid=inside(anchors, size, border),
        )
        evidence = losses.face_evidence([maps.logits], [level])
        most = config.module_samples
        # The face anchors with the lowest scores, the background anchors with the highest.
        faces = losses.hardest(-evidence, index >= 0, int(most * config.positive_fraction))
        background = losses.hardest(evidence, index == -1, most, most - faces.sum(1))
        samples = losses.count(faces | background)
        index = torch.where(faces, index, -1)
        predictions = losses.by_anchor([maps.boxes], [level])
        box = losses.box_term(
            predictions, anchors, truth, index, config.variances, config.box_loss, sigma=config.box_sigma
        )
        terms = {
            "classification": losses.total(losses.cross_entropy(evidence, faces), faces | background) / samples,
            "box": config.box_weight * box / samples,
        }
        if maps.landmarks is not None:
            points = losses.by_anchor([maps.landmarks], [level])
            variance, weight = config.variances[0], config.landmark_weight
            terms["landmarks"] = losses.landmark_term(points, anchors, truth, index, variance, weight, samples)
        return terms


def inside(anchors: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """Which anchors [A, 4] reach beyond an image of size (height, width) by at most `border` pixels: bool [A]."""
    x1, y1, x2, y2 = anchors.unbind(-1)
    height, width = size
    return (x1 >= -border) & (y1 >= -border) & (x2 <= width + border) & (y2 <= height + border)


class DetectionModule(nn.Module):
    """Context and heads of one module (docs/detectors.md 5.1). Takes [B, channels, H, W] and returns its `LevelMaps`.

    A 3 x 3 convolution gives `width` channels, and the context module as many again: `width / 2` that cover 5 x 5 cells
    and `width / 2` that cover 7 x 7. The ReLU comes after the concatenation.
    """

    def __init__(self, channels: int, width: int, num_anchors: int) -> None:
        super().__init__()
        half = width // 2
        self.conv3x3 = nn.Conv2d(channels, width, 3, padding=1)
        self.dimred = nn.Conv2d(channels, half, 3, padding=1)
        self.conv5x5 = nn.Conv2d(half, half, 3, padding=1)
        self.conv7x7_1 = nn.Conv2d(half, half, 3, padding=1)
        self.conv7x7 = nn.Conv2d(half, half, 3, padding=1)
        # Channels: the background logits of all anchors, then their face logits, as in `LevelMaps`.
        self.cls_score = nn.Conv2d(2 * width, 2 * num_anchors, 1)
        self.bbox_pred = nn.Conv2d(2 * width, 4 * num_anchors, 1)

    def context(self, x: Tensor) -> Tensor:
        """Widens the receptive field of a map [B, channels, H, W]: [B, 2 * width, H, W]."""
        reduced = F.relu(self.dimred(x), inplace=True)
        wide = self.conv7x7(F.relu(self.conv7x7_1(reduced), inplace=True))
        return F.relu(torch.cat([self.conv3x3(x), self.conv5x5(reduced), wide], dim=1), inplace=True)

    def forward(self, x: Tensor) -> ops.LevelMaps:
        x = self.context(x)
        return ops.LevelMaps(self.cls_score(x), self.bbox_pred(x))


class SSHVGG16(SSH):
    """The paper's network (docs/detectors.md 5.1).

    Takes images [B, 3, H, W] of any size; the maps have strides 8, 16, 32, and their sizes are rounded up. At 640 x 640
    there are 16,800 anchors.
    """

    size: ClassVar[Size] = (1200, 1600)  # docs/detectors.md 5.4

    def __init__(self, config: SSHConfig | None = None) -> None:
        super().__init__(config or SSHConfig())
        one, two, three = (len(level.anchors) for level in self.levels)
        self.conv4_128 = nn.Conv2d(512, 128, 1)
        self.conv5_128 = nn.Conv2d(512, 128, 1)
        self.conv5_128_up = BilinearUpsample(128)
        self.conv4_fuse_final = nn.Conv2d(128, 128, 3, padding=1)
        self.m1 = DetectionModule(128, 128, one)
        self.m2 = DetectionModule(512, 256, two)
        self.m3 = DetectionModule(512, 256, three)
        gaussian(self)
        self.backbone = VGG16()  # after `gaussian`, which must initialise the other layers only

    def fuse(self, conv4_3: Tensor, conv5_3: Tensor) -> Tensor:
        """Fuses conv5_3, upsampled, with conv4_3: [B, 128, H / 8, W / 8]."""
        fine = F.relu(self.conv4_128(conv4_3), inplace=True)
        coarse = self.conv5_128_up(F.relu(self.conv5_128(conv5_3), inplace=True))
        # Pooling rounds odd sizes up, so the upsampled map may be larger by one.
        cropped = coarse[:, :, : fine.shape[2], : fine.shape[3]]
        return F.relu(self.conv4_fuse_final(fine + cropped), inplace=True)

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Computes logits (4 channels) and boxes (8) of the three modules from preprocessed images [B, 3, H, W]."""
        _, conv4_3, conv5_3 = self.backbone(images)
        return [self.m1(self.fuse(conv4_3, conv5_3)), self.m2(conv5_3), self.m3(pool(conv5_3))]


@dataclass(frozen=True)
class SSHLiteConfig(SSHConfig):
    """The settings of the lite network, where they differ: RGB input with ImageNet's mean and deviation, and landmarks.

    Attributes:
        anchor_centre: None: the middle of a cell, stride / 2. The author's 8 for all modules is only needed for
            released weights. It puts M3's anchors a quarter of a cell up and left, so mirrored images give different
            results.
        variances: Units of the box offsets: of centres and of sizes, as in S3FD.
        positive_iou: As in S3FD. At 0.5, many faces between the sizes of two anchors would match neither.
        nms_threshold, box_loss, box_weight: As in `S3FDLiteConfig`.
        borders: The side of each module's largest anchor, so that none is excluded. In samples of a few hundred pixels,
            most anchors of M2 would be.
        landmarks: Whether every anchor also predicts five landmarks; the paper's network has none.
        prior: Face probability that the untrained network returns everywhere.
    """

    anchor_centre: float | None = None
    variances: tuple[float, float] = (0.1, 0.2)
    positive_iou: float = 0.35
    borders: tuple[float, ...] = (32.0, 128.0, 512.0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False
    nms_threshold: float = 0.4
    box_loss: losses.BoxLoss = "diou"
    box_weight: float = 2.0
    landmarks: bool = True
    prior: float = 0.01


class SSHLite(SSH):
    """SSH on `backbones.SlimResNet`: three modules with context, on strides 8, 16 and 32.

    M1 runs on stride 8 fused with stride 16, as in the paper. M2 runs on stride 16 fused with 32, and M3 on stride 32,
    which here is a stage of the backbone and not a pooled map. All modules have the same width, since M1 finds most
    faces.

    Takes images [B, 3, H, W] of any size; the sizes of maps are rounded up. At 640 x 640 there are 16,800 anchors.
    """

    size: ClassVar[Size] = 640
    channels_last: ClassVar[bool] = True
    smallest_face = 24.0  # measured: when scaled to 10 px, an eighth to a third of all 40 px faces were missed
    nms_plus_one = False

    WIDTH = 64

    def __init__(self, config: SSHLiteConfig | None = None) -> None:
        config = config or SSHLiteConfig()
        super().__init__(config)
        self.has_landmarks = config.landmarks
        _, c3, c4, c5 = SlimResNet.WIDTHS
        width, one, two, three = self.WIDTH, *self.levels
        self.backbone = SlimResNet()
        self.fuse4 = TopDown(c4, c5, width)
        self.fuse4_final = convolution(width, width)
        self.fuse3 = TopDown(c3, width, width)
        self.fuse3_final = convolution(width, width)
        self.m1 = LiteDetectionModule(width, width, one, config)
        self.m2 = LiteDetectionModule(width, width, two, config)
        self.m3 = LiteDetectionModule(c5, width, three, config)

    def forward(self, images: Tensor) -> list[ops.LevelMaps]:
        """Computes logits (4 channels), boxes (8) and landmarks (20) of three modules from images [B, 3, H, W]."""
        _, c3, c4, c5 = self.backbone(images)
        fused4 = self.fuse4_final(self.fuse4(c4, c5))
        fused3 = self.fuse3_final(self.fuse3(c3, fused4))
        return [self.m1(fused3), self.m2(fused4), self.m3(c5)]


class LiteDetectionModule(nn.Module):
    """`DetectionModule` with batch normalisation, and with one predictor instead of two heads."""

    def __init__(self, channels: int, width: int, level: ops.AnchorLevel, config: SSHLiteConfig) -> None:
        super().__init__()
        half = width // 2
        self.conv3x3 = convolution(channels, width, rectified=False)
        self.dimred = convolution(channels, half)
        self.conv5x5 = convolution(half, half, rectified=False)
        self.conv7x7 = nn.Sequential(convolution(half, half), convolution(half, half, rectified=False))
        self.predictor = Predictor(2 * width, level, kernel=1, landmarks=config.landmarks, prior=config.prior)

    def forward(self, x: Tensor) -> ops.LevelMaps:
        reduced = self.dimred(x)
        views = torch.cat([self.conv3x3(x), self.conv5x5(reduced), self.conv7x7(reduced)], dim=1)
        return self.predictor(F.relu(views, inplace=True))
