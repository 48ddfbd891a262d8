"""Single-shot detectors: a network returns maps, one fused op decodes candidates, suppression leaves the faces."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyface import ops
from pyface.models.base import FaceModel, Faces, GroundTruth, check_images
from pyface.models.graphs import CudaGraphs
from pyface.models.views import MULTISCALE, Size, View, halvings, scale_for, tiles, whole, whole_faces

CANVAS = 32  # canvas sizes are multiples of this, so that images of nearly equal sizes share a batch
BATCH_PIXELS = 1 << 22  # largest number of canvas pixels per batch


@dataclass(frozen=True)
class Preprocessing:
    """Normalization of a network's input: (pixel - mean) / std per channel, in the network's channel order.

    Attributes:
        mean: In pixel values, 0 to 255, in RGB order whatever the network's order.
        std: As `mean`.
        bgr: Whether the network takes blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False


@dataclass(frozen=True)
class Limits:
    """The largest numbers of boxes per image.

    Attributes:
        candidates: Before suppression, best first, over all levels.
        detections: After suppression.
    """

    candidates: int
    detections: int


@dataclass(frozen=True)
class InferenceOptions:
    """Options of a single-shot detector: image scale, tiling, merging of views and numbers of boxes.

    Attributes:
        size: Size of the image that the network runs on: "native" (unscaled), the longer side in pixels, or (shorter
            side, longer side at most); None: the model's default.
        multiscale: Detect at many scales and in the mirror image, and merge the results, as the authors of "s3fd",
            "srn" or "ssh" test; None: one scale.
        limits: "ap": the paper's limits for average precision; "fast": fewer boxes.
        tile: Cut images longer than this many network pixels into overlapping tiles; None: never.
        drop_singletons: When boxes vote (multiscale "s3fd" and "srn"), drop boxes that no other confirms, as the
            authors do. That loses faces found at only one scale.
    """

    size: Size | None = None
    multiscale: Literal["s3fd", "srn", "ssh"] | None = None
    limits: Literal["ap", "fast"] = "ap"
    tile: int | None = None
    drop_singletons: bool = False

    def __post_init__(self) -> None:
        if not _is_size(self.size):
            raise ValueError(
                "size should be 'native', the longer side in pixels, (shorter, longer), 1200x1600 on the command line, "
                f"or None for the model's own, got {self.size!r}"
            )
        if self.multiscale is not None and self.multiscale not in MULTISCALE:
            raise ValueError(f"multiscale should be one of {', '.join(MULTISCALE)} or None, got {self.multiscale!r}")
        if self.multiscale is not None and self.size is not None:
            raise ValueError(f"multiscale brings its own sizes, got size={self.size!r} as well, give one of them")
        if self.limits not in ("ap", "fast"):
            raise ValueError(f"limits should be 'ap' or 'fast', got {self.limits!r}")
        if self.tile is not None and (isinstance(self.tile, bool) or not isinstance(self.tile, int) or self.tile < 64):
            raise ValueError(f"tile should be a side of 64 pixels or more, or None, got {self.tile!r}")


def _is_size(size: object) -> bool:
    def is_side(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    if isinstance(size, tuple):
        return len(size) == 2 and all(map(is_side, size)) and size[0] <= size[1]
    return size is None or size == "native" or is_side(size)


# Multi-scale tests that merge the faces of their views by box voting, at this IoU; others use suppression.
_VOTING = {"s3fd": 0.3, "srn": 0.5}


class SingleShot(FaceModel):
    """A fully convolutional detector.

    Attributes:
        preprocessing: Normalization of the input.
        limits: The limits of boxes for "ap" and for "fast".
        size: Default size of the image that the network runs on.
        channels_last: Whether the network is faster in that memory format.
        most_enlarged: Largest scale used to find small faces; enlarging more only blurs.
        smallest_face: Side in network pixels of the smallest faces that are found about as reliably as larger ones.
        score_threshold: Candidates have a score > this.
        nms_threshold: Candidates are dropped if their IoU with a better one is > this.
        nms_overlap: The divisor of that IoU: "union", or "min", the smaller of the two areas.
        nms_plus_one: Whether suppression measures sides as x2 - x1 + 1, as released weights were tested.
    """

    preprocessing: Preprocessing
    limits: ClassVar[dict[str, Limits]]
    size: ClassVar[Size] = "native"
    channels_last: ClassVar[bool] = False
    most_enlarged: ClassVar[float] = 2.0
    smallest_face: float = 10.0
    score_threshold: float
    nms_threshold: float
    nms_overlap: Literal["union", "min"] = "union"
    nms_plus_one: bool = False

    graphs: CudaGraphs | None = None  # set this to replay `find` as CUDA graphs

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Preprocessed images [B, 3, H, W] -> the head maps. Contains nothing but the network, so it can be exported
        and compiled.

        Anchor detectors return a list of `ops.LevelMaps`, one per level.
        """

    @abstractmethod
    def candidates(
        self,
        maps: Any,
        *,
        score_threshold: float,
        max_candidates: int,
        sizes: Tensor | None = None,
    ) -> ops.Candidates:
        """Decodes head maps to boxes in input pixels, by `ops.decode_anchors` or `ops.decode_densebox`.

        Args:
            maps: The output of `forward`, or its first levels.
            score_threshold: Candidates have a score > this.
            max_candidates: Number of candidates to keep, best first.
            sizes: float32 [B, 2], height and width of each image's part of the canvas; boxes are clipped to it.
        """

    @abstractmethod
    def loss(self, maps: Any, truth: GroundTruth) -> dict[str, Tensor]:
        """Returns the terms of the paper's loss by name: weighted float32 scalars; minimize their sum.

        Everything runs on the device, without host synchronization. In a batch without faces all terms are finite, and
        classification still trains on background. Half-precision maps are converted to float32.

        Args:
            maps: The complete output of `forward` in training.
            truth: The faces, on the maps' device.
        """

    def complete(self, found: ops.Candidates, maps: Any) -> ops.Candidates:
        """Adds outputs that are only needed for candidates left by suppression, such as DenseBox's landmarks."""
        return found

    def find(
        self,
        images: Tensor,
        sizes: Tensor | None = None,
        *,
        score_threshold: float | None = None,
        limits: str = "ap",
        levels: int | None = None,
        suppress: bool = True,
    ) -> ops.Candidates:
        """Runs network, decoding and suppression with static shapes and no host synchronization.

        Suits torch.compile and CUDA graphs.

        Args:
            images: Preprocessed images [B, 3, H, W] in the model's dtype.
            sizes: As in `candidates`.
            score_threshold: None: the model's default.
            limits: "ap" or "fast".
            levels: Number of maps to use, as the end of a slice; None: all.
            suppress: Whether to apply suppression; without it all candidates are returned.

        Returns:
            `ops.Candidates`, where M is the limit of detections (without suppression, of candidates).
        """
        most = self.limits[limits]
        threshold = self.score_threshold if score_threshold is None else score_threshold
        maps = self(images)
        maps = maps if levels is None else maps[:levels]
        found = self.candidates(maps, score_threshold=threshold, max_candidates=most.candidates, sizes=sizes)
        if not suppress:
            return self.complete(found, maps)
        keep, count = ops.nms_padded(
            self._suppression_boxes(found.boxes),
            found.scores,
            found.count,
            self.nms_threshold,
            max_detections=min(most.detections, found.scores.shape[1]),
            score_threshold=score_threshold,  # a caller's threshold has no exceptions, unlike the model's default
            overlap=self.nms_overlap,
        )
        return self.complete(_take(found, keep, count), maps)

    def detect(
        self,
        images: Sequence[Tensor],
        *,
        score_threshold: float | None = None,
        min_face: float | None = None,
        options: InferenceOptions | None = None,
    ) -> list[Faces]:
        """Finds the faces of every image; see `FaceModel.detect`.

        Args:
            images: uint8 [H, W, 3] RGB tensors of any sizes, on the model's device.
            score_threshold: Faces have a score > this. None: the model's default.
            min_face: Longer side in pixels of the smallest faces to return. Unless the options give a size, images are
                scaled so that faces of this size can be found, enlarged at most by `most_enlarged`.
            options: Options for scale and tiling; None: one view, at the model's default size.

        Returns:
            One `Faces` per image.

        Raises:
            TypeError, ValueError: The images are not as described, or the detector does not support the options.
        """
        check_images(images, self.device)
        options = options or InferenceOptions()
        self.check_options(options)
        views = [
            view
            for k, image in enumerate(images)
            for view in self._views(k, image.shape[0], image.shape[1], options, min_face)
        ]
        found: list[list[tuple[View, Faces]]] = [[] for _ in images]
        with torch.no_grad():
            seen = []
            for group in _groups(views):
                seen.append(self._look(images, group, score_threshold, options))
            for view, faces in _unpad(seen):
                found[view.image].append((view, faces))
            return [self._merged(without_parts(parts, options), options, min_face) for parts in found]

    def own_scale(self, height: int, width: int) -> float:
        """The default scale for an image."""
        return scale_for(self.size, height, width)

    def check_options(self, options: InferenceOptions) -> None:
        """Raises ValueError if this detector does not support the options."""

    def plan(self, view: View, options: InferenceOptions) -> Iterable[View]:
        """The views of an image to run on, before they are cut into tiles.

        Args:
            view: The whole image, at the requested or the default scale.
            options: Options for scale and tiling.
        """
        if options.multiscale is not None:
            return MULTISCALE[options.multiscale](replace(view, scale=1.0))
        return [view] if options.tile is None else halvings(view, options.tile)

    def _views(
        self, image: int, height: int, width: int, options: InferenceOptions, min_face: float | None
    ) -> Iterator[View]:
        if height == 0 or width == 0:
            return
        if options.size is None and min_face is not None:
            scale = min(self.most_enlarged, self.smallest_face / min_face)
        else:
            scale = self.own_scale(height, width) if options.size is None else scale_for(options.size, height, width)
        for view in self.plan(whole(image, height, width, scale), options):
            if options.tile is None or max(view.content) <= options.tile:
                yield view
            else:
                yield from tiles(view, options.tile)

    def _look(
        self, images: Sequence[Tensor], views: list[View], score_threshold: float | None, options: InferenceOptions
    ) -> tuple[list[View], ops.Candidates]:
        """Runs the detector on views of one canvas size."""
        canvas, contents = _canvas(views[0]), [view.content for view in views]
        pixels = [view.pixels(images[view.image]) for view in views]
        batch, _ = ops.letterbox(
            pixels,
            canvas,
            scales=[view.scale for view in views],
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
        )
        if self.preprocessing.bgr:
            batch = batch.flip(1)
        batch = batch.to(self.dtype)
        sizes = torch.tensor(contents, dtype=torch.float32).to(self.device, non_blocking=True)
        arguments: dict[str, Any] = {
            "score_threshold": score_threshold,
            "limits": options.limits,
            "levels": views[0].levels,
            "suppress": options.multiscale != "ssh",  # SSH suppresses over all scales at once (docs/detectors.md 5.4)
        }
        if self.graphs is None or batch.device.type != "cuda":
            return views, self.find(batch, sizes, **arguments)
        return views, ops.Candidates(*self.graphs(self.find, (batch, sizes), arguments))

    def _merged(self, parts: list[Faces], options: InferenceOptions, min_face: float | None) -> Faces:
        if not parts:
            empty = torch.zeros(0, device=self.device, dtype=torch.float32)
            return Faces(empty.reshape(0, 4), empty, None)
        faces = parts[0] if len(parts) == 1 else _together(parts)
        if len(parts) > 1 and options.multiscale in _VOTING:
            faces = vote(
                faces,
                _VOTING[options.multiscale],
                drop_singletons=options.drop_singletons,
                plus_one=options.multiscale == "s3fd",
            )
        elif len(parts) > 1:
            boxes = self._suppression_boxes(faces.boxes)
            keep = ops.nms(boxes, faces.scores, self.nms_threshold, overlap=self.nms_overlap)
            faces = faces.select(keep)
        if min_face is not None:
            faces = faces.at_least(min_face)
        return faces.select(slice(self.limits[options.limits].detections))

    def _suppression_boxes(self, boxes: Tensor) -> Tensor:
        return widened(boxes, 1.0) if self.nms_plus_one else boxes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network and of its input."""
        return next(self.parameters()).dtype


class AnchorDetector(SingleShot):
    """A single-shot detector that predicts boxes relative to anchors: S3FD, SSH and SRN.

    Attributes:
        levels: The anchors of each map.
        variances: Units of the box offsets: of centers and of sizes.
        gate_threshold: On maps with a gate (SRN), the gate's score must also be > this.
    """

    levels: tuple[ops.AnchorLevel, ...]
    variances: tuple[float, float]
    gate_threshold: float = 0.0

    def candidates(
        self,
        maps: Sequence[ops.LevelMaps],
        *,
        score_threshold: float | Sequence[float],
        max_candidates: int,
        sizes: Tensor | None = None,
    ) -> ops.Candidates:
        """Decodes head maps to boxes; see `SingleShot.candidates`. There may be one threshold per map."""
        return ops.decode_anchors(
            maps,
            self.levels[: len(maps)],
            score_threshold=score_threshold,
            max_candidates=max_candidates,
            variances=self.variances,
            gate_threshold=self.gate_threshold,
            sizes=sizes,
        )


def vote(faces: Faces, iou_threshold: float, *, drop_singletons: bool, plus_one: bool = False) -> Faces:
    """Box voting (docs/detectors.md 2.6 d); a voted face has the landmarks of the best face that voted for it.

    `plus_one`: measure sides as x2 - x1 + 1, as S3FD's authors do; SRN's boxes already include that pixel.
    """
    if plus_one:
        wider = vote(faces._replace(boxes=widened(faces.boxes, 1.0)), iou_threshold, drop_singletons=drop_singletons)
        return wider._replace(boxes=widened(wider.boxes, -1.0))
    boxes, scores = ops.box_voting(faces.boxes, faces.scores, iou_threshold, drop_singletons=drop_singletons)
    if faces.landmarks is None:
        return Faces(boxes, scores, None)
    # Suppression leaves the best face of each cluster, in their order. It compares by >, voting by >=.
    best = ops.nms(faces.boxes, faces.scores, math.nextafter(iou_threshold, 0.0))
    if drop_singletons and len(boxes):
        same_score = scores[:, None] == faces.scores[best][None]
        distance = torch.cdist(boxes, faces.boxes[best], p=1.0).masked_fill(~same_score, math.inf)
        best = best[distance.argmin(1)]
    return Faces(boxes, scores, faces.landmarks[best[: len(boxes)]])


def widened(boxes: Tensor, pixels: float) -> Tensor:
    """Moves the right and bottom edges of boxes [..., 4] outwards."""
    # No constant tensor: copying one to a GPU would synchronize.
    return torch.cat([boxes[..., :2], boxes[..., 2:] + pixels], dim=-1)


def _groups(views: list[View]) -> Iterator[list[View]]:
    """Groups views that can share a batch of at most BATCH_PIXELS pixels (or one view)."""
    by_shape: dict[tuple[object, ...], list[View]] = {}
    for view in views:
        by_shape.setdefault((_canvas(view), view.levels), []).append(view)
    for group in by_shape.values():
        height, width = _canvas(group[0])
        most = max(1, BATCH_PIXELS // (height * width))
        yield from (group[start : start + most] for start in range(0, len(group), most))


def _canvas(view: View) -> tuple[int, int]:
    height, width = (math.ceil(side / CANVAS) * CANVAS for side in view.content)
    return height, width


def _take(found: ops.Candidates, keep: Tensor, count: Tensor) -> ops.Candidates:
    """Selects candidates by an index padded with -1; entries beyond the count are arbitrary candidates."""
    index = keep.clamp(min=0)
    return ops.Candidates(
        found.boxes.take_along_dim(index[..., None], 1),
        found.scores.take_along_dim(index, 1),
        found.landmarks.take_along_dim(index[..., None, None], 1),
        found.index.take_along_dim(index, 1),
        count,
    )


def _unpad(seen: list[tuple[list[View], ops.Candidates]]) -> Iterator[tuple[View, Faces]]:
    """Yields each view with its faces in image pixels. The only place that waits for the device."""
    if not seen:
        return
    counts = iter(torch.cat([found.count for _, found in seen]).tolist())
    for views, found in seen:
        for row, view in enumerate(views):
            yield view, _in_picture(view, found, row, next(counts))


def _in_picture(view: View, found: ops.Candidates, row: int, count: int) -> Faces:
    boxes = view.to_picture(found.boxes[row, :count].reshape(-1, 2, 2)).flatten(1)
    scores = found.scores[row, :count]
    landmarks = view.to_picture(found.landmarks[row, :count]) if found.landmarks.shape[2] else None
    if view.mirror:  # left and right swap
        boxes = boxes[:, [2, 1, 0, 3]]
        landmarks = None if landmarks is None else landmarks[:, [1, 0, 2, 4, 3]]
    faces = Faces(boxes, scores, landmarks)
    is_plain = view == whole(view.image, view.region[3], view.region[2], view.scale)
    return faces if is_plain else faces.select(view.counts(boxes).nonzero().squeeze(1))


def without_parts(found: list[tuple[View, Faces]], options: InferenceOptions) -> list[Faces]:
    """The faces of each view of an image, without those that another tile shows better; see `whole_faces`."""
    if not any(any(view.cut) for view, _ in found):
        return [faces for _, faces in found]
    views, faces_of = zip(*found, strict=True)
    boxes, scores = [of.boxes for of in faces_of], [of.scores for of in faces_of]
    keep = whole_faces(views, boxes, scores, prefer_finer=options.multiscale is None)
    return [of.select(kept.nonzero().squeeze(1)) for of, kept in zip(faces_of, keep, strict=True)]


def _together(parts: list[Faces]) -> Faces:
    landmarks = [part.landmarks for part in parts if part.landmarks is not None]
    return Faces(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat(landmarks) if landmarks else None,
    )
