"""Inference of single-shot detectors: options, batches of views, and the faces of all views of an image merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyface import ops
from pyface.models.base import MIRRORED, Faces
from pyface.models.views import MULTISCALE, Size, View, whole, whole_faces

CANVAS = 32  # canvas sizes are multiples of this, so that images of nearly equal sizes share a batch
BATCH_PIXELS = 1 << 22  # largest number of canvas pixels per batch

# Mean and standard deviation of ImageNet's pixel values in RGB order, as torchvision's networks expect them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of a network's input: (pixel - mean) / std per channel, in the network's channel order.

    Attributes:
        mean: Mean in pixel values, 0 to 255, in RGB order whatever the network's order.
        std: Standard deviation in the same form.
        bgr: Whether the network takes blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False


@dataclass(frozen=True)
class InferenceOptions:
    """Options of a single-shot detector: image scale, tiling, merging of views and numbers of boxes.

    Attributes:
        size: Size of the image that the network runs on: "native" (unscaled), the longer side in pixels, or (shorter
            side, longer side at most); None: the model's default.
        multiscale: Detect at many scales and in the mirror image, and merge the results, as in the authors' tests of
            "s3fd", "srn" or "ssh"; None: one scale.
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
                "size must be 'native', the longer side in pixels, (shorter side, limit of the longer one), or None "
                f"for the model's own, got {self.size!r}"
            )
        if self.multiscale is not None and self.multiscale not in MULTISCALE:
            raise ValueError(f"multiscale must be one of {', '.join(MULTISCALE)} or None, got {self.multiscale!r}")
        if self.multiscale is not None and self.size is not None:
            raise ValueError(
                f"size must be None with multiscale, which has its own sizes, got {self.size!r}; leave one of them out"
            )
        if self.limits not in ("ap", "fast"):
            raise ValueError(f"limits must be 'ap' or 'fast', got {self.limits!r}")
        if self.tile is not None and (isinstance(self.tile, bool) or not isinstance(self.tile, int) or self.tile < 64):
            raise ValueError(f"tile must be a side of 64 pixels or more, or None, got {self.tile!r}")


def _is_size(size: object) -> bool:
    def is_side(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    if isinstance(size, tuple):
        return len(size) == 2 and all(map(is_side, size)) and size[0] <= size[1]
    return size is None or size == "native" or is_side(size)


# Multi-scale tests that merge the faces of their views by box voting, at this IoU; others use suppression.
VOTING = {"s3fd": 0.3, "srn": 0.5}


def group_views(views: list[View]) -> Iterator[list[View]]:
    """Groups views into batches of at most BATCH_PIXELS pixels; a larger view is a batch of its own."""
    by_shape: dict[tuple[object, ...], list[View]] = {}
    for view in views:
        by_shape.setdefault((canvas_of(view), view.levels), []).append(view)
    for group in by_shape.values():
        height, width = canvas_of(group[0])
        most = max(1, BATCH_PIXELS // (height * width))
        yield from (group[start : start + most] for start in range(0, len(group), most))


def canvas_of(view: View) -> tuple[int, int]:
    """Height and width of the network's input for a view."""
    height, width = (math.ceil(max(side, view.least_canvas) / CANVAS) * CANVAS for side in view.content)
    return height, width


def make_batch(images: Sequence[Tensor], views: list[View], preprocessing: Preprocessing) -> Tensor:
    """Cuts views of one canvas size from the images and preprocesses them: float32 [N, 3, H, W], on their device."""
    batch, _ = ops.letterbox(
        [view.pixels(images[view.image]) for view in views],
        canvas_of(views[0]),
        scales=[view.scale for view in views],
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return batch.flip(1) if preprocessing.bgr else batch


def faces_of_views(seen: list[tuple[list[View], ops.Candidates]]) -> Iterator[tuple[View, Faces]]:
    """Yields each view with its faces in image pixels. The only place that waits for the device."""
    if not seen:
        return
    counts = iter(torch.cat([found.count for _, found in seen]).tolist())
    for views, found in seen:
        for row, view in enumerate(views):
            yield view, _faces_of_view(view, found, row, next(counts))


def _faces_of_view(view: View, found: ops.Candidates, row: int, count: int) -> Faces:
    boxes = view.to_picture(found.boxes[row, :count].reshape(-1, 2, 2)).flatten(1)
    scores = found.scores[row, :count]
    landmarks = view.to_picture(found.landmarks[row, :count]) if found.landmarks.shape[2] else None
    if view.mirror:  # left and right swap
        boxes = boxes[:, [2, 1, 0, 3]]
        landmarks = None if landmarks is None else landmarks[:, MIRRORED]
    faces = Faces(boxes, scores, landmarks)
    is_plain = view == whole(view.image, view.region[3], view.region[2], view.scale)
    return faces if is_plain else faces.select(view.counts(boxes).nonzero().squeeze(1))


def without_parts(found: list[tuple[View, Faces]]) -> list[Faces]:
    """The faces of each view of an image, without those that another tile shows better; see `whole_faces`."""
    if not any(any(view.cut) for view, _ in found):
        return [faces for _, faces in found]
    views, faces_of = zip(*found, strict=True)
    boxes, scores = [of.boxes for of in faces_of], [of.scores for of in faces_of]
    keep = whole_faces(views, boxes, scores)
    return [of.select(kept.nonzero().squeeze(1)) for of, kept in zip(faces_of, keep, strict=True)]


def merge(parts: list[Faces], options: InferenceOptions, suppress: Callable[[Faces], Faces]) -> Faces:
    """Merges the faces of one or more views of an image: by voting if the options ask for it, else by `suppress`."""
    if len(parts) == 1:
        return parts[0]
    faces = _joined(parts)
    if options.multiscale not in VOTING:
        return suppress(faces)
    return vote(
        faces,
        VOTING[options.multiscale],
        drop_singletons=options.drop_singletons,
        plus_one=options.multiscale == "s3fd",
    )


def _joined(parts: list[Faces]) -> Faces:
    landmarks = [part.landmarks for part in parts if part.landmarks is not None]
    return Faces(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat(landmarks) if landmarks else None,
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
    # Suppression keeps the best face of each cluster, in the same order. It compares by >, voting by >=.
    best = ops.nms(faces.boxes, faces.scores, math.nextafter(iou_threshold, 0.0))
    if drop_singletons and len(boxes):
        same_score = scores[:, None] == faces.scores[best][None]
        distance = torch.cdist(boxes, faces.boxes[best], p=1.0).masked_fill(~same_score, math.inf)
        best = best[distance.argmin(1)]
    return Faces(boxes, scores, faces.landmarks[best[: len(boxes)]])


def widened(boxes: Tensor, pixels: float) -> Tensor:
    """Moves the right and bottom edges of boxes [..., 4] outwards."""
    # No constant tensor: copying one to a GPU would synchronise.
    return torch.cat([boxes[..., :2], boxes[..., 2:] + pixels], dim=-1)
