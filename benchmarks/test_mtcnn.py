"""MTCNN beside facenet-pytorch: the same weights, decoded images, thresholds and threads; and its stages alone.

Floor on the CPU for the mean image of faces/val, in million multiply-adds: P-Net 370 over 217,000 pyramid pixels in 9
levels (conv1 58, conv2 74, conv3 229, heads 10), R-Net 340 for 222 crops, O-Net 280 for 22 crops. That is 10 ms at the
100 GMAC/s that two cores of a 2023 server reach in convolutions.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyface.models import create_model
from pyface.models.mtcnn import MTCNN

FACES_VAL = Path(__file__).parents[2] / "shared" / "data" / "faces" / "val" / "images"
BATCH = 8


@pytest.fixture(params=["astronaut", pytest.param("faces_val", marks=pytest.mark.slow)])
def pictures(request, jpeg, decode) -> list[np.ndarray]:
    """The example image alone, or the first 48 of faces/val, of many sizes."""
    if request.param == "astronaut":
        return [decode(jpeg)]
    if not FACES_VAL.is_dir():
        pytest.skip(f"the annotated photos are not here: {FACES_VAL}")
    return [decode(path.read_bytes()) for path in sorted(FACES_VAL.iterdir())[:48]]


def detect_all(model: MTCNN, images: list[torch.Tensor]):
    return [faces for k in range(0, len(images), BATCH) for faces in model.detect(images[k : k + BATCH])]


@pytest.mark.parametrize("library", ["pyface", "facenet-pytorch"])
def test_mtcnn(library, pictures, device, facenet, timed):
    task = f"{len(pictures)} decoded images"
    expected = create_model("mtcnn").detect([torch.from_numpy(pictures[0])])[0].boxes
    assert len(expected) >= 1
    if library == "pyface":
        model = create_model("mtcnn").to(device)
        images = [torch.from_numpy(picture).to(device) for picture in pictures]
        torch.testing.assert_close(model.detect(images[:1])[0].boxes.cpu(), expected, rtol=0, atol=0.05)
        timed(lambda: detect_all(model, images), "mtcnn", task)
        return
    other = facenet()
    boxes, best = other.detect(pictures[0])[0], expected[0].numpy()
    assert np.abs(boxes - best).max(1).min() < 0.15 * (best[2] - best[0])  # the peer finds our best face, too
    timed(lambda: [other.detect(picture) for picture in pictures], "mtcnn", task, library)


class Recorded(nn.Module):
    """A network that records inputs and outputs, then replays the outputs.

    Attributes:
        notes: (input, answer) of each call since the recording began.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.notes, self.place = net, [], None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.place is None:
            self.notes.append((x, self.net(x)))
            return self.notes[-1][1]
        self.place += 1
        return self.notes[(self.place - 1) % len(self.notes)][1]


@pytest.mark.parametrize("part", ["networks alone", "all but the networks"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@torch.inference_mode()
def test_parts(part, batch, device, jpeg, decode, timed):
    model, images = create_model("mtcnn").to(device), [torch.from_numpy(decode(jpeg)).to(device)] * batch
    model.pnet, model.rnet, model.onet = nets = [Recorded(net) for net in (model.pnet, model.rnet, model.onet)]
    expected = model.detect(images)
    for net in nets:
        net.place = 0
    for again, faces in zip(model.detect(images), expected, strict=True):
        assert torch.equal(again.boxes, faces.boxes)
    task = f"{part}, {batch} x 512 x 512"
    if part == "networks alone":
        timed(lambda: [net.net(x) for net in nets for x, _ in net.notes], "mtcnn", task)
    else:
        timed(lambda: model.detect(images), "mtcnn", task)
