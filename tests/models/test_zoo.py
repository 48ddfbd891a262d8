"""The registry: names, weights and their hashes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pyface.models import FaceModel, create_model, list_models, zoo

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
