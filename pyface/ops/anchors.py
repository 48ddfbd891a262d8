"""Decoding the head maps of anchor detectors to candidates: decode_anchors.

A detector is described by levels: where its anchors are and how its channels are laid out. S3FD, SSH and SRN differ
only in these descriptions, so one op serves all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    check_tensors,
    contiguous_as,
    launch,
    register,
    schema_of,
)

_MAX_LEVELS, _MAX_ANCHORS = 8, 8  # csrc/ops.h


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one head map.

    Attributes:
        stride: Pixels between neighbouring cells.
        anchors: The K boxes (x1, y1, x2, y2) of cell (0, 0) in continuous pixels; those of cell (row, column) are
            shifted by stride * (column, row).
        num_background: Background logits per anchor: 1 (softmax of two), more (max-out) or 0 (sigmoid of one logit).
        max_candidates: Number of candidates to keep from this level, best first; None: all.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: stride < 1, num_background < 0, max_candidates < 0, there are no anchors or more than 8, or an
            anchor is not finite or has x1 >= x2 or y1 >= y2.
    """

    stride: int
    anchors: tuple[tuple[float, float, float, float], ...]
    num_background: int = 1
    max_candidates: int | None = None

    def __post_init__(self) -> None:
        check_int("AnchorLevel", "stride", self.stride, 1)
        check_int("AnchorLevel", "num_background", self.num_background, 0)
        if self.max_candidates is not None:
            check_int("AnchorLevel", "max_candidates", self.max_candidates, 0)
        if not isinstance(self.anchors, tuple) or not all(isinstance(box, tuple) for box in self.anchors):
            raise TypeError(
                f"AnchorLevel: anchors must be a tuple of tuples (x1, y1, x2, y2), got {self.anchors!r}; "
                "convert it with tuple(map(tuple, anchors))."
            )
        if not 1 <= len(self.anchors) <= _MAX_ANCHORS:
            raise ValueError(f"AnchorLevel: anchors must be 1 to {_MAX_ANCHORS} boxes, got {len(self.anchors)}.")
        for box in self.anchors:
            if len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
                raise TypeError(f"AnchorLevel: an anchor must be four numbers (x1, y1, x2, y2), got {box!r}.")
            if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
                raise ValueError(f"AnchorLevel: an anchor must be finite with x1 < x2 and y1 < y2, got {box!r}.")


class LevelMaps(NamedTuple):
    """A network's output for one level: maps [B, channels, H, W] of one float dtype, in any memory format.

    Attributes:
        logits: (num_background + 1) * K channels; logit c of anchor k is channel c * K + k, backgrounds first.
        boxes: 4 * K channels: dx, dy, dw, dh of anchor k from channel 4 * k.
        landmarks: 10 * K channels or None: x1, y1, ... x5, y5 of anchor k from channel 10 * k.
        gate: K channels or None: logits of a first step, which an anchor must pass too (SRN's STC).
        offsets: 4 * K channels or None: dx, dy, dw, dh of a first step, which moves the anchor before `boxes` is
            applied (SRN's STR).
    """

    logits: Tensor
    boxes: Tensor
    landmarks: Tensor | None = None
    gate: Tensor | None = None
    offsets: Tensor | None = None


class Candidates(NamedTuple):
    """Boxes before suppression, padded to a static size M, best first.

    Attributes:
        boxes: float32 [B, M, 4], (x1, y1, x2, y2) in continuous pixels of the network's input.
        scores: float32 [B, M], face probability.
        landmarks: float32 [B, M, 5, 2], or [B, M, 0, 2] if the detector has none.
        index: int64 [B, M], the anchor's number: level by level, cells row by row, then the K anchors of a cell.
        count: int32 [B], number of candidates; entries beyond it have no meaning.
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple has methods of these names
    count: Tensor  # type: ignore[assignment]


def anchor_boxes(
    levels: Sequence[AnchorLevel], sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
) -> Tensor:
    """All anchors of an image, in the order of `Candidates.index`.

    Args:
        levels: The description of the levels.
        sizes: (height, width) of each level's map.
        device: Device of the result.

    Returns:
        float32 [A, 4].

    Raises:
        ValueError: There are no levels, the number of sizes differs, or a size is negative.

    Example:
        >>> level = AnchorLevel(stride=4, anchors=((-6.0, -6.0, 10.0, 10.0),))
        >>> anchor_boxes([level], [(160, 160)]).shape
        torch.Size([25600, 4])
    """
    if not levels or len(levels) != len(sizes):
        raise ValueError(f"anchor_boxes: sizes must be one per level, got {len(sizes)} sizes for {len(levels)} levels.")
    parts = []
    for level, (height, width) in zip(levels, sizes, strict=True):
        if height < 0 or width < 0:
            raise ValueError(f"anchor_boxes: a size must be a height and a width of 0 or more, got {height, width}.")
        rows = torch.arange(height, device=device, dtype=torch.float32) * level.stride
        columns = torch.arange(width, device=device, dtype=torch.float32) * level.stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        parts.append((corner + torch.tensor(level.anchors, device=device, dtype=torch.float32)).reshape(-1, 4))
    return torch.cat(parts)


def decode_anchors(
    maps: Sequence[LevelMaps],
    levels: Sequence[AnchorLevel],
    *,
    score_threshold: float | Sequence[float],
    max_candidates: int,
    variances: tuple[float, float] = (0.1, 0.2),
    gate_threshold: float = 0.0,
    min_side: float = 0.0,
    sizes: Tensor | None = None,
) -> Candidates:
    """Decodes head maps to candidates in one pass, with static shapes and without host synchronisation.

    The score of an anchor is the softmax of its face logit and its largest background logit. That is the sigmoid of
    their difference x, or of the logit x if there is only one. Thresholds are applied to x, as x > log(t / (1 - t)), so
    only anchors that pass are decoded. A box has its centre at ``center + delta * center_variance * side`` and sides
    ``side * exp(delta * size_variance)``. Landmarks are at ``center + delta * center_variance * side``. The result
    has no gradient.

    Anchors with a non-finite x or gate are dropped, and so are candidates with a non-finite coordinate. Candidates are
    sorted by x, descending, ties by index. Scores that round to the same float keep the order of x.

    Args:
        maps: One per level; float32, float16 or bfloat16, computed in float32. Any strides are read without a copy.
        levels: 1 to 8 descriptions.
        score_threshold: In [0, 1], one number or one per level; an anchor passes if its score is > this.
        max_candidates: Number of candidates to keep over all levels, best first, after each level's own limit.
        variances: (center_variance, size_variance), finite and > 0.
        gate_threshold: In [0, 1]; where there is a gate, its sigmoid must be > this too.
        min_side: Pixels, >= 0; candidates whose shorter side, after clipping, is < this or is 0 are dropped.
        sizes: Any float dtype [B, 2], (height, width) to which each image's boxes are clipped; None: no clipping.
            Landmarks are never clipped.

    Returns:
        Candidates of the static size M = min(max_candidates, the sum over levels of min(anchors,
        AnchorLevel.max_candidates)). Beyond `count`, boxes, scores and landmarks are 0, and index is -1.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: The maps do not match the levels or each other, or a number is out of range.

    Source:
        docs/detectors.md 2.1 and 2.6 (S3FD), 4.5 (SRN), 5.4 (SSH).

    Example:
        >>> import torch
        >>> level = AnchorLevel(stride=4, anchors=((-6.0, -6.0, 10.0, 10.0),))
        >>> logits = torch.zeros(1, 2, 3, 3)
        >>> logits[0, 1, 1, 2] = 2.0  # the face logit of the cell in row 1, column 2
        >>> maps = [LevelMaps(logits, boxes=torch.zeros(1, 4, 3, 3))]
        >>> found = decode_anchors(maps, [level], score_threshold=0.6, max_candidates=2)
        >>> found.boxes[0, 0], found.index, found.count
        (tensor([ 2., -2., 18., 14.]), tensor([[ 5, -1]]), tensor([1], dtype=torch.int32))
    """
    op = "decode_anchors"
    _check_types(maps, levels)
    check_int(op, "max_candidates", max_candidates, 0)
    check_numbers(op, gate_threshold=gate_threshold, min_side=min_side)
    if not isinstance(variances, (list, tuple)) or not all(isinstance(value, Real) for value in variances):
        raise TypeError(f"{op}: variances must be two numbers, got {variances!r}.")
    if sizes is not None:
        check_tensors(op, ("logits", "sizes"), (maps[0].logits, sizes))
        sizes = sizes.detach()
    landmarks = [level_maps.landmarks for level_maps in maps if level_maps.landmarks is not None]
    if landmarks and len(landmarks) != len(maps):
        without = next(i for i, level_maps in enumerate(maps) if level_maps.landmarks is None)
        raise ValueError(f"{op}: landmarks must be given for all maps or for none, got None for maps[{without}].")
    request = _Request(
        logits=[_detached(level_maps.logits) for level_maps in maps],
        boxes=[_detached(level_maps.boxes) for level_maps in maps],
        landmarks=[_detached(value) for value in landmarks],
        gates=[None if level_maps.gate is None else _detached(level_maps.gate) for level_maps in maps],
        offsets=[None if level_maps.offsets is None else _detached(level_maps.offsets) for level_maps in maps],
        sizes=sizes,
        anchors=[value for level in levels for box in level.anchors for value in box],
        num_anchors=[len(level.anchors) for level in levels],
        strides=[level.stride for level in levels],
        num_background=[level.num_background for level in levels],
        level_limits=[-1 if level.max_candidates is None else level.max_candidates for level in levels],
        score_thresholds=_thresholds(score_threshold, len(levels)),
        gate_threshold=gate_threshold,
        variances=list(variances),
        min_side=min_side,
        max_candidates=max_candidates,
    )
    return Candidates(*torch.ops.pyface.decode_anchors.default(*request))


# --- descriptors -----------------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """The arguments of torch.ops.pyface.decode_anchors, whose schema is derived from these fields."""

    logits: list[Tensor]
    boxes: list[Tensor]
    landmarks: list[Tensor]  # empty: none
    gates: list[Tensor | None]
    offsets: list[Tensor | None]
    sizes: Tensor | None
    anchors: list[float]  # four numbers for each anchor of each level
    num_anchors: list[int]
    strides: list[int]
    num_background: list[int]
    level_limits: list[int]  # -1: no limit
    score_thresholds: list[float]
    gate_threshold: float
    variances: list[float]
    min_side: float
    max_candidates: int


class _Level(NamedTuple):
    """A level in the kernel's form, csrc/ops.h's AnchorLevel."""

    logits: Tensor
    boxes: Tensor
    landmarks: Tensor | None
    gate: Tensor | None
    offsets: Tensor | None
    height: int
    width: int
    stride: int
    num_anchors: int
    num_background: int
    max_candidates: int
    min_logit: float
    min_gate: float
    first: int
    anchors: list[list[float]]


class Decoding(NamedTuple):
    """Settings shared by all levels in the kernel's form, csrc/ops.h's AnchorDecoding."""

    center_variance: float
    size_variance: float
    min_side: float
    sizes: Tensor | None
    max_candidates: int


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_types(maps: Sequence[LevelMaps], levels: Sequence[AnchorLevel]) -> None:
    op = "decode_anchors"
    if not isinstance(maps, (list, tuple)) or isinstance(maps, LevelMaps):
        raise TypeError(f"{op}: maps must be a list of LevelMaps, one per level, got {type(maps).__name__}.")
    if not isinstance(levels, (list, tuple)):
        raise TypeError(f"{op}: levels must be a list of AnchorLevel, got {type(levels).__name__}.")
    if len(maps) != len(levels):
        raise ValueError(f"{op}: maps must be one per level, got {len(maps)} maps for {len(levels)} levels.")
    if not 1 <= len(levels) <= _MAX_LEVELS:
        raise ValueError(f"{op}: levels must be a list of 1 to {_MAX_LEVELS}, got {len(levels)}.")
    for i, (level_maps, level) in enumerate(zip(maps, levels, strict=True)):
        if not isinstance(level, AnchorLevel):
            raise TypeError(f"{op}: levels[{i}] must be an AnchorLevel, got {type(level).__name__}.")
        if not isinstance(level_maps, LevelMaps):
            raise TypeError(f"{op}: maps[{i}] must be a LevelMaps, got {type(level_maps).__name__}.")
        for name, value in zip(LevelMaps._fields, level_maps, strict=True):
            if value is None and name not in ("logits", "boxes"):
                continue
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                kind = f"layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{op}: {name} of maps[{i}] must be a dense torch.Tensor, got {kind}.")


def _thresholds(score_threshold: float | Sequence[float], levels: int) -> list[float]:
    if isinstance(score_threshold, (int, float)):
        return [score_threshold] * levels
    if not isinstance(score_threshold, (list, tuple)) or not all(isinstance(t, (int, float)) for t in score_threshold):
        raise TypeError(
            f"decode_anchors: score_threshold must be a number or a list of one per level, got {score_threshold!r}."
        )
    if len(score_threshold) != levels:
        raise ValueError(
            f"decode_anchors: score_threshold must be one number or one per level, "
            f"got {len(score_threshold)} for {levels} levels."
        )
    return list(score_threshold)


def _check_decode(request: _Request) -> tuple[int, int]:
    """Checks the arguments; returns the batch size and the static number of candidates."""
    op = "decode_anchors"
    r, first = request, request.logits[0] if request.logits else None
    levels = len(r.logits)
    lists = (r.boxes, r.landmarks or r.boxes, r.gates, r.offsets, r.num_anchors, r.strides, r.num_background)
    lengths = {len(values) for values in (*lists, r.level_limits, r.score_thresholds)}
    if first is None or levels > _MAX_LEVELS or lengths != {levels}:
        raise ValueError(f"{op}: logits must be a list of 1 to {_MAX_LEVELS}, and all lists as long, got {levels}.")
    if len(r.anchors) != 4 * sum(r.num_anchors):
        raise ValueError(f"{op}: anchors must be 4 numbers for each of {sum(r.num_anchors)}, got {len(r.anchors)}.")
    batch = first.shape[0] if first.ndim else 0
    check_dtype(op, "logits", first, MAP_DTYPES)
    dtype, device = first.dtype, first.device
    total = kept = 0
    landmarks: list[Tensor | None] = [*r.landmarks] or [None] * levels
    maps = zip(r.logits, r.boxes, landmarks, r.gates, r.offsets, strict=True)
    numbers = zip(r.num_anchors, r.strides, r.num_background, r.level_limits, r.score_thresholds, strict=True)
    for i, (level_maps, (k, stride, backgrounds, limit, threshold)) in enumerate(zip(maps, numbers, strict=True)):
        logits, boxes, points, gate, offsets = level_maps
        if not (1 <= k <= _MAX_ANCHORS and 1 <= stride < 2**31 and backgrounds >= 0):
            raise ValueError(
                f"{op}: level {i} must have 1 to {_MAX_ANCHORS} anchors, a stride of 1 or more and no negative number "
                f"of backgrounds, got {k}, {stride} and {backgrounds}."
            )
        shape = logits.shape
        fits = len(shape) == 4 and shape[0] == batch and shape[1] == (backgrounds + 1) * k
        if not fits:
            expected = f"[{batch}, {(backgrounds + 1) * k}, H, W] ({backgrounds + 1} logits for each of {k} anchors)"
            check_shape(op, f"logits of level {i}", logits, False, expected)
        height, width = shape[2:]
        described = (("boxes", boxes, 4), ("landmarks", points, 10), ("gate", gate, 1), ("offsets", offsets, 4))
        for name, tensor, channels in described:
            if tensor is None:
                continue
            if tensor.shape != (batch, channels * k, height, width):
                expected = f"[{batch}, {channels * k}, {height}, {width}] ({channels} for each of {k} anchors)"
                check_shape(op, f"{name} of level {i}", tensor, False, expected)
            if tensor.dtype != dtype or tensor.device != device:
                _refuse_mixture(op, f"{name} of level {i}", tensor, first)
        if logits.dtype != dtype or logits.device != device:
            _refuse_mixture(op, f"logits of level {i}", logits, first)
        check_fraction(op, "score_threshold", threshold)
        cells = height * width * k
        total += cells
        kept += cells if limit < 0 else min(limit, cells)
    check_size(op, batch * total)
    check_fraction(op, "gate_threshold", r.gate_threshold)
    if len(r.variances) != 2 or not all(0 < value < math.inf for value in r.variances):
        raise ValueError(f"{op}: variances must be two finite numbers > 0, got {tuple(r.variances)}.")
    if not 0 <= r.min_side < math.inf:
        raise ValueError(f"{op}: min_side must be a finite number of 0 or more, got {r.min_side}.")
    if r.max_candidates < 0:
        raise ValueError(f"{op}: max_candidates must be 0 or more, got {r.max_candidates}.")
    if r.sizes is not None:
        check_dtype(op, "sizes", r.sizes, FLOATS)
        check_one_device(op, first, r.sizes)
        check_shape(op, "sizes", r.sizes, r.sizes.shape == (batch, 2), f"[B, 2] = [{batch}, 2], height and width")
    return batch, min(r.max_candidates, kept)


def _refuse_mixture(op: str, name: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(
            f"{op}: logits and {name} must be on one device, got {first.device} and {tensor.device}; move one of them."
        )
    raise TypeError(
        f"{op}: logits and {name} must have one dtype, got {first.dtype} and {tensor.dtype}; convert one of them."
    )


# --- implementation --------------------------------------------------------------------------------------------------


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor  # a call costs as much as a small kernel


def _logit(probability: float) -> float:
    """The x whose sigmoid is the given probability."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def empty_candidates(
    first: Tensor, batch: int, size: int, points: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors for a kernel to write `Candidates` into, on the first map's device."""
    return (
        first.new_empty((batch, size, 4), dtype=torch.float32),
        first.new_empty((batch, size), dtype=torch.float32),
        first.new_empty((batch, size, points, 2), dtype=torch.float32),
        first.new_empty((batch, size), dtype=torch.int64),
        first.new_empty(batch, dtype=torch.int32),
    )


def arrays_of(found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The tensors of `empty_candidates` in the kernel's form, csrc/ops.h's CandidateArrays."""
    boxes, scores, landmarks, index, count = found
    return boxes, scores, landmarks if landmarks.shape[2] else None, index, count


def _kernel_levels(request: _Request) -> list[_Level]:
    levels, first, corners = [], 0, iter(request.anchors)
    min_gate = _logit(request.gate_threshold)
    for i, logits in enumerate(request.logits):
        height, width = logits.shape[2:]
        cells, limit = height * width * request.num_anchors[i], request.level_limits[i]
        level = _Level(
            logits=logits,
            boxes=request.boxes[i],
            landmarks=request.landmarks[i] if request.landmarks else None,
            gate=request.gates[i],
            offsets=request.offsets[i],
            height=height,
            width=width,
            stride=request.strides[i],
            num_anchors=request.num_anchors[i],
            num_background=request.num_background[i],
            max_candidates=cells if limit < 0 else min(limit, cells),
            min_logit=_logit(request.score_thresholds[i]),
            min_gate=min_gate,
            first=first,
            anchors=[list(islice(corners, 4)) for _ in range(request.num_anchors[i])],
        )
        levels.append(level)
        first += cells
    return levels


def _decode_anchors(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    request = _Request(*arguments)
    batch, size = _check_decode(request)
    first = request.logits[0]
    found = empty_candidates(first, batch, size, 5 if request.landmarks else 0)
    if batch == 0 or size == 0:
        found[4].zero_()
        return found
    levels = _kernel_levels(request)
    total = levels[-1].first + levels[-1].height * levels[-1].width * levels[-1].num_anchors
    sizes = None if request.sizes is None else contiguous_as(request.sizes, torch.float32)
    center_variance, size_variance = request.variances
    launch(
        "decode_anchors",
        first.device,
        levels,
        len(levels),
        first.dtype,
        batch,
        Decoding(center_variance, size_variance, request.min_side, sizes, size),
        arrays_of(found),
        workspace=(batch, total, size),
    )
    return found


def _fake_decode_anchors(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    request = _Request(*arguments)
    batch, size = _check_decode(request)
    return empty_candidates(request.logits[0], batch, size, 5 if request.landmarks else 0)


register(schema_of("decode_anchors", _Request, returns=5), _decode_anchors, _fake_decode_anchors)
