"""Single-shot detectors: a network returns maps, one fused op decodes candidates, suppression leaves the faces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.models.backbones import Backbone
from pyface.models.base import FaceModel, Faces, GroundTruth, check_images
from pyface.models.fusion import fold_batch_norms
from pyface.models.graphs import CudaGraphs
from pyface.models.inference import (
    InferenceOptions,
    Preprocessing,
    faces_of_views,
    group_views,
    make_batch,
    merge,
    widened,
    without_parts,
)
from pyface.models.views import MULTISCALE, Size, View, halvings, scale_for, tiles, whole


@dataclass(frozen=True)
class Limits:
    """The largest numbers of boxes per image.

    Attributes:
        candidates: Limit before suppression, over all levels, best first.
        detections: Limit after suppression.
    """

    candidates: int
    detections: int


class TrainedFaces(NamedTuple):
    """The faces that a network for one size of face trains on.

    Attributes:
        height: Height in network pixels.
        band: Smallest and largest height, as factors of `height`.
    """

    height: float
    band: tuple[float, float]


class SingleShot(FaceModel):
    """A fully convolutional detector.

    Attributes:
        backbone: The backbone, whose weights can be loaded alone.
        preprocessing: Normalisation of the input.
        limits: Limits on the number of boxes, for "ap" and for "fast".
        size: Default size of the image that the network runs on.
        channels_last: Whether the network is faster in that memory format.
        float_layers: Number of convolutions at the end of the network that stay in float when it is quantised to int8.
        most_enlarged: Largest scale used to find small faces; enlarging more only blurs.
        smallest_face: As in `FaceModel`, in network pixels.
        trained_faces: The only faces that the network trains on, as in DenseBox; None: faces of all sizes.
        nms_threshold: Candidates are dropped if their IoU with a better one is > this.
        nms_overlap: The divisor of that IoU: "union", or "min", the smaller of the two areas.
        nms_plus_one: Whether suppression measures sides as x2 - x1 + 1, as released weights were tested.
    """

    takes_options: ClassVar[bool] = True
    trains_on_images: ClassVar[bool] = True

    backbone: Backbone
    preprocessing: Preprocessing
    limits: ClassVar[dict[str, Limits]]
    size: ClassVar[Size] = "native"
    channels_last: ClassVar[bool] = False
    float_layers: ClassVar[int] = 1
    most_enlarged: ClassVar[float] = 2.0
    smallest_face = 10.0
    trained_faces: TrainedFaces | None = None
    nms_threshold: float
    nms_overlap: Literal["union", "min"] = "union"
    nms_plus_one: bool = False

    graphs: CudaGraphs | None = None  # set this to replay `find` as CUDA graphs

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Computes the head maps from preprocessed images [B, 3, H, W].

        This is the network alone, so it can be exported and compiled. Anchor detectors return a list of
        `ops.LevelMaps`, one per level.
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
    def loss(self, maps: Any, truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Returns the terms of the paper's loss by name: weighted float32 scalars; minimise their sum.

        Everything runs on the device, without host synchronisation. In a batch without faces all terms are finite, and
        classification still trains on background. Half-precision maps are converted to float32.

        Args:
            maps: The complete output of `forward` in training.
            truth: The faces, on the maps' device.
            seed: Random seed of losses that sample, such as DenseBox's; use a different one for every step.
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
        """Runs network, decoding and suppression with static shapes and no host synchronisation.

        Suits torch.compile and CUDA graphs.

        Args:
            images: Preprocessed images [B, 3, H, W] in the model's dtype.
            sizes: As in `candidates`.
            score_threshold: As in `candidates`; None: the model's default.
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
                scaled so that faces of this size can be found, by `most_enlarged` at most.
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
            batches = [(group, self._find_in(images, group, score_threshold, options)) for group in group_views(views)]
            # In the plan's order, finest first, whatever the batches: of equal scores, suppression keeps the first.
            place = {view: k for k, view in enumerate(views)}
            for view, faces in sorted(faces_of_views(batches), key=lambda part: place[part[0]]):
                found[view.image].append((view, faces))
            return [self._merged(without_parts(parts), options, min_face) for parts in found]

    def for_inference(
        self, dtype: torch.dtype = torch.float32, channels_last: bool | None = None, cuda_graph: bool = False
    ) -> SingleShot:
        """Returns a copy with batch normalisation folded into the convolutions; see `FaceModel.for_inference`."""
        model = fold_batch_norms(self)  # before the cast, which would round twice
        model.to(dtype=dtype)
        is_last = model.channels_last if channels_last is None else channels_last
        model.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)  # type: ignore[call-overload]
        model.graphs = CudaGraphs() if cuda_graph else None
        return model

    def networks(self) -> list[nn.Module]:
        """The network: the detector itself."""
        return [self]

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

    def _find_in(
        self, images: Sequence[Tensor], views: list[View], score_threshold: float | None, options: InferenceOptions
    ) -> ops.Candidates:
        """Runs the detector on views of one canvas size."""
        batch = make_batch(images, views, self.preprocessing).to(self.dtype)
        contents = torch.tensor([view.content for view in views], dtype=torch.float32)
        sizes = contents.to(self.device, non_blocking=True)
        arguments: dict[str, Any] = {
            "score_threshold": score_threshold,
            "limits": options.limits,
            "levels": views[0].levels,
            "suppress": options.multiscale != "ssh",  # SSH suppresses over all scales at once (docs/detectors.md 5.4)
        }
        if self.graphs is None or batch.device.type != "cuda":
            return self.find(batch, sizes, **arguments)
        return ops.Candidates(*self.graphs(self.find, (batch, sizes), arguments))

    def _merged(self, parts: list[Faces], options: InferenceOptions, min_face: float | None) -> Faces:
        if not parts:
            empty = torch.zeros(0, device=self.device, dtype=torch.float32)
            return Faces(empty.reshape(0, 4), empty, None)
        faces = merge(parts, options, self._suppressed)
        if min_face is not None:
            faces = faces.at_least(min_face)
        return faces.select(slice(self.limits[options.limits].detections))

    def _suppressed(self, faces: Faces) -> Faces:
        boxes = self._suppression_boxes(faces.boxes)
        return faces.select(ops.nms(boxes, faces.scores, self.nms_threshold, overlap=self.nms_overlap))

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
        variances: Factors of the box offsets, one for centres and one for sizes.
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
