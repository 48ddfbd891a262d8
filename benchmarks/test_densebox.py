"""DenseBox's maps to candidates, and faces to the maps that the loss compares with.

"usual torch chain", to decode: boxes of all cells, threshold, top-k, image by image; for targets: masks over the map
for all faces of an image at once, the gray zone by a convolution, as training code does it on tensors.

Floor of decode_densebox, 160 x 160 cells (an image of 640 x 640): each score is read once, 102 KB, and a cache line of
each of 4 offsets for each of the 512 survivors, 131 KB: 16 us per image at the 15 GB/s that a core reads from memory
here. Floor of densebox_targets: 22 bytes per cell are written (label, offsets, five landmark maps), 563 KB or 38 us per
image; a face touches one or two hundred cells. On a GPU of 3 TB/s both are below a microsecond, so that the launches
are the floor. A call costs some 25 us of Python.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pyface import ops
from pyface.ops import reference

SIDE, THRESHOLD, KEPT = 160, 0.5, 5000
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def head_maps(batch: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Maps in which 2 % of the cells pass."""
    generator = torch.Generator().manual_seed(batch)
    scores = 0.4 * torch.rand(batch, 1, SIDE, SIDE, generator=generator)
    scores += 0.5 * (torch.rand(scores.shape, generator=generator) < 0.02)
    corners = torch.tensor([0.5, 0.5, -0.5, -0.5])[:, None, None]
    offsets = corners + 0.1 * torch.randn(batch, 4, SIDE, SIDE, generator=generator)
    return scores.to(device, dtype), offsets.to(device, dtype)


def torch_candidates(scores: Tensor, offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Boxes and scores of each image, best first."""
    height, width = scores.shape[2:]
    y, x = torch.meshgrid(*(torch.arange(side, device=scores.device) for side in (height, width)), indexing="ij")
    boxes = (torch.stack([x, y, x, y]) - 12.5 * offsets.float()) * 4 + 2
    found = []
    for image_scores, image_boxes in zip(scores.float().flatten(1), boxes.flatten(2), strict=True):
        cells = (image_scores > THRESHOLD).nonzero().squeeze(1)
        best, order = image_scores[cells].topk(min(KEPT, len(cells)))
        found.append((image_boxes[:, cells[order]].T, best))
    return found


@pytest.mark.parametrize("library", ["pyface", "usual torch chain"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_decode(library, batch, dtype, device, timed):
    maps = head_maps(batch, device, dtype)

    def decode():
        return ops.decode_densebox(*maps, score_threshold=THRESHOLD, max_candidates=KEPT)

    found = decode()
    for b, (boxes, scores) in enumerate(torch_candidates(*maps)):
        assert found.count[b] == len(boxes)
        torch.testing.assert_close(found.scores[b, : len(boxes)], scores, rtol=0, atol=0)
        same = (found.boxes[b, : len(boxes)] - boxes).abs().amax(1) < 1e-3
        assert dtype != torch.float32 or same.float().mean() > 0.98  # ties come in any order there
    call = decode if library == "pyface" else lambda: torch_candidates(*maps)
    timed(call, "decode_densebox", f"{batch} x 160 x 160 cells", library, PRECISIONS[dtype])


def faces(batch: int, each: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, splits and landmarks; half of the faces are of the right size."""
    generator = torch.Generator().manual_seed(batch)
    count = batch * each
    centre = 640 * torch.rand(count, 2, generator=generator)
    half = (10 + 40 * torch.rand(count, 1, generator=generator)).expand(-1, 2)
    landmarks = centre[:, None] + half[:, None] * (torch.rand(count, 5, 2, generator=generator) - 0.5)
    boxes = torch.cat([centre - half, centre + half], 1)
    return boxes.to(device), each * torch.arange(batch + 1, device=device), landmarks.to(device)


def torch_targets(boxes: Tensor, splits: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Label, offsets and landmark labels by masks over the map, all faces of an image at once."""
    y, x = torch.meshgrid(*(4.0 * torch.arange(SIDE, device=boxes.device) + 2 for _ in range(2)), indexing="ij")
    gray = torch.zeros(1, 1, 5, 5, device=boxes.device)
    for i in range(5):
        for j in range(5):
            gray[0, 0, i, j] = (i - 2) ** 2 + (j - 2) ** 2 <= 4

    def label_of(positive: Tensor, ignored: Tensor) -> Tensor:
        zone = torch.nn.functional.conv2d(positive[:, None].float(), gray, padding=2)[:, 0] > 0
        return torch.where(positive, 1, torch.where(zone | ignored, -1, 0)).to(torch.int8)

    maps = []
    cuts = splits.tolist()
    for first, last in pairwise(cuts):
        own, points = boxes[first:last], landmarks[first:last]
        height = own[:, 3] - own[:, 1]
        centre = (own[:, :2] + own[:, 2:]) / 2
        distance = ((x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2).sqrt()
        ratio = distance / (0.3 * height[:, None, None])
        is_face = (height >= 40) & (height <= 62.5)
        is_near = ~is_face & (height >= 30) & (height <= 83.5)
        nearest, owner = ratio.masked_fill(~is_face[:, None, None], torch.inf).min(0)
        positive = nearest <= 1
        ignored = ((ratio <= 1) & is_near[:, None, None]).any(0)
        x1, y1, x2, y2 = own[owner].unbind(-1)
        offsets = torch.where(positive, torch.stack([x - x1, y - y1, x - x2, y - y2]) / 50, 0)
        px, py = (points[..., k, None, None] for k in (0, 1))
        on_point = (x - px) ** 2 + (y - py) ** 2 <= 16
        near = (on_point & is_near[:, None, None, None]).any(0)
        on_point = (on_point & is_face[:, None, None, None]).any(0)
        maps.append((label_of(positive[None], ignored[None])[0], offsets, label_of(on_point, near)))
    label, offsets, landmark_label = zip(*maps, strict=True)
    return torch.stack(label), torch.stack(offsets), torch.stack(landmark_label)


@pytest.mark.parametrize("library", ["pyface", "usual torch chain"])
@pytest.mark.parametrize(("batch", "each"), [(1, 10), (8, 10), pytest.param(32, 30, marks=pytest.mark.slow)])
def test_targets(library, batch, each, device, timed):
    boxes, splits, landmarks = faces(batch, each, device)

    def targets():
        return ops.densebox_targets(boxes, splits, (SIDE, SIDE), landmarks=landmarks)

    got = targets()
    for mine, theirs in zip(got, torch_targets(boxes, splits, landmarks), strict=True):
        assert (mine == theirs).float().mean() > 0.999 or (mine - theirs).abs().mean() < 1e-3
    if batch <= 8:
        expected = reference.densebox_targets(boxes[:each], splits[:2], (SIDE, SIDE), landmarks=landmarks[:each])
        assert torch.equal(got.label[:1], expected.label)
    call = targets if library == "pyface" else lambda: torch_targets(boxes, splits, landmarks)
    timed(call, "densebox_targets", f"{batch} x {each} faces", library)
