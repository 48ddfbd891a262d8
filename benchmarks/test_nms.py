"""The NMS family beside torchvision, lsnms and OpenCV.

Floor on the CPU: each box is read and ordered once (20 bytes and a radix sort) and meets only kept boxes nearby; an op
call costs some 15 us whatever the size. Floor on CUDA: one launch up to some thousand boxes a segment.
"""

import cv2
import pytest
import torch

from pyface import ops
from pyface.ops import reference

SIZES = [100, 1_000, 5_000, 20_000]


def random_boxes(n: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform on 1000 x 1000, sides 10-70."""
    generator = torch.Generator().manual_seed(n)
    corner = torch.rand(n, 2, generator=generator) * 1000
    side = 10 + 60 * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + side], 1).to(device), torch.rand(n, generator=generator).to(device)


def peers(name: str):
    if name == "torchvision":
        return pytest.importorskip("torchvision", reason="torchvision is not installed").ops.nms
    lsnms = pytest.importorskip("lsnms", reason="lsnms is not installed")
    return lambda boxes, scores, threshold: lsnms.nms(boxes.numpy(), scores.numpy(), iou_threshold=threshold)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("library", ["pyface", "torchvision", "lsnms", "opencv"])
def test_nms(library, n, device, timed, benchmark):
    benchmark.group = f"nms {n} boxes {device}"
    boxes, scores = random_boxes(n, device)
    if library == "pyface":
        if n <= 5_000:
            assert torch.equal(ops.nms(boxes, scores, 0.3), reference.nms(boxes, scores, 0.3))
        timed(lambda: ops.nms(boxes, scores, 0.3))
        return
    if device == "cuda" and library != "torchvision":
        pytest.skip(f"{library} has no CUDA nms")
    if library == "opencv":
        if n > 5_000:
            pytest.skip("OpenCV's nms takes minutes at this size")
        rectangles = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        values = scores.tolist()
        timed(lambda: cv2.dnn.NMSBoxes(rectangles, values, 0.0, 0.3))
        return
    peer = peers(library)
    assert set(map(int, peer(boxes, scores, 0.3))) == set(ops.nms(boxes, scores, 0.3).tolist())
    timed(lambda: peer(boxes, scores, 0.3))


@pytest.mark.cuda
@pytest.mark.parametrize("library", ["pyface", "torchvision"])
def test_nms_100_000_boxes(library, timed, benchmark, device):
    benchmark.group = f"nms 100000 boxes {device}"
    boxes, scores = random_boxes(100_000, device)
    call = ops.nms if library == "pyface" else peers(library)
    timed(lambda: call(boxes, scores, 0.3))


@pytest.mark.parametrize("library", ["pyface", "torchvision"])
@pytest.mark.parametrize("classes", [4, 80])
def test_batched_nms(library, classes, device, timed, benchmark):
    benchmark.group = f"batched_nms 5000 boxes {classes} classes {device}"
    boxes, scores = random_boxes(5_000, device)
    idxs = (torch.arange(5_000) % classes).to(device)
    if library == "pyface":
        assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.3), reference.batched_nms(boxes, scores, idxs, 0.3))
        timed(lambda: ops.batched_nms(boxes, scores, idxs, 0.3))
    else:
        torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
        timed(lambda: torchvision.ops.batched_nms(boxes, scores, idxs, 0.3))


@pytest.mark.parametrize("library", ["pyface", "torchvision, one call an image"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_nms_padded(library, batch, device, timed, benchmark):
    benchmark.group = f"nms_padded {batch} x 1000 boxes {device}"
    boxes, scores = random_boxes(batch * 1_000, device)
    boxes, scores = boxes.view(batch, 1_000, 4), scores.view(batch, 1_000)
    if library == "pyface":
        keep, count = ops.nms_padded(boxes, scores, None, 0.3, max_detections=1_000)
        for b in range(batch):
            assert torch.equal(keep[b, : count[b]], reference.nms(boxes[b], scores[b], 0.3))
        timed(lambda: ops.nms_padded(boxes, scores, None, 0.3, max_detections=1_000))
    else:
        nms = peers("torchvision")
        timed(lambda: [nms(boxes[b], scores[b], 0.3) for b in range(batch)])


@pytest.mark.parametrize("library", ["pyface", "opencv"])
@pytest.mark.parametrize("n", [100, 1_000])
def test_soft_nms(library, n, device, timed, benchmark):
    benchmark.group = f"soft_nms {n} boxes {device}"
    boxes, scores = random_boxes(n, device)
    if library == "pyface":
        keep, values = ops.soft_nms(boxes, scores, method="gaussian")
        expected, expected_values = reference.soft_nms(boxes, scores, method="gaussian")
        assert torch.equal(keep, expected)
        torch.testing.assert_close(values, expected_values)
        timed(lambda: ops.soft_nms(boxes, scores, method="gaussian"))
    else:
        if device == "cuda":
            pytest.skip("opencv has no CUDA soft_nms")
        rectangles = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).int().tolist()
        values = scores.tolist()
        timed(lambda: cv2.dnn.softNMSBoxes(rectangles, values, 0.001, 0.3, sigma=0.5))


@pytest.mark.parametrize("library", ["pyface", "plain torch"])
@pytest.mark.parametrize("n", [100, 1_000])
def test_box_voting(library, n, device, timed, benchmark):
    benchmark.group = f"box_voting {n} boxes {device}"
    boxes, scores = random_boxes(n, device)
    torch.testing.assert_close(
        ops.box_voting(boxes, scores, 0.3), reference.box_voting(boxes, scores, 0.3), rtol=1e-6, atol=1e-4
    )
    module = ops if library == "pyface" else reference
    timed(lambda: module.box_voting(boxes, scores, 0.3))
