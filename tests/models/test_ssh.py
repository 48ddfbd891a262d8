"""SSH's network and decoding, against the author's arithmetic written out once more."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyface import ops
from pyface.models.layers import BilinearUpsample
from pyface.models.ssh import SSHVGG16, SSHConfig

STRIDES = (8, 16, 32)
SCALES = ((1, 2), (4, 8), (16, 32))  # of the base anchor of 16 pixels


@pytest.fixture(scope="module")
def model() -> SSHVGG16:
    torch.manual_seed(0)
    return SSHVGG16().eval()


class TestNetwork:
    def test_anchors_at_640(self):
        """docs/detectors.md 5.2, 10.2."""
        with torch.device("meta"):
            maps = SSHVGG16()(torch.zeros(1, 3, 640, 640))
        assert [tuple(level.logits.shape[1:]) for level in maps] == [(4, 80, 80), (4, 40, 40), (4, 20, 20)]
        assert sum(level.boxes[0].numel() // 4 for level in maps) == 16_800

    def test_parameter_count(self, model):
        def conv(channels, width, kernel):
            return channels * width * kernel**2 + width

        def module(channels, width):
            context = conv(channels, width // 2, 3) + 3 * conv(width // 2, width // 2, 3)
            return conv(channels, width, 3) + context + conv(2 * width, 4 + 8, 1)

        fusion = 2 * conv(512, 128, 1) + conv(128, 128, 3)
        total = 14_714_688 + fusion + module(128, 128) + 2 * module(512, 256)
        assert sum(p.numel() for p in model.parameters()) == total == 19_766_372

    def test_new_layers_start_small_and_the_trunk_does_not(self, model):
        fresh, trunk = model.m2.conv3x3.weight.detach(), model.backbone.conv5_3.weight.detach()
        assert float(fresh.std()) == pytest.approx(0.01, rel=0.02)
        assert float(trunk.std()) == pytest.approx((2 / (2 * 512 * 9)) ** 0.5, rel=0.02)

    def test_fusion_crops_what_rounding_added(self, model):
        """A map of 9 rows comes back with 10: the last one is dropped, the others stay where they are."""
        conv4, conv5 = torch.rand(1, 512, 10, 6), torch.rand(1, 512, 5, 3)
        with torch.no_grad():
            odd, even = model.fuse(conv4[:, :, :9], conv5), model.fuse(conv4, conv5)
        assert odd.shape == (1, 128, 9, 6)
        torch.testing.assert_close(odd[:, :, :8], even[:, :, :8])


class TestBilinearUpsample:
    def test_interior_is_interpolation(self):
        x = torch.randn(2, 3, 5, 7)
        y = BilinearUpsample(3)(x)
        assert y.shape == (2, 3, 10, 14)
        torch.testing.assert_close(
            y[..., 1:-1, 1:-1], F.interpolate(x, scale_factor=2, mode="bilinear")[..., 1:-1, 1:-1]
        )

    def test_zeros_surround_the_map(self):
        y = BilinearUpsample(1)(torch.ones(1, 1, 2, 2))
        assert y[0, 0, 0].tolist() == [0.5625, 0.75, 0.75, 0.5625]

    def test_nothing_is_stored(self, model):
        assert not [key for key in model.state_dict() if "conv5_128_up" in key]


def author_boxes(stride: int, scales: tuple[int, ...], deltas: np.ndarray) -> np.ndarray:
    """py-faster-rcnn's arithmetic: deltas [H, W, K, 4] -> boxes of the same shape; all sides are x2 - x1 + 1."""
    x1, x2 = 0.0, 15.0  # the base anchor, both ends included
    side = x2 - x1 + 1
    middle = x1 + 0.5 * (side - 1)
    assert middle == 7.5
    boxes = np.empty_like(deltas)
    for row, column, k in np.ndindex(deltas.shape[:3]):
        w = side * scales[k]
        anchor = np.array([middle - 0.5 * (w - 1)] * 2 + [middle + 0.5 * (w - 1)] * 2)
        anchor += stride * np.array([column, row, column, row])
        width, height = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
        centre_x, centre_y = anchor[0] + 0.5 * width, anchor[1] + 0.5 * height
        dx, dy, dw, dh = deltas[row, column, k]
        centre_x, centre_y = dx * width + centre_x, dy * height + centre_y
        width, height = np.exp(dw) * width, np.exp(dh) * height
        boxes[row, column, k] = [
            centre_x - 0.5 * width,
            centre_y - 0.5 * height,
            centre_x + 0.5 * width,
            centre_y + 0.5 * height,
        ]
    return boxes


class TestDecoding:
    def maps(self) -> list[ops.LevelMaps]:
        generator = torch.Generator().manual_seed(0)
        sizes = [(6, 7), (3, 4), (2, 2)]
        return [
            ops.LevelMaps(torch.randn(1, 4, *size, generator=generator), torch.randn(1, 8, *size, generator=generator))
            for size in sizes
        ]

    def test_as_the_author_computes(self, model):
        maps = self.maps()
        boxes, scores = [], []
        for level, stride, scales in zip(maps, STRIDES, SCALES, strict=True):
            deltas = level.boxes[0].permute(1, 2, 0).unflatten(2, (2, 4)).double().numpy()
            boxes.append(author_boxes(stride, scales, deltas).reshape(-1, 4))
            # bg0, bg1, fg0, fg1: the first half is background, one channel per anchor.
            probability = level.logits[0].unflatten(0, (2, 2)).softmax(0)[1]
            scores.append(probability.permute(1, 2, 0).flatten())
        found = model.candidates(maps, score_threshold=0.0, max_candidates=10_000)
        count = int(found.count)
        assert count == sum(map(len, scores))
        index = found.index[0, :count]
        torch.testing.assert_close(found.scores[0, :count], torch.cat(scores)[index])
        torch.testing.assert_close(
            found.boxes[0, :count].double(), torch.from_numpy(np.concatenate(boxes))[index], rtol=1e-5, atol=1e-3
        )

    def test_each_module_has_its_limit(self):
        with torch.device("meta"):
            model = SSHVGG16(SSHConfig(module_candidates=3))
        found = model.candidates(self.maps(), score_threshold=0.0, max_candidates=100)
        level = torch.bucketize(
            found.index[0, : int(found.count)], torch.tensor([2 * 6 * 7, 2 * 6 * 7 + 2 * 3 * 4]), right=True
        )
        assert level.bincount().tolist() == [3, 3, 3]
        assert [level.max_candidates for level in SSHVGG16().levels] == [1000] * 3

    def test_first_modules_alone(self, model):
        """What the pyramid's largest scale needs (docs/detectors.md 5.4)."""
        found = model.candidates(self.maps()[:2], score_threshold=0.0, max_candidates=10_000)
        assert int(found.count) == 2 * (6 * 7 + 3 * 4)

    def test_boxes_end_at_the_image(self, model):
        found = model.candidates(
            self.maps(), score_threshold=0.0, max_candidates=10_000, sizes=torch.tensor([[40.0, 50.0]])
        )
        boxes = found.boxes[0, : int(found.count)]
        assert boxes.min() == 0
        assert boxes[:, 2].max() == 50
        assert boxes[:, 3].max() == 40

    def test_input_and_suppression(self, model):
        assert model.preprocessing.bgr
        assert model.preprocessing.mean == (122.7717, 115.9465, 102.9801)  # RGB order
        assert model.nms_plus_one
