"""DenseBox: decode_densebox turns maps into boxes, densebox_targets boxes into maps (docs/detectors.md 1.2, 1.5).

In both, the cell in row i and column j is at the pixel (stride * j + stride / 2, stride * i + stride / 2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyface.ops.anchors import Candidates, Decoding, arrays_of, empty_candidates
from pyface.ops.extension import (
    FLOATS,
    MAP_DTYPES,
    check_dtype,
    check_fraction,
    check_int,
    check_numbers,
    check_one_device,
    check_shape,
    check_size,
    check_splits,
    check_tensors,
    contiguous_as,
    launch,
    register,
)

_MOST = 2**31 - 1  # largest side or stride


class DenseBoxMaps(NamedTuple):
    """The training targets of DenseBox's maps.

    Attributes:
        label: int8 [B, H, W]: 1 face, 0 background, -1 ignored.
        offsets: float32 [B, 4, H, W]: (x - x1, y - y1, x - x2, y - y2), from the cell's pixel (x, y) to the corners of
            its face, in cells / `unit`; 0 where the label is not 1.
        landmark_label: int8 [B, N, H, W], as `label`, one map per landmark; N = 0 if no landmarks are given.
    """

    label: Tensor
    offsets: Tensor
    landmark_label: Tensor


def decode_densebox(
    scores: Tensor,
    offsets: Tensor,
    *,
    score_threshold: float,
    max_candidates: int,
    stride: int = 4,
    unit: float = 12.5,
    sizes: Tensor | None = None,
    min_side: float = 0.0,
) -> Candidates:
    """Decodes DenseBox's maps to candidates in one pass, with static shapes and without host synchronisation.

    Every cell whose score is above the threshold is a candidate, with corners at ``(cell - unit * offset) * stride +
    stride / 2``. Cells with a non-finite score and candidates with a non-finite coordinate are dropped. Candidates are
    sorted by raw score, descending, ties by index. The result has no gradient.

    Args:
        scores: [B, 1, H, W], raw regressions to 0 and 1; float32, float16 or bfloat16, computed in float32. Any strides
            are supported without a copy.
        offsets: [B, 4, H, W] of the same dtype: x - x1, y - y1, x - x2, y - y2 in cells / unit.
        score_threshold: In [0, 1]; a cell passes if its raw score is > this.
        max_candidates: Number of candidates to keep, best first.
        stride: Pixels between neighbouring cells.
        unit: Number of cells that an offset of 1 stands for; 12.5 for faces of 50 px at stride 4.
        sizes: Any float dtype [B, 2], (height, width) to which each image's boxes are clipped; None: no clipping.
        min_side: Pixels, >= 0; candidates whose shorter side, after clipping, is < this or is 0 are dropped.

    Returns:
        Candidates with M = min(max_candidates, H * W), scores clamped to [0, 1], no landmarks, and index = row * W +
        column. Beyond count, boxes and scores are 0, and index is -1.

    Raises:
        TypeError: A tensor has the wrong type or dtype, or a number has the wrong type.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Source: DenseBox (arXiv 1509.04874, section 3; docs/detectors.md 1.5); the half pixel is from the author's code.

    Example:
        >>> scores, offsets = torch.zeros(1, 1, 60, 60), torch.zeros(1, 4, 60, 60)
        >>> scores[0, 0, 30, 20] = 0.9
        >>> offsets[0, :, 30, 20] = torch.tensor([0.5, 0.5, -0.5, -0.5])
        >>> found = decode_densebox(scores, offsets, score_threshold=0.5, max_candidates=2)
        >>> found.boxes[0, 0], found.count
        (tensor([ 57.,  97., 107., 147.]), tensor([1], dtype=torch.int32))
    """
    op = "decode_densebox"
    check_tensors(op, ("scores", "offsets"), (scores, offsets))
    check_int(op, "stride", stride, 1, _MOST)
    check_int(op, "max_candidates", max_candidates, 0)
    check_numbers(op, score_threshold=score_threshold, unit=unit, min_side=min_side)
    if sizes is not None:
        check_tensors(op, ("scores", "sizes"), (scores, sizes))
        sizes = sizes.detach()
    return Candidates(
        *torch.ops.pyface.decode_densebox.default(
            scores.detach(), offsets.detach(), sizes, score_threshold, stride, unit, min_side, max_candidates
        )
    )


def densebox_targets(
    boxes: Tensor,
    splits: Tensor,
    size: tuple[int, int],
    *,
    stride: int = 4,
    face: float = 50.0,
    radius: float = 0.3,
    gray: float = 2.0,
    positive_band: tuple[float, float] = (0.8, 1.25),
    ignore_band: tuple[float, float] = (0.6, 1.67),
    unit: float = 12.5,
    ignore: Tensor | None = None,
    landmarks: Tensor | None = None,
    landmark_radius: float = 1.0,
) -> DenseBoxMaps:
    """Makes the training targets of DenseBox's maps, on the device and without host synchronisation.

    **Faces.** The height of a face, relative to `face`, decides. Within `positive_band` (>= low and <= high) the face
    has a positive disc. Otherwise, within `ignore_band`, its disc is ignored. All other faces are background. The disc
    consists of the cells within `radius` * height of the box's centre, and always includes the cell that contains the
    centre, unless the centre is outside the map. A cell in several positive discs belongs to the one whose centre is
    nearest in units of its radius, ties to the lower index.

    **Ignored cells**, unless they are positive: cells whose pixel is in an ignore box (x1 <= x < x2, y1 <= y < y2),
    discs of faces in `ignore_band` only, and the gray zone: cells within `gray` cells of a positive one.

    **Landmarks.** Each point of a positive face has a positive disc of `landmark_radius` cells on its own map, which
    always includes the cell that contains the point. Ignored there, unless positive: ignore boxes, the gray zone, discs
    of the points of faces in `ignore_band` only, and the cells inside such faces and inside positive faces whose point
    is unknown (not finite).

    Boxes that are not finite or have no area are left out.

    Args:
        boxes: [G, 4], (x1, y1, x2, y2) in continuous pixels of the network's input; any float dtype, computed in
            float32.
        splits: int64 [B + 1]; image b has the boxes splits[b] ... splits[b + 1] - 1.
        size: (H, W) of the maps in cells.
        stride: Pixels between neighbouring cells.
        face: Height in pixels of the faces that the network finds, > 0.
        radius: Radius of the disc, relative to the face's height, > 0.
        gray: Width of the gray zone in cells, >= 0.
        positive_band, ignore_band: (low, high), 0 <= low <= high, finite, relative to `face`.
        unit: Number of cells that an offset of 1 stands for, > 0.
        ignore: bool [G], boxes that are neither faces nor background; None: all are faces.
        landmarks: [G, N, 2], (x, y) in the same pixels, not finite where unknown; None: N = 0.
        landmark_radius: Radius of a landmark's disc in cells, > 0.

    Returns:
        `DenseBoxMaps`. Decoding the offsets of a positive cell gives its face to within 1e-3 px.

    Raises:
        TypeError: A tensor has the wrong type or dtype, or a number has the wrong type.
        ValueError: Shapes or devices do not match, a number is out of range, or (on the CPU) splits do not rise from 0
            to G.

    Source: DenseBox (arXiv 1509.04874, section 3.1; docs/detectors.md 1.2).

    Example:
        >>> maps = densebox_targets(torch.tensor([[95.0, 95.0, 145.0, 145.0]]), torch.tensor([0, 1]), (60, 60))
        >>> maps.label[0, 26:34, 29].tolist(), maps.offsets[0, :, 29, 29].tolist()
        ([1, 1, 1, 1, 1, 1, 1, 1], [0.46000000834465027, 0.46000000834465027, -0.5400000214576721, -0.5400000214576721])
    """
    op = "densebox_targets"
    check_tensors(op, ("boxes", "splits"), (boxes, splits))
    for name, tensor in (("ignore", ignore), ("landmarks", landmarks)):
        if tensor is not None:
            check_tensors(op, ("boxes", name), (boxes, tensor))
    for name, pair in (("size", size), ("positive_band", positive_band), ("ignore_band", ignore_band)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{op}: {name} must be two numbers, got {pair!r}.")
    for side in size:
        check_int(op, "size", side, 0, _MOST)
    check_int(op, "stride", stride, 1, _MOST)
    check_numbers(op, unit=unit, face=face)
    for name, band in (("positive_band", positive_band), ("ignore_band", ignore_band)):
        check_numbers(op, **{f"{name}[0]": band[0], f"{name}[1]": band[1]})
    check_numbers(op, radius=radius, gray=gray, landmark_radius=landmark_radius)
    return DenseBoxMaps(
        *torch.ops.pyface.densebox_targets.default(
            boxes.detach(),
            splits,
            ignore,
            None if landmarks is None else landmarks.detach(),
            size,
            stride,
            unit,
            [*_Rule(face, *positive_band, *ignore_band, radius, gray, landmark_radius)],
        )
    )


# --- descriptors -----------------------------------------------------------------------------------------------------


class _Grid(NamedTuple):
    """A map's geometry in the kernels' form, csrc/ops.h's DenseBoxGrid."""

    height: int
    width: int
    stride: int
    unit: float


class _Rule(NamedTuple):
    """The rules for faces in the form of torch.ops.pyface.densebox_targets and of csrc/ops.h's DenseBoxTargets."""

    face: float
    positive_low: float
    positive_high: float
    ignore_low: float
    ignore_high: float
    radius: float
    gray: float
    landmark_radius: float


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_grid(op: str, stride: int, unit: float) -> None:
    if not 1 <= stride <= _MOST:
        raise ValueError(f"{op}: stride must be from 1 to 2**31 - 1, got {stride}.")
    if not 0 < unit < math.inf:
        raise ValueError(f"{op}: unit must be a finite number > 0, got {unit}.")


def _check_decode(
    scores: Tensor,
    offsets: Tensor,
    sizes: Tensor | None,
    score_threshold: float,
    stride: int,
    unit: float,
    min_side: float,
    max_candidates: int,
) -> tuple[int, int]:
    """Checks the arguments; returns the batch size and the static number of candidates."""
    op = "decode_densebox"
    check_dtype(op, "scores", scores, MAP_DTYPES)
    check_shape(op, "scores", scores, scores.ndim == 4 and scores.shape[1] == 1, "[B, 1, H, W]")
    batch, _, height, width = scores.shape
    fits = offsets.shape == (batch, 4, height, width)
    check_shape(op, "offsets", offsets, fits, f"[B, 4, H, W] = [{batch}, 4, {height}, {width}]")
    check_one_device(op, scores, offsets)
    if offsets.dtype != scores.dtype:
        raise TypeError(
            f"{op}: scores and offsets must have one dtype, got {scores.dtype} and {offsets.dtype}; "
            "convert one of them."
        )
    check_size(op, batch * height * width)
    check_fraction(op, "score_threshold", score_threshold)
    _check_grid(op, stride, unit)
    if not 0 <= min_side < math.inf:
        raise ValueError(f"{op}: min_side must be a finite number of 0 or more, got {min_side}.")
    if max_candidates < 0:
        raise ValueError(f"{op}: max_candidates must be 0 or more, got {max_candidates}.")
    if sizes is not None:
        check_dtype(op, "sizes", sizes, FLOATS)
        check_one_device(op, scores, sizes)
        check_shape(op, "sizes", sizes, sizes.shape == (batch, 2), f"[B, 2] = [{batch}, 2], height and width")
    return batch, min(max_candidates, height * width)


def _check_targets(
    boxes: Tensor,
    splits: Tensor,
    ignore: Tensor | None,
    landmarks: Tensor | None,
    size: list[int],
    stride: int,
    unit: float,
    rule: list[float],
) -> tuple[int, int]:
    """Checks the arguments; returns the batch size and the number of landmarks."""
    op = "densebox_targets"
    check_dtype(op, "boxes", boxes, FLOATS)
    check_shape(op, "boxes", boxes, boxes.ndim == 2 and boxes.shape[1] == 4, "[G, 4]")
    count = boxes.shape[0]
    check_dtype(op, "splits", splits, (torch.int64,))
    check_shape(op, "splits", splits, splits.ndim == 1 and splits.shape[0] >= 1, "[B + 1]")
    check_one_device(op, boxes, splits)
    if ignore is not None:
        check_dtype(op, "ignore", ignore, (torch.bool,))
        check_shape(op, "ignore", ignore, ignore.shape == (count,), f"[G] = [{count}]")
        check_one_device(op, boxes, ignore)
    points = 0
    if landmarks is not None:
        check_dtype(op, "landmarks", landmarks, FLOATS)
        fits = landmarks.ndim == 3 and landmarks.shape[0] == count and landmarks.shape[2] == 2
        check_shape(op, "landmarks", landmarks, fits, f"[G, N, 2] = [{count}, N, 2]")
        check_one_device(op, boxes, landmarks)
        points = landmarks.shape[1]
    _check_grid(op, stride, unit)
    if len(size) != 2 or not all(0 <= side <= _MOST for side in size):
        raise ValueError(f"{op}: size must be a height and a width from 0 to 2**31 - 1, got {tuple(size)}.")
    batch = splits.shape[0] - 1
    check_size(op, batch * max(4, points) * size[0] * size[1])
    check_size(op, count)
    if len(rule) != len(_Rule._fields):
        raise ValueError(
            f"{op}: rule must be {len(_Rule._fields)} numbers ({', '.join(_Rule._fields)}), got {len(rule)}."
        )
    r = _Rule(*rule)
    for name, value in (("face", r.face), ("radius", r.radius), ("landmark_radius", r.landmark_radius)):
        if not 0 < value < math.inf:
            raise ValueError(f"{op}: {name} must be a finite number > 0, got {value}.")
    if not 0 <= r.gray < math.inf:
        raise ValueError(f"{op}: gray must be a finite number of 0 or more, got {r.gray}.")
    for name, low, high in (
        ("positive_band", r.positive_low, r.positive_high),
        ("ignore_band", r.ignore_low, r.ignore_high),
    ):
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"{op}: {name} must be (low, high) with 0 <= low <= high, finite, got ({low}, {high}).")
    return batch, points


# --- implementation --------------------------------------------------------------------------------------------------


def _decode_densebox(
    scores: Tensor,
    offsets: Tensor,
    sizes: Tensor | None,
    score_threshold: float,
    stride: int,
    unit: float,
    min_side: float,
    max_candidates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, size = _check_decode(scores, offsets, sizes, score_threshold, stride, unit, min_side, max_candidates)
    found = empty_candidates(scores, batch, size, 0)
    if batch == 0 or size == 0:
        found[4].zero_()
        return found
    height, width = scores.shape[2:]
    sizes = None if sizes is None else contiguous_as(sizes, torch.float32)
    launch(
        "decode_densebox",
        scores.device,
        scores,
        offsets,
        scores.dtype,
        batch,
        _Grid(height, width, stride, unit),
        score_threshold,
        Decoding(0.0, 0.0, min_side, sizes, size),
        arrays_of(found),
        workspace=(batch, height * width, size),
    )
    return found


def _fake_decode_densebox(
    scores: Tensor,
    offsets: Tensor,
    sizes: Tensor | None,
    score_threshold: float,
    stride: int,
    unit: float,
    min_side: float,
    max_candidates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, size = _check_decode(scores, offsets, sizes, score_threshold, stride, unit, min_side, max_candidates)
    return empty_candidates(scores, batch, size, 0)


def _empty_maps(boxes: Tensor, batch: int, points: int, size: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        boxes.new_empty((batch, *size), dtype=torch.int8),
        boxes.new_empty((batch, 4, *size), dtype=torch.float32),
        boxes.new_empty((batch, points, *size), dtype=torch.int8),
    )


def _densebox_targets(
    boxes: Tensor,
    splits: Tensor,
    ignore: Tensor | None,
    landmarks: Tensor | None,
    size: list[int],
    stride: int,
    unit: float,
    rule: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    batch, points = _check_targets(boxes, splits, ignore, landmarks, size, stride, unit, rule)
    check_splits("densebox_targets", splits, boxes.shape[0])
    maps = _empty_maps(boxes, batch, points, size)
    if batch == 0 or size[0] == 0 or size[1] == 0:
        return maps
    boxes, splits = contiguous_as(boxes, torch.float32), contiguous_as(splits, torch.int64)
    ignore = None if ignore is None else contiguous_as(ignore, torch.bool)
    landmarks = None if landmarks is None or points == 0 else contiguous_as(landmarks, torch.float32)
    launch(
        "densebox_targets",
        boxes.device,
        boxes,
        boxes.shape[0],
        ignore,
        splits,
        batch,
        landmarks,
        points,
        _Grid(size[0], size[1], stride, unit),
        _Rule(*rule),
        *maps,
        workspace=(batch, points, *size),
    )
    return maps


def _fake_densebox_targets(
    boxes: Tensor,
    splits: Tensor,
    ignore: Tensor | None,
    landmarks: Tensor | None,
    size: list[int],
    stride: int,
    unit: float,
    rule: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    batch, points = _check_targets(boxes, splits, ignore, landmarks, size, stride, unit, rule)
    return _empty_maps(boxes, batch, points, size)


register(
    "decode_densebox(Tensor scores, Tensor offsets, Tensor? sizes, float score_threshold, int stride, float unit, "
    "float min_side, SymInt max_candidates) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _decode_densebox,
    _fake_decode_densebox,
)
register(
    "densebox_targets(Tensor boxes, Tensor splits, Tensor? ignore, Tensor? landmarks, SymInt[] size, int stride, "
    "float unit, float[] rule) -> (Tensor, Tensor, Tensor)",
    _densebox_targets,
    _fake_densebox_targets,
)
