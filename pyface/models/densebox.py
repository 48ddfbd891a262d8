"""DenseBox: every cell of one map predicts a box (Huang et al., "DenseBox: Unifying Landmark Localization with End to
End Object Detection", 2015, arXiv 1509.04874; docs/detectors.md 1).

There are no anchors. The network finds faces of one size: each cell near such a face's centre predicts the distances to
the face's edges. Other sizes are found in smaller and larger copies of the image, so an image pyramid is part of the
detector.

Where to find the paper's mechanisms:

- fusion of conv3_4 with conv4_4, upsampled bilinearly: `DenseBoxVGG19.forward`, `DenseBoxLite.forward`;
- score and location branches of 1 x 1 convolutions, one more for landmarks: `branch`;
- refine branch, which scores a face again by the scores and landmarks around it: `Refine`;
- score disc, gray zone, size bands: `ops.densebox_targets`; boxes from distances: `ops.decode_densebox`;
- balanced sampling, half of it from the hardest 1%: `ops.balanced_sample`; the masked losses: `DenseBox.loss`;
- image pyramid: `DenseBox.plan`, `views.pyramid`;
- landmarks at the maxima of their heat maps: `peaks`;
- the same mechanisms on a compact network: `DenseBoxLite`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyface import ops
from pyface.models import losses
from pyface.models.backbones import VGG19, SlimResNet, TopDown, convolution, pool
from pyface.models.base import GroundTruth
from pyface.models.inference import IMAGENET_MEAN, IMAGENET_STD, InferenceOptions, Preprocessing
from pyface.models.layers import gaussian, xavier
from pyface.models.single_shot import Limits, SingleShot, TrainedFaces
from pyface.models.views import Size, View, pyramid, scale_for


@dataclass(frozen=True)
class DenseBoxConfig:
    """The settings of the detector; the defaults are the paper's (docs/detectors.md 1).

    Attributes:
        stride: Pixels between the cells of the map (1.2).
        face: Height in pixels of the faces that the network finds; also the unit of its distances (1.2).
        radius: Radius of the disc of positive cells, relative to a face's height (1.2).
        gray: Distance in cells around a positive cell within which cells are ignored (1.2).
        positive_band: Range of the heights of positive faces, relative to `face` (1.2).
        ignore_band: Other faces with heights in this range are ignored; those beyond it are background, as in the
            author's code (1.2).
        landmarks: Number of heat maps, one per landmark; 0 for none, 72 in the paper. The default, 5, fits WIDER
            FACE's annotations. `Faces.landmarks` holds five points; with another number, landmarks are trained but not
            returned.
        landmark_radius: Radius of a landmark's disc, in cells (1.2).
        refine: Whether there is a refine branch; its scores then replace the first ones (1.1).
        negative_ratio: Number of negative cells sampled per positive cell (1.3).
        hard_fraction: Half of the sampled negatives come from the hardest share of this size, half are random (1.3).
        box_weight, landmark_weight, refine_weight: Weights of the loss terms (1.3).
        dropout: Dropout rate in the branches (1.1).
        pyramid_step: Ratio of the sizes of two successive views (1.5).
        pyramid_scales: Largest number of views; None: as many as it takes to find a face that fills the image (1.5).
        mean, std: The input is (pixel - mean) / std, in RGB order. Training starts from ImageNet's VGG19;
            the defaults are torchvision's.
        bgr: Whether the network takes blue first.
        score_threshold: Faces have a score > this (1.5).
        nms_threshold: Faces are dropped if they overlap a better one by more than this (1.5).
        nms_overlap: How overlap is measured: "union" in the paper, "min" in the author's code (1.5).
    """

    stride: int = 4
    face: float = 50.0
    radius: float = 0.3
    gray: float = 2.0
    positive_band: tuple[float, float] = (0.8, 1.25)
    ignore_band: tuple[float, float] = (0.6, 1.67)
    landmarks: int = 5
    landmark_radius: float = 1.0
    refine: bool = True
    negative_ratio: float = 1.0
    hard_fraction: float = 0.01
    box_weight: float = 3.0
    landmark_weight: float = 0.5
    refine_weight: float = 1.0
    dropout: float = 0.5
    pyramid_step: float = 2**0.3
    pyramid_scales: int | None = 15
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False
    score_threshold: float = 0.7
    nms_threshold: float = 0.5
    nms_overlap: Literal["union", "min"] = "union"

    def __post_init__(self) -> None:
        for name in ("stride", "face", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        (low, high), (lowest, highest) = self.positive_band, self.ignore_band
        if not 0 <= lowest <= low <= high <= highest < math.inf or low == 0:
            raise ValueError(
                "positive_band must be (low, high), more than 0, and ignore_band around it, "
                f"got {self.positive_band} and {self.ignore_band}"
            )
        if not 1 < self.pyramid_step < math.inf:
            raise ValueError(f"pyramid_step must be more than 1, got {self.pyramid_step}")
        if self.pyramid_scales is not None and self.pyramid_scales < 1:
            raise ValueError(f"pyramid_scales must be 1 or more, or None, got {self.pyramid_scales}")


class DenseBoxOutput(NamedTuple):
    """The network's output per cell: raw regressions, not probabilities.

    Attributes:
        scores: [B, 1, H, W], near 1 at a face's centre, near 0 elsewhere.
        offsets: [B, 4, H, W], (x - x1, y - y1, x - x2, y - y2) in units of the configuration's `face`.
        landmarks: [B, N, H, W], near 1 at a landmark; None without that branch.
        refined: [B, 1, H, W], the refine branch's scores, which replace `scores`; None without that branch.
    """

    scores: Tensor
    offsets: Tensor
    landmarks: Tensor | None = None
    refined: Tensor | None = None


class DenseBox(SingleShot):
    """Base class of the DenseBox networks: decoding, loss and image pyramid.

    Attributes:
        config: The settings.
        unit: Number of cells that an offset of 1 stands for.
        score, location, landmark, refine: The branches; None if the configuration turns them off.
    """

    limits: ClassVar[dict[str, Limits]] = {"ap": Limits(5000, 750), "fast": Limits(400, 200)}  # as for S3FD
    most_enlarged: ClassVar[float] = 4.0  # the only way to find small faces
    float_layers: ClassVar[int] = 3  # with fewer, int8 costs densebox_lite 0.01 of average precision

    score: nn.Module
    location: nn.Module
    landmark: nn.Module | None
    refine: nn.Module | None

    def __init__(self, config: DenseBoxConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing(config.mean, config.std, config.bgr)
        self.score_threshold, self.nms_threshold = config.score_threshold, config.nms_threshold
        self.nms_overlap = config.nms_overlap
        self.has_landmarks = config.landmarks == 5
        self.smallest_face = config.positive_band[0] * config.face
        self.trained_faces = TrainedFaces(config.face, config.positive_band)
        self.unit = config.face / config.stride

    def run_branches(self, fused: Tensor) -> DenseBoxOutput:
        """Runs the branches on the fused maps [B, channels, H / 4, W / 4]."""
        scores = self.score(fused)
        landmarks = None if self.landmark is None else self.landmark(fused)
        refined = None if self.refine is None else self.refine(scores, landmarks)
        return DenseBoxOutput(scores, self.location(fused), landmarks, refined)

    def candidates(
        self,
        maps: DenseBoxOutput,
        *,
        score_threshold: float,
        max_candidates: int,
        sizes: Tensor | None = None,
    ) -> ops.Candidates:
        """Decodes the output to boxes; see `SingleShot.candidates`."""
        return ops.decode_densebox(
            maps.scores if maps.refined is None else maps.refined,
            maps.offsets,
            score_threshold=score_threshold,
            max_candidates=max_candidates,
            stride=self.config.stride,
            unit=self.unit,
            sizes=sizes,
        )

    def complete(self, found: ops.Candidates, maps: DenseBoxOutput) -> ops.Candidates:
        """Adds landmarks, if the network has five: the maxima of their heat maps within each box."""
        if maps.landmarks is None or not self.has_landmarks:
            return found
        # The widest face, in cells, within `ignore_band`.
        most = math.ceil(self.config.ignore_band[1] * self.unit) + 1
        return found._replace(landmarks=peaks(maps.landmarks, found.boxes, self.config.stride, most))

    def check_options(self, options: InferenceOptions) -> None:
        """Refuses other detectors' multi-scale tests, and tiles whose overlap is too small for a whole face."""
        if options.multiscale is not None:
            raise ValueError(
                f"multiscale must be None for {type(self).__name__}, which has an image pyramid of its own, "
                f"got {options.multiscale!r}; leave it out"
            )
        least = math.ceil(4 * self.config.positive_band[1] * self.config.face)
        if options.tile is not None and options.tile < least:
            raise ValueError(f"tile must be {least} pixels or more for {type(self).__name__}, got {options.tile}")

    def plan(self, view: View, options: InferenceOptions) -> Iterable[View]:
        """The image pyramid: the given view, then smaller and smaller ones.

        Each view covers the face sizes in `positive_band`, so the step must not exceed the ratio of its ends (1.56).
        """
        config = self.config
        return pyramid(view, config.pyramid_step, config.positive_band[1] * config.face, config.pyramid_scales)

    def loss(self, maps: DenseBoxOutput, truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Returns the loss terms; see `SingleShot.loss` (docs/detectors.md 1.3).

        Positive cells count, and `negative_ratio` times as many negative ones, which `ops.balanced_sample` chooses per
        image and map. A map without faces has as many negatives as one with a face of size `face`. Each term is a sum
        over these cells of the batch, divided by their number.

        Only faces of about the size `face` are positive, so training samples must show faces at that size.

        Args:
            maps: The output of `forward`.
            truth: The faces.
            seed: Random seed of the random half of the negative cells; use a different one for every step.

        Returns:
            "classification": squared error of the scores.
            "box": squared error of the four offsets of positive cells, times `box_weight`.
            "landmarks", with that branch: squared error of the heat maps, times `landmark_weight`; 0 if no landmark in
            the batch is known.
            "refine", with that branch: as "classification", but of its scores, times `refine_weight`.
        """
        config = self.config
        losses.check_truth(truth, len(maps.scores))
        landmarks = None if maps.landmarks is None else self._landmarks_of(truth)
        height, width = maps.scores.shape[2:]
        targets = ops.densebox_targets(
            truth.boxes,
            truth.splits,
            (height, width),
            stride=config.stride,
            face=config.face,
            radius=config.radius,
            gray=config.gray,
            positive_band=config.positive_band,
            ignore_band=config.ignore_band,
            unit=self.unit,
            ignore=truth.ignore,
            landmarks=landmarks,
            landmark_radius=config.landmark_radius,
        )
        is_face = targets.label[:, None] == 1
        distance = torch.where(is_face, maps.offsets.float() - targets.offsets, 0)
        disc = config.radius * self.unit
        terms = {
            "classification": self._map_error(maps.scores, targets.label[:, None], disc, seed),
            "box": config.box_weight * distance.square().sum() / losses.count(is_face),
        }
        if maps.landmarks is not None and landmarks is not None:
            error = self._map_error(maps.landmarks, targets.landmark_label, config.landmark_radius, seed)
            # Without any known landmark, the network would be trained to find none.
            terms["landmarks"] = config.landmark_weight * torch.where(landmarks.isfinite().any(), error, 0)
        if maps.refined is not None:
            error = self._map_error(maps.refined, targets.label[:, None], disc, seed)
            terms["refine"] = config.refine_weight * error
        return terms

    def _landmarks_of(self, truth: GroundTruth) -> Tensor:
        """The truth's landmarks [G, N, 2], NaN where unknown."""
        number = self.config.landmarks
        if truth.landmarks is None:
            return truth.boxes.new_full((len(truth.boxes), number, 2), torch.nan)
        if truth.landmarks.ndim != 3:
            raise ValueError(f"landmarks must be [G, {number}, 2], got {list(truth.landmarks.shape)}")
        if truth.landmarks.shape[1] != number:
            raise ValueError(
                f"landmarks must be {number} points, as in the configuration, got {truth.landmarks.shape[1]}; "
                "set the configuration's landmarks to that number"
            )
        return truth.landmarks

    def _map_error(self, predictions: Tensor, labels: Tensor, disc: float, seed: int) -> Tensor:
        """Mean squared error of maps [B, N, H, W] over sampled cells; `disc` is the radius of a disc in cells."""
        error = (predictions.float() - (labels == 1).float()).square().flatten(0, 1).flatten(1)
        teaches = ops.balanced_sample(
            error,
            labels.flatten(0, 1).flatten(1).int() - 1,  # 1, 0, -1: a face, background, ignored
            ratio=self.config.negative_ratio,
            hard_fraction=self.config.hard_fraction,
            minimum=round(self.config.negative_ratio * math.pi * disc**2),
            seed=seed,
        )
        return losses.total(error, teaches) / losses.count(teaches)


def peaks(heat: Tensor, boxes: Tensor, stride: int, most: int) -> Tensor:
    """Finds the maxima of heat maps within boxes.

    Args:
        heat: [B, N, H, W].
        boxes: [B, M, 4] in pixels.
        stride: Pixels between cells.
        most: Boxes up to this many cells wide and high are searched cell by cell; larger boxes are sampled at this many
            places per axis.

    Returns:
        float32 [B, M, N, 2], (x, y) of each maximum's cell in pixels. For a box that contains no cell, it is the
        nearest one.
    """
    height, width = heat.shape[2:]
    # The first and the last cell in each box. Padding after the last candidate may hold any values.
    corners = (boxes.float().nan_to_num() - stride / 2) / stride
    first, last = corners[..., :2].ceil(), corners[..., 2:].floor()
    first = torch.where(last < first, ((corners[..., :2] + corners[..., 2:]) / 2).round(), first)
    steps = torch.linspace(0, 1, most, device=heat.device, dtype=torch.float32)
    places = (first[..., None] + (last - first).clamp(min=0)[..., None] * steps).round()  # [B, M, 2, most]
    x, y = places[:, :, 0].clamp(0, width - 1).long(), places[:, :, 1].clamp(0, height - 1).long()
    cells = (y[..., :, None] * width + x[..., None, :]).flatten(2)  # [B, M, most * most]
    batch, count, window = cells.shape
    values = heat.flatten(2).gather(2, cells.flatten(1)[:, None].expand(-1, heat.shape[1], -1))
    best = values.reshape(batch, heat.shape[1], count, window).argmax(3)  # [B, N, M]
    best = best.transpose(1, 2)  # [B, M, N]
    peak = torch.stack([x.gather(2, best % most), y.gather(2, best // most)], dim=-1)
    return peak.float() * stride + stride / 2


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Upsamples by 2, bilinearly with pixels as areas (align_corners=False), and crops to the size of `like`.

    The author's layer samples without the half-pixel shift (docs/detectors.md 1.1), but there are no weights that would
    need it.
    """
    # F.interpolate takes a size or a factor, not both. From 31 to 61 pixels, a size alone would scale by less than 2.
    return torch.ops.aten.upsample_bilinear2d(x, like.shape[2:], False, 2.0, 2.0)


class Refine(nn.Module):
    """The refine branch: new scores [B, 1, H, W] from the scores and heat maps around each cell.

    The last 1 x 1 convolution comes before the upsampling instead of after it: the result is the same, and 64 times
    fewer numbers are interpolated. Paddings of 1 and 2 keep the size of the map.
    """

    def __init__(self, landmarks: int, width: int) -> None:
        super().__init__()
        self.conv6_1 = nn.Conv2d(1 + landmarks, width, 3, padding=1)
        self.conv6_2 = nn.Conv2d(width, width, 5, padding=2)
        self.conv6_3 = nn.Conv2d(width, 1, 1)
        xavier(self)

    def forward(self, scores: Tensor, landmarks: Tensor | None) -> Tensor:
        x = scores if landmarks is None else torch.cat([scores, landmarks], dim=1)
        x = F.relu(self.conv6_1(pool(x)), inplace=True)
        x = F.relu(self.conv6_2(x), inplace=True)
        return upsample(self.conv6_3(x), scores)


def branch(channels: int, width: int, outputs: int, dropout: float) -> nn.Sequential:
    """A branch: two 1 x 1 convolutions with a ReLU and dropout between them, as in the author's file for VOC."""
    layers = nn.Sequential(
        nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Conv2d(width, outputs, 1)
    )
    xavier(layers)
    return layers


class DenseBoxVGG19(DenseBox):
    """The paper's network (docs/detectors.md 1.1).

    Takes images [B, 3, H, W] of any size; the maps have stride 4, and their sizes are rounded up. The pyramid's scales
    run from 2^1.2 to 2^-3, relative to the image reduced to 800 pixels (if it is larger): 15 views for faces from 17 to
    500 px.
    """

    size: ClassVar[Size] = 800  # images with a longer side above this are reduced

    WIDTH = 512  # channels of the branches
    REFINE_WIDTH = 64

    def __init__(self, config: DenseBoxConfig | None = None) -> None:
        config = config or DenseBoxConfig()
        super().__init__(config)
        self.backbone = VGG19()
        fused = 256 + 512
        self.score = branch(fused, self.WIDTH, 1, config.dropout)
        self.location = branch(fused, self.WIDTH, 4, config.dropout)
        self.landmark = branch(fused, self.WIDTH, config.landmarks, config.dropout) if config.landmarks else None
        self.refine = Refine(config.landmarks, self.REFINE_WIDTH) if config.refine else None

    def own_scale(self, height: int, width: int) -> float:
        """The pyramid's first scale: the paper's 2^1.2, for an image reduced to a longer side of at most 800 (1.5)."""
        return 2**1.2 * min(1.0, scale_for(self.size, height, width))

    def forward(self, images: Tensor) -> DenseBoxOutput:
        """Computes scores, offsets, landmarks and refined scores at stride 4 from preprocessed images [B, 3, H, W]."""
        conv3_4, conv4_4 = self.backbone(images)
        return self.run_branches(torch.cat([conv3_4, upsample(conv4_4, conv3_4)], dim=1))


@dataclass(frozen=True)
class DenseBoxLiteConfig(DenseBoxConfig):
    """The settings of the lite network, where they differ from the paper's.

    Attributes:
        face: Two fifths of the paper's, at the same stride. A network for faces of 50 px must enlarge a 640 px image to
            1,830 px to find faces of 14 px. This one finds them at the image's own size.
        gray: Half the paper's.
        positive_band, ignore_band: Positive faces may differ in size by a factor of 2, so with a pyramid step of 2
            every face is positive in one view. All views together cost a third more than the first.
        pyramid_step: 2. Per factor of 4 in face size, the paper's band of 1.56 needs 4 views, this one 2.
        pyramid_scales: None: as many views as it takes to find a face that fills the image.
        negative_ratio: More than the paper's 1, as for `S3FDLite`.
        dropout: 0, since batch normalisation makes it unnecessary.
    """

    face: float = 20.0
    gray: float = 1.0
    positive_band: tuple[float, float] = (0.7, 1.42)
    ignore_band: tuple[float, float] = (0.5, 2.0)
    pyramid_step: float = 2.0
    pyramid_scales: int | None = None
    negative_ratio: float = 3.0
    dropout: float = 0.0


class DenseBoxLite(DenseBox):
    """DenseBox on `backbones.SlimResNet`, with the maps of strides 4 and 8 fused as in the paper.

    A feature pyramid adds context from strides 16 and 32 to stride 8, as in `S3FDLite`.

    Takes images [B, 3, H, W] of any size; the maps have stride 4, and their sizes are rounded up.
    """

    size: ClassVar[Size] = 640
    channels_last: ClassVar[bool] = True

    PYRAMID = (48, 64)  # channels at strides 8 and 16
    WIDTH = 48  # channels of the branches
    REFINE_WIDTH = 16

    def __init__(self, config: DenseBoxLiteConfig | None = None) -> None:
        config = config or DenseBoxLiteConfig()
        super().__init__(config)
        c2, c3, c4, c5 = SlimResNet.WIDTHS
        p3, p4 = self.PYRAMID
        self.backbone = SlimResNet()
        self.down4, self.smooth4 = TopDown(c4, c5, p4), convolution(p4, p4)
        self.down3, self.smooth3 = TopDown(c3, p4, p3), convolution(p3, p3)
        self.score = self._branch(c2 + p3, 1)
        # Initial boxes have size `face` and are centred on their cells.
        self.location = self._branch(c2 + p3, 4, bias=(0.5, 0.5, -0.5, -0.5))
        self.landmark = self._branch(c2 + p3, config.landmarks) if config.landmarks else None
        self.refine = Refine(config.landmarks, self.REFINE_WIDTH) if config.refine else None

    def _branch(self, channels: int, outputs: int, bias: Sequence[float] | None = None) -> nn.Sequential:
        last = nn.Conv2d(self.WIDTH, outputs, 1)
        gaussian(last)
        if bias is not None:
            last.bias = nn.Parameter(torch.tensor(bias))
        return nn.Sequential(convolution(channels, self.WIDTH, 1), nn.Dropout(self.config.dropout), last)

    def forward(self, images: Tensor) -> DenseBoxOutput:
        """Computes scores, offsets, landmarks and refined scores at stride 4 from preprocessed images [B, 3, H, W]."""
        c2, c3, c4, c5 = self.backbone(images)
        p4 = self.smooth4(self.down4(c4, c5))
        p3 = self.smooth3(self.down3(c3, p4))
        return self.run_branches(torch.cat([c2, upsample(p3, c2)], dim=1))
