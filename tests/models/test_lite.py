"""The lite detectors: sizes, shapes, what they share with the papers' networks, and batch normalisation folded away."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyface import ops
from pyface.models.backbones import Context, ResNet50, SlimResNet
from pyface.models.fusion import fold_batch_norms
from pyface.models.heads import Predictor
from pyface.models.s3fd import S3FDLite, S3FDLiteConfig
from pyface.models.srn import LiteRFE, OblongConv2d, SRNLite, SRNLiteConfig
from pyface.models.ssh import SSHLite, SSHLiteConfig

LITE = {
    "s3fd": (S3FDLite, S3FDLiteConfig, 34_125),
    "ssh": (SSHLite, SSHLiteConfig, 16_800),
    "srn": (SRNLite, SRNLiteConfig, 68_250),
}
SIZES = [(160, 224), (161, 203), (33, 257), (1, 1)]


def build(name: str, **settings):
    """A model with random weights and random statistics of normalisation, in evaluation mode."""
    torch.manual_seed(0)
    network, config, _ = LITE[name]
    model = network(config(**settings)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return model


@pytest.fixture(params=list(LITE))
def name(request):
    return request.param


def tensors(maps):
    """All maps of all levels, in order."""
    return [x for level in maps for x in level if x is not None]


def pictures(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sizes_of(maps):
    return [tuple(level.logits.shape[2:]) for level in maps]


def assert_same(actual, expected, tolerance=1e-4):
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("landmarks", [True, False])
def test_parameters(name, landmarks):
    model = build(name, landmarks=landmarks)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000


def test_anchors(name):
    model = build(name)
    with torch.inference_mode():
        maps = model(pictures(1, 3, 640, 640))
    assert len(ops.anchor_boxes(model.levels, sizes_of(maps))) == LITE[name][2]


@pytest.mark.parametrize("landmarks", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_shapes(name, size, landmarks):
    model = build(name, landmarks=landmarks)
    with torch.inference_mode():
        maps = model(pictures(2, 3, *size))
    for k, (level, found) in enumerate(zip(model.levels, maps, strict=True)):
        cells = tuple(-(-side // level.stride) for side in size)
        n = len(level.anchors)
        assert found.logits.shape == (2, (level.num_background + 1) * n, *cells)
        assert found.boxes.shape == (2, 4 * n, *cells)
        assert (found.landmarks.shape == (2, 10 * n, *cells)) if landmarks else found.landmarks is None
        assert (found.gate is not None) == (name == "srn" and k < 3)
        assert (found.offsets is not None) == (name == "srn" and k >= 3)
        assert found.gate is None or found.gate.shape == (2, n, *cells)
        assert found.offsets is None or found.offsets.shape == (2, 4 * n, *cells)


def test_anchors_lie_about_cell_centres(name):
    for level in build(name).levels:
        for x1, y1, x2, y2 in level.anchors:
            assert (x1 + x2) / 2 == pytest.approx(level.stride / 2)
            assert (y1 + y2) / 2 == pytest.approx(level.stride / 2)


def test_anchor_sides():
    def sides(model):
        return [[(x2 - x1, y2 - y1) for x1, y1, x2, y2 in level.anchors] for level in model.levels]

    assert sides(S3FDLite()) == [[(side, side)] for side in (16, 32, 64, 128, 256, 512)]
    assert sides(SSHLite()) == [[(16, 16), (32, 32)], [(64, 64), (128, 128)], [(256, 256), (512, 512)]]
    for level, found in zip(SRNLite().levels, sides(SRNLite()), strict=True):
        assert [w * h for w, h in found] == pytest.approx([(2 * level.stride) ** 2, 8 * level.stride**2], rel=1e-5)
        assert [h / w for w, h in found] == pytest.approx([1.25, 1.25])


@pytest.mark.parametrize("landmarks", [True, False])
def test_candidates(name, landmarks):
    """A face planted in otherwise empty maps is decoded to its anchor, moved by the offsets in their units."""
    model = build(name, landmarks=landmarks)
    with torch.no_grad():
        maps = model(pictures(2, 3, 128, 128))
    for level, (described, found) in enumerate(zip(model.levels, maps, strict=True)):
        n = len(described.anchors)
        for x in tensors([found]):
            x.zero_()
        found.logits[:] = 0.0 if described.num_background else -9.0
        found.logits[:, : described.num_background * n] = 9.0
        if level == 1:
            found.logits[1, -1, 1, 2] = 20.0  # the last anchor of row 1, column 2, in the second image
            found.boxes[1, -4:, 1, 2] = torch.tensor([1.0, -2.0, 0.0, 0.0])
    found = model.candidates(maps, score_threshold=0.5, max_candidates=10)
    assert found.count.tolist() == [0, 1]
    rows, columns = sizes_of(maps)[0]
    first, n = rows * columns * len(model.levels[0].anchors), len(model.levels[1].anchors)
    assert found.index[1, 0] == first + (1 * maps[1].logits.shape[3] + 2) * n + n - 1
    anchor = ops.anchor_boxes(model.levels, sizes_of(maps))[found.index[1, 0]]
    side = anchor[2:] - anchor[:2]
    shift = model.variances[0] * side * torch.tensor([1.0, -2.0])
    torch.testing.assert_close(found.boxes[1, 0], anchor + shift.repeat(2), rtol=1e-5, atol=1e-4)
    assert found.landmarks.shape == ((2, 10, 5, 2) if landmarks else (2, 10, 0, 2))
    if landmarks:
        centre = anchor[:2] + side / 2
        torch.testing.assert_close(found.landmarks[1, 0], centre.expand(5, 2), rtol=1e-5, atol=1e-4)


def test_batches_equal_single_images(name):
    model = build(name)
    x = pictures(3, 3, 97, 130)
    with torch.inference_mode():
        together = model(x)
        for k in range(3):
            alone = model(x[k : k + 1])
            assert_same([type(m)(*(t if t is None else t[k : k + 1] for t in m)) for m in together], alone, 1e-5)


def test_channels_last(name):
    model, x = build(name), pictures(2, 3, 97, 130)
    with torch.inference_mode():
        expected = model(x)
        actual = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert_same(actual, expected)


def test_bfloat16(name):
    model, x = build(name), pictures(2, 3, 97, 130)
    with torch.inference_mode():
        expected = model(x)
        actual = model.bfloat16()(x.bfloat16())
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().mean() < 0.05 * b.abs().mean() + 0.01


@pytest.mark.parametrize("settings", [{"landmarks": True}, {"landmarks": False}], ids=["landmarks", "plain"])
def test_gradients(name, settings):
    model = build(name, **settings).train()
    sum(x.square().mean() for x in tensors(model(pictures(2, 3, 256, 256)))).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_gradients_with_shared_prediction():
    model = build("srn", separate_prediction=False).train()
    maps = model(pictures(2, 3, 256, 256))
    sum(level.gate.square().mean() for level in maps[:3]).backward()
    assert model.heads.cls_pred.weight.grad.any()
    assert "heads.cls_first_pred.weight" not in dict(model.named_parameters())


def test_training_starts_with_low_scores_and_unmoved_anchors(name):
    """The face probabilities of a new network are about 0.01, and its boxes are near the anchors."""
    torch.manual_seed(0)
    model = LITE[name][0]().train()
    with torch.no_grad():
        maps = model(pictures(2, 3, 320, 320))
    for level, found in zip(model.levels, maps, strict=True):
        n = len(level.anchors)
        face = found.logits[:, -n:]
        background = found.logits[:, :n] if level.num_background else torch.zeros_like(face)
        assert 0.002 < (face - background).sigmoid().mean() < 0.05
        assert found.boxes.abs().mean() < 1
        assert found.landmarks.abs().mean() < 1


def test_export(name):
    """One program for all sizes and batches."""
    model = build(name)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (pictures(2, 3, 288, 416),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = pictures(1, 3, 301, 263)
    with torch.no_grad():
        assert_same(program.module()(x), model(x))


def test_compile(name):
    model, x = build(name), pictures(2, 3, 97, 130)
    with torch.inference_mode():
        torch._dynamo.reset()
        assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_folding(name):
    model, x = build(name), pictures(2, 3, 97, 130)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norms(model)
    kinds = {type(layer) for layer in folded.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Identity, OblongConv2d}
    assert type(folded) is type(model)
    assert not any(p.requires_grad for p in folded.parameters())
    with torch.inference_mode():
        assert_same(folded(x), model(x))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_folding_keeps_channels_last(name):
    x = pictures(1, 3, 96, 128).contiguous(memory_format=torch.channels_last)
    model = build(name)
    with torch.inference_mode():
        folded = fold_batch_norms(model.to(memory_format=torch.channels_last))
        assert_same(folded(x), model(x))
        assert folded.backbone(x)[0].is_contiguous(memory_format=torch.channels_last)


def test_folding_layers_that_are_attributes():
    torch.manual_seed(0)
    model = ResNet50().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 2.0, 4.0)
            nn.init.normal_(layer.bias, std=0.1)
    x = pictures(1, 3, 64, 64)
    folded = fold_batch_norms(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.inference_mode():
        for a, b in zip(folded(x), model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_folding_leaves_what_does_not_follow_a_convolution():
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    x = pictures(2, 3, 5, 5)
    folded = fold_batch_norms(layers)
    assert [type(layer) for layer in folded] == [type(layer) for layer in layers]
    torch.testing.assert_close(folded(x), layers(x))


def test_folding_nothing_copies_as_well():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    folded = fold_batch_norms(model).half()
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert model[0].weight.dtype == torch.float32
    assert model[0].weight.requires_grad


def test_folding_refuses_training():
    with pytest.raises(ValueError, match="got one in training mode; call eval"):
        fold_batch_norms(SSHLite())


def test_oblong_kernels_equal_those_of_rfe():
    """One masked depthwise kernel equals four oblong ones on a quarter of the channels each."""
    torch.manual_seed(0)
    layer, x = OblongConv2d(8), pictures(2, 8, 9, 7)
    parts = []
    for k, (height, width) in enumerate([(1, 5), (5, 1), (1, 3), (3, 1)]):
        top, left = 2 - height // 2, 2 - width // 2
        weight = layer.weight[2 * k : 2 * k + 2, :, top : top + height, left : left + width]
        bias = layer.bias[2 * k : 2 * k + 2]
        part = x[:, 2 * k : 2 * k + 2]
        parts.append(F.conv2d(part, weight, bias, padding=(height // 2, width // 2), groups=2))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))
    nn.init.ones_(layer.weight)  # what is masked has no effect
    torch.testing.assert_close(layer(x), layer.folded()(x))
    assert int(layer.mask.sum()) == 2 * (5 + 5 + 3 + 3)
    assert LiteRFE(8)(x).shape == x.shape


def test_backbone():
    with torch.inference_mode():
        maps = SlimResNet().eval()(pictures(1, 3, 75, 130))
    sizes = [(19, 33), (10, 17), (5, 9), (3, 5)]
    assert [tuple(x.shape[1:]) for x in maps] == [(c, *size) for c, size in zip(SlimResNet.WIDTHS, sizes, strict=True)]


def test_a_new_context_block_returns_its_input_and_a_trained_one_covers_seven_cells():
    block = Context(8).eval()
    x = torch.rand(1, 8, 9, 9)
    assert torch.equal(block(x), x)
    nn.init.ones_(block.layers[-1][-1].weight)
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    impulse = torch.zeros(1, 8, 9, 9)
    impulse[:, :, 4, 4] = 1
    seen = block(impulse)[0, 0] > 0
    assert seen.sum() == 49
    assert seen[1:8, 1:8].all()


def test_a_predictor_with_a_convolution_of_its_own_for_landmarks():
    level = ops.AnchorLevel(stride=4, anchors=((-6.0, -6.0, 10.0, 10.0),), num_background=3)
    for own_points, outputs in ((False, 18), (True, 8)):
        layer = Predictor(5, level, kernel=3, landmarks=True, prior=0.01, own_points=own_points)
        maps = layer(torch.zeros(2, 5, 4, 6))
        assert layer.conv.out_channels == outputs
        assert [x.shape for x in maps if x is not None] == [(2, 4, 4, 6), (2, 4, 4, 6), (2, 10, 4, 6)]
        assert torch.allclose(maps.logits[:, 3] - maps.logits[:, 0], torch.tensor(0.01 / 0.99).log())
    assert Predictor(5, level, kernel=3, landmarks=False, prior=0.01, own_points=True).points is None


def test_configurations_compare(name):
    _, config, _ = LITE[name]
    assert config() == config()
    assert replace(config(), landmarks=False) != config()
