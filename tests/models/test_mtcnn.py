"""MTCNN: its arithmetic on cases done by hand, its batching, and what it finds in photos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyface.data.annotations import AnnotatedImage
from pyface.evaluation.average_precision import precision_recall
from pyface.models import MTCNN, Faces, MTCNNConfig, create_model
from pyface.models import mtcnn as module

ROOT = Path(__file__).parents[2]
EMPTY = ((0, 4), (0,), (0, 5, 2))


@pytest.fixture(scope="module")
def model() -> MTCNN:
    return create_model("mtcnn")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return read(ROOT / "examples" / "astronaut.jpg")


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


def shapes(faces: Faces) -> tuple:
    return tuple(tuple(x.shape) for x in faces)


def assert_same(a: Faces, b: Faces) -> None:
    """The same faces; convolutions may add up in another order when a batch has another size."""
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0.02)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(a.landmarks, b.landmarks, rtol=0, atol=0.02)


class TestNetworks:
    def test_shapes(self, model):
        """docs/detectors.md 10.3."""
        with torch.no_grad():
            assert model.pnet(torch.zeros(1, 3, 12, 12)).shape == (1, 6, 1, 1)
            assert model.rnet.features(torch.zeros(2, 3, 24, 24)).shape == (2, 64, 3, 3)
            assert model.onet.features(torch.zeros(2, 3, 48, 48)).shape == (2, 128, 3, 3)
            assert model.rnet(torch.zeros(2, 3, 24, 24)).shape == (2, 6)
            assert model.onet(torch.zeros(2, 3, 48, 48)).shape == (2, 16)

    def test_parameter_count(self, model):
        assert sum(p.numel() for p in model.parameters()) == 495_850

    @pytest.mark.parametrize("size", [(12, 12), (13, 12), (14, 15), (31, 47)])
    def test_map_size(self, model, size):
        with torch.no_grad():
            assert model.pnet(torch.zeros(1, 3, *size)).shape[2:] == module.cells_of(module.Level(*size, 0, 1.0))

    @pytest.mark.parametrize(("name", "side"), [("pnet", 25), ("rnet", 24), ("onet", 48)])
    def test_against_a_plain_construction(self, model, name, side):
        """The same from windows and matrix products in float64, dense columns in the released order (W, H, C)."""
        net = getattr(model, name)
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        weights = {key: value.double() for key, value in net.state_dict().items()}
        pools = {"pnet": [2, 0, 0], "rnet": [3, 3, 0], "onet": [3, 3, 2, 0]}[name]
        y = x.double()
        for k, pool in enumerate(pools, 1):
            y = plain_prelu(plain_convolution(y, weights[f"conv{k}.weight"], weights[f"conv{k}.bias"]), weights, k)
            y = plain_pool(y, pool) if pool else y
        if name != "pnet":
            dense = weights["dense.weight"].reshape(-1, y.shape[1], 3, 3).permute(0, 3, 2, 1).flatten(1)
            y = y.permute(0, 3, 2, 1).flatten(1) @ dense.T + weights["dense.bias"]
            y = plain_prelu(y, weights, len(pools) + 1)
            y = y @ weights["heads.weight"].T + weights["heads.bias"]
        else:
            y = plain_convolution(y, weights["heads.weight"], weights["heads.bias"])
        with torch.no_grad():
            torch.testing.assert_close(net(x).double(), y, rtol=1e-4, atol=1e-4)


def plain_convolution(x, weight, bias):
    side = weight.shape[2]
    windows = x.unfold(2, side, 1).unfold(3, side, 1)
    return torch.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def plain_prelu(x, weights, k):
    slope = weights[f"prelu{k}.weight"].reshape(-1, *[1] * (x.dim() - 2))
    return x.clamp(min=0) + slope * x.clamp(max=0)


def plain_pool(x, side):
    """Rounds up: the last window may hang over the edge, where nothing is."""
    over = [-(n - side) % 2 for n in x.shape[2:]]
    x = F.pad(x, (0, over[1], 0, over[0]), value=-torch.inf)
    return x.unfold(2, side, 2).unfold(3, side, 2).amax((4, 5))


class TestArithmetic:
    def test_pyramid(self):
        """A 20 x 41 image, faces from 10 px: scales 1.2, 0.8508, 0.6032 (12.06 px); the next is below 12."""
        levels = module.pyramid_levels([(20, 41)], 10.0, 0.709)
        assert [(level.height, level.width) for level in levels] == [(24, 50), (18, 35), (13, 25)]
        assert [level.scale for level in levels] == pytest.approx([1.2, 0.8508, 0.6032172])

    def test_equal_sizes_are_neighbours(self):
        levels = module.pyramid_levels([(40, 40), (34, 34), (40, 40)], 20.0, 0.709)
        runs = module.same_size_runs(levels, 1 << 20)
        assert [[level.image for level in levels[run]] for run in runs] == [[0, 2], [0, 2], [0, 2], [1], [1]]
        assert [len(levels[run]) for run in module.same_size_runs(levels, 24 * 24)] == [1, 1, 1, 1, 2, 1, 1]

    def test_cell_boxes(self):
        """Cell 3 at scale 0.6: the author's x1 = fix(7 / 0.6) = 11, x2 = fix(18 / 0.6) = 30, pixels counted from 1."""
        boxes = module.cell_boxes(
            torch.tensor([0, 5]), torch.tensor([3, 0]), torch.tensor([0.6, 1.0], dtype=torch.float64)
        )
        # Row 0: y1 = fix(1 / 0.6) = 1, y2 = fix(12 / 0.6) = 20. Row 5 at scale 1: 11 ... 22, column 0: 1 ... 12.
        assert boxes.tolist() == [[10, 0, 30, 20], [0, 10, 12, 22]]

    def test_calibration(self):
        """The author's (11, 21, 30, 60): 20 x 40 pixels with his + 1, 19 x 39 without."""
        boxes, offsets = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[0.1, -0.1, 0.5, 0.0]])
        assert module.calibrate(boxes, offsets)[0].tolist() == pytest.approx([12, 16, 40, 60])
        assert module.calibrate(boxes, offsets, plus_one=False)[0].tolist() == pytest.approx([11.9, 16.1, 39.5, 60])

    def test_squares(self):
        """10.5 x 20 becomes 20 x 20 about the same centre; the author's x1 = 16.25 is cut to 16, x2 = 35.25 to 35."""
        squares = module.whole_squares(torch.tensor([[20.0, 5, 30.5, 25]]))
        assert squares.tolist() == [[15, 5, 35, 25]]

    def test_rounding_is_towards_zero(self):
        """The author's x1 = -2.5 becomes -2 (ours: -3); his x2 = 7.5 becomes 7."""
        assert module.whole_squares(torch.tensor([[-3.5, -3.5, 7.5, 7.5]])).tolist() == [[-3, -3, 7, 7]]

    def test_landmarks(self):
        points = torch.tensor([[0.0, 0.5, 1, 0, 0, 0, 0.25, 1, 0, 0]])
        assert module.place_landmarks(torch.tensor([[10.0, 20, 30, 40]]), points)[0].tolist() == [
            [10, 20],
            [20, 25],
            [30, 40],
            [10, 20],
            [10, 20],
        ]

    def test_mirrored_landmarks_come_back(self):
        points = torch.rand(3, 10)
        assert torch.allclose(module.mirror_points(module.mirror_points(points)), points)
        left_eye = module.mirror_points(torch.arange(10.0)[None])[0, [0, 5]]
        assert left_eye.tolist() == [0, 6]  # from the mirror image's right eye (1, 6): x = 1 - 1

    def test_probability(self):
        out = torch.randn(5, 6)
        assert torch.allclose(module.face_probability(out), out[:, :2].softmax(1)[:, 1])

    def test_clipped_crops(self):
        found = module.Proposals(torch.tensor([[-5.0, 2, 6, 13], [30, 3, 40, 9]]), torch.ones(2), torch.tensor([0, 0]))
        clipped = module.clip_to_image(found, [torch.zeros(10, 20, 3)])
        assert clipped.tolist() == [[0, 2, 6, 10], [19, 3, 20, 9]]


class TestDetect:
    def test_astronaut(self, model, photo):
        (faces,) = model.detect([photo])
        assert shapes(faces) == ((1, 4), (1,), (1, 5, 2))
        assert faces.scores[0] > 0.99
        assert faces.boxes[0].tolist() == pytest.approx([180, 60, 269, 175], abs=4)
        points = faces.landmarks[0]
        assert bool((points > faces.boxes[0, :2]).all())
        assert bool((points < faces.boxes[0, 2:]).all())
        left_eye, right_eye, nose, left_mouth, right_mouth = points.tolist()
        assert left_eye[0] < nose[0] < right_eye[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])

    def test_a_mixed_batch_equals_one_by_one(self, model, photo):
        images = [photo, photo[40:300, 100:340], photo[:11], photo.flip(1), photo[::2, ::2], photo]
        batch = model.detect(images)
        assert sum(len(faces.scores) for faces in batch) >= 5
        for faces, image in zip(batch, images, strict=True):
            assert_same(faces, model.detect([image])[0])

    def test_deterministic(self, model, photo):
        a, b = model.detect([photo, photo[::2]]), model.detect([photo, photo[::2]])
        assert all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))

    @pytest.mark.parametrize("size", [(1, 1), (11, 400), (400, 11), (0, 5), (19, 19), (40, 40)])
    def test_nothing_to_find(self, model, size):
        (faces,) = model.detect([torch.zeros(*size, 3, dtype=torch.uint8)])
        assert shapes(faces) == EMPTY

    def test_no_images(self, model):
        assert model.detect([]) == []

    def test_min_face_beyond_the_image(self, model, photo):
        assert shapes(model.detect([photo], min_face=513)[0]) == EMPTY

    def test_min_face(self, model, photo):
        assert len(model.detect([photo], min_face=60)[0].scores) == 1
        sides = model.detect([photo], min_face=20)[0].boxes[0].reshape(2, 2).diff(dim=0).squeeze()
        assert len(model.detect([photo], min_face=float(sides.max()) + 8)[0].scores) == 0
        with pytest.raises(ValueError, match="min_face"):
            model.detect([photo], min_face=0)

    def test_score_threshold(self, model, photo):
        assert len(model.detect([photo], score_threshold=1.0)[0].scores) == 0
        scores = model.detect([photo], score_threshold=0.0)[0].scores
        assert len(scores) > 1
        assert torch.equal(scores, scores.sort(descending=True).values)

    def test_scores_pass_strictly(self, model, photo):
        score = model.detect([photo])[0].scores[0].item()
        assert len(model.detect([photo], score_threshold=score)[0].scores) == 0

    @pytest.mark.parametrize(
        "config",
        [
            MTCNNConfig(interpolation="bilinear"),
            MTCNNConfig(mirror_landmarks=True),
            MTCNNConfig.facenet(),
            MTCNNConfig.wider(),
        ],
    )
    def test_variants_find_the_same_face(self, model, photo, config):
        variant = MTCNN(config).eval()
        variant.load_state_dict(model.state_dict())
        best, reference = variant.detect([photo])[0], model.detect([photo])[0]
        torch.testing.assert_close(best.boxes[:1], reference.boxes[:1], rtol=0, atol=8)
        torch.testing.assert_close(best.landmarks[:1], reference.landmarks[:1], rtol=0, atol=5)

    def test_a_strided_image(self, model, photo):
        assert_same(model.detect([photo[:, ::2]])[0], model.detect([photo[:, ::2].contiguous()])[0])

    @pytest.mark.parametrize(
        ("image", "error", "words"),
        [
            (torch.zeros(20, 20, 3), TypeError, "uint8"),
            (torch.zeros(3, 20, 20, dtype=torch.uint8), ValueError, "H, W, 3"),
            ([[0]], TypeError, "list"),
        ],
    )
    def test_refuses(self, model, image, error, words):
        with pytest.raises(error, match=words):
            model.detect([image])

    @pytest.mark.cuda
    def test_cuda(self, model, photo, cuda):
        on_device = create_model("mtcnn").to(cuda)
        images = [photo, photo[40:300, 100:340]]
        for a, b in zip(on_device.detect([x.to(cuda) for x in images]), model.detect(images), strict=True):
            assert_same(Faces(*(x.cpu() for x in a)), b)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_face": 0},
        {"min_face": float("nan")},
        {"factor": 1.0},
        {"factor": 0.0},
        {"hard_fraction": 0.0},
        {"hard_mining": "classes"},
    ],
)
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MTCNNConfig(**wrong)


def test_average_precision(model, photo):
    """Every face of the composed photo is found before anything else, at full size and at half of it."""
    # Side, left and top of the astronaut's head, as examples/compose.py places it, and whether it is mirrored.
    heads = np.array(
        [
            [360, 20, 20, 0],
            [240, 400, 20, 1],
            [240, 680, 20, 0],
            [200, 400, 280, 0],
            [200, 620, 280, 1],
            [140, 20, 400, 0],
            [100, 180, 400, 1],
            [70, 300, 400, 0],
            [120, 840, 280, 0],
        ]
    )
    side, left, top, mirrored = heads.T[:, :, None]
    face = np.array([85, 60, 174, 175]) / 260  # of the head
    face = np.where(mirrored, [1 - face[2], face[1], 1 - face[0], face[3]], face)
    boxes = (face * side + np.concatenate([left, top, left, top], 1)).astype(np.float32)
    gallery = read(ROOT / "examples" / "gallery.jpg")
    images = [gallery, F.interpolate(gallery.permute(2, 0, 1)[None].float(), scale_factor=0.5, mode="area")]
    images[1] = images[1][0].permute(1, 2, 0).to(torch.uint8)
    nothing = np.zeros((0, 4), np.float32)
    pictures = [
        AnnotatedImage(Path("gallery.jpg"), boxes, nothing, np.full((9, 5, 2), np.nan, np.float32)),
        AnnotatedImage(Path("half.jpg"), boxes[:7] / 2, boxes[7:] / 2, np.full((7, 5, 2), np.nan, np.float32)),
        AnnotatedImage(Path("empty.jpg"), nothing, nothing, np.zeros((0, 5, 2), np.float32)),
    ]
    found = model.detect([*images, photo[260:, :200].contiguous()])
    at_05 = precision_recall(pictures, [f.boxes.numpy() for f in found], [f.scores.numpy() for f in found], 0.5)
    assert at_05.average_precision > 0.95
