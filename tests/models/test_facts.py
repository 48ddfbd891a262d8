"""Facts for choosing a model, compared with their sources."""

import re
from pathlib import Path

import pytest

from pyface import FaceDetector
from pyface.models import create_model, list_models, zoo
from pyface.models.facts import facts, measurements

WEIGHTS = Path(zoo.__file__).parents[1] / "weights"


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_models_with_weights(name):
    of, card = facts(name), (WEIGHTS / f"{name}.md").read_text()
    assert of.parameters == measurements(name)["parameters"]
    assert of.landmarks == 5
    assert of.licence in card
    precision = next(iter(of.widerface.values()))
    assert list(precision) == ["easy", "medium", "hard"]
    assert all(re.search(rf"\b{value:.3f}\b", card) for value in precision.values())
    assert of.milliseconds is None or f"{of.milliseconds:.0f} ms" in card
    if "Faces under" in card:
        assert f"Faces under {of.smallest_face:.0f} px" in card


@pytest.mark.parametrize("name", list_models(pretrained=False))
def test_models_without_weights(name):
    of, model = facts(name), create_model(name, weights=None)
    assert (of.licence, of.training_data, of.widerface, of.milliseconds) == (None, None, {}, None)
    assert of.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert of.landmarks == (5 if name == "densebox_vgg19" else 0)


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_landmarks_and_threshold_are_those_of_results(name, gallery):
    faces = FaceDetector(name, device="cpu")(gallery)
    assert (0 if faces.landmarks is None else faces.landmarks.shape[1]) == facts(name).landmarks
    assert faces.scores.min() > facts(name).score_threshold
