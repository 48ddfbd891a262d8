"""S3FD's network and decoding, against the paper's numbers and cases done by hand."""

import pytest
import torch
from torch import nn

from pyface import ops
from pyface.models.layers import L2Norm
from pyface.models.s3fd import S3FDVGG16, S3FDConfig, S3FDVGG16Config

STRIDES = (4, 8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def model() -> S3FDVGG16:
    torch.manual_seed(0)
    return S3FDVGG16().eval()


def meta(size: int, **settings) -> list[ops.LevelMaps]:
    """The maps' shapes, without the arithmetic."""
    with torch.device("meta"):
        return S3FDVGG16(S3FDVGG16Config(**settings))(torch.zeros(1, 3, size, size))


class TestNetwork:
    def test_anchors_at_640(self):
        """docs/detectors.md 2.1, 10.1."""
        counts = [level.boxes.shape[2] * level.boxes.shape[3] for level in meta(640)]
        assert counts == [25_600, 6_400, 1_600, 400, 100, 25]
        assert sum(counts) == 34_125

    def test_anchors_with_the_released_padding(self):
        """docs/detectors.md 2.7: fc7 is 24 x 24, then 12 and 6."""
        shapes = [tuple(level.boxes.shape[2:]) for level in meta(640, fc6_padding=3)]
        assert shapes == [(160, 160), (80, 80), (40, 40), (24, 24), (12, 12), (6, 6)]
        assert sum(height * width for height, width in shapes) == 34_356

    def test_dilated_fc6_keeps_the_size(self):
        assert meta(640, fc6_padding=6, fc6_dilation=6)[3].boxes.shape[2:] == (20, 20)

    def test_parameter_count(self, model):
        vgg16 = 14_714_688  # its thirteen convolutions

        def conv(channels, width, kernel):
            return channels * width * kernel**2 + width

        fc = conv(512, 1024, 3) + conv(1024, 1024, 1)
        extra = conv(1024, 256, 1) + conv(256, 512, 3) + conv(512, 128, 1) + conv(128, 256, 3)
        norms = 256 + 512 + 512
        heads = conv(256, 4 + 4, 3) + sum(conv(channels, 2 + 4, 3) for channels in (512, 512, 1024, 512, 256))
        assert sum(p.numel() for p in model.parameters()) == vgg16 + fc + extra + norms + heads == 22_459_110

    def test_scales_start_as_in_the_paper(self, model):
        for name, scale in (("conv3_3_norm", 10), ("conv4_3_norm", 8), ("conv5_3_norm", 5)):
            assert (model.get_submodule(name).weight == scale).all()


class TestL2Norm:
    def test_formula(self):
        layer = L2Norm(3, 10.0)
        nn.init.uniform_(layer.weight)
        x = torch.randn(2, 3, 4, 5)
        expected = x / (x**2).sum(1, keepdim=True).sqrt() * layer.weight.reshape(1, 3, 1, 1)
        torch.testing.assert_close(layer(x), expected)

    def test_training_has_the_same_values_and_gradients(self):
        layer = L2Norm(32, 10.0)
        nn.init.uniform_(layer.weight, 5, 15)
        x = torch.randn(2, 32, 5, 7, requires_grad=True)
        gradient = torch.randn(2, 32, 5, 7)
        y = {}
        for training in (True, False):
            layer.train(training)
            y[training] = [layer(x), *torch.autograd.grad(layer(x), [x, layer.weight], gradient)]
        for in_training, expected in zip(y[True], y[False], strict=True):
            torch.testing.assert_close(in_training, expected, rtol=1e-4, atol=1e-4)

    def test_zeros_stay_zero_and_pass_a_finite_gradient(self):
        x = torch.zeros(1, 4, 2, 2, requires_grad=True)
        y = L2Norm(4, 10.0)(x)
        y.square().sum().backward()
        assert (y == 0).all()
        assert x.grad.isfinite().all()

    def test_half_precision_does_not_overflow(self):
        x = torch.full((1, 256, 1, 1), 1000.0, dtype=torch.float16)  # the squares are beyond float16
        for layer in (L2Norm(256, 10.0).half(), L2Norm(256, 10.0).half().eval()):
            y = layer(x)
            torch.testing.assert_close(y, torch.full_like(y, 10 / 16))


class TestDecoding:
    def test_anchors(self, model):
        """Side 4 * stride about the middle of the cell (docs/detectors.md 2.1)."""
        sides = []
        for level, stride in zip(model.levels, STRIDES, strict=True):
            (x1, y1, x2, y2) = level.anchors[0]
            assert level.stride == stride
            assert (x1 + x2) / 2 == (y1 + y2) / 2 == stride / 2
            assert x2 - x1 == y2 - y1
            sides.append(x2 - x1)
        assert sides == [16, 32, 64, 128, 256, 512]
        assert [level.num_background for level in model.levels] == [3, 1, 1, 1, 1, 1]

    def test_by_hand(self, model):
        """One face on the first map (max-out) and one on the second."""
        maps = quiet_maps((2, 3), (1, 2))
        maps[0].logits[0, :, 1, 2] = torch.tensor([0.5, 1.0, -2.0, 3.0])  # the largest background is 1
        maps[0].boxes[0, :, 1, 2] = torch.tensor([1.0, -2.0, 1.5, 0.0])
        maps[1].logits[0, :, 0, 1] = torch.tensor([0.0, 1.0])
        found = model.candidates(maps, score_threshold=0.5, max_candidates=10)
        assert found.count.tolist() == [2]
        assert found.index[0, :2].tolist() == [5, 7]
        torch.testing.assert_close(found.scores[0, :2], torch.tensor([2.0, 1.0]).sigmoid())
        # Centre (10, 6) + 0.1 * 16 * (1, -2), sides 16 * exp(0.2 * (1.5, 0)).
        half = torch.tensor([1.5, 0.0]).mul(0.2).exp() * 8
        centre = torch.tensor([11.6, 2.8])
        torch.testing.assert_close(found.boxes[0, 0], torch.cat([centre - half, centre + half]))
        torch.testing.assert_close(found.boxes[0, 1], torch.tensor([-4.0, -12.0, 28.0, 20.0]))

    def test_a_third_background_counts(self, model):
        maps = quiet_maps((1, 1))
        maps[0].logits[0, :, 0, 0] = torch.tensor([-9.0, -9.0, 3.0, 2.9])
        found = model.candidates(maps, score_threshold=0.5, max_candidates=1)
        assert found.count.tolist() == [0]

    def test_configuration_reaches_the_model(self):
        config = S3FDVGG16Config(bgr=False, score_threshold=0.2, nms_threshold=0.5)
        with torch.device("meta"):
            model = S3FDVGG16(config)
        assert isinstance(config, S3FDConfig)
        assert (model.preprocessing.bgr, model.score_threshold, model.nms_threshold) == (False, 0.2, 0.5)
        assert model.preprocessing.mean == (123, 117, 104)  # RGB order


def quiet_maps(*sizes: tuple[int, int]) -> list[ops.LevelMaps]:
    """Maps of the first levels on which nothing is a face."""
    maps = []
    for level, size in enumerate(sizes):
        logits = torch.zeros(1, 4 if level == 0 else 2, *size)
        logits[:, -1] = -10
        maps.append(ops.LevelMaps(logits, torch.zeros(1, 4, *size)))
    return maps
