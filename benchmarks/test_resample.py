"""letterbox and crop_resize beside OpenCV and torch.

Floor: the source's bytes are read once and four bytes per value are written; a 1024 x 768 image is 2.4 MB in, a
640 x 640 batch entry 4.9 MB out.
"""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyface import ops
from pyface.ops import reference

MEAN, STD = (104.0, 117.0, 123.0), (1.0, 1.0, 1.0)


def pictures(batch: int, device: str) -> list[torch.Tensor]:
    """Smooth images, which change little within the fraction of a pixel by which libraries differ."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(batch):
        blots = 255 * torch.rand(1, 3, 12, 16, generator=generator)
        smooth = F.interpolate(blots, (768 - 16 * i, 1024 - 8 * i), mode="bilinear")
        found.append(smooth[0].permute(1, 2, 0).to(torch.uint8).contiguous().to(device))
    return found


def opencv_letterbox(images: list[np.ndarray]) -> np.ndarray:
    batch = np.zeros((len(images), 3, 640, 640), np.float32)
    for i, image in enumerate(images):
        ratio = min(640 / image.shape[0], 640 / image.shape[1])
        small = cv2.resize(
            image, (round(image.shape[1] * ratio), round(image.shape[0] * ratio)), interpolation=cv2.INTER_AREA
        )
        normal = (small.astype(np.float32) - np.float32(MEAN)).transpose(2, 0, 1)
        batch[i, :, : normal.shape[1], : normal.shape[2]] = normal
    return batch


@pytest.mark.parametrize("library", ["pyface", "OpenCV"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_letterbox(library, batch, device, timed):
    if library == "OpenCV" and device == "cuda":
        pytest.skip("OpenCV here has no CUDA resize")
    images, task = pictures(batch, device), f"{batch} x 1024 x 768 to 640"
    found = ops.letterbox(images, (640, 640), mean=MEAN)[0]
    if library == "pyface":
        expected = reference.letterbox(images[:1], (640, 640), mean=MEAN, std=STD)[0]
        torch.testing.assert_close(found[:1], expected, rtol=0, atol=1e-3)
        timed(lambda: ops.letterbox(images, (640, 640), mean=MEAN), "letterbox", task)
        return
    arrays = [image.numpy() for image in images]
    distance = (torch.from_numpy(opencv_letterbox(arrays)) - found).abs()
    assert distance.mean() < 1  # its pixels are rounded
    timed(lambda: opencv_letterbox(arrays), "letterbox", task, library)


@pytest.mark.parametrize("library", ["pyface", "torch, a crop at a time"])
@pytest.mark.parametrize("n", [16, 256])
def test_crop_resize(library, n, device, timed):
    images, task = pictures(4, device), f"{n} crops to 24"
    generator = torch.Generator().manual_seed(1)
    corner = (torch.rand(n, 2, generator=generator) * 600).round()
    boxes = torch.cat([corner, corner + 12 + (100 * torch.rand(n, 1, generator=generator)).round()], 1).to(device)
    index = (torch.arange(n) % 4).to(device)
    expected = reference.crop_resize(images, boxes, index, (24, 24))
    torch.testing.assert_close(ops.crop_resize(images, boxes, index, (24, 24)), expected, rtol=0, atol=1e-3)
    if library == "pyface":
        timed(lambda: ops.crop_resize(images, boxes, index, (24, 24)), "crop_resize", task)
        return
    planes = [image.permute(2, 0, 1)[None].float() for image in images]
    places = list(zip(index.tolist(), boxes.int().tolist(), strict=True))

    def crops() -> torch.Tensor:
        cut = [planes[i][:, :, y1:y2, x1:x2] for i, (x1, y1, x2, y2) in places]
        return torch.cat([F.interpolate(crop, (24, 24), mode="bilinear", align_corners=False) for crop in cut])

    torch.testing.assert_close(crops(), expected, rtol=0, atol=1e-2)
    timed(crops, "crop_resize", task, library)
