"""MTCNN's training: kinds of crops, their targets, batches, and whole runs on images of noise and discs."""

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyface import FaceDetector
from pyface.data.annotations import AnnotatedImage
from pyface.data.folder import read_folder
from pyface.evaluation.faces import Report
from pyface.models.mtcnn import (
    MTCNN,
    CropKind,
    MTCNNConfig,
    WithLandmarks,
    calibrate,
    cell_boxes,
    normalised_crops,
    place_landmarks,
)
from pyface.training import cascade
from pyface.training import cascade_crops as crops
from pyface.training.album import Album
from pyface.training.recipes import RECIPES, Run, TrainingError
from pyface.training.run import train

SMALL = replace(RECIPES["mtcnn"], batch_size=28, epochs=1, average=0.9)
SMALLEST = 20.0


def small_run(data, **changes):
    return Run(**({"model": "mtcnn", "data": (str(data),), "validations": 2, "recipe": SMALL} | changes))


def boxes_at(rng, count, around=300.0, largest=100.0):
    corner, sides = rng.uniform(0, around, (count, 2)), rng.uniform(5, largest, (count, 2))
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def annotated_image(faces, ignore=(), landmarks=None):
    faces = np.array(faces, np.float32).reshape(-1, 4)
    landmarks = np.full((len(faces), 5, 2), np.nan, np.float32) if landmarks is None else landmarks
    return AnnotatedImage(Path("a.png"), faces, np.array(ignore, np.float32).reshape(-1, 4), landmarks)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def common(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a, b):
    return common(a, b) / (area(a) + area(b) - common(a, b))


def slow_kind(crop, picture):
    """The kind that `match` gives one crop, straight from its description."""
    is_large = [max(x2 - x1, y2 - y1) >= SMALLEST for x1, y1, x2, y2 in picture.faces]
    faces = [iou(crop, face) if large else 0 for face, large in zip(picture.faces, is_large, strict=True)]
    ignore = [face for face, large in zip(picture.faces, is_large, strict=True) if not large] + list(picture.ignore)
    best = max(faces, default=0)
    if best > 0.65:
        return CropKind.POSITIVE, int(np.argmax(faces))
    if best >= 0.4:
        return CropKind.PART, int(np.argmax(faces))
    if any(common(crop, box) >= area(crop) / 2 or iou(crop, box) >= 0.3 for box in ignore) or best >= 0.3:
        return -1, None
    return CropKind.NEGATIVE, None


@pytest.fixture(scope="module")
def album(data):
    return Album(read_folder(data), keep=True)


@pytest.fixture(scope="module")
def drawn(album):
    return crops.draw(album, "pnet", 0, SMALLEST)


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_kinds_are_those_of_a_plain_computation():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(5):
        picture = annotated_image(boxes_at(rng, 6, largest=120), boxes_at(rng, 4))
        boxes = np.concatenate([boxes_at(rng, 300), crops.at_faces(rng, picture.faces, 20)])
        found = crops.match(boxes, picture, SMALLEST)
        for box, kind, face in zip(boxes.astype(float), found.kinds, found.faces, strict=True):
            expected, expected_face = slow_kind(box, picture)
            assert kind == expected
            assert expected_face is None or face == expected_face
            seen.add(int(kind))
    assert seen == {-1, CropKind.NEGATIVE, CropKind.POSITIVE, CropKind.PART}


@pytest.mark.parametrize(
    ("crop", "kind"),
    [
        ((0, 0, 100, 100), CropKind.POSITIVE),
        ((0, 0, 100, 65), CropKind.PART),  # 0.65 is not more than 0.65
        ((0, 0, 100, 40), CropKind.PART),
        ((0, 0, 100, 35), -1),
        ((0, 0, 100, 29), CropKind.NEGATIVE),
        ((200, 0, 260, 60), -1),  # the ignore box
        ((210, 10, 222, 22), -1),  # within it
        ((200, 0, 300, 100), -1),  # its IoU is 0.36
        ((200, 0, 400, 200), CropKind.NEGATIVE),  # 0.09
        ((0, 200, 15, 215), -1),  # a face that is too small to count
    ],
)
def test_kinds_at_their_limits(crop, kind):
    picture = annotated_image([(0, 0, 100, 100), (0, 200, 15, 215)], [(200, 0, 260, 60)])
    assert crops.match(np.array([crop], np.float32), picture, SMALLEST).kinds == [kind]


def test_images_without_annotations_are_background(album, drawn):
    assert set(drawn.kinds[drawn.pictures == 5]) == {CropKind.NEGATIVE}
    assert (drawn.pictures == 5).sum() == crops.ANYWHERE


def test_drawn_crops(album, drawn):
    assert set(drawn.kinds) == set(CropKind)
    sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-4)
    for k, box, kind, face in zip(*drawn, strict=True):
        picture = album.pictures[k]
        if kind == CropKind.LANDMARK:
            assert iou(box, picture.faces[face]) > 0.65
            assert np.isfinite(picture.landmarks[face]).all()
        else:
            assert slow_kind(box, picture)[0] == kind
        assert (face < 0) == (kind == CropKind.NEGATIVE)


def test_drawing_depends_on_the_seed_alone(album, drawn):
    for a, b in zip(drawn, crops.draw(album, "pnet", 0, SMALLEST), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(drawn.boxes, crops.draw(album, "pnet", 1, SMALLEST).boxes)


def test_proposals_are_mined_with_their_kinds(album):
    torch.manual_seed(0)
    model = MTCNN().eval()
    for net in ("rnet", "onet"):
        mined = crops.mine(model, net, album, 0, SMALLEST, thresholds=(0.0, 0.0))
        assert mined.pictures == len(album)
        assert mined.proposals > 100
        assert 0 < mined.found <= mined.faces == 9
        for k, box, kind, face in zip(*mined.crops, strict=True):
            expected, expected_face = slow_kind(box, album.pictures[k])
            assert kind == expected
            assert expected_face is None or face == expected_face
        negatives = mined.crops.pictures[mined.crops.kinds == CropKind.NEGATIVE]
        assert np.bincount(negatives).max() <= crops.NEGATIVES


def test_mining_ends_in_time(album, monkeypatch):
    monkeypatch.setattr(crops, "IMAGES_PER_CALL", 2)
    assert crops.mine(MTCNN().eval(), "rnet", album, 0, SMALLEST, seconds=0).pictures == 2


def test_crops_come_back_from_their_file(drawn, tmp_path):
    crops.save_crops(tmp_path / "crops.npz", drawn, 1.5)
    loaded, seconds = crops.load_crops(tmp_path / "crops.npz")
    assert seconds == 1.5
    for a, b in zip(drawn, loaded, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["crops.npz"]


# --- targets ---------------------------------------------------------------------------------------------------------


def some_crops(count=50):
    rng = np.random.default_rng(2)
    faces = boxes_at(rng, count, largest=150)
    squares = crops.at_faces(rng, faces, 1)
    landmarks = (
        faces[:, None, :2] + rng.uniform(0, 1, (count, 5, 2)) * (faces[:, None, 2:] - faces[:, None, :2])
    ).astype(np.float32)
    return (torch.from_numpy(x) for x in (squares, faces, landmarks))


@pytest.mark.parametrize("net", ["rnet", "onet"])
def test_targets_decode_to_the_face(net):
    squares, faces, landmarks = some_crops()
    kinds, plain = torch.ones(len(faces)).long(), torch.zeros(len(faces), dtype=torch.bool)
    truth = crops.targets(net, kinds, squares, faces, landmarks, plain)
    torch.testing.assert_close(calibrate(squares, truth.boxes), faces, rtol=0, atol=1e-3)
    points = truth.landmarks.transpose(1, 2).flatten(1)  # as the loss compares them with the network's output
    torch.testing.assert_close(place_landmarks(squares, points), landmarks, rtol=0, atol=1e-3)


def test_p_nets_targets_decode_to_the_face():
    """Through the boxes that detection makes of its windows, apart from rounding."""
    rng = np.random.default_rng(3)
    rows, columns = torch.from_numpy(rng.integers(0, 100, (2, 200)))
    scales = torch.from_numpy(rng.uniform(0.05, 0.6, 200))
    first = 2 * torch.stack([columns, rows], 1)
    seen = torch.cat([first / scales[:, None], (first + 12) / scales[:, None]], 1).float()
    faces = seen + torch.from_numpy(rng.uniform(-0.2, 0.2, (200, 4))) * (12 / scales[:, None])
    kinds, plain = torch.ones(200).long(), torch.zeros(200, dtype=torch.bool)
    truth = crops.targets("pnet", kinds, seen, faces.float(), torch.zeros(200, 5, 2), plain)
    found = calibrate(cell_boxes(rows, columns, scales), truth.boxes, plus_one=False)
    assert (found - faces).abs().max() < 1.2
    assert (found - faces).mean(0).abs().max() < 0.15


@pytest.mark.parametrize("net", crops.NETS)
def test_mirrored_targets_are_those_of_the_mirrored_image(net):
    width = 500
    squares, faces, landmarks = some_crops()
    kinds, plain = torch.ones(len(faces)).long(), torch.zeros(len(faces), dtype=torch.bool)
    truth = crops.targets(net, kinds, squares, faces, landmarks, ~plain)

    def turned(boxes):
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)

    points = landmarks[:, [1, 0, 2, 4, 3]].clone()
    points[..., 0] = width - points[..., 0]
    expected = crops.targets(net, kinds, turned(squares), turned(faces), points, plain)
    torch.testing.assert_close(truth.boxes, expected.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(truth.landmarks, expected.landmarks, rtol=0, atol=1e-4)


def test_pixels_are_those_of_detection(album, drawn):
    recipe = replace(SMALL, photometric=0.0)
    batch = crops.CropBatches(album, drawn, "rnet", recipe, 0, 0, 1)[0]
    config = MTCNNConfig()
    seen = crops.render(batch, album.images, "rnet", config)
    assert seen.shape == (28, 3, 24, 24)
    assert batch.mirrored.any()
    assert not batch.mirrored.all()
    expected = normalised_crops(album.images, batch.boxes, batch.pictures, (24, 24), config)
    for a, b, is_mirrored in zip(seen, expected, batch.mirrored, strict=True):
        torch.testing.assert_close(a, b.flip(2) if is_mirrored else b, rtol=0, atol=1e-5)
    # An image that is not kept in memory gives the same crops.
    streamed = crops.CropBatches(Album(album.pictures, keep=False), drawn, "rnet", recipe, 0, 0, 1)[0]
    torch.testing.assert_close(crops.render(streamed, streamed.pixels, "rnet", config), seen, rtol=0, atol=1e-3)


def test_colours_change_as_in_pixels(album, drawn):
    batch = crops.CropBatches(album, drawn, "onet", replace(SMALL, photometric=1.0), 0, 0, 1)[0]
    plain = batch._replace(colours=torch.eye(3, 4).expand(28, 3, 4))
    pixels = crops.render(plain, album.images, "onet", MTCNNConfig()) * 128 + 127.5
    expected = torch.einsum("nij,njhw->nihw", batch.colours[:, :, :3], pixels) + batch.colours[:, :, 3, None, None]
    seen = crops.render(batch, album.images, "onet", MTCNNConfig()) * 128 + 127.5
    torch.testing.assert_close(seen, expected.clamp(0, 255), rtol=0, atol=1e-2)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_its_shares(album, drawn):
    batch = crops.CropBatches(album, drawn, "pnet", SMALL, 0, 0, 1)[0]
    assert torch.bincount(batch.truth.kind, minlength=4).tolist() == [12, 4, 4, 8]
    of_faces = batch.truth.kind != CropKind.NEGATIVE
    assert batch.truth.boxes[of_faces].abs().max() < 1.5
    assert batch.truth.landmarks[batch.truth.kind == CropKind.LANDMARK].isfinite().all()


@pytest.mark.parametrize("size", [1, 6, 7, 64, 384])
def test_shares_add_up(size):
    assert sum(crops.share_out(size, dict.fromkeys(CropKind, 1)).values()) == size
    without = crops.share_out(size, dict.fromkeys(CropKind, 1) | {CropKind.LANDMARK: 0})
    assert sum(without.values()) == size
    assert without[CropKind.LANDMARK] == 0


def test_a_batch_depends_on_its_number_alone(album, drawn):
    def same(a, b):
        return (
            torch.equal(a.boxes, b.boxes) and torch.equal(a.mirrored, b.mirrored) and torch.equal(a.colours, b.colours)
        )

    batches = crops.CropBatches(album, drawn, "pnet", SMALL, 0, 0, 9)
    later = crops.CropBatches(album, drawn, "pnet", SMALL, 0, 5, 4)
    assert same(batches[7], later[2])
    assert not same(batches[7], batches[6])
    assert not same(batches[7], crops.CropBatches(album, drawn, "rnet", SMALL, 0, 0, 9)[7])
    assert not same(batches[7], crops.CropBatches(album, drawn, "pnet", SMALL, 1, 0, 9)[7])


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that is killed in P-Net and in R-Net and continues: its folder, and the batches of each network."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    seen = defaultdict(list)
    step = cascade.NetTraining.training_step
    deaths = {"pnet": 5, "rnet": 4}

    def spy(self, batch, index):
        if deaths.get(self.name) == len(seen[self.name]):
            del deaths[self.name]
            raise RuntimeError("killed")
        seen[self.name].append(batch[1].boxes.nansum().item())
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade.NetTraining, "training_step", spy)
        for k in range(3):
            try:
                train(small_run(data, val=(str(data),)), folder, accelerator="cpu", resume=k > 0)
            except RuntimeError as error:
                assert str(error) == "killed"  # noqa: PT017
    assert not deaths
    return folder, seen


def test_a_killed_run_resumes_with_the_same_batches(run, album):
    folder, seen = run
    for net in crops.NETS:
        learned, _ = crops.load_crops(folder / net / "crops.npz")
        batches = crops.CropBatches(album, learned, net, SMALL, 0, 0, 1000)
        steps = -(-len(batches.pools[CropKind.POSITIVE]) // 4)  # of 28
        assert len(seen[net]) == steps
        assert seen[net] == [batches[k].truth.boxes.nansum().item() for k in range(steps)]


def test_a_run_leaves_weights_and_measurements(run, data):
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {
        *crops.NETS,
        "best.safetensors",
        "config.json",
        "data.json",
        "last.safetensors",
        "measured.jsonl",
        "mined.jsonl",
        "pictures",
    }
    assert {path.name for path in (folder / "onet").iterdir()} == {
        "crops.npz",
        "last.ckpt",
        "logs",
        "weights.safetensors",
    }
    measured = [json.loads(line)["progress"] for line in (folder / "measured.jsonl").read_text().splitlines()]
    assert measured == pytest.approx([0.5, 1.0], abs=0.1)
    mined = [json.loads(line) for line in (folder / "mined.jsonl").read_text().splitlines()]
    assert [line["net"] for line in mined] == ["rnet", "onet"]
    for name in ("best", "last"):
        detector = FaceDetector("mtcnn", weights=folder / f"{name}.safetensors", device="cpu")
        assert detector.model.config.output_shift == 0
        assert detector(data / "images" / "0.png").landmarks is not None


def test_a_complete_run_says_so(run, data, capsys):
    train(small_run(data), run[0], accelerator="cpu", resume=True)
    assert f"the run in {run[0]} was already complete; to use its weights:\n" in capsys.readouterr().out


def test_every_network_trained_in_its_turn(run):
    folder, _ = run
    untrained, states = MTCNN(), []
    for net in crops.NETS:
        states.append(FaceDetector("mtcnn", weights=folder / net / "weights.safetensors", device="cpu").model)
    for k, net in enumerate(crops.NETS):
        weights = [getattr(model, net).heads.weight for model in states]
        assert len({tuple(x.flatten().tolist()) for x in weights[:k]}) <= 1  # not yet
        assert k == 0 or not torch.equal(weights[k], weights[k - 1])
        assert all(torch.equal(x, weights[k]) for x in weights[k:])  # no more
    assert states[-1].state_dict().keys() == untrained.state_dict().keys()  # the layers for landmarks are gone


@pytest.mark.cuda
def test_a_run_on_a_gpu(data, tmp_path, cuda):
    train(small_run(data, val=(str(data),)), tmp_path, accelerator="gpu")
    detector = FaceDetector("mtcnn", weights=tmp_path / "best.safetensors", device=cuda)
    assert detector(data / "images" / "0.png").width == 200


def test_a_run_without_landmarks_says_so(data, tmp_path, monkeypatch, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "landmarks.txt").unlink()
    learners = []
    monkeypatch.setattr(cascade, "NETS", ("pnet",))
    monkeypatch.setattr(cascade.NetTraining, "on_train_start", lambda self: learners.append(self.net))
    train(small_run(tmp_path / "data", max_hours=2 / 3600), tmp_path / "run", accelerator="cpu")
    assert "pnet: no face has all five landmarks, so it is not trained on landmarks" in capsys.readouterr().out
    assert not isinstance(learners[0], WithLandmarks)
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_the_layer_for_landmarks_is_trained():
    training = cascade.NetTraining(MTCNN(), "rnet", True, SMALL, 1)
    learned = {id(p) for group in training.configure_optimizers().param_groups for p in group["params"]}
    assert learned == {id(p) for p in training.net.parameters()}
    assert {id(p) for p in training.cascade.rnet.parameters()} < learned


def test_networks_return_the_same_in_the_memory_format_of_training():
    """On the kernels too, with which the next network's crops are mined."""
    torch.manual_seed(0)
    model = MTCNN()
    cascade.initialise(model)
    for net, side in crops.SIDES.items():
        pixels = torch.randn(8, 3, side, side)
        with torch.no_grad():
            expected = getattr(model.eval(), net)(pixels)
            cascade.NetTraining(model, net, False, SMALL, 1)
            torch.testing.assert_close(getattr(model.eval(), net)(pixels), expected)


@pytest.mark.parametrize(("f1", "threshold"), [(0.5, 0.456), (0.0, 0.7)])
def test_weights_bring_the_threshold_of_the_best_f1(tmp_path, f1, threshold):
    average = cascade.Average(0.9)
    average.model = MTCNN(MTCNNConfig(output_shift=0.0))
    report = Report(1, 1, {0.5: f1}, {}, 0.4561, f1, 1.0)
    measuring = cascade.MeasuringCascade({}, average, 1, tmp_path, "mtcnn")
    measuring._save("best.safetensors", {"first": report, "second": replace(report, best_threshold=0.1)})
    model = FaceDetector("mtcnn", weights=tmp_path / "best.safetensors", device="cpu").model
    assert model.config == MTCNNConfig(output_shift=0.0, thresholds=(0.6, 0.7, threshold))


def test_what_cannot_begin(data, tmp_path):
    (tmp_path / "begun" / "pnet").mkdir(parents=True)
    with pytest.raises(TrainingError, match="has no run to resume"):
        train(small_run(data), tmp_path / "run", resume=True)
    for changes, message in [
        ({"devices": 2}, "trains on one device"),
        ({"backbone": "vgg16.pth"}, "mtcnn has no backbone"),
        ({"recipe": replace(SMALL, batch_size=6)}, "7 or more, to hold crops of all kinds, got 6"),
        ({"recipe": replace(SMALL, size=64)}, "size must be 48 for mtcnn, .* got 64"),
        ({"recipe": replace(SMALL, smallest_face=500.0)}, r"0 positives, .* give images .* faces of 500 px or more"),
    ]:
        with pytest.raises(TrainingError, match=message):
            train(small_run(data, **changes), tmp_path / "run", accelerator="cpu")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with pytest.raises(TrainingError, match="has a run already; continue it with --resume"):
        train(small_run(data), tmp_path / "begun")
