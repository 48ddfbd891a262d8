"""The `pyface` command with a model that needs no network, for tests of everything around a model.

Run as a program it takes the arguments of `pyface`; FAKE_DELAY seconds are spent on each image.
"""

import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyface.models.base import FaceModel, Faces


class FakeModel(FaceModel):
    """Finds one face for every 40 grey levels of an image's mean, the worst first, each with its own box."""

    def __init__(self, landmarks: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.landmarks = landmarks
        self.batches: list[int] = []

    def detect(
        self, images: Sequence[Tensor], *, score_threshold: float | None = None, min_face: float | None = None
    ) -> list[Faces]:
        self.batches.append(len(images))
        time.sleep(float(os.environ.get("FAKE_DELAY", "0")) * len(images))
        return [self.faces(image, score_threshold or 0.0) for image in images]

    def faces(self, image: Tensor, score_threshold: float) -> Faces:
        assert image.dtype == torch.uint8
        assert image.dim() == 3
        assert image.shape[2] == 3
        assert image.is_contiguous()
        height, width = image.shape[:2]
        count = round(image.float().mean().item() / 40)
        scores = torch.arange(1, count + 1) / 10
        boxes = torch.tensor([[k, k, width / 2 + k, height / 2 + k] for k in range(count)]).reshape(count, 4)
        points = boxes[:, None, :2] + torch.tensor([[3, 3], [9, 3], [6, 6], [3, 9], [9, 9]])
        kept = scores > score_threshold
        return Faces(boxes[kept], scores[kept], points[kept] if self.landmarks else None)


def install() -> None:
    """Puts the fake in the place of every model that is made by name."""
    from pyface.models import zoo

    real = zoo.create_model

    def create_model(name: str, weights: object = "default") -> FaceModel:
        zoo.model_info(name)
        return FakeModel() if weights == "default" else real(name, weights)

    zoo.create_model = create_model


if __name__ == "__main__":
    from pyface.cli import app

    install()
    app(prog_name="pyface")
