"""The registry of models: what `create_model` can build, and what is known about its weights."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from safetensors.torch import load, load_file

from pyface.models.base import FaceModel
from pyface.models.mtcnn import MTCNN


@dataclass(frozen=True)
class Weights:
    """A file of default weights.

    Attributes:
        file: Its name in `pyface/weights`; the model card beside it has the same stem.
        sha256: Of the file, checked whenever it is loaded.
        licence: Of the weights, not of the code.
        training_data: What they were trained on.
        measured: What they reach, with the data and the protocol.
    """

    file: str
    sha256: str
    licence: str
    training_data: str
    measured: str


@dataclass(frozen=True)
class Row:
    """One model: its name, how to build it untrained, one line about it, and its default weights (None: has none)."""

    name: str
    build: Callable[[], FaceModel]
    description: str
    weights: Weights | None


REGISTRY = {
    row.name: row
    for row in [
        Row(
            name="mtcnn",
            build=MTCNN,
            description="Cascade of three small networks over an image pyramid, with five landmarks; fast on a CPU",
            weights=Weights(
                file="mtcnn.safetensors",
                sha256="35db3cf878b2b49cda953762423fd15066ee89169725e40a25150ec46860c1a9",
                licence="MIT",
                training_data="WIDER FACE and CelebA (by the authors)",
                measured="faces/val: AP@0.5 0.632, AP@0.4 0.718 (thresholds 0.6, 0.7, 0.7; min_face 20)",
            ),
        ),
    ]
}


def list_models(pretrained: bool | None = None) -> list[str]:
    """The names that `create_model` takes, sorted.

    Args:
        pretrained: True: only models that have default weights; False: only those that have none; None: all.
    """
    return sorted(n for n, row in REGISTRY.items() if pretrained is None or (row.weights is not None) == pretrained)


def model_info(name: str) -> Row:
    """The registry's row of a model.

    Raises:
        ValueError: There is no such model.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no model {name!r}; there are: {', '.join(sorted(REGISTRY))}.{hint}")
    return REGISTRY[name]


def create_model(name: str, weights: str | os.PathLike[str] | Literal["default"] | None = "default") -> FaceModel:
    """Builds a model by name, in evaluation mode, on the CPU.

    Args:
        name: One of `list_models()`.
        weights: "default" for the released weights, None for a random start, or the path of a .safetensors file.

    Raises:
        ValueError: There is no such model, it has no default weights, or their file is not what was released.
        FileNotFoundError: There is no such weights file.
        RuntimeError: The file belongs to another model (its keys or shapes differ).
    """
    row = model_info(name)
    model = row.build()
    if weights == "default":
        model.load_state_dict(load(default_weights(row)))
    elif weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def default_weights(row: Row) -> bytes:
    """The bytes of a model's default weights, their SHA-256 checked."""
    if row.weights is None:
        raise ValueError(f"{row.name} has no default weights; give weights=None or the path of a .safetensors file")
    data = (files("pyface") / "weights" / row.weights.file).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != row.weights.sha256:
        raise ValueError(f"{row.weights.file} should have the SHA-256 {row.weights.sha256}, got {found}")
    return data
