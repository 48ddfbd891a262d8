"""MTCNN beside facenet-pytorch: the same weights, pictures, thresholds and threads.

Floor on the CPU for the mean picture of faces/val, in million multiply-adds: P-Net 370 over 217,000 pyramid pixels in 9
levels (conv1 58, conv2 74, conv3 229, heads 10), R-Net 340 for 222 crops, O-Net 280 for 22 crops. That is 10 ms at the
100 GMAC/s that two cores of a 2023 server reach in convolutions.
"""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pyface.models import create_model

ROOT = Path(__file__).parents[1]
FACES_VAL = ROOT.parent / "shared" / "data" / "faces" / "val"
BATCH = 8


def read(paths) -> list[np.ndarray]:
    return [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]


@pytest.fixture(params=["astronaut", "faces_val"])
def pictures(request) -> list[np.ndarray]:
    """The example picture alone, or the first 48 of faces/val, of many sizes."""
    if request.param == "astronaut":
        return read([ROOT / "examples" / "astronaut.jpg"])
    if not FACES_VAL.is_dir():
        pytest.skip(f"the annotated photos are not here: {FACES_VAL}")
    return read(sorted((FACES_VAL / "images").iterdir())[:48])


def facenet_pytorch(device: str):
    # Its import needs torchvision and requests; installed with --no-deps, these may be missing.
    for name in ("facenet_pytorch", "torchvision", "requests"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed, and facenet-pytorch needs it")
    from facenet_pytorch import MTCNN

    thresholds = [0.6, 0.7, 0.7]
    return MTCNN(keep_all=True, min_face_size=20, thresholds=thresholds, factor=0.709, device=torch.device(device))


def detect_all(model, images: list[torch.Tensor]):
    return [faces for k in range(0, len(images), BATCH) for faces in model.detect(images[k : k + BATCH])]


@pytest.mark.parametrize("library", ["pyface", "facenet-pytorch"])
def test_mtcnn(library, pictures, device, benchmark, timed):
    benchmark.group = f"mtcnn {len(pictures)} pictures {device}"
    if library == "pyface":
        model = create_model("mtcnn").to(device)
        images = [torch.from_numpy(picture).to(device) for picture in pictures]
        expected = create_model("mtcnn").detect([torch.from_numpy(pictures[0])])[0]
        torch.testing.assert_close(model.detect(images[:1])[0].boxes.cpu(), expected.boxes, rtol=0, atol=0.05)
        assert len(expected.boxes) >= 1
        timed(lambda: detect_all(model, images))
        return
    peer = facenet_pytorch(device)
    boxes, _ = peer.detect(pictures[0])
    best = create_model("mtcnn").detect([torch.from_numpy(pictures[0])])[0].boxes[0].numpy()
    assert np.abs(boxes - best).max(1).min() < 0.15 * (best[2] - best[0])  # the peer finds our best face, too
    timed(lambda: [peer.detect(picture) for picture in pictures])
