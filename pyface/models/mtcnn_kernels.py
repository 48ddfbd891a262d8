"""MTCNN's own kernels: P-Net in one pass over the images, and the convolutions of R-Net and O-Net in one pass over the
crops (docs/detectors.md 3.1).

They are torch ops, `torch.ops.pyface.pnet` and `torch.ops.pyface.convnet`, for inference in float32. On the CPU, P-Net
keeps the rows between its layers in the cache, and a crop stays in one thread's cache from its pixels to its features.
On CUDA the same layers run in torch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyface.ops.extension import (
    check_dtype,
    check_one_device,
    check_shape,
    check_tensors,
    contiguous_as,
    launch,
    register,
    shape_of,
)

_PNET_SHAPES = {
    "conv1": (10, 3, 3, 3),
    "bias1": (10,),
    "slope1": (10,),
    "conv2": (16, 10, 3, 3),
    "bias2": (16,),
    "slope2": (16,),
    "conv3": (32, 16, 3, 3),
    "bias3": (32,),
    "slope3": (32,),
    "heads": (6, 32, 1, 1),
    "bias_heads": (6,),
}
_PNET_SMALLEST = 11  # the pooling rounds up, so 11 pixels give a cell, as 12 do
_LARGEST_MAP = 2**26  # elements in a layer's map of one crop; the kernel counts them in 32 bits


# --- P-Net -----------------------------------------------------------------------------------------------------------


def pnet(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Applies P-Net. The result has no gradient.

    Args:
        images: float32 [B, 3, H, W], normalised, H and W >= 11.
        weights: Eleven float32 tensors: conv1 [10, 3, 3, 3], its bias [10] and PReLU slopes [10]; conv2 [16, 10, 3, 3],
            bias, slopes; conv3 [32, 16, 3, 3], bias, slopes; heads [6, 32, 1, 1], bias.

    Returns:
        float32 [B, 6, (H - 1) // 2 - 4, (W - 1) // 2 - 4]: logits of background and face, offsets (dx1, dy1, dx2, dy2).

    Raises:
        TypeError: An argument is not a tensor, or not float32.
        ValueError: Shapes or devices are wrong, or the images are too small.

    Example:
        >>> import pyface
        >>> net = pyface.create_model("mtcnn").pnet
        >>> pnet(torch.zeros(1, 3, 12, 14), net.weights()).shape
        torch.Size([1, 6, 1, 2])
    """
    weights = list(weights)
    names = ["images", *(f"weights[{i}]" for i in range(len(weights)))]
    check_tensors("pnet", names, (images, *weights))
    return torch.ops.pyface.pnet.default(images.detach(), [weight.detach() for weight in weights])


def pnet_in_torch(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`pnet` in torch, layer by layer."""
    conv1, bias1, slope1, conv2, bias2, slope2, conv3, bias3, slope3, heads, bias_heads = weights
    x = F.max_pool2d(F.prelu(F.conv2d(images, conv1, bias1), slope1), 2, 2, ceil_mode=True)
    x = F.prelu(F.conv2d(x, conv2, bias2), slope2)
    x = F.prelu(F.conv2d(x, conv3, bias3), slope3)
    return F.conv2d(x, heads, bias_heads)


def _check_pnet(images: Tensor, weights: list[Tensor]) -> None:
    if len(weights) != len(_PNET_SHAPES):
        raise ValueError(
            f"pnet: weights must be {len(_PNET_SHAPES)} tensors ({', '.join(_PNET_SHAPES)}), got {len(weights)}."
        )
    check_one_device("pnet", images, *weights)
    check_dtype("pnet", "images", images, (torch.float32,))
    check_shape("pnet", "images", images, images.ndim == 4 and images.shape[1] == 3, "[B, 3, H, W]")
    for (name, shape), weight in zip(_PNET_SHAPES.items(), weights, strict=True):
        check_dtype("pnet", name, weight, (torch.float32,))
        check_shape("pnet", name, weight, weight.shape == shape, str(list(shape)))
    height, width = images.shape[2:]
    if height < _PNET_SMALLEST or width < _PNET_SMALLEST:
        raise ValueError(
            f"pnet: images must have {_PNET_SMALLEST} x {_PNET_SMALLEST} pixels or more, got {height} x {width}."
        )


def _pnet(images: Tensor, weights: list[Tensor]) -> Tensor:
    _check_pnet(images, weights)
    if images.device.type != "cpu":
        return pnet_in_torch(images, weights)
    images, weights = contiguous_as(images, torch.float32), [contiguous_as(weight, torch.float32) for weight in weights]
    out = _empty_pnet(images)
    launch("pnet", out.device, images, *_sizes(images), weights, out)
    return out


def _fake_pnet(images: Tensor, weights: list[Tensor]) -> Tensor:
    _check_pnet(images, weights)
    return _empty_pnet(images)


def _sizes(images: Tensor) -> tuple[int, int, int]:
    return images.shape[0], images.shape[2], images.shape[3]


def _empty_pnet(images: Tensor) -> Tensor:
    batch, height, width = _sizes(images)
    return images.new_empty((batch, 6, (height - 1) // 2 - 4, (width - 1) // 2 - 4))


register("pnet(Tensor images, Tensor[] weights) -> Tensor", _pnet, _fake_pnet)


# --- R-Net and O-Net up to their dense layers ------------------------------------------------------------------------


def convnet(crops: Tensor, weights: Sequence[Tensor], pools: Sequence[int]) -> Tensor:
    """Applies a chain of layers: convolution without padding, PReLU per channel, max-pooling that rounds up.

    The result has no gradient.

    Args:
        crops: float32 [N, C, S, S].
        weights: Three float32 tensors per layer: weight [out, in, k, k], bias [out], PReLU slopes [out].
        pools: Side of each layer's pooling window, at stride 2; 0 for no pooling.

    Returns:
        float32 [N, out, side, side], the last layer's output.

    Raises:
        TypeError: An argument is not a tensor, or not float32.
        ValueError: Shapes or devices do not match, or the crops are too small for the layers.

    Example:
        >>> import pyface
        >>> net = pyface.create_model("mtcnn").rnet
        >>> convnet(torch.zeros(5, 3, 24, 24), net.weights(), net.POOLS).shape
        torch.Size([5, 64, 3, 3])
    """
    weights = list(weights)
    names = ["crops", *(f"weights[{i}]" for i in range(len(weights)))]
    check_tensors("convnet", names, (crops, *weights))
    return torch.ops.pyface.convnet.default(crops.detach(), [weight.detach() for weight in weights], list(pools))


def convnet_in_torch(crops: Tensor, weights: Sequence[Tensor], pools: Sequence[int]) -> Tensor:
    """`convnet` in torch, layer by layer."""
    x = crops
    for weight, bias, slope, pool in zip(weights[::3], weights[1::3], weights[2::3], pools, strict=True):
        x = F.prelu(F.conv2d(x, weight, bias), slope)
        x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
    return x


def pooled_size(size: int, pool: int) -> int:
    """Side of a map of `size` after pooling at stride 2 that rounds up; windows that begin outside do not count."""
    if pool == 0:
        return size
    windows = (size - pool + 1) // 2 + 1
    return windows - 1 if (windows - 1) * 2 >= size else windows


def _check_convnet(crops: Tensor, weights: list[Tensor], pools: list[int]) -> tuple[int, int]:
    """Checks everything; returns the channels and the side of the result."""
    if not pools or len(weights) != 3 * len(pools):
        raise ValueError(
            f"convnet: weights must be three tensors for each of pools, got {len(weights)} and {len(pools)} pools."
        )
    check_one_device("convnet", crops, *weights)
    check_dtype("convnet", "crops", crops, (torch.float32,))
    check_shape("convnet", "crops", crops, crops.ndim == 4 and crops.shape[2] == crops.shape[3], "[N, C, S, S]")
    channels, size = crops.shape[1], crops.shape[2]
    for i, pool in enumerate(pools):
        weight, bias, slope = weights[3 * i : 3 * i + 3]
        for name, tensor in (("weight", weight), ("bias", bias), ("slope", slope)):
            check_dtype("convnet", f"layer {i}'s {name}", tensor, (torch.float32,))
        fits = weight.ndim == 4 and weight.shape[1] == channels and weight.shape[2] == weight.shape[3]
        check_shape("convnet", f"layer {i}'s weight", weight, fits and weight.numel() > 0, f"[out, {channels}, k, k]")
        channels = weight.shape[0]
        for name, tensor in (("bias", bias), ("slope", slope)):
            check_shape("convnet", f"layer {i}'s {name}", tensor, tensor.shape == (channels,), f"[{channels}]")
        if pool < 0:
            raise ValueError(f"convnet: pools must be 0 or more, got {pool}.")
        size = size - weight.shape[2] + 1
        if size < max(1, pool):
            raise ValueError(f"convnet: crops must be large enough for layer {i}, got {shape_of(crops)}.")
        if channels * size * size > _LARGEST_MAP:
            raise ValueError(
                f"convnet: crops must be small, with at most {_LARGEST_MAP:,} elements in a layer's map, "
                f"got {shape_of(crops)}."
            )
        size = pooled_size(size, pool)
    return channels, size


def _convnet(crops: Tensor, weights: list[Tensor], pools: list[int]) -> Tensor:
    out, side = _check_convnet(crops, weights, pools)
    if crops.device.type != "cpu":
        return convnet_in_torch(crops, weights, pools)
    crops, weights = contiguous_as(crops, torch.float32), [contiguous_as(weight, torch.float32) for weight in weights]
    features = crops.new_empty((crops.shape[0], out, side, side))
    layers = [
        (weight, bias, slope, weight.shape[1], weight.shape[0], weight.shape[2], pool)
        for weight, bias, slope, pool in zip(weights[::3], weights[1::3], weights[2::3], pools, strict=True)
    ]
    n, channels, size = crops.shape[:3]
    launch("convnet", crops.device, crops, n, channels, size, layers, len(layers), features, out, side)
    return features


def _fake_convnet(crops: Tensor, weights: list[Tensor], pools: list[int]) -> Tensor:
    out, side = _check_convnet(crops, weights, pools)
    return crops.new_empty((crops.shape[0], out, side, side))


register("convnet(Tensor crops, Tensor[] weights, int[] pools) -> Tensor", _convnet, _fake_convnet)
