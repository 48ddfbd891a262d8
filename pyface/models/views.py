"""Views of an image that a network runs on: scales, the mirror image and tiles.

The papers' scales are listed in docs/detectors.md 2.6, 4.5, 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Size = Literal["native"] | int | tuple[int, int]
"""Size of the image that a network runs on: "native", the longer side, or (shorter side, longer side at most)."""

SMALL = 96  # longer side in network pixels of the views of a pyramid that share a batch
NEAR_CUT = 0.1
"""Boxes nearer to a cut edge than this share of their longer side may be parts of faces."""

CLEARLY_DEEPER = 0.5
"""If one tile shows a place deeper than another by this, in units of `View.depth`, only its boxes count there.
The boxes of one face in two tiles differ by less; otherwise each tile could leave the face to the other."""

GRID = 64  # network pixels; tiles begin on multiples of this

_ROWS = 256  # rows of the matrix of overlaps that are computed at a time

S3FD_PIXELS = 0x7FFFFFFF / 577  # the authors' limit, due to Caffe's largest blob


@dataclass(frozen=True)
class View:
    """A part of an image at one scale, as given to a network.

    Attributes:
        image: Index of the image in the batch.
        region: The part of the image: (left, top, right, bottom) in whole pixels.
        scale: Network pixels per image pixel.
        mirror: Whether the part is mirrored, left to right.
        levels: Number of the network's maps to use, as the end of a slice; None: all.
        longer_above: Only faces with a longer side > this, in image pixels, count.
        shorter_below: Only faces with a shorter side < this, in image pixels, count.
        cut: (left, top, right, bottom): which edges of the region lie inside the image.
        least_canvas: Smallest height and width of the network's input, so that small views share a batch.
        stand_in: Whether the view is only there for faces that no tile shows whole, and would not exist without tiles.
    """

    image: int
    region: tuple[int, int, int, int]
    scale: float
    mirror: bool = False
    levels: int | None = None
    longer_above: float = 0.0
    shorter_below: float = math.inf
    cut: tuple[bool, bool, bool, bool] = (False, False, False, False)
    least_canvas: int = 0
    stand_in: bool = False

    @property
    def content(self) -> tuple[int, int]:
        """Height and width in network pixels, at least 1; `ops.letterbox` rounds in the same way."""
        left, top, right, bottom = self.region
        height, width = (max(1, math.floor(side * self.scale + 0.5)) for side in (bottom - top, right - left))
        return height, width

    def pixels(self, image: Tensor) -> Tensor:
        """Cuts the view's part from the image, uint8 [H, W, 3]."""
        left, top, right, bottom = self.region
        part = image[top:bottom, left:right]
        return part.flip(1) if self.mirror else part

    def to_picture(self, points: Tensor) -> Tensor:
        """Converts points [..., 2] (x, y) from network pixels to image pixels."""
        left, top, right, _ = self.region
        x, y = (points / self.scale).unbind(-1)
        return torch.stack([right - x if self.mirror else left + x, top + y], dim=-1)

    def counts(self, boxes: Tensor) -> Tensor:
        """Which boxes [N, 4], in image pixels, count: bool [N]."""
        sides = boxes[:, 2:] - boxes[:, :2]
        keep = (sides.amax(1) > self.longer_above) & (sides.amin(1) < self.shorter_below)
        # A face that a tile cuts is whole in the next tile or at the next scale.
        margin = 2 / self.scale
        left, top, right, bottom = self.region
        for is_cut, distance in zip(
            self.cut,
            (boxes[:, 0] - left, boxes[:, 1] - top, right - boxes[:, 2], bottom - boxes[:, 3]),
            strict=True,
        ):
            if is_cut:
                keep &= distance > margin
        return keep

    def depth(self, boxes: Tensor) -> Tensor:
        """Distances of boxes [N, 4], in image pixels, from the nearest cut edge, in units of their longer sides.

        Negative beyond an edge; infinite if no edge is cut.
        """
        left, top, right, bottom = self.region
        distances = torch.stack(
            [boxes[:, 0] - left, boxes[:, 1] - top, right - boxes[:, 2], bottom - boxes[:, 3]], dim=1
        )
        distances[:, [k for k, is_cut in enumerate(self.cut) if not is_cut]] = math.inf
        return distances.amin(1) / (boxes[:, 2:] - boxes[:, :2]).amax(1)

    @property
    def uncut(self) -> View:
        """The view without its region and cut edges, so that tiles of the same view compare equal."""
        return replace(self, region=(0, 0, 0, 0), cut=(False, False, False, False))


def whole_faces(views: Sequence[View], boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
    """Which of the boxes found in an image's tiles remain: roughly those that the whole image would give.

    - A box is dropped if another tile of the same view contains that box clearly deeper, that is, farther from the
      cut edges. That tile either found the face too, or shows that there is none. Near a cut edge, the next stand-in
      (`View.stand_in`) decides too.
    - A box near a cut edge may be a part of a face, or a whole one whose edge was guessed. It gives way to a box that
      is not near an edge, from any view, if they share half of the smaller area.
    - Of two boxes of the same face (IoU of 0.5 or more) with similar scores, the one that lies deeper in its
      tile remains. A box from a stand-in gives way to any from a finer view.

    Args:
        views: The views of one image.
        boxes: Per view [N, 4], in image pixels.
        scores: Per view [N].

    Returns:
        Per view, bool [N].
    """
    counts = torch.tensor([len(of) for of in boxes], device="cpu")
    found, certain = torch.cat(list(boxes)), torch.cat(list(scores))
    depth = torch.cat([view.depth(of) for view, of in zip(views, boxes, strict=True)])

    def per_box(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device="cpu").repeat_interleave(counts).to(found.device)

    first_like = {view.uncut: k for k, view in reversed(list(enumerate(views)))}
    scale, stand_in = per_box([view.scale for view in views]), per_box([view.stand_in for view in views]) > 0
    tile, uncut = per_box(list(range(len(views)))), per_box([first_like[view.uncut] for view in views])
    is_near = depth < NEAR_CUT
    keep = torch.ones_like(stand_in)
    for view in views:
        decides = uncut == first_like[view.uncut]
        if view.stand_in:
            decides |= is_near & (view.scale < scale) & (scale <= 2 * view.scale)
        keep &= ~(decides & (view.depth(found) > depth + CLEARLY_DEEPER))
    whole = (keep & ~is_near).nonzero().squeeze(1)
    for rows in torch.arange(len(found), device=found.device).split(_ROWS):
        shared, areas, other_areas = _shared_areas(found[rows], found[whole])
        is_part = is_near[rows][:, None] & (shared >= 0.5 * torch.minimum(areas, other_areas))
        is_same = (shared >= 0.5 * (areas + other_areas - shared)) & (certain[whole] >= 0.5 * certain[rows][:, None])
        is_outer = (uncut[rows][:, None] == uncut[whole]) & (tile[rows][:, None] != tile[whole])
        is_outer &= depth[rows][:, None] < depth[whole]
        is_coarser = stand_in[rows][:, None] & (scale[rows][:, None] < scale[whole])
        keep[rows] &= ~((is_part | (is_same & (is_outer | is_coarser))) & (shared > 0)).any(1)
    return list(keep.split(counts.tolist()))


def _shared_areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersections [N, M], of the boxes [N, 1] and of the others [M]."""
    sides = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    areas, other_areas = ((of[:, 2:] - of[:, :2]).clamp(min=0).prod(1) for of in (boxes, others))
    return sides.clamp(min=0).prod(2), areas[:, None], other_areas


def scale_for(size: Size, height: int, width: int) -> float:
    """The scale that gives an image the requested size.

    Example:
        >>> scale_for(640, 480, 1280), scale_for((1200, 1600), 600, 600), scale_for((1200, 1600), 600, 1600)
        (0.5, 2.0, 1.0)
    """
    if size == "native":
        return 1.0
    if isinstance(size, int):
        return size / max(height, width)
    shorter, longer = size
    return min(shorter / min(height, width), longer / max(height, width))


def whole(image: int, height: int, width: int, scale: float) -> View:
    """A view of the whole image."""
    return View(image, (0, 0, width, height), scale)


def s3fd_views(view: View) -> list[View]:
    """S3FD's scales for WIDER FACE (docs/detectors.md 2.6 a-c)."""
    height, width = _size(view)
    limit = math.sqrt(S3FD_PIXELS / (height * width))
    same = replace(view, scale=min(1.0, limit))
    smaller = 0.5 if limit >= 0.75 else limit / 2
    scales = [min(2.0, limit)] if limit > 1 else [(smaller + limit) / 2]
    if limit > 2:
        while scales[-1] * 2 < limit:
            scales.append(scales[-1] * 2)
        scales.append(limit)
    # The authors count sides as x2 - x1 + 1, so their 30 and 100 are 29 and 99 here.
    large, small = replace(view, longer_above=29.0), replace(view, shorter_below=99.0)
    views = [same, replace(same, mirror=True), replace(large, scale=smaller)]
    return views + [replace(small if scale > 1 else large, scale=scale) for scale in scales]


def srn_views(view: View, max_side: int = 1400) -> list[View]:
    """SRN's scales for WIDER FACE, with at most `max_side` squared pixels per view (docs/detectors.md 4.5)."""
    height, width = _size(view)
    limit = max_side**2 / (height * width)
    if limit < 1:
        scale = math.sqrt(limit)
        views = [replace(view, scale=scale), replace(view, scale=scale, mirror=True)]
        return views + [replace(view, scale=scale * part, longer_above=30.0) for part in (0.75, 0.5)]
    same = replace(view, scale=1.0)
    views = [same, replace(same, mirror=True), replace(view, scale=0.5, longer_above=30.0)]
    scales = [1.5**step for step in range(1, math.floor(math.log(limit, 2.25)) + 1)] + [math.sqrt(limit)]
    return views + [replace(view, scale=scale, shorter_below=100.0) for scale in scales]


def ssh_views(view: View) -> list[View]:
    """SSH's pyramid; the last module does not run on the largest scale (docs/detectors.md 5.4)."""
    base = scale_for((800, 1200), *_size(view)) / 800
    views = [replace(view, scale=base * shorter) for shorter in (500, 800, 1200)]
    return [*views, replace(view, scale=base * 1600, levels=-1)]


MULTISCALE: dict[str, Callable[[View], list[View]]] = {"s3fd": s3fd_views, "srn": srn_views, "ssh": ssh_views}


def pyramid(view: View, step: float, largest: float, most: int | None = None) -> Iterator[View]:
    """Yields the view, then smaller and smaller ones, until even a face that fills the image can be found.

    The smallest views share one batch: each alone would cost more in calls than in arithmetic.

    Args:
        view: The largest view.
        step: Ratio of the sizes of two successive views, > 1.
        largest: Side in network pixels of the largest face that the network finds; the last view is not longer.
        most: Largest number of views; None: no limit.
    """
    yield view
    seen = 1
    while max(view.content) > largest and seen != most:
        view, seen = replace(view, scale=view.scale / step), seen + 1
        yield replace(view, least_canvas=SMALL) if max(view.content) <= SMALL else view


def halvings(view: View, longest: int) -> Iterator[View]:
    """Yields the view, then stand-ins, each at half the previous scale, down to `longest` network pixels or less."""
    yield view
    while max(view.content) > longest:
        view = replace(view, scale=view.scale / 2, stand_in=True)
        yield view


def tiles(view: View, side: int) -> Iterator[View]:
    """Cuts a view into tiles of at most `side` network pixels that overlap by at least a quarter.

    A face of up to a quarter of the side is whole in some tile. Larger faces need views at smaller scales.
    Tiles begin where the cells of the network's maps begin in the whole view, since boxes depend on where a face lies
    relative to the cells.
    """
    left, top, _, _ = view.region
    height, width = _size(view)
    for y1, y2 in _spans(height, side, view.scale):
        for x1, x2 in _spans(width, side, view.scale):
            region = (left + x1, top + y1, left + x2, top + y2)
            yield replace(view, region=region, cut=(x1 > 0, y1 > 0, x2 < width, y2 < height))


def _spans(size: int, side: int, scale: float) -> list[tuple[int, int]]:
    """Where the tiles along one axis begin and end, about evenly spread."""
    length = math.floor(side / scale)
    if size <= length:
        return [(0, size)]
    grid = GRID if 0.75 * side >= GRID else GRID // 2
    cells = (size * scale - side) / grid  # from the first tile's start to the last one's
    count = math.ceil(cells / math.floor(0.75 * side / grid)) + 1
    starts = [round(math.ceil(k * cells / (count - 1)) * grid / scale) for k in range(count)]
    return [(start, min(start + length, size)) for start in starts]


def _size(view: View) -> tuple[int, int]:
    left, top, right, bottom = view.region
    return bottom - top, right - left
