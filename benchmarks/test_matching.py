"""assign_anchors beside torchvision's box_iou and a maximum.

Floor on the CPU: anchors are read twice (32 bytes) and results written twice (16 bytes); an anchor meets only the faces
near its block of 64. Floor on CUDA: the same bytes, and a launch a rule. torchvision holds A x G floats several times
over: 14 MB here, 20 GB for a million anchors and 5,000 faces.
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


def peer():
    return pytest.importorskip("torchvision", reason="torchvision is not installed").ops.box_iou


@pytest.mark.parametrize("library", ["pyface ssh", "pyface s3fd", "torchvision, rule 1 only"])
@pytest.mark.parametrize("faces", [1, 100, 1_000])
def test_one_image(library, faces, device, timed, benchmark):
    benchmark.group = f"34,125 anchors x {faces} faces {device}"
    anchors, boxes = s3fd_anchors(640, device), random_faces(faces, 640, device)
    splits = torch.tensor([0, faces], device=device)
    if library.startswith("pyface"):
        options = SETTINGS[library.split()[1]]
        result = ops.assign_anchors(anchors, boxes, splits, **options)
        for got, expected in zip(result, reference.assign_anchors(anchors, boxes, splits, **options), strict=True):
            assert torch.equal(got, expected)
        timed(lambda: ops.assign_anchors(anchors, boxes, splits, **options))
        return
    box_iou = peer()
    _, overlap = ops.assign_anchors(anchors, boxes, splits, **SETTINGS["ssh"])
    assert torch.equal(box_iou(anchors, boxes).max(1).values, overlap[0])
    timed(lambda: box_iou(anchors, boxes).max(1))


@pytest.mark.parametrize("library", ["pyface ssh", "pyface s3fd", "torchvision, rule 1 only, one call an image"])
def test_batch_of_32(library, device, timed, benchmark):
    benchmark.group = f"32 x 34,125 anchors x 100 faces {device}"
    anchors, boxes = s3fd_anchors(640, device), random_faces(32 * 100, 640, device)
    splits = torch.arange(33, device=device) * 100
    if library.startswith("pyface"):
        timed(lambda: ops.assign_anchors(anchors, boxes, splits, **SETTINGS[library.split()[1]]))
        return
    box_iou = peer()
    timed(lambda: [box_iou(anchors, boxes[100 * b : 100 * b + 100]).max(1) for b in range(32)])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_million_anchors_and_5000_faces(name, device, timed, benchmark):
    benchmark.group = f"1,000,000 anchors x 5,000 faces {device}"
    anchors = s3fd_anchors(3_584, device)[:1_000_000]
    boxes, splits = random_faces(5_000, 3_584, device), torch.tensor([0, 5_000], device=device)
    timed(lambda: ops.assign_anchors(anchors, boxes, splits, **SETTINGS[name]))
