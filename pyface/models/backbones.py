"""The detectors' backbones. Each maps images [B, 3, H, W] to feature maps of increasing stride."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pyface.models.layers import xavier


class Backbone(nn.Module):
    """Base class of the backbones.

    Attributes:
        FIRST: Key of the first convolution's weight if torchvision has weights for this network; else None.
    """

    FIRST: ClassVar[str | None] = None

    def torchvision_names(self, keys: Iterable[str]) -> dict[str, str]:
        """Maps the layer names in torchvision's keys to ours, where they differ."""
        return {}


class VGG(Backbone):
    """The convolutions of a VGG network (Simonyan and Zisserman, arXiv 1409.1556), without its dense layers.

    Pooling rounds up, as Caffe's does: a map of 5 becomes 3. Layers have Caffe's names, conv1_1, conv1_2, ...

    Returns:
        The last map of each block from the third on, after its ReLU.
    """

    FIRST = "conv1_1.weight"
    BLOCKS: ClassVar[tuple[tuple[int, int], ...]]  # channels, convolutions

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for block, (width, depth) in enumerate(self.BLOCKS, 1):
            for k in range(1, depth + 1):
                self.add_module(f"conv{block}_{k}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        xavier(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for block, (_, depth) in enumerate(self.BLOCKS, 1):
            if block > 1:
                x = pool(x)
            for k in range(1, depth + 1):
                x = F.relu(self.get_submodule(f"conv{block}_{k}")(x), inplace=True)
            maps.append(x)
        return tuple(maps[2:])

    def torchvision_names(self, keys: Iterable[str]) -> dict[str, str]:
        """Maps torchvision's names features.0, features.2, ... to ours; the order is the same."""
        places = sorted(int(key.split(".")[1]) for key in keys if re.fullmatch(r"features\.\d+\.weight", key))
        ours = [name for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)]
        return {f"features.{place}": name for place, name in zip(places, ours, strict=False)}


class VGG16(VGG):
    """VGG16's thirteen convolutions: conv3_3 (256 channels, stride 4), conv4_3 (512, 8), conv5_3 (512, 16)."""

    BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG19(VGG):
    """VGG19's convolutions up to conv4_4: conv3_4 (256 channels, stride 4) and conv4_4 (512, 8).

    torchvision's ImageNet weights have these layers as features.0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23 and 25, in this
    order.
    """

    BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4))


def pool(x: Tensor) -> Tensor:
    """Caffe's 2 x 2 max pooling at stride 2: an odd last row or column gets its own cell."""
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


class ResNet50(Backbone):
    """ResNet-50 (He et al., arXiv 1512.03385) in torchvision's form: strides in the 3 x 3 convolutions.

    Keys are torchvision's (conv1, bn1, layer1 ... layer4). Its ImageNet weights load once `fc` is removed.

    Returns:
        c2 (256 channels, stride 4), c3 (512, 8), c4 (1024, 16), c5 (2048, 32).
    """

    FIRST = "conv1.weight"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, depth=3, stride=1)
        self.layer2 = stage(256, 128, depth=4, stride=2)
        self.layer3 = stage(512, 256, depth=6, stride=2)
        self.layer4 = stage(1024, 512, depth=3, stride=2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        c2 = self.layer1(F.max_pool2d(x, 3, 2, padding=1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)


class Bottleneck(nn.Module):
    """A bottleneck block: 1 x 1 down, 3 x 3, 1 x 1 up to four times the width, plus a shortcut."""

    EXPANSION = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.EXPANSION)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width * self.EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width * self.EXPANSION, 1, stride=stride, bias=False),
                nn.BatchNorm2d(width * self.EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def stage(channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """A stage of `depth` bottlenecks; the first one has the stride."""
    wide = width * Bottleneck.EXPANSION
    rest = [Bottleneck(wide, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(Bottleneck(channels, width, stride), *rest)


class SlimResNet(Backbone):
    """The backbone of the lite detectors: plain residual blocks of 3 x 3 convolutions, narrow where maps are large.

    Maps of strides 2 and 4 have only 16 and 32 channels, since they cost the most per channel; stride 4 matters for
    the smallest faces, stride 8 for those of 16 to 64 px. Plain convolutions compute more per millisecond than
    depthwise or split ones, on CPUs and on GPUs. docs/training.md compares this backbone with others.

    Returns:
        c2 (32 channels, stride 4), c3 (48, 8), c4 (64, 16), c5 (96, 32). Odd sizes are rounded up when halved.
    """

    STEM = 16
    WIDTHS = (32, 48, 64, 96)
    DEPTHS = (1, 2, 2, 1)  # residual blocks

    def __init__(self) -> None:
        super().__init__()
        c2, c3, c4, c5 = self.WIDTHS
        self.stem = nn.Sequential(convolution(3, self.STEM, stride=2), convolution(self.STEM, c2, stride=2))
        self.stage2 = residual_blocks(c2, self.DEPTHS[0])
        self.stage3 = nn.Sequential(convolution(c2, c3, stride=2), *residual_blocks(c3, self.DEPTHS[1]))
        self.stage4 = nn.Sequential(convolution(c3, c4, stride=2), *residual_blocks(c4, self.DEPTHS[2]))
        self.stage5 = nn.Sequential(convolution(c4, c5, stride=2), *residual_blocks(c5, self.DEPTHS[3]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c2 = self.stage2(self.stem(x))
        c3 = self.stage3(c2)
        c4 = self.stage4(c3)
        return c2, c3, c4, self.stage5(c4)


class BasicBlock(nn.Module):
    """A residual block: two 3 x 3 convolutions plus a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels)
        self.conv2 = convolution(channels, channels, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)).add_(x), inplace=True)


class Context(nn.Module):
    """A residual block before a head: three 3 x 3 convolutions, half as wide inside, that cover 7 x 7 cells.

    The input must not be negative, as after a ReLU. A new block returns its input, so it can extend a trained network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        inner = [convolution(channels, half), convolution(half, half)]
        last = convolution(half, channels, rectified=False)
        nn.init.zeros_(last.get_parameter("1.weight"))  # of the normalisation
        self.layers = nn.Sequential(*inner, last)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x).add_(x), inplace=True)


class TopDown(nn.Module):
    """One top-down step of a feature pyramid: a coarse map is upsampled and added to a finer one.

    Takes maps [B, fine, H, W] and [B, coarse, h, w], and returns [B, channels, H, W]. The coarse map's channels are
    reduced before upsampling. Upsampling repeats cells, which costs a third as much as interpolation.
    """

    def __init__(self, fine: int, coarse: int, channels: int) -> None:
        super().__init__()
        self.lateral = convolution(fine, channels, 1, rectified=False)
        self.down = convolution(coarse, channels, 1, rectified=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        grown = F.interpolate(self.down(coarse), size=fine.shape[2:], mode="nearest")
        return F.relu(self.lateral(fine).add_(grown), inplace=True)


def residual_blocks(channels: int, depth: int) -> nn.Sequential:
    """`depth` residual blocks of one width."""
    return nn.Sequential(*(BasicBlock(channels) for _ in range(depth)))


def extra_level(channels: int, width: int) -> nn.Sequential:
    """The next coarser level after a backbone: 1 x 1 down to half of `width`, 3 x 3 at stride 2 up to `width`."""
    return nn.Sequential(convolution(channels, width // 2, 1), convolution(width // 2, width, stride=2))


def convolution(
    channels: int, width: int, kernel: int = 3, *, stride: int = 1, rectified: bool = True
) -> nn.Sequential:
    """Convolution, batch normalisation and, by default, a ReLU; weights are initialised as by He et al. (Kaiming)."""
    layer = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    rectifier = [nn.ReLU(inplace=True)] if rectified else []
    return nn.Sequential(layer, nn.BatchNorm2d(width), *rectifier)
