"""Folding batch normalisation into convolutions, which saves passes over memory at inference."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


def fold_batch_norms(model: Model) -> Model:
    """Copies a model for inference, with each batch normalisation folded into the convolution before it.

    A batch normalisation is folded if a module registers it right after a convolution with as many channels, as all
    networks here do. Layers with a method `folded` are replaced with what it returns. The copy returns the same maps up
    to rounding (about 1e-6 of their size in float32). Folded layers have different state keys, and no parameter
    requires gradients. The result is a copy even if there is nothing to fold, so casting it never affects the model.

    Fold before casting: in half precision the folded weights would be rounded a second time. The copy supports
    `half()`, `to(memory_format=torch.channels_last)`, `torch.compile` and CUDA graphs like any other model.

    Args:
        model: A model in evaluation mode; it is not modified.

    Raises:
        ValueError: The model is in training mode, where normalisation depends on the batch.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norms(layers)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
    """
    if model.training:
        raise ValueError("model must be in evaluation mode, got one in training mode; call eval() first")
    folded = copy.deepcopy(model)
    for parent in list(folded.modules()):
        _fold_children(parent)
    return folded.requires_grad_(False)


def _fold_children(parent: nn.Module) -> None:
    """Folds a module's direct children, in the order of registration."""
    before: tuple[str, nn.Conv2d] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and _fits(before[1], child):
            setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(parent, name, nn.Identity())
        elif callable(folded := getattr(child, "folded", None)):
            setattr(parent, name, folded())
        before = (name, child) if isinstance(child, nn.Conv2d) else None
    if type(parent) is nn.Sequential:
        _drop_identities(parent)


def _fits(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return convolution.out_channels == norm.num_features and norm.running_mean is not None


def _drop_identities(layers: nn.Sequential) -> None:
    """Removes identities and renumbers the layers."""
    kept = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    if len(kept) < len(layers):
        while len(layers):
            del layers[0]
        layers.extend(kept)
