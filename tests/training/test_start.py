"""Initial weights for backbones, and frozen layers."""

import pytest
import torch
import torch.nn.functional as F

from pyface.models import create_model, list_models
from pyface.models.backbones import VGG
from pyface.models.checkpoints import CheckpointError, save_checkpoint
from pyface.models.inference import IMAGENET_STD
from pyface.training.recipes import RECIPES
from pyface.training.start import freeze, load_backbone

# Indices of torchvision's convolutions, by block.
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)


def torchvision_vgg(indices, blocks):
    widths = [width for width, depth in blocks for _ in range(depth)]
    state, channels = {}, 3
    for index, width in zip(indices, widths, strict=True):
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3)
        state[f"features.{index}.bias"] = torch.randn(width)
        channels = width
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("name", "indices", "depths", "last"),
    [("s3fd_vgg16", VGG16, (2, 2, 3, 3, 3), "conv5_3"), ("densebox_vgg19", VGG19, (2, 2, 4, 4, 4), "conv4_4")],
)
def test_vgg(name, indices, depths, last, tmp_path):
    blocks = list(zip((64, 128, 256, 512, 512), depths, strict=True))
    state = torchvision_vgg(indices, blocks)
    torch.save(state, tmp_path / "vgg.pth")
    model = create_model(name, weights=None)
    load_backbone(model, str(tmp_path / "vgg.pth"))
    assert isinstance(model.backbone, VGG)
    layers = [f"conv{b}_{k}" for b, (_, depth) in enumerate(blocks, 1) for k in range(1, depth + 1)]
    for index, layer in zip(indices[: layers.index(last) + 1], layers, strict=False):
        if index:
            assert torch.equal(model.backbone.get_submodule(layer).weight, state[f"features.{index}.weight"])
        assert torch.equal(model.backbone.get_submodule(layer).bias, state[f"features.{index}.bias"])


@pytest.mark.parametrize("name", ["s3fd_vgg16", "densebox_vgg19"])
def test_the_first_convolution_gives_what_it_did_in_torchvision(name, tmp_path):
    blocks = list(zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3) if "16" in name else (2, 2, 4, 4, 4), strict=True))
    state = torchvision_vgg(VGG16 if "16" in name else VGG19, blocks)
    torch.save(state, tmp_path / "vgg.pth")
    model = create_model(name, weights=None)
    load_backbone(model, str(tmp_path / "vgg.pth"))
    pixels = torch.rand(1, 3, 9, 11) * 255 - 128  # without the mean, which hardly differs
    theirs = F.conv2d(pixels / torch.tensor(IMAGENET_STD)[:, None, None], state["features.0.weight"])
    preprocessing = model.preprocessing
    ours = pixels / torch.tensor(preprocessing.std)[:, None, None]
    ours = ours.flip(1) if preprocessing.bgr else ours
    torch.testing.assert_close(F.conv2d(ours, model.backbone.conv1_1.weight), theirs, rtol=1e-4, atol=1e-4)


def test_resnet(tmp_path):
    model = create_model("srn_resnet50", weights=None)
    state = {key: torch.rand_like(value.float()).to(value.dtype) for key, value in model.backbone.state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.pth")
    load_backbone(model, str(tmp_path / "resnet.pth"))
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())


def test_the_trunk_of_another_detector(tmp_path):
    donor, model = create_model("srn_lite", weights=None), create_model("ssh_lite", weights=None)
    save_checkpoint(tmp_path / "donor.safetensors", donor, "srn_lite")
    before = model.m1.predictor.conv.weight.clone()
    load_backbone(model, str(tmp_path / "donor.safetensors"))
    theirs = donor.backbone.state_dict()
    assert all(torch.equal(value, theirs[key].to(value)) for key, value in model.backbone.state_dict().items())
    assert torch.equal(model.m1.predictor.conv.weight, before)
    with pytest.raises(CheckpointError, match="holds no VGG16"):
        load_backbone(create_model("ssh_vgg16", weights=None), str(tmp_path / "donor.safetensors"))


def test_what_does_not_fit(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth holds no VGG16: missing or of another"):
        load_backbone(create_model("ssh_vgg16", weights=None), str(tmp_path / "part.pth"))
    with pytest.raises(CheckpointError, match="SlimResNet is not one of torchvision's networks; give"):
        load_backbone(create_model("s3fd_lite", weights=None), str(tmp_path / "part.pth"))
    with pytest.raises(FileNotFoundError):
        load_backbone(create_model("ssh_vgg16", weights=None), str(tmp_path / "none.pth"))


def test_frozen_layers_keep_what_they_have():
    model = create_model("srn_resnet50", weights=None).train()
    freeze(model, RECIPES["srn_resnet50"].frozen)
    assert not model.backbone.bn1.training
    assert not any(parameter.requires_grad for parameter in model.backbone.conv1.parameters())
    assert model.backbone.layer1[0].bn1.training


def test_every_model_has_a_recipe():
    assert set(RECIPES) == set(list_models())
