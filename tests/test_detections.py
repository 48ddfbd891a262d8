"""The result type: its checks, and every conversion."""

import json
import pickle
import sys

import cv2
import numpy as np
import pytest
import torch

from pyface.detections import ARCFACE_LANDMARKS, Detections, format_score, similarity

TEMPLATE = np.array(ARCFACE_LANDMARKS)


def make(count=3, with_landmarks=True, seed=0, **changes):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 60, (count, 2))], 1)
    points = corner[:, None] + rng.uniform(0, 50, (count, 5, 2))
    scores = np.sort(rng.uniform(0, 1, count))[::-1].copy()
    fields = {
        "boxes": boxes,
        "scores": scores,
        "landmarks": points if with_landmarks else None,
        "width": 200,
        "height": 160,
    }
    return Detections(**fields | {"source": "a.jpg"} | changes)


def test_fields_are_float32_tensors_on_the_cpu():
    detections = make()
    for tensor, shape in ((detections.boxes, (3, 4)), (detections.scores, (3,)), (detections.landmarks, (3, 5, 2))):
        assert tensor.dtype == torch.float32
        assert tensor.shape == shape
        assert tensor.device.type == "cpu"
    with pytest.raises(AttributeError):
        detections.width = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((3, 5))}, r"boxes must be \[N, 4\], got \[3, 5\]"),
        ({"boxes": np.zeros((3,))}, r"boxes must be \[N, 4\], got \[3\]"),
        ({"boxes": np.zeros((2, 4))}, "as many scores as boxes, got 3 and 2"),
        ({"scores": np.zeros((3, 1))}, r"scores must be \[N\], got \[3, 1\]"),
        ({"scores": 0.5}, r"scores must be \[N\], got \[\]"),
        ({"landmarks": np.zeros((3, 4, 2))}, r"landmarks must be \[N, 5, 2\], got \[3, 4, 2\]"),
        ({"landmarks": []}, "as many landmarks as boxes, got 0 and 3"),
        ({"scores": [0.5, float("nan"), 0.1]}, "scores must be finite"),
        ({"boxes": np.full((3, 4), np.inf)}, "boxes must be finite"),
        ({"width": 0}, "width must be a positive number of pixels, got 0"),
        ({"height": 1.5}, "height must be a positive number of pixels, got 1.5"),
    ],
)
def test_validation(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_empty():
    for empty in (Detections([], [], [], 5, 5), Detections([], [], None, 5, 5), make()[[]], make().above(1.0)):
        assert len(empty) == 0
        assert list(empty) == []
        assert empty.boxes.shape == (0, 4)
        assert empty.scores.shape == (0,)
        assert empty.to_dict()["faces"] == []
        assert empty.crop(np.zeros((empty.height, empty.width, 3), np.uint8)) == []
        assert len(empty.to_supervision()) == 0
        assert empty.to_torchvision()["labels"].shape == (0,)
    assert make(0).align(np.zeros((160, 200, 3), np.uint8)).shape == (0, 112, 112, 3)


def test_indexing():
    detections = make(4)
    face = detections[1]
    assert torch.equal(face.box, detections.boxes[1])
    assert face.score == detections.scores[1].item()
    assert torch.equal(face.landmarks, detections.landmarks[1])
    assert [one.score for one in detections] == detections.scores.tolist()
    assert detections[-1].score == detections.scores[3].item()
    with pytest.raises(IndexError):
        detections[4]
    assert torch.equal(detections[1:3].boxes, detections.boxes[1:3])
    assert torch.equal(detections[[2, 0]].boxes, detections.boxes[[2, 0]])
    mask = np.array([True, False, True, False])
    assert torch.equal(detections[mask].landmarks, detections.landmarks[[0, 2]])
    assert detections[mask].source == "a.jpg"
    assert make(4, False)[0].landmarks is None


def test_above_is_strict():
    detections = make(3, scores=[0.9, 0.5, 0.1])
    assert len(detections.above(0.5)) == 1
    assert len(detections.above(0.49)) == 2


@pytest.mark.parametrize("landmarks", [True, False])
def test_json_and_back(landmarks):
    detections = make(5, landmarks)
    text = json.dumps(detections.to_dict())
    assert Detections.from_dict(json.loads(text)) == detections
    line = json.loads(text)
    assert list(line) == ["source", "width", "height", "faces", "error"]
    assert line["error"] is None
    assert list(line["faces"][0]) == ["box", "score", "landmarks"]
    assert np.shape(line["faces"][0]["landmarks"]) == ((5, 2) if landmarks else ())
    assert len(str(line["faces"][0]["box"][0])) <= 12  # no digits beyond float32


def test_from_dict_refuses():
    with pytest.raises(ValueError, match=r"the line of x\.jpg holds an error instead of faces: gone"):
        Detections.from_dict({"source": "x.jpg", "width": None, "height": None, "faces": [], "error": "gone"})
    with pytest.raises(ValueError, match="one that pyface detect writes, got something else"):
        Detections.from_dict({"boxes": []})


def test_equality_and_pickle():
    assert make() == make()
    assert make() != make(seed=1)
    assert make() != make(source="b.jpg")
    assert make() != make(with_landmarks=False)
    assert make() != 3
    assert pickle.loads(pickle.dumps(make())) == make()


def test_to_torchvision():
    result = make().to_torchvision()
    assert torch.equal(result["boxes"], make().boxes)
    assert result["labels"].tolist() == [1, 1, 1]
    assert result["labels"].dtype == torch.int64


def test_to_supervision(monkeypatch):
    import supervision

    result = make().to_supervision()
    assert isinstance(result, supervision.Detections)
    np.testing.assert_array_equal(result.xyxy, make().boxes)
    np.testing.assert_array_equal(result.confidence, make().scores)
    assert result.class_id.tolist() == [0, 0, 0]
    assert result[1:].data["landmarks"].shape == (2, 5, 2)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        make().to_supervision()


def test_crop():
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    boxes = [[10.2, 20.7, 30.1, 40.0], [-50, -50, 20, 20], [190, 150, 300, 300], [500, 500, 600, 600], [50, 50, 50, 50]]
    crops = make(5, boxes=boxes).crop(image)
    np.testing.assert_array_equal(crops[0], image[20:40, 10:31])
    np.testing.assert_array_equal(crops[1], image[:20, :20])
    np.testing.assert_array_equal(crops[2], image[150:, 190:])
    assert crops[3].shape == crops[4].shape == (1, 1, 3)
    wider = make(1, boxes=[[40, 40, 60, 80]]).crop(image, margin=0.5)
    np.testing.assert_array_equal(wider[0], image[20:100, 30:70])
    crops[0][:] = 0
    assert image[20:40, 10:31].any()  # a copy
    with pytest.raises(ValueError, match="200 x 160 pixels of the one in which the faces were found, got 100 x 160"):
        make().crop(image[:, :100])
    with pytest.raises(ValueError, match="margin"):
        make().crop(image, margin=-0.1)


def test_similarity_is_the_least_squares_solution():
    rng = np.random.default_rng(3)
    for _ in range(20):
        source, target = rng.normal(size=(5, 2)) * 30, rng.normal(size=(5, 2)) * 30
        x, y, one, zero = source[:, 0], source[:, 1], np.ones(5), np.zeros(5)
        # Unknowns a, b, tx, ty of the matrix [[a, -b, tx], [b, a, ty]].
        design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, tx, ty = np.linalg.lstsq(design, target.T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-9)


def test_similarity_does_not_reflect():
    mirrored = TEMPLATE * [-1, 1]
    matrix = similarity(mirrored, TEMPLATE)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(("degrees", "scale", "size"), [(0, 1, 112), (30, 2.5, 112), (-70, 0.6, 112), (180, 6, 224)])
def test_align_undoes_turn_and_scale(degrees, scale, size):
    """A face that was turned, scaled and moved comes back as it was drawn in the template's frame."""
    face = np.full((112, 112, 3), 40, np.uint8)
    for (x, y), colour in zip(TEMPLATE, np.random.default_rng(0).integers(80, 256, (5, 3)), strict=True):
        cv2.circle(face, (round(x), round(y)), 8, colour.tolist(), cv2.FILLED)
    face = cv2.GaussianBlur(face, (0, 0), 2)
    matrix = cv2.getRotationMatrix2D((56, 56), degrees, scale)
    matrix[:, 2] += 400 - 56
    image = cv2.warpAffine(face, matrix, (800, 800), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)
    landmarks = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    detections = Detections([[0, 0, 800, 800]], [1.0], landmarks[None], 800, 800)
    aligned = detections.align(image, size)
    assert aligned.shape == (1, size, size, 3)
    assert aligned.dtype == np.uint8
    expected = cv2.warpAffine(face, np.eye(2, 3) * (size / 112), (size, size))
    assert np.abs(aligned[0].astype(int) - expected)[8:-8, 8:-8].mean() < 2


def test_align_averages_large_faces():
    """Fine stripes on a large face become grey, not other stripes."""
    image = np.zeros((1200, 1200, 3), np.uint8)
    image[:, ::2] = 255
    aligned = Detections([[0, 0, 1, 1]], [1.0], (TEMPLATE * 10)[None], 1200, 1200).align(image)[0]
    assert aligned[:, 5:-5].std() < 12
    assert abs(aligned.mean() - 127) < 6


def test_align_refuses():
    image = np.zeros((160, 200, 3), np.uint8)
    with pytest.raises(ValueError, match="align needs landmarks"):
        make(with_landmarks=False).align(image)
    with pytest.raises(ValueError, match="coincide"):
        make(1, landmarks=np.ones((1, 5, 2))).align(image)
    with pytest.raises(ValueError, match="size"):
        make().align(image, 0)


@pytest.mark.parametrize(
    ("score", "text"), [(1.0, "1.00"), (0.99985, "0.99"), (0.995, "0.99"), (0.987, "0.99"), (0.29, "0.29"), (0, "0.00")]
)
def test_only_a_score_of_1_reads_1(score, text):
    assert format_score(score) == text
