"""Facts for choosing a model: accuracy and speed as measured, size, threshold, licence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch

from pyface.models.zoo import create_model, model_info


@dataclass(frozen=True)
class Facts:
    """The facts about a model, from the registry, its default weights and their measurements.

    Attributes:
        name: The name that `create_model` takes.
        description: One line about the model.
        use_when: The end of the sentence "use it when ...".
        parameters: Number of parameters.
        score_threshold: Default score threshold.
        smallest_face: Side in pixels of the smallest faces that are found about as reliably as larger ones, at the
            model's default scale.
        landmarks: Number of landmarks per face.
        widerface: Average precision on WIDER FACE val by size ("640", or "own" for the model's own pyramid) and subset
            (easy, medium, hard).
        milliseconds: Time from a decoded image to its faces, at 640 px on two CPU threads; None: not measured.
        licence: Licence of the default weights; None: the model has none.
        training_data: Training data of the default weights; None: the model has none.
    """

    name: str
    description: str
    use_when: str
    parameters: int
    score_threshold: float
    smallest_face: float
    landmarks: int
    widerface: dict[str, dict[str, float]]
    milliseconds: float | None
    licence: str | None
    training_data: str | None


def facts(name: str) -> Facts:
    """Collects the facts about a model.

    Raises:
        ValueError: The model does not exist, or the file of its default weights differs from the released one.

    Example:
        >>> facts("mtcnn").licence, facts("mtcnn").score_threshold
        ('MIT', 0.7)
    """
    row = model_info(name)
    if row.weights is None:
        with torch.device("meta"):  # only its settings and shapes are needed
            model = row.build(row.config)
    else:
        model = create_model(name)
    measured = measurements(name)
    return Facts(
        name=name,
        description=row.description,
        use_when=row.use_when,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        score_threshold=model.score_threshold,
        smallest_face=model.smallest_face,
        landmarks=5 if model.has_landmarks else 0,
        widerface=measured.get("widerface", {}),
        milliseconds=measured.get("milliseconds"),
        licence=row.weights.licence if row.weights else None,
        training_data=row.weights.training_data if row.weights else None,
    )


def measurements(name: str) -> dict[str, Any]:
    """Measurements of a model's default weights, from `pyface/weights/figures.json`; empty if there are none.

    `scripts/ship_weights.py` writes the file.
    """
    text = (files("pyface") / "weights" / "figures.json").read_text(encoding="utf-8")
    return dict(json.loads(text).get(name, {}))
