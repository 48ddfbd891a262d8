"""Counts what every CUDA kernel costs on the emulated device of tests/cuda_host: no GPU, the same on every machine.

    pytest benchmarks -m cuda_host         # rewrites benchmarks/results/cuda_host.json; other runs leave it out
    python benchmarks/report.py            # then the table of docs/cuda.md
    pytest tests/cuda_host/test_counts.py  # fails where a count is more than 5 % above the kept one

A floor is what no implementation can avoid: one launch, and the bytes of all inputs that decide the result and of all
outputs, in sectors of 32 bytes.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyface import ops
from pyface.ops import AnchorLevel, LevelMaps

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks/results/cuda_host.json"
SECTOR = 32  # bytes


@dataclass(frozen=True)
class Case:
    """An op on one input.

    Attributes:
        floor: Bytes that must be read; those of the results are added.
        launches: How many must follow one another.
    """

    op: str
    task: str
    call: Callable[[], object]
    floor: int
    launches: int = 1


def cases() -> Iterator[Case]:
    """All ops, at sizes that the emulated device runs in seconds."""
    yield from suppression()
    yield from decoding()
    yield from training()
    yield from pixels()


def suppression() -> Iterator[Case]:
    for n in (1_000, 5_000):
        boxes, scores = random_boxes(n)
        yield Case("nms", f"{n:,} boxes", lambda b=boxes, s=scores: ops.nms(b, s, 0.3), 20 * n)
    boxes, scores = random_boxes(4_000)
    boxes, scores = boxes.view(8, 500, 4), scores.view(8, 500)
    yield Case(
        "nms_padded",
        "8 x 500 boxes",
        lambda: ops.nms_padded(boxes, scores, None, 0.3, max_detections=200),
        20 * 4_000,
    )
    few, few_scores = random_boxes(300)
    yield Case("soft_nms", "300 boxes", lambda: ops.soft_nms(few, few_scores, 0.3), 20 * 300)
    some, some_scores = random_boxes(1_500)
    yield Case("box_voting", "1,500 boxes", lambda: ops.box_voting(some, some_scores, 0.3), 20 * 1_500)
    crowd = torch.tensor([0.0, 0, 100, 100]) + torch.rand(1_500, 4, generator=seeded(0))
    yield Case("box_voting", "1,500 boxes, one cluster", lambda: ops.box_voting(crowd, some_scores, 0.3), 20 * 1_500)


def decoding() -> Iterator[Case]:
    squares = [[(s / 2 - half, s / 2 - half, s / 2 + half, s / 2 + half) for half in (s, 2 * s)] for s in (4, 8)]
    levels = [AnchorLevel(s, tuple(anchors)) for s, anchors in zip((4, 8), squares, strict=True)]
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        maps = head_maps(memory_format)
        yield Case(
            "decode_anchors",
            f"2 x 7,840 anchors, 2 % survive, {layout}",
            lambda maps=maps: ops.decode_anchors(maps, levels, score_threshold=0.5, max_candidates=200),
            # All logits, and a sector per map and survivor, or one where the four deltas lie together.
            sum(m.logits.nbytes for m in maps) + survivors(maps) * SECTOR * (4 if layout == "NCHW" else 1),
        )
    equal = [LevelMaps(torch.zeros_like(m.logits), m.boxes) for m in head_maps(torch.contiguous_format, side=80)]
    yield Case(
        "decode_anchors",
        "2 x 16,000 anchors, all survive with equal scores",
        lambda: ops.decode_anchors(equal, levels, score_threshold=0.4, max_candidates=200),
        sum(m.logits.nbytes + m.boxes.nbytes for m in equal),
    )
    scores, offsets = torch.rand(2, 1, 50, 50, generator=seeded(0)), torch.randn(2, 4, 50, 50, generator=seeded(1))
    yield Case(
        "decode_densebox",
        "2 x 50 x 50 cells, 5 % survive",
        lambda: ops.decode_densebox(scores, offsets, score_threshold=0.95, max_candidates=200),
        scores.nbytes + int((scores > 0.95).sum()) * 4 * SECTOR,
    )


def training() -> Iterator[Case]:
    anchors = torch.cat([grid_of_anchors(stride, 320) for stride in (4, 8, 16)])
    rules = {"ssh": {"positive": 0.5, "negative": 0.3}}
    rules["s3fd"] = {"positive": 0.35, "negative": 0.35, "force_best": True, "compensate": "mean"}
    for name, rule in rules.items():
        faces = random_faces(30, 320)
        yield Case(
            "assign_anchors",
            f"8,400 anchors x 30 faces, {name}",
            lambda f=faces, r=rule: ops.assign_anchors(anchors, f, torch.tensor([0, len(f)]), **r),
            anchors.nbytes + faces.nbytes,
        )
    crowd = torch.tensor([150.0, 150, 170, 170]) + torch.rand(300, 4, generator=seeded(0))
    yield Case(
        "assign_anchors",
        "8,400 anchors x 300 faces at one place, s3fd",
        lambda: ops.assign_anchors(anchors, crowd, torch.tensor([0, 300]), **rules["s3fd"]),
        anchors.nbytes + crowd.nbytes,
    )
    losses = torch.rand(2, 8_400, generator=seeded(0))
    index = (torch.arange(losses.numel()).view_as(losses) % 97 == 0).int() - 1
    read = losses.nbytes + index.nbytes
    yield Case("hard_negatives", "2 x 8,400 anchors", lambda: ops.hard_negatives(losses, index), read)
    yield Case("balanced_sample", "2 x 8,400 anchors", lambda: ops.balanced_sample(losses, index, seed=0), read)
    many = torch.rand(70_000, generator=seeded(0))
    yield Case("online_hard", "70,000 losses", lambda: ops.online_hard(many, keep=0.7), many.nbytes)
    centre = 40 + 160 * torch.rand(8, 2, generator=seeded(0))
    faces = torch.cat([centre - 25, centre + 25], 1)
    yield Case(
        "densebox_targets",
        "2 x 60 x 60 cells, 8 faces",
        lambda: ops.densebox_targets(faces, torch.tensor([0, 4, 8]), (60, 60)),
        faces.nbytes,
    )


def pixels() -> Iterator[Case]:
    images = [torch.randint(256, (120, 90, 3), dtype=torch.uint8, generator=seeded(i)) for i in range(2)]
    read = sum(image.nbytes for image in images)
    yield Case("letterbox", "2 x 120 x 90 to 80", lambda: ops.letterbox(images, (80, 80)), read)
    boxes = random_faces(8, 90)
    owner = torch.arange(8) % 2
    area = int((boxes[:, 2:] - boxes[:, :2]).clamp(max=90).prod(1).sum())
    yield Case("crop_resize", "8 crops to 24", lambda: ops.crop_resize(images, boxes, owner, (24, 24)), 3 * area)
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        logits = torch.randn(2, 4, 40, 40, generator=seeded(0)).contiguous(memory_format=memory_format)
        for op in (ops.maxout_background, ops.face_probability):
            task = f"2 x 4 x 40 x 40, {layout}"
            yield Case(op.__name__, task, lambda op=op, logits=logits: op(logits, 3), logits.nbytes)
    logits = torch.randn(2, 4, 40, 40, generator=seeded(0)).requires_grad_()
    yield Case(
        "maxout_background",
        "2 x 4 x 40 x 40, NCHW, and its gradient",
        lambda: torch.autograd.grad(ops.maxout_background(logits, 3).sum(), logits),
        # In channels of the logits: all 4; then the background's 3 again, the outputs' 2 and their gradient's 2.
        logits.nbytes * (4 + 3 + 2 + 2) // 4,
        launches=2,
    )


# --- inputs ----------------------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(n: int) -> tuple[Tensor, Tensor]:
    """Uniform, as dense as 1,000 boxes of sides 10-70 on 1000 x 1000."""
    generator = seeded(n)
    corner = torch.rand(n, 2, generator=generator) * 1000 * (n / 1000) ** 0.5
    side = 10 + 60 * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + side], 1), torch.rand(n, generator=generator)


def random_faces(n: int, size: float) -> Tensor:
    generator = seeded(n)
    centre, half = torch.rand(n, 2, generator=generator) * size, 5 + 25 * torch.rand(n, 1, generator=generator)
    return torch.cat([centre - half, centre + half], 1)


def grid_of_anchors(stride: int, size: int) -> Tensor:
    """A square of four strides in every cell."""
    centre = (torch.arange(size // stride) + 0.5) * stride
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack([x, y], -1).view(-1, 2)
    return torch.cat([points - 2 * stride, points + 2 * stride], 1)


def head_maps(memory_format: torch.memory_format, side: int = 56) -> list[LevelMaps]:
    """Two images' maps of two levels with two anchors per cell, of which 2 % score above 0.5."""
    maps = []
    for cells in (side, side // 2):
        logits = torch.randn(2, 4, cells, cells, generator=seeded(cells))
        logits[:, 2:] -= 2.9
        boxes = torch.randn(2, 8, cells, cells, generator=seeded(cells + 1))
        maps.append(LevelMaps(*(m.contiguous(memory_format=memory_format) for m in (logits, boxes))))
    return maps


def survivors(maps: list[LevelMaps]) -> int:
    return sum(int((m.logits[:, 2:] > m.logits[:, :2]).sum()) for m in maps)


# --- counting --------------------------------------------------------------------------------------------------------


def load_host() -> ModuleType:
    """tests/cuda_host/host.py, as the tests' conftest loads it."""
    if "host" not in sys.modules:
        spec = importlib.util.spec_from_file_location("host", ROOT / "tests/cuda_host/host.py")
        module = sys.modules["host"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["host"]


def count(device, case: Case) -> dict[str, int]:
    """A case's counts; ops must already run on the device."""
    results: list[object] = []
    counts = device.count(lambda: results.append(case.call()))
    written = sum(tensor.nbytes for tensor in load_host().tensors_of(results))
    return counts | {"floor_sectors": -(-case.floor // SECTOR) + -(-written // SECTOR), "floor_launches": case.launches}


@pytest.mark.slow  # so that only -m cuda_host selects it
@pytest.mark.cuda_host
def test_write_counts():
    host = load_host()
    device = host.Device(host.build(ROOT, ROOT / "build" / f"cuda_host-{sys.implementation.cache_tag}"))
    with pytest.MonkeyPatch.context() as patch:
        host.use(device, patch, "counts")
        rows = [{"op": case.op, "task": case.task} | count(device, case) for case in cases()]
    assert all(row["launches"] >= row["floor_launches"] for row in rows)
    KEPT.write_text(json.dumps({"command": "pytest benchmarks -m cuda_host", "counts": rows}, indent=1) + "\n")
