"""Small convolutional networks over many small crops: R-Net and O-Net up to their dense layers (docs/detectors.md 3.1).

On the CPU a kernel of our own, which takes a crop from its pixels to its features in one thread's cache; on CUDA the
same layers by cuDNN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyface.ops import reference
from pyface.ops._extension import (
    check_dtype,
    check_one_device,
    check_shape,
    check_tensors,
    launch,
    plain,
    register,
    shape_of,
)

_LARGEST_MAP = 2**26  # numbers in a layer's map of one crop; the kernel counts them in 32 bits


def convnet(crops: Tensor, weights: Sequence[Tensor], pools: Sequence[int]) -> Tensor:
    """Applies a chain of layers: convolution without padding, PReLU per channel, max-pooling that rounds up.

    For inference: the result has no gradient.

    Args:
        crops: float32 [N, C, S, S], square.
        weights: three float32 tensors a layer: weight [out, in, k, k], bias [out], PReLU slopes [out].
        pools: side of each layer's pooling window, at stride 2; 0 for no pooling.

    Returns:
        float32 [N, out, side, side], the last layer's.

    Raises:
        TypeError: not tensors, or not float32.
        ValueError: shapes or devices that do not fit together, or crops too small for the layers.

    Example:
        >>> import torch, pyface
        >>> net = pyface.create_model("mtcnn").rnet
        >>> pyface.ops.convnet(torch.zeros(5, 3, 24, 24), net.weights(), net.POOLS).shape
        torch.Size([5, 64, 3, 3])
    """
    weights = list(weights)
    names = ["crops", *(f"weights[{i}]" for i in range(len(weights)))]
    check_tensors("convnet", names, (crops, *weights))
    return torch.ops.pyface.convnet.default(crops.detach(), [weight.detach() for weight in weights], list(pools))


def _check(crops: Tensor, weights: list[Tensor], pools: list[int]) -> tuple[int, int]:
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
            raise ValueError(f"convnet: crops of the shape {shape_of(crops)} are too small for layer {i}.")
        if channels * size * size > _LARGEST_MAP:
            raise ValueError(f"convnet: crops of the shape {shape_of(crops)} are too large, it is made for small ones.")
        size = reference.pooled_size(size, pool)
    return channels, size


def _convnet(crops: Tensor, weights: list[Tensor], pools: list[int]) -> Tensor:
    out, side = _check(crops, weights, pools)
    if crops.device.type != "cpu":
        return reference.convnet(crops, weights, pools)
    crops, weights = plain(crops, torch.float32), [plain(weight, torch.float32) for weight in weights]
    features = crops.new_empty((crops.shape[0], out, side, side))
    layers = [
        (weight, bias, slope, weight.shape[1], weight.shape[0], weight.shape[2], pool)
        for weight, bias, slope, pool in zip(weights[::3], weights[1::3], weights[2::3], pools, strict=True)
    ]
    n, channels, size = crops.shape[:3]
    launch("convnet", crops.device, crops, n, channels, size, layers, len(layers), features, out, side)
    return features


def _fake_convnet(crops: Tensor, weights: list[Tensor], pools: list[int]) -> Tensor:
    out, side = _check(crops, weights, pools)
    return crops.new_empty((crops.shape[0], out, side, side))


register("convnet(Tensor crops, Tensor[] weights, int[] pools) -> Tensor", _convnet, _fake_convnet)
