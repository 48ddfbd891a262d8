"""Initial weights for the trunks, and freezing of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pyface.models.backbones import VGG, ResNet50
from pyface.models.checkpoints import CheckpointError, flatten, read_any, renamed, without_prefix
from pyface.models.inference import IMAGENET_STD, Preprocessing
from pyface.models.single_shot import SingleShot


def load_backbone(model: SingleShot, path: str) -> None:
    """Loads a trunk's weights into a detector; other layers stay as they are.

    Args:
        model: The detector.
        path: Weights of any of pyface's detectors with the same trunk, or torchvision's VGG16, VGG19 or ResNet-50.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file's trunk is another one.
    """
    backbone = model.get_submodule("backbone")
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


def _from_torchvision(state: dict[str, Tensor], backbone: nn.Module, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """torchvision's weights under our keys, for a trunk whose input is prepared in another way than torchvision's."""
    if isinstance(backbone, VGG):
        ours = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
        state = renamed(state, dict(zip(_convolutions(state), ours, strict=False)))
    elif not isinstance(backbone, ResNet50):
        raise CheckpointError(
            f"{type(backbone).__name__} is not one of torchvision's networks; give the weights of a lite detector, "
            "which has this trunk"
        )
    first = "conv1_1.weight" if isinstance(backbone, VGG) else "conv1.weight"
    if first in state:
        # The means differ by less than one pixel value and are left alone.
        scale = torch.tensor(preprocessing.std) / torch.tensor(IMAGENET_STD)
        weight = state[first] * scale[:, None, None].to(state[first])
        state[first] = weight.flip(1) if preprocessing.bgr else weight
    return state


def freeze(model: SingleShot, layers: Sequence[str]) -> None:
    """Freezes layers of the trunk: their weights stay fixed, and normalisation uses the loaded statistics."""
    for name in layers:
        model.get_submodule(f"backbone.{name}").eval().requires_grad_(False)


def _convolutions(state: dict[str, Tensor]) -> list[str]:
    """torchvision's names of VGG's convolutions in order: features.0, features.2, ..."""
    names = [key.removesuffix(".weight") for key in state if key.startswith("features.") and key.endswith(".weight")]
    return sorted(names, key=lambda name: int(name.split(".")[1]))
