"""The registry of models: which models `create_model` can build, and facts about their weights."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast

import torch

from pyface.models.base import FaceModel
from pyface.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    configured,
    foreign,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from pyface.models.densebox import DenseBoxConfig, DenseBoxLite, DenseBoxLiteConfig, DenseBoxVGG19
from pyface.models.exported import Description, ExportedCascade, ExportedModel, Graph, is_exported
from pyface.models.mtcnn import MTCNN, MTCNNConfig
from pyface.models.s3fd import S3FDVGG16, S3FDLite, S3FDLiteConfig, S3FDVGG16Config
from pyface.models.single_shot import SingleShot
from pyface.models.srn import SRNConfig, SRNLite, SRNLiteConfig, SRNResNet50
from pyface.models.ssh import SSHVGG16, SSHConfig, SSHLite, SSHLiteConfig


@dataclass(frozen=True)
class Weights:
    """A file of default weights.

    Attributes:
        file: Its name in `pyface/weights`; the model card beside it has the same stem.
        sha256: The file's SHA-256, checked on loading.
        licence: The licence of the weights, not of the code.
        training_data: The training data.
    """

    file: str
    sha256: str
    licence: str
    training_data: str


@dataclass(frozen=True)
class Row:
    """A model in the registry.

    Attributes:
        name: The name that `create_model` takes.
        build: Builds the untrained model from a configuration.
        config: The default configuration; weights may change its fields.
        description: One line about the model.
        use_when: The end of the sentence "use it when ...".
        weights: The default weights; None: the model has none.
    """

    name: str
    build: Callable[[Any], FaceModel]
    config: Any
    description: str
    use_when: str
    weights: Weights | None = None


_OWN_LICENCE = "trained on research-only and unlicensed web images"
_OWN_DATA = "14,330 photos with 83,000 faces, 1,016 without (by this project)"

_PAPER = "you have a checkpoint or train your own: no bundled weights"

REGISTRY = {
    row.name: row
    for row in [
        Row(
            "mtcnn",
            MTCNN,
            MTCNNConfig(),
            "Cascade of three small networks over an image pyramid, with five landmarks",
            "you need MIT-licensed weights",
            Weights(
                file="mtcnn.safetensors",
                sha256="35db3cf878b2b49cda953762423fd15066ee89169725e40a25150ec46860c1a9",
                licence="MIT",
                training_data="WIDER FACE and CelebA (by the authors)",
            ),
        ),
        Row(
            "densebox_lite",
            DenseBoxLite,
            DenseBoxLiteConfig(),
            "DenseBox on a compact backbone, with five landmarks",
            "you study anchor-free detection; it is the slowest",
            Weights(
                file="densebox_lite.safetensors",
                sha256="022ded5ce96ca93aa7d3dccc6742527bd05f0645cafe280506d6f5825f5349d8",
                licence=_OWN_LICENCE,
                training_data=_OWN_DATA,
            ),
        ),
        Row(
            "densebox_vgg19",
            DenseBoxVGG19,
            DenseBoxConfig(),
            "The paper's DenseBox: no anchors, an image pyramid, landmarks that refine the scores",
            _PAPER,
        ),
        Row(
            "s3fd_lite",
            S3FDLite,
            S3FDLiteConfig(),
            "S3FD on a compact backbone, with five landmarks",
            "you want one detector for faces of all sizes: the default",
            Weights(
                file="s3fd_lite.safetensors",
                sha256="cc0408706cfb448cc8e294e9c444886a8db7abcfb8122c97b5c130891e1388c0",
                licence=_OWN_LICENCE,
                training_data=_OWN_DATA,
            ),
        ),
        Row(
            "s3fd_vgg16",
            S3FDVGG16,
            S3FDVGG16Config(),
            "The paper's S3FD: six levels of anchors, max-out background",
            _PAPER,
        ),
        Row(
            "srn_lite",
            SRNLite,
            SRNLiteConfig(),
            "SRN on a compact backbone, with five landmarks",
            "you compare two-step detectors",
            Weights(
                file="srn_lite.safetensors",
                sha256="a104f541e14eadddb7c9fca88c00c58240b7a547bc1529e09661410ffebfaef0",
                licence=_OWN_LICENCE,
                training_data=_OWN_DATA,
            ),
        ),
        Row(
            "srn_resnet50",
            SRNResNet50,
            SRNConfig(),
            "The paper's SRN: two steps of classification and regression",
            _PAPER,
        ),
        Row(
            "ssh_lite",
            SSHLite,
            SSHLiteConfig(),
            "SSH on a compact backbone, with five landmarks",
            "faces are mostly larger than 16 px",
            Weights(
                file="ssh_lite.safetensors",
                sha256="46180b29d59819a51adff719144e07a1bdaae1e1aee4c4548c680c8814c72373",
                licence=_OWN_LICENCE,
                training_data=_OWN_DATA,
            ),
        ),
        Row("ssh_vgg16", SSHVGG16, SSHConfig(), "The paper's SSH: three modules with context", _PAPER),
    ]
}


def list_models(pretrained: bool | None = None) -> list[str]:
    """The names that `create_model` takes, sorted.

    Args:
        pretrained: True: only models with default weights; False: only models without; None: all.
    """
    return sorted(n for n, row in REGISTRY.items() if pretrained is None or (row.weights is not None) == pretrained)


def model_info(name: str) -> Row:
    """Looks a model up in the registry.

    Raises:
        ValueError: The model does not exist.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no model {name!r}; there are: {', '.join(sorted(REGISTRY))}.{hint}")
    return REGISTRY[name]


def create_model(name: str, weights: str | os.PathLike[str] | Literal["default"] | None = "default") -> FaceModel:
    """Builds a model by name, in evaluation mode, on the CPU.

    Args:
        name: One of `list_models()`, or the path of a file that `pyface export` wrote (.onnx, .xml or .pt2).
        weights: "default" for the bundled weights, None for random initialisation, or the path of a file:
            one of pyface's (.safetensors), or a popular public checkpoint, which is detected by its keys (see
            `pyface.models.checkpoints`). Settings that the weights need, such as S3FD's padding of fc6, are applied.

    Raises:
        ValueError: The model does not exist, has no default weights, or their file differs from the released one.
        FileNotFoundError: The weights file does not exist.
        CheckpointError: The file cannot be read, or is for another model; a RuntimeError.
        ImportError: An exported file needs a package that is not installed.

    Example:
        >>> sum(parameter.numel() for parameter in create_model("s3fd_lite", weights=None).parameters()) < 1_500_000
        True
    """
    if is_exported(name):
        return _open_exported(name, weights)
    row = model_info(name)
    if weights is None:
        return build(row, row.config).eval()
    if weights == "default":
        with as_file(default_weights(row)) as path:
            return _load(row, path)
    return _load(row, weights)


def build(row: Row, config: Any) -> FaceModel:
    """Builds an untrained model, in float32 on the CPU whatever torch's defaults have been set to."""
    with usual_tensors():
        return row.build(config).float()


@contextlib.contextmanager
def usual_tensors() -> Iterator[None]:
    """Makes new tensors ordinary CPU tensors by default, not inference tensors, in the current thread only.

    The default dtype belongs to the whole process and is left alone, so code that makes tensors must give their dtype.
    """
    with default_on_cpu(), torch.inference_mode(False):
        yield


def default_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Makes the CPU the default device of new tensors; costs nothing if it already is."""
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _load(row: Row, path: str | os.PathLike[str]) -> FaceModel:
    with usual_tensors():
        checkpoint = read_checkpoint(path, row.name)
        model = build(row, configured(row.config, checkpoint.settings, checkpoint.path))
        load_checkpoint(model, checkpoint)
    return model.eval()


def _open_exported(path: str, weights: object) -> FaceModel:
    if weights != "default":
        raise ValueError(f"weights must be left out for {path}, which has its own, got {weights!r}")
    graph = Graph(path)
    description = Description.read(graph.properties, path)
    if description.outputs == "network":
        return ExportedCascade(graph, configured(model_info("mtcnn").config, description.config, path))
    if description.outputs != "faces":
        raise ValueError(f"{path} returns raw maps, so pyface cannot detect with it; export it without --heads")
    row = model_info(description.model)
    with torch.device("meta"):  # only its rules are used, not its weights
        original = row.build(configured(row.config, description.config, path))
    return ExportedModel(graph, description, cast(SingleShot, original))


def is_untrained(name: str) -> bool:
    """Whether a model has no bundled weights: without a weights file it returns random boxes.

    Raises:
        ValueError: The model does not exist.
    """
    return not is_exported(name) and model_info(name).weights is None


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Checkpoint:
    """Converts a foreign checkpoint to pyface's .safetensors.

    Args:
        source: A file (or MTCNN's folder of three files) in a known foreign layout.
        target: The .safetensors file to write.

    Returns:
        The checkpoint that was read.

    Raises:
        FileNotFoundError: The source or the target's folder does not exist.
        CheckpointError: The source cannot be read, has no foreign layout, or lacks keys, or the target does not end
            with .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the target must end with .safetensors, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    checkpoint = foreign(read_checkpoint(source))
    row = model_info(str(checkpoint.model))
    model = build(row, configured(row.config, checkpoint.settings, checkpoint.path))
    load_checkpoint(model, checkpoint)
    save_checkpoint(target, model, row.name, checkpoint.settings)
    return checkpoint


def weights_hash(path: Path) -> str:
    """The SHA-256 of a weights file, or of the files in MTCNN's folder of three."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def default_weights(row: Row) -> Traversable:
    """Returns the file of a model's default weights after checking its SHA-256.

    Raises:
        ValueError: The model has no default weights, or the SHA-256 differs.
    """
    if row.weights is None:
        raise ValueError(
            f"{row.name} has no default weights; give the path of a file, or weights=None for random ones, "
            "which return random boxes"
        )
    file = files("pyface") / "weights" / row.weights.file
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != row.weights.sha256:
        raise ValueError(f"{row.weights.file} must have the SHA-256 {row.weights.sha256}, got {found}")
    return file
