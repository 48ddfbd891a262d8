"""Initial weights for backbones, and freezing of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyface.models.backbones import Backbone
from pyface.models.checkpoints import CheckpointError, flatten, read_any, renamed, without_prefix
from pyface.models.inference import IMAGENET_STD, Preprocessing
from pyface.models.single_shot import SingleShot


def load_backbone(model: SingleShot, path: str) -> None:
    """Loads a backbone's weights into a detector; other layers stay as they are.

    Args:
        model: The detector.
        path: Weights of any of pyface's detectors with the same backbone, or torchvision's VGG16, VGG19 or ResNet-50.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file holds another backbone.
    """
    backbone = model.backbone
    state = without_prefix(flatten(read_any(Path(path))[0]), "module.")
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    else:
        state = _from_torchvision(state, backbone, model.preprocessing)
    expected = {key: value.shape for key, value in backbone.state_dict().items()}
    wrong = [key for key, shape in expected.items() if key not in state or state[key].shape != shape]
    if wrong:
        kind = type(backbone).__name__
        raise CheckpointError(f"{path} holds no {kind}: missing or of another shape: {', '.join(wrong[:5])}")
    backbone.load_state_dict({key: state[key] for key in expected})


def _from_torchvision(state: dict[str, Tensor], backbone: Backbone, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Converts torchvision's weights to our keys, and to our normalisation of the backbone's input."""
    first = backbone.FIRST
    if first is None:
        raise CheckpointError(
            f"{type(backbone).__name__} is not one of torchvision's networks; give the weights of a lite detector, "
            "which has this backbone"
        )
    state = renamed(state, backbone.torchvision_names(state))
    if first in state:
        # The means differ by less than one pixel value and are left alone.
        scale = torch.tensor(preprocessing.std, dtype=torch.float32) / torch.tensor(IMAGENET_STD, dtype=torch.float32)
        weight = state[first] * scale[:, None, None].to(state[first])
        state[first] = weight.flip(1) if preprocessing.bgr else weight
    return state


def freeze(model: SingleShot, layers: Sequence[str]) -> None:
    """Freezes layers of the backbone: their weights stay fixed, and normalisation uses the loaded statistics."""
    for name in layers:
        model.get_submodule(f"backbone.{name}").eval().requires_grad_(False)
