"""P-Net: MTCNN's proposal network in one pass over the pictures (docs/detectors.md 3.1).

On the CPU a kernel of our own, which keeps the rows between the layers in the cache; on CUDA the same layers by cuDNN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyface.ops import reference
from pyface.ops._extension import check_dtype, check_one_device, check_shape, check_tensors, launch, plain, register

_SHAPES = {
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
_SMALLEST = 11  # the pooling rounds up, so that 11 pixels make a cell as 12 do


def pnet(pictures: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Applies P-Net. For inference: the result has no gradient.

    Args:
        pictures: float32 [B, 3, H, W], normalised, H and W >= 11.
        weights: eleven float32 tensors: conv1 [10, 3, 3, 3], its bias [10] and PReLU slope [10]; conv2 [16, 10, 3, 3],
            bias, slope; conv3 [32, 16, 3, 3], bias, slope; heads [6, 32, 1, 1], bias.

    Returns:
        float32 [B, 6, (H - 1) // 2 - 4, (W - 1) // 2 - 4]: logits of background and face, offsets (dx1, dy1, dx2, dy2).

    Raises:
        TypeError: not tensors, or not float32.
        ValueError: wrong shapes or devices, pictures too small.

    Example:
        >>> import torch, pyface
        >>> net = pyface.create_model("mtcnn").pnet
        >>> pyface.ops.pnet(torch.zeros(1, 3, 12, 14), net.weights()).shape
        torch.Size([1, 6, 1, 2])
    """
    weights = list(weights)
    names = ["pictures", *(f"weights[{i}]" for i in range(len(weights)))]
    check_tensors("pnet", names, (pictures, *weights))
    return torch.ops.pyface.pnet.default(pictures.detach(), [weight.detach() for weight in weights])


def _check(pictures: Tensor, weights: list[Tensor]) -> None:
    if len(weights) != len(_SHAPES):
        raise ValueError(f"pnet: weights must be {len(_SHAPES)} tensors ({', '.join(_SHAPES)}), got {len(weights)}.")
    check_one_device("pnet", pictures, *weights)
    check_dtype("pnet", "pictures", pictures, (torch.float32,))
    check_shape("pnet", "pictures", pictures, pictures.ndim == 4 and pictures.shape[1] == 3, "[B, 3, H, W]")
    for (name, shape), weight in zip(_SHAPES.items(), weights, strict=True):
        check_dtype("pnet", name, weight, (torch.float32,))
        check_shape("pnet", name, weight, weight.shape == shape, str(list(shape)))
    height, width = pictures.shape[2:]
    if height < _SMALLEST or width < _SMALLEST:
        raise ValueError(f"pnet: pictures must have {_SMALLEST} x {_SMALLEST} pixels or more, got {height} x {width}.")


def _pnet(pictures: Tensor, weights: list[Tensor]) -> Tensor:
    _check(pictures, weights)
    if pictures.device.type != "cpu":
        return reference.pnet(pictures, weights)
    pictures, weights = plain(pictures, torch.float32), [plain(weight, torch.float32) for weight in weights]
    out = _empty(pictures)
    launch("pnet", out.device, pictures, *_sizes(pictures), weights, out)
    return out


def _fake_pnet(pictures: Tensor, weights: list[Tensor]) -> Tensor:
    _check(pictures, weights)
    return _empty(pictures)


def _sizes(pictures: Tensor) -> tuple[int, int, int]:
    return pictures.shape[0], pictures.shape[2], pictures.shape[3]


def _empty(pictures: Tensor) -> Tensor:
    batch, height, width = _sizes(pictures)
    return pictures.new_empty((batch, 6, (height - 1) // 2 - 4, (width - 1) // 2 - 4))


register("pnet(Tensor pictures, Tensor[] weights) -> Tensor", _pnet, _fake_pnet)
