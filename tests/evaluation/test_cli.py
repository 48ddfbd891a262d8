"""`pyface evaluate`, end to end on small folders."""

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyface.cli import app
from pyface.dataset import read_folder
from pyface.detections import Detections
from pyface.evaluation import widerface
from pyface.evaluation.faces import mistakes, score


@pytest.fixture
def run(monkeypatch, tmp_path, fake_model):
    """Runs `pyface` with the fake model: one face for every 40 grey levels, each half a picture wide."""
    from pyface.models import zoo

    monkeypatch.setattr(zoo, "create_model", lambda name, weights="default": fake_model)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, status=0):
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.fixture
def data(tmp_path):
    """Two pictures of 100 x 80: in one the fake model's only face, in the other a face that it does not see."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for name, level in (("a.png", 40), ("b.png", 0)):
        cv2.imwrite(str(images / name), np.full((80, 100, 3), level, np.uint8))
    (tmp_path / "data" / "bbx_gt.txt").write_text(
        "a.png\n1\n0 0 50 40 0 0 0 0 0 0\nb.png\n1\n10 10 20 20 0 0 0 0 0 0\n"
    )
    return tmp_path / "data"


def test_faces(run, data, tmp_path):
    result = run(
        *("faces", "--model", "mtcnn", "--data", data, "--device", "cpu", "--worst", "worst"),
        *("--json", "report.json", "--plot", "curves.png"),
    )
    assert "AP@0.5" in result.stdout
    assert "2 pictures" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["average_precision"] == {"0.5": 0.5, "0.4": 0.5}
    assert report["by_size"]["32-64"] == {"faces": 1, "average_precision": {"0.5": 1.0, "0.4": 1.0}}
    assert report["by_size"]["16-32"]["faces"] == 1
    assert [path.name for path in (tmp_path / "worst").iterdir()] == ["00_1_mistakes_b.jpg"]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_mistakes_of_a_picture(data):
    a, _ = read_folder(data)
    found = Detections([[0, 0, 50, 40], [1, 0, 50, 40], [60, 60, 70, 70]], [0.9, 0.8, 0.7], None, 100, 80)
    assert mistakes(a, found, 0.85) == 0
    assert mistakes(a, found, 0.75) == 1  # the same face twice
    assert mistakes(a, found, 0.1) == 2
    assert mistakes(a, found, 0.95) == 1
    assert score([a], [found], [0.5]).best_f1 == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["faces", "--model", "mtcnn", "--data", "gone"], "gone should hold a folder `images`"),
        (["faces", "--model", "mtcn", "--data", "data"], "there is no model 'mtcn'"),
        (["widerface", "--ground-truth", "data"], "widerface needs --predictions"),
        (["widerface", "--ground-truth", "data", "--predictions", "data"], "data should hold wider_face_val.mat"),
        (["widerface", "--ground-truth", "data", "--predictions", "x", "--model", "mtcnn"], "belong together"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence(run, data, arguments, words):
    result = run(*arguments, status=2)
    assert result.stderr.startswith("pyface: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_a_broken_picture_is_named(run, data):
    (data / "images" / "b.png").write_bytes(b"no picture")
    result = run("faces", "--model", "mtcnn", "--data", data, "--device", "cpu", status=2)
    assert "b.png cannot be evaluated" in result.stderr


def test_widerface_with_a_model(run, data, tmp_path, monkeypatch):
    event = data.parent / "val" / "0--Parade"
    event.parent.mkdir()
    (data / "images").rename(event)
    counted = dict.fromkeys(widerface.SUBSETS, np.array([True]))
    truth = {
        ("0--Parade", "a"): widerface.Image(np.array([[0.0, 0, 50, 40]]), counted),
        ("0--Parade", "c"): widerface.Image(np.array([[0.0, 0, 50, 40]]), counted),
    }
    monkeypatch.setattr(widerface, "read_ground_truth", lambda folder: truth)
    arguments = ["widerface", "--ground-truth", "x", "--predictions", "out", "--model", "mtcnn", "--images", "val"]
    result = run(*arguments, "--device", "cpu", "--json", "wider.json")
    assert (tmp_path / "out" / "0--Parade" / "a.txt").read_text().startswith("a\n1\n0.00 0.00 50.00 40.00 0.1")
    assert "easy    0.5000" in result.stdout
    assert "1 image without predictions, counted as empty: 0--Parade/c" in result.stderr
    assert "1 image the ground truth does not know: 0--Parade/b" in result.stderr
    assert json.loads((tmp_path / "wider.json").read_text())["average_precision"]["hard"] == 0.5
    assert "out holds something already" in run(*arguments, "--device", "cpu", status=2).stderr
