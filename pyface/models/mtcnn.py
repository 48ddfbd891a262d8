"""MTCNN: three small networks in a cascade (Zhang et al., "Joint Face Detection and Alignment using Multitask
Cascaded Convolutional Networks", 2016; docs/detectors.md 3).

P-Net slides over an image pyramid and proposes boxes. R-Net runs on each proposal at 24 x 24 and rejects most. O-Net
runs on the rest at 48 x 48 and adds five landmarks. The whole batch goes through each stage together.

**Coordinates.** The author counts pixels from 1 and includes both ends: his box (x1, y1, x2, y2) covers the pixels
x1 ... x2. Here the same box is (x1 - 1, y1 - 1, x2, y2) in continuous pixels (pixel k, counted from 0, covers
[k, k + 1)). That includes his "+ 1" in widths and areas: a continuous width *is* x2 - x1 + 1. Only two places still
show the difference: the first calibration, where he left the + 1 out, and rounding, which applies to his numbers.

**Training.** The networks train one by one, on crops whose kinds decide which of the three losses count: `MTCNN.loss`.
The paper also trains P-Net and R-Net on landmarks, though neither returns them in detection: `WithLandmarks`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.models import losses
from pyface.models.base import MIRRORED, FaceModel, Faces, check_images
from pyface.models.mtcnn_kernels import convnet, pnet

STRIDE, CELL = 2, 12  # P-Net's window is 12 x 12 pixels, at every second pixel


@dataclass(frozen=True)
class MTCNNConfig:
    """The settings of the cascade; the defaults are the author's (docs/detectors.md 3.4).

    Attributes:
        min_face: Side in pixels of the smallest faces to find: the pyramid starts at scale 12 / min_face.
        factor: Ratio of the scales of two successive pyramid levels; the last one still has a short side >= 12.
        thresholds: Face probability that is needed to pass P-Net (>=), R-Net (>) and O-Net (>).
        level_nms: IoU threshold of P-Net suppression (union) within a level. Like the three thresholds below, it is the
            largest overlap that is kept.
        pyramid_nms: IoU threshold of P-Net suppression (union) over all levels of an image.
        rnet_nms: IoU threshold of R-Net suppression (union).
        onet_nms: Threshold of O-Net suppression (intersection over the smaller area).
        interpolation: How levels and crops are resized. The default is "area", since the author's resampling (Dollar's
            imResample), though its argument says "bilinear", averages the footprint of an output pixel for downscaling
            and interpolates only for upscaling. Skipping source pixels ("bilinear") also costs accuracy.
        clip_crops: Clip crop boxes to the image, which changes their aspect ratio (facenet-pytorch); otherwise the part
            outside is black.
        plus_one: Union suppression measures widths as x2 - x1 + 1 in the author's numbers; False: as x2 - x1
            (facenet-pytorch).
        output_shift: Pixels added to the resulting boxes. In continuous pixels the author's boxes lie one pixel up and
            left of the faces: all four edges have a mean error of -1.1 px, whatever the size of the face, over
            3,400 faces of three annotated sets. Probably the training crops were cut with 0-based annotations from
            1-based images. Landmarks have no such error.
        mirror_landmarks: Average the landmarks of the crop and of its mirror image (the author's first release).
        hard_fraction: Share of the crops in a batch, those with the largest loss, that count in training (3.3).
        hard_mining: Which losses use that share: "classification", as in MTCNN's ports, or "all", each with its own
            hardest crops, which is another reading of the paper (8, row 14). Other losses use all crops.
    """

    min_face: float = 20.0
    factor: float = 0.709
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    level_nms: float = 0.5
    pyramid_nms: float = 0.7
    rnet_nms: float = 0.7
    onet_nms: float = 0.7
    interpolation: Literal["area", "bilinear"] = "area"
    clip_crops: bool = False
    plus_one: bool = True
    output_shift: float = 1.0
    mirror_landmarks: bool = False
    hard_fraction: float = 0.7
    hard_mining: Literal["classification", "all"] = "classification"

    def __post_init__(self) -> None:
        if not self.min_face > 0:
            raise ValueError(f"min_face must be more than 0 pixels, got {self.min_face}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must be between 0 and 1, got {self.factor}")
        if not 0 < self.hard_fraction <= 1:
            raise ValueError(f"hard_fraction must be more than 0 and at most 1, got {self.hard_fraction}")
        if self.hard_mining not in ("classification", "all"):
            raise ValueError(f"hard_mining must be 'classification' or 'all', got {self.hard_mining!r}")

    @classmethod
    def wider(cls) -> MTCNNConfig:
        """The author's WIDER FACE settings: smaller faces, more levels, lower thresholds (docs/detectors.md 3.4)."""
        return cls(min_face=10.0, factor=0.79, thresholds=(0.5, 0.5, 0.3))

    @classmethod
    def facenet(cls) -> MTCNNConfig:
        """facenet-pytorch's arithmetic, except for resizing: facenet-pytorch averages whole source pixels only."""
        return cls(clip_crops=True, plus_one=False, output_shift=0.0)


def runs_on_our_kernels(x: Tensor) -> bool:
    """Whether a network uses pyface's convolution kernels: for float32 on the CPU, if no gradient is needed."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def parameters_of(*layers: nn.Module) -> list[Tensor]:
    """The layers' parameters in order: weights and biases of convolutions, slopes of PReLUs."""
    return [parameter for layer in layers for parameter in layer.parameters()]


class PNet(nn.Module):
    """The proposal network. Takes [B, 3, H, W] and returns [B, 6, h, w], one cell per 12 x 12 window at stride 2.

    Channels: logits of background and face, offsets (dx1, dy1, dx2, dy2) in units of the window
    (docs/detectors.md 3.1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.heads = nn.Conv2d(32, 2 + 4, 1)

    def weights(self) -> list[Tensor]:
        """The weights, biases and PReLU slopes of all layers, as `mtcnn_kernels.pnet` takes them."""
        convolutions = (self.conv1, self.prelu1, self.conv2, self.prelu2, self.conv3, self.prelu3)
        return parameters_of(*convolutions, self.heads)

    def hidden(self, x: Tensor) -> Tensor:
        """The input of the heads, [B, 32, h, w]."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu2(self.conv2(x))
        return self.prelu3(self.conv3(x))

    def landmark_layer(self) -> nn.Module:
        """A new layer that predicts landmarks from the input of the heads."""
        return nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pnet(x, self.weights()) if runs_on_our_kernels(x) else self.heads(self.hidden(x))


class RNet(nn.Module):
    """The refinement network (docs/detectors.md 3.1). Takes [N, 3, 24, 24], returns [N, 6], channels as in `PNet`."""

    POOLS = (3, 3, 0)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense = nn.Linear(64 * 3 * 3, 128)
        self.prelu4 = nn.PReLU(128)
        self.heads = nn.Linear(128, 2 + 4)

    def weights(self) -> list[Tensor]:
        """The weights, biases and PReLU slopes of the convolutions, as `mtcnn_kernels.convnet` takes them."""
        return parameters_of(self.conv1, self.prelu1, self.conv2, self.prelu2, self.conv3, self.prelu3)

    def features(self, x: Tensor) -> Tensor:
        """Applies the convolutions to crops [N, 3, 24, 24]: [N, 64, 3, 3]."""
        if runs_on_our_kernels(x):
            return convnet(x, self.weights(), self.POOLS)
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        return self.prelu3(self.conv3(x))

    def hidden(self, x: Tensor) -> Tensor:
        """The input of the heads, [N, 128]."""
        return self.prelu4(self.dense(self.features(x).flatten(1)))

    def landmark_layer(self) -> nn.Module:
        """A new layer that predicts landmarks from the input of the heads."""
        return nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.hidden(x))


class ONet(nn.Module):
    """The output network. Takes [N, 3, 48, 48] and returns [N, 16], channels as in `PNet`, then landmarks.

    Landmarks are x1 ... x5, y1 ... y5 in units of the crop.
    """

    POOLS = (3, 3, 2, 0)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense = nn.Linear(128 * 3 * 3, 256)
        self.dropout = nn.Dropout(0.25)
        self.prelu5 = nn.PReLU(256)
        self.heads = nn.Linear(256, 2 + 4 + 10)

    def weights(self) -> list[Tensor]:
        """The weights, biases and PReLU slopes of the convolutions, as `mtcnn_kernels.convnet` takes them."""
        convolutions = (self.conv1, self.prelu1, self.conv2, self.prelu2, self.conv3, self.prelu3)
        return parameters_of(*convolutions, self.conv4, self.prelu4)

    def features(self, x: Tensor) -> Tensor:
        """Applies the convolutions to crops [N, 3, 48, 48]: [N, 128, 3, 3]."""
        if runs_on_our_kernels(x):
            return convnet(x, self.weights(), self.POOLS)
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        return self.prelu4(self.conv4(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.prelu5(self.dropout(self.dense(self.features(x).flatten(1)))))


class WithLandmarks(nn.Module):
    """P-Net or R-Net with landmarks, as the paper trains them (docs/detectors.md 8, row 15); channels as in `ONet`.

    The landmark layer belongs to this wrapper, so the network keeps the parameters of the released weights.
    """

    def __init__(self, net: PNet | RNet) -> None:
        super().__init__()
        self.net = net
        self.points = net.landmark_layer()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net.hidden(x)
        return torch.cat([self.net.heads(hidden), self.points(hidden)], 1)


class CropKind(IntEnum):
    """The kind of a crop, by its IoU with a face; decides which losses it counts for (docs/detectors.md 3.3)."""

    NEGATIVE = 0  # IoU < 0.3: classification
    POSITIVE = 1  # IoU > 0.65: classification and box
    PART = 2  # IoU of 0.4 to 0.65: box
    LANDMARK = 3  # landmarks


class CropTruth(NamedTuple):
    """The ground truth of a batch of crops, in units of the crop: (0, 0) is its top left, (1, 1) its bottom right.

    Attributes:
        kind: int64 [N], values of `CropKind`.
        boxes: float32 [N, 4], (x1, y1, x2, y2) of the face minus those of the crop; used for POSITIVE and PART.
        landmarks: float32 [N, 5, 2], (x, y); used for LANDMARK.
    """

    kind: Tensor
    boxes: Tensor
    landmarks: Tensor


class Proposals(NamedTuple):
    """Boxes of a whole batch between two stages.

    Attributes:
        boxes: float32 [K, 4], (x1, y1, x2, y2).
        scores: float32 [K].
        image: int64 [K], index of each box's image in the batch.
    """

    boxes: Tensor
    scores: Tensor
    image: Tensor

    def take(self, index: Tensor) -> Proposals:
        """Selects proposals by index, in the order of the index."""
        return Proposals(self.boxes[index], self.scores[index], self.image[index])


class MTCNN(FaceModel):
    """The cascade (docs/detectors.md 3). Runs in float32."""

    has_landmarks = True

    # Largest input of one call of a network: few calls, bounded memory.
    PNET_PIXELS, CROPS = 1 << 22, 1024
    # Weights of classification, box and landmarks in each network's loss, the paper's alpha (docs/detectors.md 3.3).
    ALPHA: ClassVar[dict[str, tuple[float, float, float]]] = {
        "pnet": (1.0, 0.5, 0.5),
        "rnet": (1.0, 0.5, 0.5),
        "onet": (1.0, 0.5, 1.0),
    }

    def __init__(self, config: MTCNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or MTCNNConfig()
        self.score_threshold, self.smallest_face = self.config.thresholds[2], self.config.min_face
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()

    def detect(
        self, images: Sequence[Tensor], *, score_threshold: float | None = None, min_face: float | None = None
    ) -> list[Faces]:
        """Finds the faces of every image; see `FaceModel.detect`.

        Images with a short side below `min_face` have no faces.

        Args:
            images: uint8 [H, W, 3] RGB tensors of any sizes, on the model's device.
            score_threshold: O-Net's threshold: faces have a score > this. None: the model's default.
            min_face: Longer side in pixels of the smallest faces to return. None: `config.min_face`; calibration then
                leaves a few smaller faces in the results.

        Returns:
            One `Faces` per image: boxes calibrated by O-Net (not square), scores, landmarks [N, 5, 2].

        Raises:
            TypeError, ValueError: The images are not as described.
        """
        check_images(images, self.device)
        images = [image if image.numel() else image.new_zeros(1, 1, 3) for image in images]
        config = self.config if min_face is None else replace(self.config, min_face=min_face)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        with torch.no_grad():
            proposals = self.propose(images, config)
            proposals = self.refine(images, proposals, config)
            found = self.output(images, proposals, config, threshold)
        return found if min_face is None else [faces.at_least(min_face) for faces in found]

    def propose(self, images: Sequence[Tensor], config: MTCNNConfig) -> Proposals:
        """Finds proposals in all pyramids with P-Net.

        They are suppressed within levels and within images, calibrated, and turned into squares of whole pixels.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        levels = pyramid_levels(sizes, config.min_face, config.factor)
        if not levels:
            empty = torch.zeros(0, device=self.device, dtype=torch.float32)
            return Proposals(empty.reshape(0, 4), empty, empty.long())
        # Cells are numbered row by row through all levels; those of level m begin at `starts[m]`.
        shapes = torch.tensor([cells_of(level) for level in levels], device=self.device)
        areas, widths = shapes.prod(1), shapes[:, 1]
        starts = areas.cumsum(0) - areas
        scales = torch.tensor([level.scale for level in levels], dtype=torch.float64, device=self.device)
        image_of = torch.tensor([level.image for level in levels], device=self.device)
        frames = torch.tensor([(0, 0, *sizes[level.image][::-1]) for level in levels], device=self.device).float()

        maps = []
        for part in same_size_runs(levels, self.PNET_PIXELS):
            size = (levels[part.start].height, levels[part.start].width)
            pixels = normalised_crops(images, frames[part], image_of[part], size, config)
            maps.append(self.pnet(pixels))
        scores = torch.cat([face_probability(of).flatten() for of in maps])
        found = (scores >= config.thresholds[0]).nonzero().squeeze(1)

        level = torch.searchsorted(starts, found, right=True) - 1
        cell = found - starts[level]
        rows, columns = cell // widths[level], cell % widths[level]
        proposals = Proposals(cell_boxes(rows, columns, scales[level]), scores[found], image_of[level])
        # Each level's map is six planes of `areas[m]` numbers; the survivors' offsets are picked from the last four.
        plane = torch.arange(2, 6, device=self.device)
        index = (6 * starts[level] + cell)[:, None] + plane * areas[level][:, None]
        offsets = torch.cat([of.flatten() for of in maps])[index]

        keep = suppress(proposals, level, config.level_nms, config)
        proposals, offsets = proposals.take(keep), offsets[keep]
        keep = suppress(proposals, proposals.image, config.pyramid_nms, config)
        proposals, offsets = proposals.take(keep), offsets[keep]
        return proposals._replace(boxes=whole_squares(calibrate(proposals.boxes, offsets, plus_one=False)))

    def refine(self, images: Sequence[Tensor], proposals: Proposals, config: MTCNNConfig) -> Proposals:
        """Keeps the proposals that R-Net accepts on crops of 24 x 24.

        They are suppressed, calibrated, and turned into squares of whole pixels.
        """
        out = self._run_on_crops(self.rnet, images, proposals, 24, config)
        proposals = proposals._replace(scores=face_probability(out))
        passed = (proposals.scores > config.thresholds[1]).nonzero().squeeze(1)
        keep = passed[suppress(proposals.take(passed), proposals.image[passed], config.rnet_nms, config)]
        proposals = proposals.take(keep)
        return proposals._replace(boxes=whole_squares(calibrate(proposals.boxes, out[keep, 2:6])))

    def output(
        self, images: Sequence[Tensor], proposals: Proposals, config: MTCNNConfig, threshold: float
    ) -> list[Faces]:
        """Returns the faces of each image: the proposals that O-Net accepts on crops of 48 x 48.

        Landmarks are placed in the square boxes. Then the boxes are calibrated, and suppressed by overlap "min".
        """
        out = self._run_on_crops(self.onet, images, proposals, 48, config)
        proposals = proposals._replace(scores=face_probability(out))
        passed = (proposals.scores > threshold).nonzero().squeeze(1)
        squares, out = proposals.take(passed), out[passed]
        faces = squares._replace(boxes=calibrate(squares.boxes, out[:, 2:6]))
        keep = ops.batched_nms(faces.boxes, faces.scores, faces.image, config.onet_nms, overlap="min")
        keep = keep[faces.image[keep].argsort(stable=True)]  # by image, best score first
        faces, squares, points = faces.take(keep), squares.take(keep), out[keep, 6:16]
        if config.mirror_landmarks:
            mirrored = self._run_on_crops(self.onet, images, squares, 48, config, mirror=True)[:, 6:16]
            points = (points + mirror_points(mirrored)) / 2
        landmarks = place_landmarks(squares.boxes, points)
        counts = torch.bincount(faces.image, minlength=len(images)).tolist()
        columns = (faces.boxes + config.output_shift, faces.scores, landmarks)
        return [Faces(*of) for of in zip(*(column.split(counts) for column in columns), strict=True)]

    def _run_on_crops(
        self,
        net: nn.Module,
        images: Sequence[Tensor],
        proposals: Proposals,
        side: int,
        config: MTCNNConfig,
        mirror: bool = False,
    ) -> Tensor:
        """Runs R-Net or O-Net on the crops of all proposals: float32 [K, channels]."""
        boxes = clip_to_image(proposals, images) if config.clip_crops else proposals.boxes
        outputs = []
        for part, index in zip(boxes.split(self.CROPS), proposals.image.split(self.CROPS), strict=True):
            crops = normalised_crops(images, part, index, (side, side), config)
            outputs.append(net(crops.flip(3) if mirror else crops))
        return torch.cat(outputs)

    def loss(self, net: Literal["pnet", "rnet", "onet"], outputs: Tensor, truth: CropTruth) -> dict[str, Tensor]:
        """Returns the loss terms of one network by name: weighted float32 scalars; minimise their sum.

        A crop counts for the losses of its kind (the paper's beta). Each term is the mean over the crops that count,
        or 0 if there are none. Everything runs on the device, without host synchronisation.

        Args:
            net: The network; it decides the weights of the terms.
            outputs: The network's output for N crops of its input size, [N, 6 or 16] (P-Net: [N, 6 or 16, 1, 1]).
            truth: The ground truth of the crops.

        Returns:
            "classification": cross-entropy of the hardest `hard_fraction` of the negatives and positives.
            "box": squared distance of the four offsets of positives and parts.
            "landmarks", if the network has them: squared distance of the ten coordinates, over landmark crops with all
            points known.

        Raises:
            ValueError: The network does not exist, or the shapes of outputs and truth are wrong or do not match.
        """
        if net not in self.ALPHA:
            raise ValueError(f"net must be one of {', '.join(self.ALPHA)}, got {net!r}")
        crops = len(truth.kind)
        for name, of, expected in (("boxes", truth.boxes, (crops, 4)), ("landmarks", truth.landmarks, (crops, 5, 2))):
            if of.shape != expected:
                raise ValueError(f"the truth's {name} must be {list(expected)}, got {list(of.shape)}")
        if outputs.shape[:2] not in ((crops, 6), (crops, 16)) or outputs.numel() != crops * outputs.shape[1]:
            raise ValueError(f"outputs must be [{crops}, 6 or 16], one for each crop, got {list(outputs.shape)}")
        outputs = outputs.flatten(1).float()
        is_face = truth.kind == CropKind.POSITIVE
        for_class = is_face | (truth.kind == CropKind.NEGATIVE)
        evidence = outputs[:, 1] - outputs[:, 0]
        classification, box, landmarks = self.ALPHA[net]
        terms = {
            "classification": classification * self._mean_of_hard(losses.cross_entropy(evidence, is_face), for_class),
            "box": box * self._squared(outputs[:, 2:6], truth.boxes, is_face | (truth.kind == CropKind.PART)),
        }
        if outputs.shape[1] == 16:
            points = truth.landmarks.transpose(1, 2).flatten(1)  # x1 ... x5, y1 ... y5
            known = (truth.kind == CropKind.LANDMARK) & points.isfinite().all(1)
            terms["landmarks"] = landmarks * self._squared(outputs[:, 6:], points, known)
        return terms

    def _squared(self, outputs: Tensor, targets: Tensor, where: Tensor) -> Tensor:
        distances = torch.where(where[:, None], outputs - targets, 0).square().sum(1)
        if self.config.hard_mining == "all":
            return self._mean_of_hard(distances, where)
        return losses.total(distances, where) / losses.count(where)

    def _mean_of_hard(self, each: Tensor, where: Tensor) -> Tensor:
        hard = ops.online_hard(each, keep=self.config.hard_fraction, valid=where)
        return losses.total(each, hard) / losses.count(hard)


class Level(NamedTuple):
    """One level of one image's pyramid: `height` x `width` pixels, `scale` times the image."""

    height: int
    width: int
    image: int
    scale: float


def pyramid_levels(sizes: Sequence[tuple[int, int]], min_face: float, factor: float) -> list[Level]:
    """The pyramid levels of all images, with levels of equal size side by side.

    Args:
        sizes: (height, width) of each image.
        min_face: The first scale is 12 / min_face.
        factor: Each scale is the previous one times this, as long as the short side is >= 12 pixels
            (docs/detectors.md 3.4).
    """
    by_size: dict[tuple[int, int], list[Level]] = defaultdict(list)
    for k, (height, width) in enumerate(sizes):
        first, step = CELL / min_face, 0
        short = min(height, width) * first
        while short >= CELL:
            scale = first * factor**step
            level = Level(math.ceil(height * scale), math.ceil(width * scale), k, scale)
            by_size[level.height, level.width].append(level)
            short, step = short * factor, step + 1
    return [level for group in by_size.values() for level in group]


def same_size_runs(levels: Sequence[Level], pixels: int) -> list[slice]:
    """Groups neighbouring levels of equal size into runs of at most `pixels` pixels; a larger level is its own run."""
    runs: list[slice] = []
    for k, level in enumerate(levels):
        same = k > 0 and (level.height, level.width) == (levels[k - 1].height, levels[k - 1].width)
        if same and (k + 1 - runs[-1].start) * level.height * level.width <= pixels:
            runs[-1] = slice(runs[-1].start, k + 1)
        else:
            runs.append(slice(k, k + 1))
    return runs


def cells_of(level: Level) -> tuple[int, int]:
    """Rows and columns of P-Net's map; its pooling rounds up, so odd sizes keep their last pixel."""
    return (level.height - CELL + 1) // STRIDE + 1, (level.width - CELL + 1) // STRIDE + 1


def cell_boxes(rows: Tensor, columns: Tensor, scales: Tensor) -> Tensor:
    """The image boxes of P-Net cells: float32 [K, 4].

    In the author's pixels, counted from 1, cell i (counted from 0) is x1 = fix((2i + 1) / s), x2 = fix((2i + 12) / s),
    in double precision (docs/detectors.md 3.4). The top of this file explains the shift to continuous pixels.

    Args:
        rows, columns: int64 [K].
        scales: float64 [K].
    """
    first = STRIDE * torch.stack([columns, rows], 1)
    scales = scales[:, None]
    return torch.cat([((first + 1) / scales).trunc() - 1, ((first + CELL) / scales).trunc()], 1).float()


def face_probability(out: Tensor) -> Tensor:
    """The face probability [B, ...] of logits [B, 2 or more, ...] (background, face, ...), by their softmax."""
    return (out[:, 1] - out[:, 0]).sigmoid()


def suppress(proposals: Proposals, segments: Tensor, threshold: float, config: MTCNNConfig) -> Tensor:
    """Suppresses proposals by IoU (> threshold) within each segment; returns the kept indices, best score first."""
    boxes = proposals.boxes
    if not config.plus_one:
        boxes = boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return ops.batched_nms(boxes, proposals.scores, segments, threshold)


def calibrate(boxes: Tensor, offsets: Tensor, *, plus_one: bool = True) -> Tensor:
    """Moves each edge of the boxes by its offset times the side.

    With `plus_one=False`, sides count one pixel less, as after P-Net.
    """
    sides = boxes[:, 2:] - boxes[:, :2] - (0.0 if plus_one else 1.0)
    return boxes + offsets * sides.repeat(1, 2)


def whole_squares(boxes: Tensor) -> Tensor:
    """Turns boxes into squares with the same centre and the longer side, rounded towards 0 in the author's pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.amax(1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - side * 0.5
    return torch.cat([(corner + 1).trunc() - 1, (corner + side).trunc()], 1)


def place_landmarks(squares: Tensor, points: Tensor) -> Tensor:
    """Converts landmarks [K, 10] in units of the crop to [K, 5, 2] in the image's pixels.

    The author's x1 + w * p - 1, with his x1, is the same as x1 + w * p with ours.
    """
    corner, sides = squares[:, None, :2], (squares[:, 2:] - squares[:, :2])[:, None]
    return corner + sides * points.reshape(-1, 2, 5).transpose(1, 2)


def mirror_points(points: Tensor) -> Tensor:
    """Mirrors the landmarks [K, 10] of mirrored crops back: left and right swap."""
    x, y = points.unflatten(1, (2, 5))[:, :, MIRRORED].unbind(1)
    return torch.cat([1 - x, y], 1)


def clip_to_image(proposals: Proposals, images: Sequence[Tensor]) -> Tensor:
    """Clips boxes to their images; they stay at least one pixel wide and high."""
    limits = torch.tensor([[image.shape[1], image.shape[0]] for image in images], dtype=torch.float32)
    limits = limits.to(proposals.boxes.device)[proposals.image]
    corner = proposals.boxes[:, :2].clamp(min=0).minimum(limits - 1)
    return torch.cat([corner, proposals.boxes[:, 2:].minimum(limits).maximum(corner + 1)], 1)


def normalised_crops(
    images: Sequence[Tensor], boxes: Tensor, image: Tensor, size: tuple[int, int], config: MTCNNConfig
) -> Tensor:
    """Crops boxes from images, resized and normalised to (x - 127.5) / 128: float32 [N, 3, h, w]; black outside."""
    return ops.crop_resize(
        images, boxes, image, size, interpolation=config.interpolation, mean=(127.5,) * 3, std=(128.0,) * 3
    )
