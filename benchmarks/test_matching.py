"""assign_anchors beside torchvision's box_iou and a maximum.

Floor on the CPU: anchors are read twice (32 bytes) and results written twice (16 bytes); an anchor is compared only
with the faces near its block of 64. Floor on CUDA: the same bytes, and one launch per rule. torchvision holds A x G
floats several times over: 14 MB here, 20 GB for a million anchors and 5,000 faces.
"""

import pytest
import torch

from pyface import ops
from pyface.ops import reference

SETTINGS = {
    "ssh": {"positive": 0.5, "negative": 0.3},
    "s3fd": {"positive": 0.35, "negative": 0.35, "force_best": True, "compensate": "mean"},
}


def s3fd_anchors(size: int, device: str) -> torch.Tensor:
    """34,125 at 640: a square of four strides in every cell."""
    found = []
    for stride in (4, 8, 16, 32, 64, 128):
        centre = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        points = torch.stack([x, y], -1).view(-1, 2)
        found.append(torch.cat([points - 2 * stride, points + 2 * stride], 1))
    return torch.cat(found).to(device)


def random_faces(n: int, size: float, device: str) -> torch.Tensor:
    """Sides 10-100, many small."""
    generator = torch.Generator().manual_seed(n)
    centre = torch.rand(n, 2, generator=generator) * size
    half = 5 + 45 * torch.rand(n, 1, generator=generator) ** 3
    return torch.cat([centre - half, centre + half], 1).to(device)


# Rule 1, the best face of each anchor, is all that SSH has.
LIBRARIES = [("pyface", "ssh"), ("pyface", "s3fd"), ("torchvision", "ssh")]


@pytest.mark.parametrize(("library", "rules"), LIBRARIES)
@pytest.mark.parametrize("faces", [1, 100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_one_image(library, rules, faces, device, peer, timed):
    anchors, boxes = s3fd_anchors(640, device), random_faces(faces, 640, device)
    splits, options = torch.tensor([0, faces], device=device), SETTINGS[rules]
    task = f"34,125 anchors x {faces:,} faces, {rules}"
    result = ops.assign_anchors(anchors, boxes, splits, **options)
    if library == "pyface":
        for got, expected in zip(result, reference.assign_anchors(anchors, boxes, splits, **options), strict=True):
            assert torch.equal(got, expected)
        timed(lambda: ops.assign_anchors(anchors, boxes, splits, **options), "assign_anchors", task)
        return
    box_iou = peer("torchvision").ops.box_iou
    assert torch.equal(box_iou(anchors, boxes).max(1).values, result[1][0])
    timed(lambda: box_iou(anchors, boxes).max(1), "assign_anchors", task, "torchvision's box_iou")


@pytest.mark.parametrize(("library", "rules"), LIBRARIES)
@pytest.mark.parametrize("batch", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_batch(library, rules, batch, device, peer, timed):
    anchors, boxes = s3fd_anchors(640, device), random_faces(batch * 100, 640, device)
    splits, options = torch.arange(batch + 1, device=device) * 100, SETTINGS[rules]
    task = f"{batch} x 34,125 anchors x 100 faces, {rules}"
    result = ops.assign_anchors(anchors, boxes, splits, **options)
    last = ops.assign_anchors(anchors, boxes[-100:], splits[:2], **options)
    for got, expected in zip(result, last, strict=True):
        assert torch.equal(got[-1:], expected)
    if library == "pyface":
        timed(lambda: ops.assign_anchors(anchors, boxes, splits, **options), "assign_anchors", task)
        return
    box_iou = peer("torchvision").ops.box_iou

    def one_by_one() -> list[torch.Tensor]:
        return [box_iou(anchors, boxes[100 * b : 100 * b + 100]).max(1).values for b in range(batch)]

    assert torch.equal(torch.stack(one_by_one()), result[1])
    timed(one_by_one, "assign_anchors", task, "torchvision's box_iou, an image at a time")


@pytest.mark.parametrize("rules", SETTINGS)
def test_a_million_anchors_and_5000_faces(rules, device, timed):
    anchors = s3fd_anchors(3_584, device)[:1_000_000]
    boxes, splits = random_faces(5_000, 3_584, device), torch.tensor([0, 5_000], device=device)
    _, overlap = ops.assign_anchors(anchors, boxes, splits, **SETTINGS[rules])
    some = slice(0, 1_000_000, 1_000)
    _, expected = reference.assign_anchors(anchors[some], boxes, splits, **SETTINGS[rules])
    assert (overlap[:, some] == expected).float().mean() > 0.95  # which anchors compensate depends on all of them
    task = f"1,000,000 anchors x 5,000 faces, {rules}"
    timed(lambda: ops.assign_anchors(anchors, boxes, splits, **SETTINGS[rules]), "assign_anchors", task)
