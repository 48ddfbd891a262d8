"""SRN's network and decoding, against the author's arithmetic written out once more."""

import math

import numpy as np
import pytest
import torch

from pyface import ops
from pyface.models.srn import SRNConfig, SRNResNet50

STRIDES = (4, 8, 16, 32, 64, 128)
BASES = ((4, 5), (7, 9), (14, 18), (29, 36), (57, 71), (114, 142))  # docs/detectors.md 4.2
SIZES = [(12, 13), (6, 7), (3, 4), (2, 2), (1, 1), (1, 1)]


@pytest.fixture(scope="module")
def model() -> SRNResNet50:
    torch.manual_seed(0)
    return SRNResNet50().eval()


class TestNetwork:
    @pytest.mark.parametrize(("size", "anchors"), [(640, 68_250), (1024, 174_720)])
    def test_anchors(self, size, anchors):
        """docs/detectors.md 4.2, 10.2."""
        with torch.device("meta"):
            maps = SRNResNet50()(torch.zeros(1, 3, size, size))
        counts = [level.logits[0].numel() for level in maps]
        assert sum(counts) == anchors
        assert sum(counts[:3]) / anchors == pytest.approx(0.985, abs=5e-4)

    def test_parameter_count(self, model):
        resnet50 = 25_557_032 - (2048 * 1000 + 1000)  # torchvision's, without fc

        def conv(channels, width, cells):
            return channels * width * cells + width

        extra = conv(2048, 1024, 9) + conv(1024, 256, 9)
        first = sum(conv(channels, 256, 1) for channels in (256, 512, 1024, 2048, 1024, 256))
        second = sum(conv(channels, 256, 1) for channels in (256, 512, 1024, 2048)) + 6 * conv(256, 256, 9)
        branches = sum(conv(256, 64, 1) + conv(64, 64, cells) + conv(64, 64, 1) for cells in (5, 5, 3, 3))
        subnet = 2 * conv(256, 256, 9) + branches + conv(256, 256, 1)
        total = resnet50 + extra + first + second + 2 * subnet + conv(256, 2, 1) + conv(256, 8, 1)
        assert sum(p.numel() for p in model.parameters()) == total == 53_370_698

    def test_start(self, model):
        assert torch.allclose(model.cls_subnet_pred.bias, torch.tensor(-math.log(99)))
        for layer in (model.layer5, model.cls_subnet[0], model.box_subnet[2].branch0[2], model.p6_conv):
            assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
            assert (layer.bias == 0).all()

    def test_first_step_where_it_is_selected(self, model):
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 64, 64))
        assert [level.gate is not None for level in maps] == [True] * 3 + [False] * 3
        assert [level.offsets is not None for level in maps] == [False] * 3 + [True] * 3

    def test_separate_prediction(self):
        """The paper's reading: the steps share all but the last layers (docs/detectors.md 4.1)."""
        with torch.device("meta"):
            shared, separate = SRNResNet50(), SRNResNet50(SRNConfig(separate_prediction=True))
        assert separate.state_dict().keys() - shared.state_dict().keys() == {
            "cls_first_pred.weight",
            "cls_first_pred.bias",
            "box_first_pred.weight",
            "box_first_pred.bias",
        }
        x = torch.zeros(1, 256, 2, 2, device="meta")
        assert separate.first_logits(x).shape == (1, 2, 2, 2)
        assert separate.first_boxes(x).shape == (1, 8, 2, 2)


def author_decode(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] moved by deltas [N, 4]; sides are x2 - x1, without + 1."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + width * 0.5, boxes[:, 1] + height * 0.5
    x, y = deltas[:, 0] * width + x, deltas[:, 1] * height + y
    width, height = np.exp(deltas[:, 2]) * width, np.exp(deltas[:, 3]) * height
    return np.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], axis=1)


def author_candidates(maps: list[ops.LevelMaps], image: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Index, box (continuous) and score of every anchor of one image that the author's code would keep."""

    def rows(x: torch.Tensor, n: int) -> np.ndarray:
        return x[image].permute(1, 2, 0).reshape(-1, n).double().numpy()

    index, boxes, scores, first = [], [], [], 0
    for level, (maps_of, stride, base) in enumerate(zip(maps, STRIDES, BASES, strict=True)):
        height, width = maps_of.logits.shape[2:]
        anchors = []
        for row, column in np.ndindex(height, width):
            for scale in (2, 2.828427):
                w, h = base[0] * scale, base[1] * scale
                x, y = (stride - 1) / 2 + stride * column, (stride - 1) / 2 + stride * row
                anchors.append([x - 0.5 * (w - 1), y - 0.5 * (h - 1), x + 0.5 * (w - 1), y + 0.5 * (h - 1)])
        decoded = np.array(anchors)
        score = 1 / (1 + np.exp(-rows(maps_of.logits, 1)[:, 0]))
        passes = score > (0.05 if height * width >= 120 else 0.0)
        if level < 3:
            passes &= 1 / (1 + np.exp(-rows(maps_of.gate, 1)[:, 0])) > 0.01
        else:
            decoded = author_decode(decoded, rows(maps_of.offsets, 4))
        decoded = author_decode(decoded, rows(maps_of.boxes, 4))
        index += [first + k for k in np.nonzero(passes)[0]]
        boxes.append(decoded[passes] + [0, 0, 1, 1])  # he writes x2 - x1 + 1 as the width
        scores.append(score[passes])
        first += len(anchors)
    return index, np.concatenate(boxes), np.concatenate(scores)


def random_maps(batch: int = 2) -> list[ops.LevelMaps]:
    generator = torch.Generator().manual_seed(0)
    maps = []
    for level, size in enumerate(SIZES):

        def values(channels, mean=0.0, spread=1.0, size=size):
            return torch.randn(batch, channels, *size, generator=generator) * spread + mean

        gate, offsets = (values(2, -4.5), None) if level < 3 else (None, values(8, spread=0.5))
        maps.append(ops.LevelMaps(values(2, -3), values(8, spread=0.5), None, gate, offsets))
    return maps


class TestDecoding:
    def test_anchors(self, model):
        for level, base, stride in zip(model.levels, BASES, STRIDES, strict=True):
            assert level.num_background == 0
            for (x1, y1, x2, y2), scale in zip(level.anchors, (2, 2.828427), strict=True):
                assert (x2 - x1 + 1, y2 - y1 + 1) == pytest.approx((base[0] * scale, base[1] * scale))
                assert (x1 + x2) / 2 == pytest.approx((stride - 1) / 2)
                assert (y1 + y2) / 2 == pytest.approx((stride - 1) / 2)

    def test_as_the_author_computes_for_every_image(self, model):
        """The first map has 156 cells and a threshold, the others fewer than 120 and none."""
        maps = random_maps()
        found = model.candidates(maps, score_threshold=0.05, max_candidates=10_000)
        for image in range(2):
            index, boxes, scores = author_candidates(maps, image)
            count = int(found.count[image])
            order = found.index[image, :count].argsort()
            assert found.index[image, :count][order].tolist() == index
            assert 0 < count < 2 * sum(height * width for height, width in SIZES)
            torch.testing.assert_close(
                found.boxes[image, :count][order].double(), torch.from_numpy(boxes), rtol=1e-5, atol=1e-3
            )
            torch.testing.assert_close(
                found.scores[image, :count][order].double(), torch.from_numpy(scores), rtol=1e-5, atol=1e-6
            )

    def test_the_threshold_of_a_caller_applies_to_small_maps_too(self, model):
        found = model.candidates(random_maps(), score_threshold=0.2, max_candidates=10_000)
        for image in range(2):
            assert found.scores[image, : int(found.count[image])].min() > 0.2

    @pytest.mark.parametrize("threshold", [0.05, 0.02])
    def test_faces_pass_whatever_threshold_a_caller_gives(self, model, monkeypatch, threshold):
        """The model's own has an exception, which its author's results need; a caller's has none."""
        monkeypatch.setattr(model, "forward", lambda images: random_maps())
        x = torch.zeros(2, 3, 48, 52)
        own, asked = model.find(x), model.find(x, score_threshold=threshold)
        for image in range(2):
            assert own.scores[image, : int(own.count[image])].min() < 0.05
            assert asked.scores[image, : int(asked.count[image])].min() > threshold

    def test_boxes_end_at_the_image(self, model):
        sizes = torch.tensor([[40.0, 50.0], [30.0, 20.0]])
        found = model.candidates(random_maps(), score_threshold=0.05, max_candidates=10_000, sizes=sizes)
        for image in range(2):
            boxes = found.boxes[image, : int(found.count[image])]
            assert boxes.min() == 0
            assert boxes[:, 3].max() == sizes[image, 0]
            assert boxes[:, 2].max() == sizes[image, 1]
            assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("gamma", [0.5, -1.0, math.nan, math.inf])
def test_a_focal_loss_without_a_slope_is_refused(gamma):
    assert [SRNConfig(focal_gamma=allowed).focal_gamma for allowed in (0.0, 1.0)] == [0.0, 1.0]
    with pytest.raises(ValueError, match="focal_gamma must be 0 or at least 1, got"):
        SRNConfig(focal_gamma=gamma)
