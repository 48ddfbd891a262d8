"""Every op in plain torch: the specification that the kernels are tested against.

Names, signatures and results are those of pyface.ops; the code is written for readers, not for speed. Arithmetic is
float32 in the kernels' order of operations, and thresholds are compared as doubles.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyface.ops.anchors import AnchorLevel, Candidates, LevelMaps, anchor_boxes
from pyface.ops.densebox import DenseBoxMaps


def overlap_with(box: Tensor, boxes: Tensor, overlap: str) -> Tensor:
    """Overlap of one box [4] with boxes [N, 4], float32 [N]; NaN where it is 0 / 0."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    areas, area = area_of(boxes), area_of(box[None])
    if overlap == "union":
        return intersection / (area + areas - intersection)
    return intersection / torch.minimum(area, areas)


def area_of(boxes: Tensor) -> Tensor:
    """Areas of boxes [N, 4], float32 [N]; 0 where x2 < x1 or y2 < y1."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0)


def order_by_score(boxes: Tensor, scores: Tensor, score_threshold: float = -math.inf) -> Tensor:
    """Indices of the finite entries with a score > the threshold, score descending, ties by index."""
    valid = boxes.isfinite().all(1) & scores.isfinite() & (scores.double() > score_threshold)
    order = torch.argsort(scores, descending=True, stable=True)
    return order[valid[order]]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, overlap: str = "union") -> Tensor:
    boxes, scores = boxes.detach().float(), scores.detach().float()
    order = order_by_score(boxes, scores)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[~(overlap_with(boxes[best], boxes[order], overlap).double() > iou_threshold)]
    return torch.stack(kept) if kept else order


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, overlap: str = "union") -> Tensor:
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for value in idxs.unique():
        members = torch.where(idxs == value)[0]
        kept[members[nms(boxes[members], scores[members], iou_threshold, overlap=overlap)]] = True
    order = order_by_score(boxes.detach().float(), scores.detach().float())
    return order[kept[order]]


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor | None,
    iou_threshold: float,
    *,
    max_detections: int,
    score_threshold: float | None = None,
    overlap: str = "union",
) -> tuple[Tensor, Tensor]:
    batch, n = boxes.shape[:2]
    keep = torch.full((batch, max_detections), -1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(batch, dtype=torch.int32, device=boxes.device)
    for b in range(batch):
        valid = n if counts is None else int(counts[b])
        counting = scores[b, :valid].detach().float().clone()
        if score_threshold is not None:
            counting[~(counting.double() > score_threshold)] = math.nan
        kept = nms(boxes[b, :valid], counting, iou_threshold, overlap=overlap)[:max_detections]
        keep[b, : len(kept)] = kept
        count[b] = len(kept)
    return keep, count


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    overlap: str = "union",
) -> tuple[Tensor, Tensor]:
    boxes, scores = boxes.detach().float(), scores.detach().float().clone()
    # By index, so that the first maximum is the tie's lowest index.
    remaining = order_by_score(boxes, scores, score_threshold).sort().values
    kept: list[Tensor] = []
    while len(remaining):
        place = scores[remaining].argmax()
        best = remaining[place]
        kept.append(best)
        remaining = torch.cat([remaining[:place], remaining[place + 1 :]])
        ratio = overlap_with(boxes[best], boxes[remaining], overlap)
        if method == "linear":
            weight = torch.where(ratio.double() > iou_threshold, 1 - ratio, torch.ones_like(ratio))
        else:
            weight = torch.where(ratio > 0, torch.exp(-(ratio * ratio) / sigma), torch.ones_like(ratio))
        scores[remaining] *= weight
        remaining = remaining[scores[remaining].double() > score_threshold]
    keep = torch.stack(kept) if kept else remaining
    return keep, scores[keep]


def box_voting(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, drop_singletons: bool = False, overlap: str = "union"
) -> tuple[Tensor, Tensor]:
    boxes, scores = boxes.detach().float(), scores.detach().float()
    order = order_by_score(boxes, scores)
    voted_boxes, voted_scores = [], []
    while len(order):
        best = order[0]
        member = overlap_with(boxes[best], boxes[order], overlap).double() >= iou_threshold
        member[0] = True
        cluster, order = order[member], order[~member]
        if drop_singletons and len(cluster) == 1:
            continue
        weights = scores[cluster].double().clamp(min=0)
        mean = (weights[:, None] * boxes[cluster].double()).sum(0) / weights.sum()
        voted_boxes.append(mean.float() if weights.sum() > 0 else boxes[best])
        voted_scores.append(scores[best])
    if not voted_boxes:
        return boxes.new_empty(0, 4), scores.new_empty(0)
    return torch.stack(voted_boxes), torch.stack(voted_scores)


def resampling_matrix(low: float, high: float, scale: float, interpolation: str, outputs: int, pixels: int) -> Tensor:
    """Weights [outputs, pixels] of one axis: output i covers a footprint around low + (i + 0.5) * scale.

    The footprint is 1 pixel wide for "bilinear" and max(1, scale) for "area", and is clipped to [low, high]; pixel k
    covers [k, k + 1).
    """
    footprint = max(1.0, scale) if interpolation == "area" else 1.0
    center = low + (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
    lowest, highest = low + footprint / 2, high - footprint / 2
    center = torch.full_like(center, (low + high) / 2) if lowest > highest else center.clamp(lowest, highest)
    pixel = torch.arange(pixels, dtype=torch.float64)
    begin = torch.maximum(pixel, center[:, None] - footprint / 2)
    end = torch.minimum(pixel + 1, center[:, None] + footprint / 2)
    return ((end - begin).clamp(min=0) / footprint).float()


def _resample(image: Tensor, rows: Tensor, columns: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    value = torch.einsum("hy,yxc,wx->chw", rows.to(image.device), image.float(), columns.to(image.device))
    mean_of, std_of = (torch.tensor(v, device=image.device, dtype=torch.float32)[:, None, None] for v in (mean, std))
    return (value - mean_of) / std_of


def letterbox(
    images: Sequence[Tensor],
    size: tuple[int, int],
    *,
    scales: Sequence[float] | None = None,
    interpolation: str = "area",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    out = torch.zeros(len(images), 3, *size, device=images[0].device, dtype=torch.float32)
    if scales is None:
        scales = [min(size[0] / image.shape[0], size[1] / image.shape[1]) for image in images]
    for i, (image, ratio) in enumerate(zip(images, scales, strict=True)):
        sides = image.shape[:2]
        height, width = (
            min(max(math.floor(side * ratio + 0.5), 1), limit) for side, limit in zip(sides, size, strict=True)
        )
        rows = resampling_matrix(0, sides[0], 1 / ratio, interpolation, height, sides[0])
        columns = resampling_matrix(0, sides[1], 1 / ratio, interpolation, width, sides[1])
        out[i, :, :height, :width] = _resample(image, rows, columns, mean, std)
    return out, torch.tensor(scales, dtype=torch.float64)


def crop_resize(
    images: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    out = torch.zeros(len(boxes), 3, *size, device=boxes.device, dtype=torch.float32)
    for i, (x1, y1, x2, y2) in enumerate(boxes.detach().float().tolist()):
        image = images[int(image_index[i])]
        rows = resampling_matrix(y1, y2, max(0.0, y2 - y1) / size[0], interpolation, size[0], image.shape[0])
        columns = resampling_matrix(x1, x2, max(0.0, x2 - x1) / size[1], interpolation, size[1], image.shape[1])
        out[i] = _resample(image, rows, columns, mean, std)
    return out


def maxout_background(logits: Tensor, num_background: int) -> Tensor:
    return torch.cat([logits[:, :num_background].amax(1, keepdim=True), logits[:, num_background:]], 1)


def maxout_background_backward(gradient: Tensor, logits: Tensor, num_background: int) -> Tensor:
    background = logits[:, :num_background]
    largest = background.amax(1, keepdim=True)
    is_largest = (background == largest) | (background.isnan() & largest.isnan())
    is_first = is_largest & (is_largest.cumsum(1) == 1)
    return torch.cat([torch.where(is_first, gradient[:, :1], 0), gradient[:, 1:]], 1)


def face_probability(logits: Tensor, num_background: int) -> Tensor:
    return torch.sigmoid(face_evidence(logits.float(), num_background))


def face_evidence(logits: Tensor, num_background: int) -> Tensor:
    """Face minus largest background logit [B, ...] of logits [B, num_background + 1, ...]; the score is its sigmoid."""
    face = logits[:, num_background]
    return face - logits[:, :num_background].amax(1) if num_background else face


def logit(probability: float) -> float:
    """The evidence whose sigmoid is the given probability."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def decode_boxes(anchors: Tensor, deltas: Tensor, variances: tuple[float, float]) -> Tensor:
    """Anchors [..., 4] moved and resized by deltas (dx, dy, dw, dh) [..., 4]."""
    start, sides = anchors[..., :2], anchors[..., 2:] - anchors[..., :2]
    center = (start + sides * 0.5) + (deltas[..., :2] * variances[0]) * sides
    half = (sides * (deltas[..., 2:] * variances[1]).double().exp().float()) * 0.5
    return torch.cat([center - half, center + half], -1)


def decode_points(anchors: Tensor, deltas: Tensor, variances: tuple[float, float]) -> Tensor:
    """Points of anchors [..., 4] from deltas [..., 5, 2]."""
    start, sides = anchors[..., None, :2], (anchors[..., 2:] - anchors[..., :2])[..., None, :]
    return (start + sides * 0.5) + (deltas * variances[0]) * sides


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
    batch, device = maps[0].logits.shape[0], maps[0].logits.device
    map_sizes = [(level_maps.logits.shape[2], level_maps.logits.shape[3]) for level_maps in maps]
    num_points = 0 if maps[0].landmarks is None else 5
    thresholds = score_threshold if isinstance(score_threshold, Sequence) else [score_threshold] * len(levels)

    def by_anchor(tensor: Tensor, k: int) -> Tensor:
        """Rearranges a map [B, K * n, H, W] to [B, H * W * K, n]."""
        _, channels, height, width = tensor.shape
        parts = tensor.detach().float().reshape(batch, k, channels // k, height, width).permute(0, 3, 4, 1, 2)
        return parts.reshape(batch, height * width * k, channels // k)

    evidence, passes, boxes, points, limits = [], [], [], [], []
    for level_maps, level, size, threshold in zip(maps, levels, map_sizes, thresholds, strict=True):
        k = len(level.anchors)
        # Logits lie class by class, boxes and landmarks anchor by anchor.
        logits = level_maps.logits.unflatten(1, (level.num_background + 1, k)).transpose(1, 2).flatten(1, 2)
        x = face_evidence(by_anchor(logits, k).movedim(2, 1), level.num_background)
        level_passes = x.isfinite() & (x.double() > logit(threshold))
        if level_maps.gate is not None:
            gate = by_anchor(level_maps.gate, k)[..., 0]
            level_passes &= gate.isfinite() & (gate.double() > logit(gate_threshold))
        anchors = anchor_boxes([level], [size], device).expand(batch, -1, 4)
        if level_maps.offsets is not None:
            anchors = decode_boxes(anchors, by_anchor(level_maps.offsets, k), variances)
        level_boxes = decode_boxes(anchors, by_anchor(level_maps.boxes, k), variances)
        level_points = level_boxes.new_zeros(*level_boxes.shape[:2], 0, 2)
        if level_maps.landmarks is not None:
            level_points = decode_points(anchors, by_anchor(level_maps.landmarks, k).unflatten(2, (5, 2)), variances)
        level_passes &= level_boxes.isfinite().all(2) & level_points.isfinite().flatten(2).all(2)
        if sizes is not None:
            limit = sizes.detach().float().flip(1)[:, None].repeat(1, 1, 2)  # height, width -> x, y, x, y
            level_boxes = torch.minimum(level_boxes.clamp(min=0), limit)
        sides = level_boxes[..., 2:] - level_boxes[..., :2]
        level_passes &= (sides > 0).all(2) & (sides.double() >= min_side).all(2)
        evidence.append(x)
        passes.append(level_passes)
        boxes.append(level_boxes)
        points.append(level_points)
        limits.append(x.shape[1] if level.max_candidates is None else min(level.max_candidates, x.shape[1]))

    found = Candidates(
        boxes=torch.zeros(batch, min(max_candidates, sum(limits)), 4, device=device, dtype=torch.float32),
        scores=torch.zeros(batch, min(max_candidates, sum(limits)), device=device, dtype=torch.float32),
        landmarks=torch.zeros(
            batch, min(max_candidates, sum(limits)), num_points, 2, device=device, dtype=torch.float32
        ),
        index=torch.full((batch, min(max_candidates, sum(limits))), -1, dtype=torch.int64, device=device),
        count=torch.zeros(batch, dtype=torch.int32, device=device),
    )

    def best(x: Tensor, index: Tensor, limit: int) -> Tensor:
        """Those of `index` (ascending) with the largest x, ties by index."""
        return index[torch.argsort(x[index], descending=True, stable=True)[:limit]]

    for b in range(batch):
        merged, first = [], 0
        for level_x, level_passes, most in zip(evidence, passes, limits, strict=True):
            merged.append(first + best(level_x[b], torch.where(level_passes[b])[0], most))
            first += level_x.shape[1]
        x = torch.cat([level_x[b] for level_x in evidence])
        index = best(x, torch.cat(merged).sort().values, max_candidates)
        found.index[b, : len(index)] = index
        found.scores[b, : len(index)] = torch.sigmoid(x[index].double()).float()
        found.boxes[b, : len(index)] = torch.cat([level_boxes[b] for level_boxes in boxes])[index]
        found.landmarks[b, : len(index)] = torch.cat([level_points[b] for level_points in points])[index]
        found.count[b] = len(index)
    return found


def assign_anchors(
    anchors: Tensor,
    boxes: Tensor,
    splits: Tensor,
    *,
    positive: float,
    negative: float,
    force_best: bool = False,
    compensate: str | int | None = None,
    ignore: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    anchors, boxes, device = anchors.detach().float(), boxes.detach().float(), anchors.device
    batch, num_anchors = len(splits) - 1, anchors.shape[-2]
    ignore = torch.zeros(len(boxes), dtype=torch.bool, device=device) if ignore is None else ignore
    valid = torch.ones(num_anchors, dtype=torch.bool, device=device) if valid is None else valid
    index = torch.empty(batch, num_anchors, dtype=torch.int32, device=device)
    overlap = torch.empty(batch, num_anchors, device=device, dtype=torch.float32)
    for b in range(batch):
        own = slice(int(splits[b]), int(splits[b + 1]))
        index[b], overlap[b] = assign_anchors_of_image(
            anchors if anchors.ndim == 2 else anchors[b],
            boxes[own],
            ignore[own],
            valid if valid.ndim == 1 else valid[b],
            positive,
            negative,
            force_best,
            compensate,
        )
    return index, overlap


def assign_anchors_of_image(
    anchors: Tensor,
    boxes: Tensor,
    ignore: Tensor,
    valid: Tensor,
    positive: float,
    negative: float,
    force_best: bool,
    compensate: str | int | None,
) -> tuple[Tensor, Tensor]:
    """Assigns an image's own boxes [G, 4] to anchors [A, 4]; returns index [A] and overlap [A]."""
    valid = valid & anchors.isfinite().all(1)
    is_face = ~ignore & boxes.isfinite().all(1) & (area_of(boxes) > 0)
    faces = torch.where(is_face)[0].tolist()
    iou = torch.zeros(
        len(boxes) + 1, len(anchors), device=anchors.device, dtype=torch.float32
    )  # the last row stands for "no face"
    for face in faces:
        iou[face] = torch.where(valid, overlap_with(boxes[face], anchors, "union").nan_to_num(nan=0), 0)

    # 1. Every anchor's best face, the first among equals.
    overlap, best_face = iou.max(0)
    unmatched = torch.where(overlap.double() < negative, -1, -2)
    index = torch.where(overlap.double() >= positive, best_face, unmatched)

    # 2. Every face's best anchor, the first among equals; the higher IoU wins, then the lower face.
    if force_best and len(anchors):
        forced = [(float(iou[face].max()), face, int(iou[face].argmax())) for face in faces]
        for value, face, anchor in sorted(forced, key=lambda force: (force[0], -force[1])):
            if value > 0:
                index[anchor], overlap[anchor] = face, iou[face, anchor]

    # 3. More anchors for faces that have few.
    counts = [int((index == face).sum()) for face in faces]
    if compensate is not None and faces:
        mean = (2 * sum(counts) + len(faces)) // (2 * len(faces))  # floor(mean + 0.5)
        wanted = max(1, mean) if compensate == "mean" else int(compensate)
        for face, count in zip(faces, counts, strict=True):
            candidates = torch.where((index < 0) & (best_face == face) & (overlap.double() > 0.1))[0]
            order = torch.argsort(overlap[candidates], descending=True, stable=True)
            index[candidates[order[: max(0, wanted - count)]]] = face

    # 4. Anchors in ignore boxes; then invalid ones.
    for box in boxes[ignore & boxes.isfinite().all(1)]:
        sides = (torch.minimum(box[2:], anchors[:, 2:]) - torch.maximum(box[:2], anchors[:, :2])).clamp(min=0)
        intersection = sides[:, 0] * sides[:, 1]
        index[(index < 0) & (intersection > 0) & (intersection >= 0.5 * area_of(anchors))] = -2
    index[~valid] = -2
    return index.int(), overlap


def hard_negatives(losses: Tensor, index: Tensor, *, ratio: float = 3.0, minimum: int = 16) -> Tensor:
    losses = losses.detach().float()
    selected = torch.zeros_like(losses, dtype=torch.bool)
    for b in range(len(losses)):
        background = torch.where((index[b] == -1) & losses[b].isfinite())[0]
        wanted = max(minimum, math.floor(ratio * int((index[b] >= 0).sum())))
        selected[b, background[hardest_first(losses[b, background])[:wanted]]] = True
    return selected


def balanced_sample(
    losses: Tensor,
    index: Tensor,
    *,
    ratio: float = 1.0,
    hard_fraction: float = 0.01,
    minimum: int = 16,
    seed: int,
) -> Tensor:
    losses = losses.detach().float()
    selected = index >= 0
    for b in range(len(losses)):
        background = torch.where((index[b] == -1) & losses[b].isfinite())[0]
        wanted = min(max(minimum, math.floor(ratio * int((index[b] >= 0).sum()))), len(background))
        half = (wanted + 1) // 2
        size = max(math.ceil(hard_fraction * len(background)), half)
        order = hardest_first(losses[b, background])
        hard, rest = background[order[:size]].sort().values, background[order[size:]].sort().values
        from_rest = min(wanted - half, len(rest))
        for entries, count in ((hard, wanted - from_rest), (rest, from_rest)):
            chosen = torch.argsort(random_keys(seed, b, entries), stable=True)[:count]
            selected[b, entries[chosen]] = True
    return selected


def online_hard(losses: Tensor, *, keep: float = 0.7, valid: Tensor | None = None) -> Tensor:
    losses = losses.detach().float()
    counting = losses.isfinite() if valid is None else losses.isfinite() & valid
    entries = torch.where(counting)[0]
    selected = torch.zeros_like(counting)
    selected[entries[hardest_first(losses[entries])[: math.ceil(keep * len(entries))]]] = True
    return selected


def hardest_first(losses: Tensor) -> Tensor:
    """Order of losses [N], descending, ties by index."""
    return torch.argsort(losses, descending=True, stable=True)


def random_keys(seed: int, image: int, entries: Tensor) -> Tensor:
    """A random number in [0, 2**32) for each entry [N] of an image, int64 [N]: csrc/sampling.h's random_key."""
    stream = split_mix(split_mix(torch.tensor(seed)) + image)
    return shift_right(split_mix(stream.to(entries.device) + entries), 32)


def split_mix(x: Tensor) -> Tensor:
    """SplitMix64's output in state x; int64 represents uint64, as both wrap in the same way."""
    x = x - 0x61C8864680B583EB  # the constants exceed int64, so their negatives are used
    x = (x ^ shift_right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift_right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """x >> bits of the unsigned number that int64 x represents."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


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
    (batch, _, height, width), device = scores.shape, scores.device
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([columns, rows, columns, rows]).to(device).float()
    boxes = (cells - torch.tensor(unit, device=device, dtype=torch.float32) * offsets.detach().float()) * float(
        stride
    ) + stride * 0.5
    boxes = boxes.permute(0, 2, 3, 1).flatten(1, 2)
    x = scores.detach().float().flatten(1)
    passes = x.isfinite() & (x.double() > score_threshold) & boxes.isfinite().all(2)
    if sizes is not None:
        limit = sizes.detach().float().flip(1)[:, None].repeat(1, 1, 2)  # height, width -> x, y, x, y
        boxes = torch.minimum(boxes.clamp(min=0), limit)
    sides = boxes[..., 2:] - boxes[..., :2]
    passes &= (sides > 0).all(2) & (sides.double() >= min_side).all(2)
    size = min(max_candidates, height * width)
    found = Candidates(
        boxes=torch.zeros(batch, size, 4, device=device, dtype=torch.float32),
        scores=torch.zeros(batch, size, device=device, dtype=torch.float32),
        landmarks=torch.zeros(batch, size, 0, 2, device=device, dtype=torch.float32),
        index=torch.full((batch, size), -1, dtype=torch.int64, device=device),
        count=torch.zeros(batch, dtype=torch.int32, device=device),
    )
    for b in range(batch):
        index = torch.where(passes[b])[0]
        index = index[torch.argsort(x[b, index], descending=True, stable=True)[:size]]
        found.boxes[b, : len(index)] = boxes[b, index]
        found.scores[b, : len(index)] = x[b, index].clamp(0, 1)
        found.index[b, : len(index)] = index
        found.count[b] = len(index)
    return found


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
    device, batch = boxes.device, len(splits) - 1
    # On the CPU, with numbers as tensors: a GPU would multiply by a number's reciprocal instead of dividing by it.
    boxes = boxes.detach().float().cpu()

    def of(number: float) -> Tensor:
        return torch.tensor(float(number))  # an int may be too large for torch

    points = (
        torch.zeros(len(boxes), 0, 2, dtype=torch.float32) if landmarks is None else landmarks.detach().float().cpu()
    )
    y, x = torch.meshgrid(torch.arange(size[0]).float(), torch.arange(size[1]).float(), indexing="ij")
    pixel_x, pixel_y = x * stride + stride * 0.5, y * stride + stride * 0.5

    def disc(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells a disc around a pixel covers, radius in cells, and their squared distances in units of it."""
        center = (center - stride * 0.5) / of(stride)
        squared = (x - center[0]) * (x - center[0]) + (y - center[1]) * (y - center[1])
        holds_center = (x == (center[0] + 0.5).floor()) & (y == (center[1] + 0.5).floor())
        return (squared <= radius * radius) | holds_center, squared / (radius * radius)

    def labels(positive: Tensor, ignored: Tensor) -> Tensor:
        """1, 0 and -1 for masks [H, W], with the gray zone ignored."""
        for i, j in positive.nonzero().tolist():
            ignored = ignored | ((x - j) * (x - j) + (y - i) * (y - i) <= of(gray) * of(gray))
        return torch.where(positive, 1, torch.where(ignored, -1, 0)).to(torch.int8)

    found = DenseBoxMaps(
        torch.zeros(batch, *size, dtype=torch.int8),
        torch.zeros(batch, 4, *size, dtype=torch.float32),
        torch.zeros(batch, points.shape[1], *size, dtype=torch.int8),
    )
    for b in range(batch):
        positive, ignored = torch.zeros(2, *size, dtype=torch.bool)
        landmark_positive, landmark_ignored = torch.zeros(2, points.shape[1], *size, dtype=torch.bool)
        nearest = torch.full(size, math.inf, dtype=torch.float32)
        for g in range(int(splits[b]), int(splits[b + 1])):
            x1, y1, x2, y2 = boxes[g]
            if not boxes[g].isfinite().all() or not x2 > x1 or not y2 > y1:
                continue
            inside = (pixel_x >= x1) & (pixel_x < x2) & (pixel_y >= y1) & (pixel_y < y2)
            if ignore is not None and ignore[g]:
                ignored |= inside
                landmark_ignored |= inside
                continue
            side = (y2 - y1) / of(face)
            is_face = bool(of(positive_band[0]) <= side <= of(positive_band[1]))
            if not is_face and not of(ignore_band[0]) <= side <= of(ignore_band[1]):
                continue
            center = torch.stack([(x1 + x2) * 0.5, (y1 + y2) * 0.5])
            covered, distance = disc(center, of(radius) * (y2 - y1) / of(stride))
            if is_face:
                owned = covered & (~positive | (distance < nearest))
                corners = (pixel_x - x1, pixel_y - y1, pixel_x - x2, pixel_y - y2)
                offsets = torch.stack(corners) / (of(stride) * of(unit))
                found.offsets[b] = torch.where(owned, offsets, found.offsets[b])
                nearest = torch.where(owned, distance, nearest)
                positive |= covered
            else:
                ignored |= covered
            for n, point in enumerate(points[g]):
                if not point.isfinite().all():
                    landmark_ignored[n] |= inside
                elif is_face:
                    landmark_positive[n] |= disc(point, of(landmark_radius))[0]
                else:
                    landmark_ignored[n] |= disc(point, of(landmark_radius))[0]
        found.label[b] = labels(positive, ignored)
        for n in range(points.shape[1]):
            found.landmark_label[b, n] = labels(landmark_positive[n], landmark_ignored[n])
    return DenseBoxMaps(*(value.to(device) for value in found))
