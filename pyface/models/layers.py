"""Layers that several detectors share, and weight initialisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class L2Norm(nn.Module):
    """L2 normalisation of every cell's vector, times a learned scale per channel (S3FD, docs/detectors.md 2.1).

    Maps at different depths differ in magnitude by powers of ten; this layer brings the shallow ones to one magnitude.
    The output has the input's shape and dtype. The norm is summed in float32, since squares overflow float16.
    """

    EPSILON = 1e-10  # cells of zeros, which a ReLU may produce, stay zero

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return _UnitCells.apply(x, self.weight)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32) + self.EPSILON
        return (x / norm * self.weight[:, None, None]).to(x.dtype)


class _UnitCells(torch.autograd.Function):
    """`L2Norm` in training, with an explicit gradient.

    Autograd's version makes a dozen passes over float32 copies of the largest map, which made training steps of
    `s3fd_lite` on a CPU a fifth longer. Cells of zeros have no direction and get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        inverse = norm.reciprocal().masked_fill_(norm == 0, 0).to(x.dtype)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight[:, None, None].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, weight = ctx.saved_tensors
        of_weight = (gradient * unit).sum((0, 2, 3), dtype=weight.dtype)
        gradient = gradient * weight[:, None, None].to(gradient.dtype)
        along = (gradient * unit).sum(1, keepdim=True)  # the component that would only change the vector's length
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse), of_weight


class BilinearUpsample(nn.Module):
    """Upsampling by 2 as a fixed transposed convolution per channel (SSH's `conv5_128_up`, docs/detectors.md 5.1).

    The map is padded with zeros, so the outermost rows and columns get smaller values than with `F.interpolate`.
    Weights trained with this layer expect that. Maps [B, C, H, W] become [B, C, 2 H, 2 W]; nothing is trained or saved.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", bilinear_kernel(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel, stride=2, padding=1, groups=self.channels)


def bilinear_kernel(channels: int) -> Tensor:
    """Caffe's bilinear filler [channels, 1, 4, 4]: the outer product of (1, 3, 3, 1) / 4 with itself."""
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return torch.outer(side, side).repeat(channels, 1, 1, 1)


def xavier(module: nn.Module) -> None:
    """Initialises every convolution in a module with Xavier's uniform weights and zero biases, as Caffe does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def gaussian(module: nn.Module, deviation: float = 0.01, bias: float = 0.0) -> None:
    """Initialises every convolution in a module with N(0, deviation) weights and a constant bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)
