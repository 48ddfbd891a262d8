"""What is exported: a detector with its preprocessing and post-processing, or a network alone, as one module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyface.export.decoding import PlainOps
from pyface.models.single_shot import Preprocessing, SingleShot

Input = Literal["normalised", "uint8"]


class Preprocess(nn.Module):
    """Converts the input of the exported graph to that of the network.

    Normalised images [B, 3, H, W] are RGB, float32; uint8 images are [B, H, W, 3] and normalised here. What lies
    beyond an image's own size in its canvas becomes the mean colour, as `FaceDetector` pads images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, kind: Input, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_raw, self.bgr, self.dtype = kind == "uint8", preprocessing.bgr, dtype
        self.register_buffer("mean", torch.tensor(preprocessing.mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor, sizes: Tensor | None) -> Tensor:
        if self.is_raw:
            images = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
            if sizes is not None:
                images = images * inside(sizes, images.shape[2], images.shape[3])
        if self.bgr:
            images = images[:, [2, 1, 0]]
        return images.to(self.dtype)


def inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels of the canvas belong to the image, float32 [B, 1, H, W], given its size (height, width) [B, 2]."""
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()


class Faces(nn.Module):
    """Finds boxes, scores, landmarks and counts in images, padded with zeros to a fixed number of faces."""

    def __init__(self, model: SingleShot, kind: Input, limits: str) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.preprocessing, kind, model.dtype)
        self.model, self.limits_name = model, limits

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        with PlainOps():
            found = self.model.find(self.preprocess(images, sizes), sizes.float(), limits=self.limits_name)
        valid = torch.arange(found.scores.shape[1], device=found.scores.device) < found.count[:, None]
        outputs = {
            "boxes": torch.where(valid[:, :, None], found.boxes, 0.0),
            "scores": torch.where(valid, found.scores, 0.0),
        }
        if found.landmarks.shape[2]:
            outputs["landmarks"] = torch.where(valid[:, :, None, None], found.landmarks, 0.0)
        return outputs | {"counts": found.count}


class Heads(nn.Module):
    """Computes the network's maps, float32, by the names "logits_0", "boxes_0", ... level by level."""

    def __init__(self, model: SingleShot, kind: Input) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.preprocessing, kind, model.dtype)
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with PlainOps():
            maps = self.model(self.preprocess(images, None))
        return dict(named_maps(maps))


class Network(nn.Module):
    """One of MTCNN's networks; its output is named "outputs"."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with PlainOps():
            return {"outputs": self.network(images)}


def named_maps(maps: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields names and maps of a named tuple; in a list of named tuples, names end with the number of the level."""
    levels = maps if isinstance(maps, list) else [maps]
    for number, level in enumerate(levels):
        for name, value in level._asdict().items():
            if value is not None:
                yield f"{name}_{number}" if isinstance(maps, list) else name, value.float()
