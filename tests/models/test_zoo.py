"""The registry: names, weights and their hashes."""

import hashlib
import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyface import FaceDetector
from pyface.evaluation.average_precision import box_iou
from pyface.models import FaceModel, create_model, list_models, zoo
from pyface.models.facts import measurements
from pyface.training.folder import read_config

ROOT = Path(__file__).parents[2]
WEIGHTS = Path(zoo.__file__).parents[1] / "weights"
PRETRAINED = list_models(pretrained=True)


def test_names():
    assert "mtcnn" in PRETRAINED
    assert sorted([*PRETRAINED, *list_models(pretrained=False)]) == list_models()
    assert all(zoo.model_info(name).name == name for name in list_models())


@pytest.mark.parametrize("name", PRETRAINED)
def test_default_weights_are_what_the_row_says(name):
    weights = zoo.model_info(name).weights
    data = (WEIGHTS / weights.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == weights.sha256
    card = (WEIGHTS / weights.file).with_suffix(".md").read_text()
    assert weights.sha256 in card
    assert weights.licence in card


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name != "mtcnn"])  # benchmarks/report.py makes mtcnn's
def test_cards_show_the_figures_of_one_file(name):
    pytest.importorskip("lightning", reason="pyface-engine[train] is not installed")
    script = runpy.run_path(str(ROOT / "scripts" / "ship_weights.py"))
    lines = script["measured"](name, create_model(name, weights=None), measurements(name))
    rows = [line for line in lines if line.startswith("|") or " ms at " in line]
    assert len(rows) > 10
    assert [row for row in rows if row not in (WEIGHTS / f"{name}.md").read_text().splitlines()] == []


def test_new_times_go_into_figures_and_cards(tmp_path, astronaut):
    pytest.importorskip("lightning", reason="pyface-engine[train] is not installed")
    for file in (WEIGHTS / "figures.json", *WEIGHTS.glob("*.md")):
        shutil.copy(file, tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    shutil.copy(astronaut, tmp_path / "data" / "images")
    (tmp_path / "data" / "bbx_gt.txt").write_text("astronaut.jpg\n1\n177 57 94 118 0 0 0 0 0 0\n")
    update_times = runpy.run_path(str(ROOT / "scripts" / "ship_weights.py"))["update_times"]
    update_times.__globals__.update(WEIGHTS=tmp_path, FIGURES=tmp_path / "figures.json")
    update_times([tmp_path / "data"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sorted(figures) == sorted(PRETRAINED)
    for name in PRETRAINED:
        assert {**figures[name], "milliseconds": None} == {**measurements(name), "milliseconds": None}
        if name != "mtcnn":
            assert f"{figures[name]['milliseconds']:.0f} ms at 640 px" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.parametrize("name", list_models())
def test_models_come_in_evaluation_mode(name):
    model = create_model(name, weights=None)
    assert isinstance(model, FaceModel)
    assert not model.training


def test_unknown_name():
    with pytest.raises(ValueError, match=r"no model 'mtcn'; there are: .*mtcnn.*Did you mean 'mtcnn'"):
        create_model("mtcn")
    with pytest.raises(ValueError, match=r"there are: [^?]*$"):
        create_model("yolo")


def test_weights_from_a_path(tmp_path):
    state = create_model("mtcnn").state_dict()
    path = tmp_path / "own.safetensors"
    save_file({key: value.contiguous() + 1 for key, value in state.items()}, path)
    for given in (path, str(path)):
        loaded = create_model("mtcnn", weights=given).state_dict()
        assert all(torch.equal(loaded[key], value + 1) for key, value in state.items())


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"something": torch.zeros(1)}, path)
    with pytest.raises(RuntimeError, match="something"):
        create_model("mtcnn", weights=path)
    with pytest.raises(FileNotFoundError):
        create_model("mtcnn", weights=tmp_path / "absent.safetensors")


def test_altered_weights_are_refused(monkeypatch):
    row = zoo.model_info("mtcnn")
    monkeypatch.setitem(zoo.REGISTRY, "mtcnn", replace(row, weights=replace(row.weights, sha256="0" * 64)))
    with pytest.raises(ValueError, match="SHA-256"):
        create_model("mtcnn")


def test_a_model_without_default_weights(monkeypatch):
    monkeypatch.setitem(zoo.REGISTRY, "mtcnn", replace(zoo.model_info("mtcnn"), weights=None))
    assert "mtcnn" in list_models(pretrained=False)
    with pytest.raises(ValueError, match="weights=None"):
        create_model("mtcnn")


# The nine faces (x1, y1, x2, y2) of examples/gallery.jpg, by where examples/compose.py put the astronaut's.
GALLERY = [
    (135, 106, 262, 260),
    (478, 77, 563, 180),
    (757, 77, 842, 180),
    (464, 328, 535, 413),
    (685, 328, 756, 413),
    (65, 433, 114, 493),
    (213, 424, 248, 467),
    (322, 417, 347, 447),
    (878, 309, 921, 360),
]


@pytest.mark.parametrize("name", PRETRAINED)
def test_default_weights_find_faces(name):
    faces = FaceDetector(name, device="cpu")(ROOT / "examples" / "gallery.jpg")
    overlap = box_iou(np.array(GALLERY, np.float32), faces.boxes.numpy())
    assert (overlap.max(1) > 0.4).all()  # all of them, and nothing else
    assert len(faces) == len(GALLERY)
    x, y = faces.landmarks.unbind(-1)
    left, top, right, bottom = faces.boxes.T[..., None]
    assert ((x > left) & (x < right) & (y > top) & (y < bottom)).all()
    assert (x[:, 0] < x[:, 1]).all()  # the eyes, left first
    assert (y[:, :2].amax(1) < y[:, 3:].amin(1)).all()  # above the mouth


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name != "mtcnn"])
def test_configurations_of_our_own_runs_can_be_repeated(name):
    run = read_config(WEIGHTS / f"{name}.json")
    assert run.model == name
    assert len(run.held_out) >= 200
    assert not any("val" in Path(folder).parts for folder in run.data)
    assert f"pyface train --config pyface/weights/{name}.json" in (WEIGHTS / f"{name}.md").read_text()
