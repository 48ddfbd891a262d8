"""From S3FD's head maps at 640 x 640 (34,125 anchors, 2 % of them above the threshold) to faces.

"usual torch chain": permute and concatenate the maps, max-out, softmax, decode all anchors, threshold, top-k and
torchvision's nms image by image (ours where torchvision is missing).

Floor of decode_anchors: each logit is read once, 478 KB per image in float32 (4 logits per cell on the first level, 2
on the others), and a cache line of each of 4 deltas for each of the 683 survivors, 175 KB: 44 us per image at the 15
GB/s that a core reads from memory here, less from its caches. On a GPU of 3 TB/s it is 0.2 us, so that the launches are
the floor. A call costs some 45 us of Python, and up to 10 us more to wake a thread.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from pyface import ops
from pyface.ops import AnchorLevel, LevelMaps, reference

SIDE, THRESHOLD, IOU, KEPT = 640, 0.05, 0.3, 750
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
LEVELS = [
    AnchorLevel(s, ((-1.5 * s, -1.5 * s, 2.5 * s, 2.5 * s),), 3 if s == 4 else 1) for s in (4, 8, 16, 32, 64, 128)
]


def head_maps(batch: int, device: str, dtype: torch.dtype = torch.float32, last: bool = False) -> list[LevelMaps]:
    """Random maps in which 2 % of the anchors pass."""
    generator = torch.Generator().manual_seed(batch)
    maps = []
    for level in LEVELS:
        side = SIDE // level.stride
        logits = torch.randn(batch, level.num_background + 1, side, side, generator=generator)
        passes = torch.rand(batch, side, side, generator=generator) < 0.02
        logits[:, -1] = (
            logits[:, :-1].amax(1)
            + torch.where(passes, -2.5, -12.0)
            + 4 * torch.rand(passes.shape, generator=generator)
        )
        boxes = 0.5 * torch.randn(batch, 4, side, side, generator=generator)
        memory_format = torch.channels_last if last else torch.contiguous_format
        maps.append(LevelMaps(*(t.to(device, dtype).contiguous(memory_format=memory_format) for t in (logits, boxes))))
    return maps


def by_anchor(tensors: list[Tensor]) -> Tensor:
    """The maps of all levels as [B, A, channels]."""
    return torch.cat([t.permute(0, 2, 3, 1).reshape(t.shape[0], -1, t.shape[1]) for t in tensors], 1)


def torch_candidates(maps: list[LevelMaps], anchors: Tensor, max_candidates: int) -> list[tuple[Tensor, Tensor]]:
    """Boxes and scores of each image, best first."""
    logits = [maps[0].logits[:, :3].amax(1, keepdim=True), maps[0].logits[:, 3:]]
    scores = by_anchor([torch.cat(logits, 1)] + [level.logits for level in maps[1:]]).softmax(-1)[..., 1]
    deltas = by_anchor([level.boxes for level in maps])
    sides = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + sides / 2 + deltas[..., :2] * 0.1 * sides
    half = sides * torch.exp(deltas[..., 2:] * 0.2) / 2
    boxes = torch.cat([centre - half, centre + half], -1)
    found = []
    for image_scores, image_boxes in zip(scores, boxes, strict=True):
        passes = image_scores > THRESHOLD
        image_scores, image_boxes = image_scores[passes], image_boxes[passes]
        best, order = image_scores.topk(min(max_candidates, len(image_scores)))
        found.append((image_boxes[order], best))
    return found


def torch_faces(maps: list[LevelMaps], anchors: Tensor, max_candidates: int, nms) -> list[tuple[Tensor, Tensor]]:
    faces = []
    for boxes, scores in torch_candidates(maps, anchors, max_candidates):
        keep = nms(boxes.float(), scores.float(), IOU)[:KEPT]
        faces.append((boxes[keep], scores[keep]))
    return faces


def faces_of(maps: list[LevelMaps], max_candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    found = ops.decode_anchors(maps, LEVELS, score_threshold=THRESHOLD, max_candidates=max_candidates)
    keep, count = ops.nms_padded(found.boxes, found.scores, found.count, IOU, max_detections=KEPT)
    place = keep.clamp(min=0)
    return found.boxes.gather(1, place[..., None].expand(-1, -1, 4)), found.scores.gather(1, place), count


@pytest.fixture
def any_nms():
    """Suppression for the chain: torchvision's, or ours where it is missing."""
    try:
        from torchvision.ops import nms
    except ImportError:
        return "usual torch chain, our nms", ops.nms
    return "usual torch chain, torchvision's nms", nms


@pytest.mark.parametrize("library", ["pyface", "torch"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_decode_and_nms(library, batch, device, any_nms, timed):
    name, nms = any_nms
    maps, kept = head_maps(batch, device), 5000
    anchors = ops.anchor_boxes(LEVELS, [tuple(level.logits.shape[2:]) for level in maps], device)
    boxes, scores, count = faces_of(maps, kept)
    for b, (their_boxes, their_scores) in enumerate(torch_faces(maps, anchors, kept, nms)):
        if count[b] != len(their_boxes):  # ties at the limit, in another order
            assert abs(count[b] - len(their_boxes)) < 0.01 * len(their_boxes)
            continue
        torch.testing.assert_close(scores[b, : count[b]], their_scores, rtol=0, atol=1e-4)
        # Scores that are equal in float32 come in any order there.
        assert ((boxes[b, : count[b]] - their_boxes).abs().amax(1) < 1e-3).float().mean() > 0.98
    task = f"S3FD's maps at 640, batch {batch}"
    if library == "pyface":
        timed(lambda: faces_of(maps, kept), "decode_anchors + nms_padded", task)
    else:
        timed(lambda: torch_faces(maps, anchors, kept, nms), "decode_anchors + nms_padded", task, name)


@pytest.mark.parametrize("library", ["pyface", "usual torch chain"])
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_decode(library, batch, dtype, last, device, timed):
    task = f"S3FD's maps at 640, batch {batch}, {'channels_last' if last else 'NCHW'}"
    maps, options = head_maps(batch, device, dtype, last), {"score_threshold": THRESHOLD, "max_candidates": 5000}
    found = ops.decode_anchors(maps, LEVELS, **options)
    if library == "pyface":
        assert torch.equal(found.index, reference.decode_anchors(maps, LEVELS, **options).index)
        call = partial(ops.decode_anchors, maps, LEVELS, **options)
    else:
        anchors = ops.anchor_boxes(LEVELS, [tuple(level.logits.shape[2:]) for level in maps], device).to(dtype)
        call = partial(torch_candidates, maps, anchors, 5000)
        counts = torch.tensor([len(scores) for _, scores in call()])
        assert (counts - found.count.cpu()).abs().max() <= (2 if dtype == torch.float32 else 50)  # its scores round
    timed(call, "decode_anchors", task, library, PRECISIONS[dtype])


@pytest.mark.parametrize("side", [320, 640])
def test_anchor_boxes(side, device, timed):
    sizes = [(side // level.stride,) * 2 for level in LEVELS]
    boxes = ops.anchor_boxes(LEVELS, sizes, device)
    assert len(boxes) == sum(height * width for height, width in sizes)
    assert torch.equal(boxes[1], boxes[0] + torch.tensor([4.0, 0, 4, 0], device=device))
    timed(lambda: ops.anchor_boxes(LEVELS, sizes, device), "anchor_boxes", f"S3FD's at {side}")
