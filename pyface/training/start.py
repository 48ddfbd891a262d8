"""Initial ImageNet weights for the papers' trunks, and freezing of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pyface.models.backbones import VGG, ResNet50
from pyface.models.checkpoints import CheckpointError, flatten, read_any, renamed, without_prefix
from pyface.models.single_shot import SingleShot


def load_backbone(model: SingleShot, path: str) -> None:
    """Loads torchvision's VGG16, VGG19 or ResNet-50 weights into a detector's trunk; other layers stay as they are.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The detector has another trunk, or the file is for another network.
    """
    backbone = model.get_submodule("backbone")
    state = without_prefix(flatten(read_any(Path(path))[0]), "module.")
    if isinstance(backbone, VGG):
        theirs = _convolutions(state)
        ours = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
        state = renamed(state, dict(zip(theirs, ours, strict=False)))
    elif not isinstance(backbone, ResNet50):
        raise CheckpointError(f"{type(model).__name__} has a trunk of its own, there are no ImageNet weights for it")
    expected = {key: value.shape for key, value in backbone.state_dict().items()}
    wrong = [key for key, shape in expected.items() if key not in state or state[key].shape != shape]
    if wrong:
        kind = type(backbone).__name__
        raise CheckpointError(
            f"{path} is no {kind} of torchvision: missing or of another shape: {', '.join(wrong[:5])}"
        )
    backbone.load_state_dict({key: state[key] for key in expected})


def freeze(model: SingleShot, layers: Sequence[str]) -> None:
    """Freezes layers of the trunk: their weights stay fixed, and normalization uses the loaded statistics."""
    for name in layers:
        model.get_submodule(f"backbone.{name}").eval().requires_grad_(False)


def _convolutions(state: dict[str, Tensor]) -> list[str]:
    """torchvision's names of VGG's convolutions in order: features.0, features.2, ..."""
    names = [key.removesuffix(".weight") for key in state if key.startswith("features.") and key.endswith(".weight")]
    return sorted(names, key=lambda name: int(name.split(".")[1]))
