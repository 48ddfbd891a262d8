"""The NMS family beside torchvision, lsnms and OpenCV.

Floor on the CPU: each box is read and ordered once (20 bytes and a radix sort) and compared only with kept boxes
nearby; an op call costs some 15 us whatever the size. Floor on CUDA: one launch up to a few thousand boxes per segment.
"""

from functools import partial

import cv2
import pytest
import torch

from pyface import ops
from pyface.ops import reference

IOU = 0.3


def corner_and_size(boxes: torch.Tensor) -> torch.Tensor:
    """(x, y, width, height), as in OpenCV."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


@pytest.mark.parametrize("n", [100, 1_000, 5_000, 20_000])
@pytest.mark.parametrize("library", ["pyface", "torchvision", "lsnms", "OpenCV"])
def test_nms(library, n, device, random_boxes, peer, timed):
    boxes, scores = random_boxes(n)
    if library not in ("pyface", "torchvision") and device == "cuda":
        pytest.skip(f"{library} has no CUDA nms")
    if library == "OpenCV" and n > 5_000:
        pytest.skip("OpenCV's nms takes minutes at this size")
    if library == "pyface":
        if n <= 5_000:
            assert torch.equal(ops.nms(boxes, scores, IOU), reference.nms(boxes, scores, IOU))
        call = partial(ops.nms, boxes, scores, IOU)
    elif library == "torchvision":
        call = partial(peer("torchvision").ops.nms, boxes, scores, IOU)
    elif library == "lsnms":
        call = partial(peer("lsnms").nms, boxes.numpy(), scores.numpy(), iou_threshold=IOU)
    else:
        call = partial(cv2.dnn.NMSBoxes, corner_and_size(boxes).tolist(), scores.tolist(), 0.0, IOU)
    ours, theirs = set(ops.nms(boxes, scores, IOU).tolist()), set(map(int, call()))
    assert ours == theirs if library != "OpenCV" else len(ours ^ theirs) < 0.01 * n  # its IoU is rounded differently
    timed(call, "nms", f"{n:,} boxes", library)


@pytest.mark.cuda
@pytest.mark.parametrize("library", ["pyface", "torchvision"])
def test_nms_100_000_boxes(library, device, random_boxes, peer, timed):
    if device == "cpu":
        pytest.skip("a size for GPUs")
    boxes, scores = random_boxes(100_000)
    call = ops.nms if library == "pyface" else peer("torchvision").ops.nms
    assert set(call(boxes, scores, IOU).tolist()) == set(ops.nms(boxes.cpu(), scores.cpu(), IOU).tolist())
    timed(lambda: call(boxes, scores, IOU), "nms", "100,000 boxes", library)


@pytest.mark.parametrize("library", ["pyface", "torchvision"])
@pytest.mark.parametrize(("n", "classes"), [(500, 4), (5_000, 4), (5_000, 80)])
def test_batched_nms(library, n, classes, device, random_boxes, peer, timed):
    boxes, scores = random_boxes(n)
    idxs = (torch.arange(n) % classes).to(device)
    call = ops.batched_nms if library == "pyface" else peer("torchvision").ops.batched_nms
    expected = reference.batched_nms(boxes, scores, idxs, IOU)
    difference = set(call(boxes, scores, idxs, IOU).tolist()) ^ set(expected.tolist())
    assert not difference or (library != "pyface" and len(difference) < 0.01 * n)  # torchvision's offsets round
    timed(lambda: call(boxes, scores, idxs, IOU), "batched_nms", f"{n:,} boxes in {classes} classes", library)


@pytest.mark.parametrize("library", ["pyface", "torchvision, an image at a time"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_nms_padded(library, batch, random_boxes, peer, timed):
    task = f"{batch} x 1,000 boxes"
    boxes, scores = random_boxes(1_000, batch)
    keep, count = ops.nms_padded(boxes, scores, None, IOU, max_detections=1_000)
    for b in {0, batch - 1}:
        assert torch.equal(keep[b, : count[b]], reference.nms(boxes[b], scores[b], IOU))
    if library == "pyface":
        timed(partial(ops.nms_padded, boxes, scores, None, IOU, max_detections=1_000), "nms_padded", task)
        return
    nms = peer("torchvision").ops.nms

    def one_by_one() -> list[torch.Tensor]:
        return [nms(boxes[b], scores[b], IOU) for b in range(batch)]

    assert [len(kept) for kept in one_by_one()] == count.tolist()
    timed(one_by_one, "nms_padded", task, library)


@pytest.mark.parametrize("library", ["pyface", "OpenCV"])
@pytest.mark.parametrize("n", [100, 1_000])
def test_soft_nms(library, n, device, random_boxes, timed):
    if library == "OpenCV" and device == "cuda":
        pytest.skip("OpenCV has no CUDA soft_nms")
    boxes, scores = random_boxes(n)
    boxes = boxes.round()  # OpenCV has whole pixels only
    keep, values = ops.soft_nms(boxes, scores, method="gaussian")
    expected, expected_values = reference.soft_nms(boxes, scores, method="gaussian")
    assert torch.equal(keep, expected)
    torch.testing.assert_close(values, expected_values)
    if library == "pyface":
        call = partial(ops.soft_nms, boxes, scores, method="gaussian")
    else:
        rectangles, raw = corner_and_size(boxes).int().tolist(), scores.tolist()
        call = partial(cv2.dnn.softNMSBoxes, rectangles, raw, 0.001, IOU, sigma=0.5)
        theirs = call()[1].ravel()[:20].tolist()
        assert len(set(theirs) & set(keep[:20].tolist())) >= 18
    timed(call, "soft_nms", f"{n:,} boxes, gaussian", library)


@pytest.mark.parametrize("library", ["pyface", "plain torch"])
@pytest.mark.parametrize("n", [100, 1_000])
def test_box_voting(library, n, random_boxes, timed):
    boxes, scores = random_boxes(n)
    torch.testing.assert_close(
        ops.box_voting(boxes, scores, IOU), reference.box_voting(boxes, scores, IOU), rtol=1e-6, atol=1e-4
    )
    module = ops if library == "pyface" else reference
    timed(lambda: module.box_voting(boxes, scores, IOU), "box_voting", f"{n:,} boxes", library)
