"""Foreign weights: every layout, filled with random numbers, must compute what its names say.

The networks are written out here once more, plainly and under the foreign names.
"""

import argparse
import fractions
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyface.models import MTCNN, DenseBoxConfig, DenseBoxLiteConfig, MTCNNConfig, create_model
from pyface.models.checkpoints import CheckpointError, configured, read_checkpoint, save_checkpoint
from pyface.models.s3fd import S3FDVGG16, S3FDConfig, S3FDVGG16Config
from pyface.models.ssh import SSHConfig, SSHLiteConfig
from pyface.models.zoo import convert

State = dict[str, Tensor]
CONV3 = ("conv1_1", "conv1_2", "M", "conv2_1", "conv2_2", "M", "conv3_1", "conv3_2", "conv3_3", "M")
CONV5 = ("conv4_1", "conv4_2", "conv4_3", "M", "conv5_1", "conv5_2", "conv5_3")
WIDTHS = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(7)) * 50


class Numbers:
    """A state of random layers that keep magnitudes, under any names."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * spread

    def conv(self, name: str, channels: int, width: int, *kernel: int, bias: bool = True) -> None:
        kernel = kernel * 2 if len(kernel) == 1 else kernel
        self.state[f"{name}.weight"] = self.normal(
            width, channels, *kernel, spread=math.sqrt(2 / (channels * math.prod(kernel)))
        )
        if bias:
            self.state[f"{name}.bias"] = self.normal(width, spread=0.1)

    def vgg16(self, names: Callable[[str], str] = str) -> None:
        channels = 3
        for name in (*CONV3, *CONV5):
            if name != "M":
                self.conv(names(name), channels, WIDTHS[name[4]], 3)
                channels = WIDTHS[name[4]]

    def batch_norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = self.normal(width, spread=0.1) + 0.7
        self.state[f"{name}.bias"] = self.normal(width, spread=0.1)
        self.state[f"{name}.running_mean"] = self.normal(width, spread=0.1)
        self.state[f"{name}.running_var"] = self.normal(width, spread=0.1).exp()


def conv(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding, dilation)


def conv_relu(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return conv(state, name, x, **options).relu()


def along(state: State, names: tuple[str, ...], x: Tensor) -> Tensor:
    for name in names:
        x = F.max_pool2d(x, 2, 2) if name == "M" else conv_relu(state, name, x, padding=1)
    return x


def normalised(x: Tensor, scale: Tensor) -> Tensor:
    return x / x.pow(2).sum(1, keepdim=True).sqrt() * scale.reshape(1, -1, 1, 1)


def loaded(path: Path, name: str) -> nn.Module:
    return create_model(name, weights=path)


def assert_computes(path: Path, name: str, expected: list[list[Tensor | None]], tmp_path: Path) -> nn.Module:
    """The file, and what `convert` makes of it, give the expected maps."""
    converted = tmp_path / "converted.safetensors"
    convert(path, converted)
    for file in (path, converted):
        model = loaded(file, name)
        with torch.no_grad():
            maps = model(IMAGE)
        for level, wanted in zip(maps, expected, strict=True):
            for a, b in zip(level, wanted, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    return model


# --- S3FD ------------------------------------------------------------------------------------------------------------

S3FD_SOURCES = ("conv3_3_norm", "conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2", "conv7_2")
S3FD_WIDTHS = (256, 512, 512, 1024, 512, 256)


def s3fd_caffe_state() -> State:
    numbers = Numbers()
    numbers.vgg16()
    for name, *shape in (
        ("fc6", 512, 1024, 3),
        ("fc7", 1024, 1024, 1),
        ("conv6_1", 1024, 256, 1),
        ("conv6_2", 256, 512, 3),
        ("conv7_1", 512, 128, 1),
        ("conv7_2", 128, 256, 3),
    ):
        numbers.conv(name, *shape)
    for k, (source, width) in enumerate(zip(S3FD_SOURCES, S3FD_WIDTHS, strict=True)):
        if k < 3:
            numbers.state[f"{source}.weight"] = numbers.normal(width) + 8
        numbers.conv(f"{source}_mbox_loc", width, 4, 3)
        numbers.conv(f"{source}_mbox_conf", width, 4 if k == 0 else 2, 3)
    return numbers.state


def s3fd_caffe_maps(state: State) -> list[list[Tensor | None]]:
    """As in the released deploy file: fc6 with padding 3."""
    conv3 = along(state, CONV3[:-1], IMAGE)
    conv4 = along(state, ("M", *CONV5[:3]), conv3)
    conv5 = along(state, CONV5[3:], conv4)
    fc7 = conv_relu(state, "fc7", conv_relu(state, "fc6", F.max_pool2d(conv5, 2, 2), padding=3))
    conv6 = conv_relu(state, "conv6_2", conv_relu(state, "conv6_1", fc7), stride=2, padding=1)
    conv7 = conv_relu(state, "conv7_2", conv_relu(state, "conv7_1", conv6), stride=2, padding=1)
    shallow = [
        normalised(x, state[f"conv{k}_3_norm.weight"]) for k, x in zip((3, 4, 5), (conv3, conv4, conv5), strict=True)
    ]
    return [
        [conv(state, f"{source}_mbox_conf", x, padding=1), conv(state, f"{source}_mbox_loc", x, padding=1), *[None] * 3]
        for source, x in zip(S3FD_SOURCES, [*shallow, fc7, conv6, conv7], strict=True)
    ]


class YxlijunS3FD(nn.Module):
    """The port's own structure: one numbered Sequential, and layers on the outputs that become maps."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for name in (*CONV3, *CONV5, "M"):
            if name == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, WIDTHS[name[4]], 3, padding=1), nn.ReLU()]
                channels = WIDTHS[name[4]]
        layers += [nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()]
        self.vgg = nn.ModuleList(layers)
        for k, width in ((3, 256), (4, 512), (5, 512)):
            scale = nn.Module()
            scale.weight = nn.Parameter(torch.rand(width) * 10)
            self.add_module(f"L2Norm{k}_3", scale)
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1),
                nn.Conv2d(256, 512, 3, stride=2, padding=1),
                nn.Conv2d(512, 128, 1),
                nn.Conv2d(128, 256, 3, stride=2, padding=1),
            ]
        )
        self.loc = nn.ModuleList([nn.Conv2d(width, 4, 3, padding=1) for width in S3FD_WIDTHS])
        self.conf = nn.ModuleList(
            [nn.Conv2d(width, 2 if k else 4, 3, padding=1) for k, width in enumerate(S3FD_WIDTHS)]
        )

    def forward(self, x: Tensor) -> list[list[Tensor | None]]:
        sources = []
        for k, layer in enumerate(self.vgg):
            x = layer(x)
            if k in (15, 22, 29):  # after the ReLU of conv3_3, conv4_3, conv5_3
                block = {15: 3, 22: 4, 29: 5}[k]
                sources.append(normalised(x, self.get_submodule(f"L2Norm{block}_3").weight))
        sources.append(x)
        for k, layer in enumerate(self.extras):
            x = layer(x).relu()
            if k % 2 == 1:
                sources.append(x)
        heads = zip(self.conf, self.loc, sources, strict=True)
        return [[conf(source), loc(source), None, None, None] for conf, loc, source in heads]


@pytest.fixture(scope="module")
def s3fd() -> State:
    return s3fd_caffe_state()


class TestS3FD:
    def test_caffe_names(self, s3fd, tmp_path):
        torch.save(s3fd, tmp_path / "s3fd.pth")
        model = assert_computes(tmp_path / "s3fd.pth", "s3fd_vgg16", s3fd_caffe_maps(s3fd), tmp_path)
        assert (model.config.fc6_padding, model.config.fc6_dilation) == (3, 1)
        assert model.preprocessing.bgr

    def test_yxlijun(self, tmp_path):
        torch.manual_seed(0)
        network = YxlijunS3FD()
        torch.save({"epoch": 1, "weight": network.state_dict()}, tmp_path / "wrapped.pth")
        torch.save(network.state_dict(), tmp_path / "bare.pth")
        with torch.no_grad():
            expected = network(IMAGE)
        for name in ("wrapped.pth", "bare.pth"):
            model = assert_computes(tmp_path / name, "s3fd_vgg16", expected, tmp_path)
            assert (model.config.fc6_padding, model.config.fc6_dilation) == (6, 6)
            assert not model.preprocessing.bgr

    def test_other_containers(self, s3fd, tmp_path):
        """What torch.save wrote before it zipped, .npz, .safetensors, name -> [weight, bias], DataParallel."""
        torch.save(s3fd, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
        np.savez(tmp_path / "plain.npz", **{key: value.numpy() for key, value in s3fd.items()})
        save_file(s3fd, tmp_path / "foreign.safetensors")
        lists: dict[str, list[Tensor]] = {}
        for key, value in s3fd.items():
            lists.setdefault(key.rpartition(".")[0], []).append(value)
        torch.save(lists, tmp_path / "lists.pth")
        torch.save({"state_dict": {f"module.{key}": value for key, value in s3fd.items()}}, tmp_path / "parallel.pth")
        expected = with_trunk(s3fd)
        for name in ("legacy.pth", "plain.npz", "foreign.safetensors", "lists.pth", "parallel.pth"):
            checkpoint = read_checkpoint(tmp_path / name, "s3fd_vgg16")
            assert checkpoint.settings == {"fc6_padding": 3}
            assert checkpoint.state.keys() == expected.keys()
            assert all(torch.equal(checkpoint.state[key], value) for key, value in expected.items())

    def test_scales_of_caffe(self, s3fd, tmp_path):
        """Caffe's blobs may have four axes."""
        s3fd = dict(s3fd)
        s3fd["conv3_3_norm.weight"] = s3fd["conv3_3_norm.weight"].reshape(1, -1, 1, 1)
        torch.save(s3fd, tmp_path / "s3fd.pth")
        assert read_checkpoint(tmp_path / "s3fd.pth").state["conv3_3_norm.weight"].shape == (256,)


def with_trunk(state: State) -> State:
    trunk = {name for name in (*CONV3, *CONV5) if name != "M"}
    return {f"backbone.{key}" if key.split(".")[0] in trunk else key: value for key, value in state.items()}


# --- SSH -------------------------------------------------------------------------------------------------------------


def ssh_state() -> State:
    numbers = Numbers()
    numbers.vgg16()
    numbers.conv("conv4_128", 512, 128, 1)
    numbers.conv("conv5_128", 512, 128, 1)
    numbers.conv("conv4_fuse_final", 128, 128, 3)
    for m, channels, width in ((1, 128, 128), (2, 512, 256), (3, 512, 256)):
        numbers.conv(f"m{m}@ssh_3x3", channels, width, 3)
        numbers.conv(f"m{m}@ssh_dimred", channels, width // 2, 3)
        for name in ("5x5", "7x7-1", "7x7"):
            numbers.conv(f"m{m}@ssh_{name}", width // 2, width // 2, 3)
        numbers.conv(f"m{m}@ssh_cls_score", 2 * width, 4, 1)
        numbers.conv(f"m{m}@ssh_bbox_pred", 2 * width, 8, 1)
    return numbers.state


def ssh_maps(state: State) -> list[list[Tensor | None]]:
    def module(m: int, x: Tensor) -> list[Tensor | None]:
        reduced = conv_relu(state, f"m{m}@ssh_dimred", x, padding=1)
        deep = conv_relu(state, f"m{m}@ssh_7x7-1", reduced, padding=1)
        out = torch.cat(
            [
                conv(state, f"m{m}@ssh_3x3", x, padding=1),
                conv(state, f"m{m}@ssh_5x5", reduced, padding=1),
                conv(state, f"m{m}@ssh_7x7", deep, padding=1),
            ],
            1,
        ).relu()
        return [conv(state, f"m{m}@ssh_cls_score", out), conv(state, f"m{m}@ssh_bbox_pred", out), *[None] * 3]

    conv4 = along(state, (*CONV3, *CONV5[:3]), IMAGE)
    conv5 = along(state, CONV5[3:], conv4)
    # Caffe's Deconvolution, 4 x 4, stride 2, padding 1, as interpolation of a map with a border of zeros.
    small = F.pad(conv_relu(state, "conv5_128", conv5), (1, 1, 1, 1))
    up = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
    fused = conv_relu(state, "conv4_fuse_final", conv_relu(state, "conv4_128", conv4) + up, padding=1)
    return [module(1, fused), module(2, conv5), module(3, F.max_pool2d(conv5, 2, 2))]


@pytest.fixture(scope="module")
def ssh() -> State:
    return ssh_state()


class TestSSH:
    def test_caffe_names(self, ssh, tmp_path):
        np.savez(tmp_path / "ssh.npz", **{key: value.numpy() for key, value in ssh.items()})
        assert_computes(tmp_path / "ssh.npz", "ssh_vgg16", ssh_maps(ssh), tmp_path)

    def test_the_fixed_up_sampling_may_be_there(self, ssh, tmp_path):
        row = torch.tensor([0.25, 0.75, 0.75, 0.25])
        kernel = (row[:, None] * row).expand(128, 1, 4, 4)
        for factor, fits in ((1, True), (2, False)):
            torch.save({**ssh, "conv5_128_up.weight": kernel * factor}, tmp_path / "ssh.pth")
            if fits:
                assert "conv5_128_up.weight" not in read_checkpoint(tmp_path / "ssh.pth").state
            else:
                with pytest.raises(CheckpointError, match=r"1 left over: conv5_128_up.weight"):
                    loaded(tmp_path / "ssh.pth", "ssh_vgg16")

    def test_copies_of_the_authors_training_are_left_out(self, ssh, tmp_path):
        copies = {
            f"m{m}@ssh_cls_score_ohem.{kind}": ssh[f"m{m}@ssh_cls_score.{kind}"]
            for m in (1, 2, 3)
            for kind in ("weight", "bias")
        }
        torch.save({**ssh, **copies}, tmp_path / "ssh.pth")
        assert_computes(tmp_path / "ssh.pth", "ssh_vgg16", ssh_maps(ssh), tmp_path)


# --- SRN -------------------------------------------------------------------------------------------------------------

RESNET50 = ((1, 64, 3, 1), (2, 128, 4, 2), (3, 256, 6, 2), (4, 512, 3, 2))  # layer, width, depth, stride
SRN_WIDTHS = {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048, "c6": 1024, "c7": 256}
RFE_KERNELS = ((1, 5), (5, 1), (1, 3), (3, 1))


def srn_state() -> State:
    numbers = Numbers()
    numbers.conv("conv1", 3, 64, 7, bias=False)
    numbers.batch_norm("bn1", 64)
    channels = 64
    for layer, width, depth, _ in RESNET50:
        for k in range(depth):
            block = f"layer{layer}.{k}"
            shapes = ((channels, width, 1), (width, width, 3), (width, 4 * width, 1))
            for n, shape in enumerate(shapes, 1):
                numbers.conv(f"{block}.conv{n}", *shape, bias=False)
                numbers.batch_norm(f"{block}.bn{n}", shape[1])
            if k == 0:
                numbers.conv(f"{block}.downsample.0", channels, 4 * width, 1, bias=False)
                numbers.batch_norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    numbers.conv("layer5", 2048, 1024, 3)
    numbers.conv("layer6", 1024, 256, 3)
    for name, width in SRN_WIDTHS.items():
        numbers.conv(f"{name}_conv", width, 256, 1)
        numbers.conv(f"p{name[1]}_conv", 256, 256, 3)
        if int(name[1]) < 6:
            numbers.conv(f"{name}_lateral", width, 256, 1)
    for kind, width in (("cls", 2), ("box", 8)):
        numbers.conv(f"{kind}_subnet.0", 256, 256, 3)
        for k, kernel in enumerate(RFE_KERNELS):
            numbers.conv(f"{kind}_subnet.2.branch{k}.0", 256, 64, 1)
            numbers.conv(f"{kind}_subnet.2.branch{k}.2", 64, 64, *kernel)
            numbers.conv(f"{kind}_subnet.2.branch{k}.4", 64, 64, 1)
        numbers.conv(f"{kind}_subnet.2.cated_conv.0", 256, 256, 1)
        numbers.conv(f"{kind}_subnet.3", 256, 256, 3)
        numbers.conv(f"{kind}_subnet_pred", 256, width, 1)
    return numbers.state


def srn_maps(state: State) -> list[list[Tensor | None]]:
    def bn(name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{kind}"].reshape(1, -1, 1, 1) for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def bottleneck(block: str, x: Tensor, stride: int) -> Tensor:
        y = bn(f"{block}.bn1", conv(state, f"{block}.conv1", x)).relu()
        y = bn(f"{block}.bn2", conv(state, f"{block}.conv2", y, stride=stride, padding=1)).relu()
        y = bn(f"{block}.bn3", conv(state, f"{block}.conv3", y))
        if f"{block}.downsample.0.weight" in state:
            x = bn(f"{block}.downsample.1", conv(state, f"{block}.downsample.0", x, stride=stride))
        return (x + y).relu()

    def rfe(name: str, x: Tensor) -> Tensor:
        views = []
        for k, (height, width) in enumerate(RFE_KERNELS):
            y = conv_relu(state, f"{name}.branch{k}.0", x)
            y = F.pad(y, (width // 2, width // 2, height // 2, height // 2))
            views.append(conv_relu(state, f"{name}.branch{k}.4", conv_relu(state, f"{name}.branch{k}.2", y)))
        return x + conv_relu(state, f"{name}.cated_conv.0", torch.cat(views, 1))

    def head(kind: str, x: Tensor) -> Tensor:
        x = rfe(f"{kind}_subnet.2", conv_relu(state, f"{kind}_subnet.0", x, padding=1))
        return conv(state, f"{kind}_subnet_pred", conv_relu(state, f"{kind}_subnet.3", x, padding=1))

    def up(x: Tensor, to: Tensor) -> Tensor:
        return F.interpolate(x, size=to.shape[2:], mode="bilinear", align_corners=True) + to

    x = F.max_pool2d(bn("bn1", conv(state, "conv1", IMAGE, stride=2, padding=3)).relu(), 3, 2, 1)
    trunk = []
    for layer, _, depth, stride in RESNET50:
        for k in range(depth):
            x = bottleneck(f"layer{layer}.{k}", x, stride if k == 0 else 1)
        trunk.append(x)
    for name in ("layer5", "layer6"):
        x = conv(state, name, x, stride=2, padding=1)
        trunk.append(x)
    first = [conv(state, f"c{k}_conv", c) for k, c in enumerate(trunk, 2)]

    lateral = {k: conv(state, f"c{k}_lateral", trunk[k - 2]) for k in (2, 3, 4, 5)}
    second = [conv(state, "p5_conv", lateral[5], padding=1)]
    second.append(conv(state, "p6_conv", lateral[5], stride=2, padding=1))
    second.append(conv(state, "p7_conv", second[1], stride=2, padding=1))
    top = lateral[5]
    for k in (4, 3, 2):
        top = up(top, lateral[k])
        second.insert(0, conv(state, f"p{k}_conv", top, padding=1))

    return [
        [
            head("cls", two),
            head("box", two),
            None,
            head("cls", one) if level < 3 else None,
            head("box", one) if level >= 3 else None,
        ]
        for level, (one, two) in enumerate(zip(first, second, strict=True))
    ]


@pytest.fixture(scope="module")
def srn() -> State:
    return srn_state()


class TestSRN:
    def test_author(self, srn, tmp_path):
        """Old files do not count batches, and some still hold the classifier."""
        fc = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
        wrapped = {f"module.{key}": value for key, value in {**srn, **fc}.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "srn.pth")
        assert_computes(tmp_path / "srn.pth", "srn_resnet50", srn_maps(srn), tmp_path)

    def test_unknown_extras_are_named_and_skipped(self, srn, tmp_path):
        torch.save({"state_dict": {**srn, "aux.weight": torch.zeros(1)}}, tmp_path / "srn.pth")
        with pytest.warns(UserWarning, match=r"ignored 1 unknown keys: aux.weight"):
            loaded(tmp_path / "srn.pth", "srn_resnet50")

    def test_missing_keys_are_not(self, srn, tmp_path):
        torch.save({key: value for key, value in srn.items() if key != "c3_conv.bias"}, tmp_path / "srn.pth")
        with pytest.raises(CheckpointError, match=r"1 missing: c3_conv.bias"):
            loaded(tmp_path / "srn.pth", "srn_resnet50")


# --- MTCNN -----------------------------------------------------------------------------------------------------------

# Convolutions (channels, width, kernel), the dense layer, heads: classes, box, [landmarks].
MTCNN_NETS = {
    "pnet": (((3, 10, 3), (10, 16, 3), (16, 32, 3)), None, ("conv4_1", "conv4_2")),
    "rnet": (((3, 28, 3), (28, 48, 3), (48, 64, 2)), ("dense4", 576, 128), ("dense5_1", "dense5_2")),
    "onet": (
        ((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)),
        ("dense5", 1152, 256),
        ("dense6_1", "dense6_2", "dense6_3"),
    ),
}
MTCNN_POOLS = {"pnet": (2, 0, 0), "rnet": (3, 3, 0), "onet": (3, 3, 2, 0)}
MTCNN_SIDES = {"pnet": 20, "rnet": 24, "onet": 48}


def facenet_states() -> dict[str, State]:
    states = {}
    for net, (convolutions, dense, heads) in MTCNN_NETS.items():
        numbers = Numbers()
        for k, shape in enumerate(convolutions, 1):
            numbers.conv(f"conv{k}", *shape)
            numbers.state[f"prelu{k}.weight"] = numbers.normal(shape[1], spread=0.2)
        width = convolutions[-1][1]
        if dense:
            name, columns, width = dense
            numbers.state[f"{name}.weight"] = numbers.normal(width, columns, spread=columns**-0.5)
            numbers.state[f"{name}.bias"] = numbers.normal(width)
            numbers.state[f"prelu{len(convolutions) + 1}.weight"] = numbers.normal(width, spread=0.2)
        for head, outputs in zip(heads, (2, 4, 10), strict=False):
            shape = (outputs, width) if dense else (outputs, width, 1, 1)
            numbers.state[f"{head}.weight"] = numbers.normal(*shape)
            numbers.state[f"{head}.bias"] = numbers.normal(outputs)
        states[net] = numbers.state
    return states


def facenet_outputs(net: str, state: State, x: Tensor) -> Tensor:
    """facenet-pytorch's forward: the map is flattened with the width first."""
    convolutions, dense, heads = MTCNN_NETS[net]
    for k, pool in enumerate(MTCNN_POOLS[net], 1):
        x = F.prelu(conv(state, f"conv{k}", x), state[f"prelu{k}.weight"])
        x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
    if dense is None:
        return torch.cat([conv(state, head, x) for head in heads], 1)
    x = x.permute(0, 3, 2, 1).contiguous().flatten(1)
    x = F.linear(x, state[f"{dense[0]}.weight"], state[f"{dense[0]}.bias"])
    x = F.prelu(x, state[f"prelu{len(convolutions) + 1}.weight"])
    return torch.cat([F.linear(x, state[f"{head}.weight"], state[f"{head}.bias"]) for head in heads], 1)


def ipazc_arrays(net: str, state: State) -> list[np.ndarray]:
    """The same numbers as its list: HWIO, (in, out), classes last."""
    convolutions, dense, heads = MTCNN_NETS[net]
    arrays = []

    def layer(name: str) -> None:
        weight = state[f"{name}.weight"]
        arrays.append((weight.permute(2, 3, 1, 0) if weight.dim() == 4 else weight.T).contiguous().numpy())
        arrays.append(state[f"{name}.bias"].numpy())

    for k, (_, width, _) in enumerate(convolutions, 1):
        layer(f"conv{k}")
        arrays.append(state[f"prelu{k}.weight"].reshape(1, 1, width).numpy())
    if dense:
        layer(dense[0])
        arrays.append(state[f"prelu{len(convolutions) + 1}.weight"].numpy())
    for head in (*heads[1:], heads[0]):
        layer(head)
    return arrays


@pytest.fixture(scope="module")
def mtcnn() -> dict[str, State]:
    return facenet_states()


class TestMTCNN:
    def assert_computes(self, path: Path, states: dict[str, State]) -> None:
        model = loaded(path, "mtcnn")
        for net, state in states.items():
            x = torch.randn(2, 3, *[MTCNN_SIDES[net]] * 2)
            with torch.no_grad():
                torch.testing.assert_close(
                    model.get_submodule(net)(x), facenet_outputs(net, state, x), rtol=1e-4, atol=1e-4
                )

    def test_facenet_folder_and_single_file(self, mtcnn, tmp_path):
        for net, state in mtcnn.items():
            torch.save(state, tmp_path / f"{net}.pt", _use_new_zipfile_serialization=False)
        self.assert_computes(tmp_path, mtcnn)
        together = {f"{net}.{key}": value for net, state in mtcnn.items() for key, value in state.items()}
        torch.save(together, tmp_path / "mtcnn.pt")
        self.assert_computes(tmp_path / "mtcnn.pt", mtcnn)
        torch.save(mtcnn, tmp_path / "nested.pt")
        convert(tmp_path / "nested.pt", tmp_path / "mtcnn.safetensors")
        self.assert_computes(tmp_path / "mtcnn.safetensors", mtcnn)

    def test_parts_of_the_three_files(self, mtcnn, tmp_path):
        torch.save(mtcnn["rnet"], tmp_path / "rnet.pt")
        with pytest.raises(CheckpointError, match="must be a folder of pnet, rnet and onet, got one of these files"):
            read_checkpoint(tmp_path / "rnet.pt")
        with pytest.raises(FileNotFoundError, match="got none for pnet"):
            read_checkpoint(tmp_path)

    def test_missing_and_misshapen_parts(self, mtcnn, tmp_path):
        mtcnn = {net: dict(state) for net, state in mtcnn.items()}
        del mtcnn["rnet"]["dense5_2.bias"]
        mtcnn["onet"]["dense5.weight"] = torch.zeros(256, 1000)
        torch.save(mtcnn, tmp_path / "mtcnn.pt")
        with pytest.raises(CheckpointError) as error:
            loaded(tmp_path / "mtcnn.pt", "mtcnn")
        for part in ("1 missing: rnet.heads.bias", "1 left over: rnet.dense5_1.bias", "onet.dense.weight [256, 1000]"):
            assert part in str(error.value)

    def test_ipazc(self, mtcnn, tmp_path):
        for net, state in mtcnn.items():
            joblib.dump(ipazc_arrays(net, state), tmp_path / f"{net}.lz4", compress="lz4")
        self.assert_computes(tmp_path, mtcnn)

    def test_ipazc_without_lz4(self, tmp_path, monkeypatch):
        for net in MTCNN_NETS:
            (tmp_path / f"{net}.lz4").write_bytes(b"")

        def missing(name: str) -> None:
            raise ImportError(name)

        monkeypatch.setattr("pyface.models.checkpoints.importlib.import_module", missing)
        with pytest.raises(CheckpointError, match="pip install lz4"):
            read_checkpoint(tmp_path)


# --- files that are malformed or unknown ------------------------------------------------------------------------------


class Exploit:
    """Runs code wherever a pickle is trusted."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (print, ("this must never be seen",))


class TestHostileFiles:
    @pytest.mark.parametrize("name", ["weights.pth", "weights.npz", "weights.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"nonsense", b"hello", b"PK\x03\x04 nonsense", bytes(100)])
    def test_damage_is_one_sentence(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        reason = r"(cannot be read as weights: \D|is not a weights file, or (contains code|is damaged))"
        with pytest.raises(CheckpointError, match=f"{name} .*{reason}") as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_what_training_programs_leave_beside_the_weights_is_skipped(self, tmp_path, zipped):
        state = create_model("ssh_lite").state_dict()
        beside = {
            "loss": np.float64(0.1),
            "epoch": np.int64(3),
            "best": {"ap": [np.float32(0.5), np.bool_(True)], "name": np.str_("easy")},
            "args": argparse.Namespace(lr=0.1, decay=np.float64(2.0), steps=[1, 2]),
        }
        torch.save({"state_dict": state} | beside, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        allowed = torch.serialization.get_safe_globals()
        read = read_checkpoint(tmp_path / "a.pth").state
        assert set(torch.serialization.get_safe_globals()) == set(allowed)  # the whole process shares them
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], value) for key, value in state.items())

    @pytest.mark.parametrize(
        ("beside", "name"),
        [
            (Path("a"), "pathlib.PosixPath|pathlib.WindowsPath|pathlib._local.PosixPath"),
            (np.zeros(3), "numpy._core.multiarray._reconstruct|numpy.core.multiarray._reconstruct"),
            (fractions.Fraction(1, 3), "fractions.Fraction"),
        ],
    )
    def test_other_classes_are_named_with_the_way_out(self, tmp_path, beside, name):
        torch.save({"state_dict": {"a": torch.zeros(1)}, "more": beside}, tmp_path / "a.pth")
        with pytest.raises(
            CheckpointError, match=rf"object of the class ({name}) .*torch\.save\(torch\.load\('a\.pth'"
        ):
            read_checkpoint(tmp_path / "a.pth")

    def test_pickles_do_not_run(self, tmp_path, capsys):
        torch.save({"conv1_1.weight": Exploit()}, tmp_path / "zipped.pth")
        (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": Exploit()}, protocol=2))
        np.savez(tmp_path / "objects.npz", a=np.array([Exploit()], dtype=object))
        for name in ("zipped.pth", "bare.pth", "objects.npz"):
            with pytest.raises(CheckpointError):
                read_checkpoint(tmp_path / name)
        assert "never" not in capsys.readouterr().out

    @pytest.mark.parametrize("content", [[Exploit()], [np.zeros(2, dtype=np.float64)], {"a": 1}, [1]])
    def test_pickles_of_ipazc_hold_only_arrays(self, tmp_path, capsys, content):
        joblib.dump(content, tmp_path / "pnet.lz4", compress="lz4")
        with pytest.raises(CheckpointError, match="is not a weights file, or contains code"):
            read_checkpoint(tmp_path / "pnet.lz4")
        assert "never" not in capsys.readouterr().out

    def test_missing_file(self, tmp_path):
        for name in ("a.pth", "a.npz", "a.safetensors", "a.lz4"):
            with pytest.raises(FileNotFoundError, match=name):
                read_checkpoint(tmp_path / name)

    def test_caffemodel(self, tmp_path):
        with pytest.raises(CheckpointError, match="got a Caffe file; export its layers"):
            read_checkpoint(tmp_path / "SFD.caffemodel")


class TestMessages:
    def test_all_keys_are_listed(self, tmp_path):
        state = s3fd_caffe_state()
        for block in (3, 4, 5):
            for k in (1, 2, 3):
                del state[f"conv{block}_{k}.weight"], state[f"conv{block}_{k}.bias"]
        state["odd"] = torch.zeros(1)
        state["fc6.weight"] = torch.zeros(1024, 512, 1, 1)
        torch.save(state, tmp_path / "s3fd.pth")
        with pytest.raises(CheckpointError) as error:
            loaded(tmp_path / "s3fd.pth", "s3fd_vgg16")
        message = str(error.value)
        assert "layout Caffe S3FD" in message
        assert "18 missing: backbone.conv3_1.weight, backbone.conv3_1.bias" in message
        assert "... (8 more)" in message
        assert "1 left over: odd" in message
        assert "1 of another shape: fc6.weight [1024, 512, 1, 1] for [1024, 512, 3, 3]" in message
        assert "\n" not in message

    def test_a_third_tensor_of_a_layer_is_left_over(self, tmp_path):
        layers: dict[str, list[Tensor]] = {}
        for key, value in s3fd_caffe_state().items():
            layers.setdefault(key.rpartition(".")[0], []).append(value)
        layers["fc7"].append(torch.zeros(3))
        torch.save(layers, tmp_path / "s3fd.pth")
        with pytest.raises(CheckpointError, match=r"keys 1 left over: fc7.2$"):
            loaded(tmp_path / "s3fd.pth", "s3fd_vgg16")

    @pytest.mark.parametrize("odd", [torch.zeros(64).to_sparse(), torch.zeros(64, dtype=torch.complex64)])
    def test_odd_tensors_are_named(self, tmp_path, odd):
        torch.save(s3fd_caffe_state() | {"conv1_1.bias": odd}, tmp_path / "s3fd.pth")
        with pytest.raises(CheckpointError, match=r"keys 1 not dense and real: backbone.conv1_1.bias$"):
            loaded(tmp_path / "s3fd.pth", "s3fd_vgg16")

    def test_unknown_layout(self, tmp_path):
        torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "other.pth")
        pattern = r"known.*layout.*yxlijun S3FD.*Caffe SSH.*encoder.weight"
        with pytest.raises(CheckpointError, match=pattern):
            loaded(tmp_path / "other.pth", "mtcnn")
        with pytest.raises(CheckpointError, match=pattern):
            convert(tmp_path / "other.pth", tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()

    def test_empty_file(self, tmp_path):
        torch.save({}, tmp_path / "empty.pth")
        with pytest.raises(CheckpointError, match="keys are none"):
            loaded(tmp_path / "empty.pth", "mtcnn")

    def test_another_model(self, tmp_path):
        torch.save(facenet_states(), tmp_path / "mtcnn.pt")
        with pytest.raises(CheckpointError, match=r"weights of ssh_vgg16, got those of mtcnn; choose the model mtcnn$"):
            read_checkpoint(tmp_path / "mtcnn.pt", "ssh_vgg16")


class TestOwnFiles:
    def test_settings_travel(self, tmp_path):
        """A configuration that no foreign layout has is saved, read and built again."""
        settings = {"fc6_padding": 2, "fc6_dilation": 2, "bgr": False, "mean": [1, 2.5, 3], "score_threshold": 0.1}
        config = configured(S3FDVGG16Config(), settings)
        save_checkpoint(tmp_path / "own.safetensors", S3FDVGG16(config), "s3fd_vgg16", settings)
        with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
            assert json.loads(file.metadata()["settings"]) == settings
            assert file.metadata()["model"] == "s3fd_vgg16"
        model = loaded(tmp_path / "own.safetensors", "s3fd_vgg16")
        assert model.config == config
        assert model.preprocessing.mean == (1, 2.5, 3)
        assert model.fc6.dilation == (2, 2)
        with pytest.raises(CheckpointError, match="must have a foreign layout, got pyface"):
            convert(tmp_path / "own.safetensors", tmp_path / "again.safetensors")
        with pytest.raises(CheckpointError, match="got those of s3fd_vgg16"):
            read_checkpoint(tmp_path / "own.safetensors", "mtcnn")

    def test_a_state_dict_without_metadata(self, tmp_path):
        model = create_model("mtcnn")
        torch.save(model.state_dict(), tmp_path / "own.pth")
        save_file(model.state_dict(), tmp_path / "own.safetensors")
        for name in ("own.pth", "own.safetensors"):
            again = loaded(tmp_path / name, "mtcnn").state_dict()
            assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"fc7_padding": 1}, "does not accept fc7_padding = 1"),
            ({"fc6_padding": "3"}, "does not accept fc6_padding = '3'"),
            ({"fc6_padding": True}, "does not accept fc6_padding = True"),
            ({"fc6_padding": 3.0}, "does not accept fc6_padding = 3.0"),
            ({"mean": [1, 2]}, r"does not accept mean = \(1, 2\)"),
            ({"mean": None}, "does not accept mean = None"),
        ],
    )
    def test_settings_of_another_kind(self, settings, message):
        with pytest.raises(CheckpointError, match=f"file.pth: S3FDVGG16Config {message}"):
            configured(S3FDVGG16Config(), settings, "file.pth")

    @pytest.mark.parametrize(
        ("config", "settings"),
        [
            (S3FDConfig(), {"compensate": 6}),
            (S3FDConfig(), {"compensate": None}),
            (S3FDConfig(compensate=None), {"compensate": "mean"}),
            (SSHConfig(), {"anchor_centre": None}),
            (SSHLiteConfig(), {"anchor_centre": 8}),
            (DenseBoxConfig(), {"pyramid_scales": None, "nms_overlap": "min"}),
            (DenseBoxLiteConfig(), {"pyramid_scales": 4}),
            (MTCNNConfig(), {"interpolation": "bilinear", "thresholds": [0.5, 0.5, 0.3]}),
        ],
    )
    def test_whatever_a_field_takes_may_be_set(self, config, settings):
        found = configured(config, settings)
        assert {name: getattr(found, name) for name in settings} == {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }

    @pytest.mark.parametrize(
        ("config", "settings"),
        [
            (S3FDConfig(), {"compensate": "median"}),
            (S3FDConfig(), {"compensate": True}),
            (S3FDConfig(), {"strides": [4, 8]}),
            (SSHConfig(), {"anchor_centre": "8"}),
            (SSHConfig(), {"sides": [[8, 16], [32, 64], [128]]}),
            (DenseBoxConfig(), {"nms_overlap": "max"}),
            (DenseBoxLiteConfig(), {"pyramid_scales": 4.0}),
            (MTCNNConfig(), {"wider": True}),
        ],
    )
    def test_and_nothing_else(self, config, settings):
        refused = f"file.pth: {type(config).__name__} does not accept {next(iter(settings))}"
        with pytest.raises(CheckpointError, match=refused):
            configured(config, settings, "file.pth")

    def test_settings_out_of_range(self):
        with pytest.raises(CheckpointError, match=r"file.pth: min_face must be more than 0 pixels, got -1"):
            configured(MTCNNConfig(), {"min_face": -1}, "file.pth")

    def test_nested_settings(self):
        assert configured(SSHConfig(), {"sides": [[8, 16], [32, 64], [128, 256]]}).sides[2] == (128, 256)

    @pytest.mark.parametrize("settings", ["{", "[]", '"a"'])
    def test_damaged_settings(self, tmp_path, settings):
        path = tmp_path / "own.safetensors"
        save_file({"a": torch.zeros(1)}, path, metadata={"model": "mtcnn", "settings": settings})
        with pytest.raises(CheckpointError, match="settings in its metadata"):
            read_checkpoint(path)

    def test_convert_checks_where_it_writes(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"must end with \.safetensors"):
            convert(tmp_path / "a.pth", tmp_path / "b.pth")
        with pytest.raises(FileNotFoundError, match="no folder"):
            convert(tmp_path / "a.pth", tmp_path / "absent" / "b.safetensors")

    def test_nothing_half_written_remains(self, tmp_path, monkeypatch):
        def fails(path, data):
            path.open("wb").write(data[: len(data) // 2])
            raise OSError("disk full")

        monkeypatch.setattr(Path, "write_bytes", fails)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path / "own.safetensors", MTCNN(), "mtcnn")
        assert not list(tmp_path.iterdir())


def test_a_zip_whose_directory_lies_elsewhere_is_a_damaged_file(tmp_path):
    """Reading it seeks to a place before the file, which is an OSError."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(3, np.float32))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\5\6") + 16
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_checkpoint(path)
