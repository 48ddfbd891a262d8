"""Int8 networks: NNCF measures the ranges of activations on the user's images and rounds weights and activations.

The network's last convolutions, decoding and suppression stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyface.io.images import ImageError, read_image
from pyface.io.sources import find_sources
from pyface.models.exported import Description, ExportedModel
from pyface.models.single_shot import SingleShot

MOST_IMAGES = 300
CONVOLUTIONS = ("Conv", "ConvTranspose", "Convolution", "GroupConvolution", "ConvolutionBackpropData")


class Calibration(NamedTuple):
    """What quantisation needs besides the graph.

    Attributes:
        inputs: The graph's inputs for the user's images, by name.
        float_layers: As in `SingleShot`.
    """

    inputs: list[dict[str, Any]]
    float_layers: int


class Recorder(nn.Module):
    """Stands in for the graph of an exported file: keeps its inputs and finds nothing."""

    path = "the exported file"

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict[str, Any]] = []

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Keeps the inputs."""
        self.inputs.append({name: value.contiguous().numpy() for name, value in inputs.items()})
        batch = len(inputs["images"])
        return {
            "boxes": torch.zeros(batch, 0, 4),
            "scores": torch.zeros(batch, 0),
            "counts": torch.zeros(batch, dtype=torch.int32),
        }


def calibrate(model: SingleShot, description: Description, folder: Path) -> Calibration:
    """Collects the inputs that the graph gets for the images of a folder, at most `MOST_IMAGES`, evenly spread.

    Raises:
        SourceError: The folder does not exist, or has no images.
        ValueError: No image can be read.
    """
    names = find_sources([str(folder)], recursive=True)
    recorder = Recorder()
    exported = ExportedModel(recorder, description, model)  # type: ignore[arg-type]
    for image in readable(names[:: -(-len(names) // MOST_IMAGES)]):
        exported.detect([torch.from_numpy(image)])
    if not recorder.inputs:
        raise ValueError(f"--calibrate must be a folder of images, got {folder}, where none can be read")
    chosen = -(-len(recorder.inputs) // MOST_IMAGES)  # a detector may run on several views of an image
    return Calibration(recorder.inputs[::chosen], model.float_layers)


def readable(names: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the images that can be read."""
    for name in names:
        try:
            yield read_image(name)
        except ImageError:
            continue


def quantise(model: Any, calibration: Calibration) -> Any:
    """Quantises the network in an OpenVINO or ONNX model."""
    import nncf

    nncf.set_log_level(30)
    nodes = openvino_nodes(model) if hasattr(model, "get_ops") else onnx_nodes(model)
    ignored = nncf.IgnoredScope(names=kept_in_float(nodes, calibration.float_layers), validate=False)
    inputs = calibration.inputs
    return nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs), ignored_scope=ignored)


Nodes = dict[str, tuple[str, list[str]]]
"""The operators of a graph by name: each one's kind, and the operators that its inputs come from."""


def openvino_nodes(model: Any) -> Nodes:
    """The operators of an `openvino.Model`."""
    return {
        op.get_friendly_name(): (
            op.get_type_name(),
            [value.get_source_output().get_node().get_friendly_name() for value in op.inputs()],
        )
        for op in model.get_ops()
    }


def onnx_nodes(model: Any) -> Nodes:
    """The operators of an `onnx.ModelProto`."""
    maker = {output: node.name for node in model.graph.node for output in node.output}
    return {
        node.name: (node.op_type, [maker[value] for value in node.input if value in maker]) for node in model.graph.node
    }


def kept_in_float(nodes: Nodes, layers: int = 1) -> list[str]:
    """Names the operators that fewer than `layers` convolutions depend on: the last ones, decoding and suppression.

    The last convolutions take little time, but rounding them costs `srn_lite` 0.008 of average precision. Only the
    longest path from an operator to the outputs counts.

    Example:
        >>> nodes = {"a": ("Conv", []), "b": ("Relu", ["a"]), "c": ("Conv", ["b"]), "d": ("Exp", ["c"])}
        >>> kept_in_float(nodes), kept_in_float(nodes, 2)
        (['c', 'd'], ['a', 'b', 'c', 'd'])
    """
    following = dict.fromkeys(nodes, 0)  # most convolutions on a path after an operator
    waiting = list(nodes)
    while waiting:
        kind, sources = nodes[name := waiting.pop()]
        for source in sources:
            number = min(layers, following[name] + (kind in CONVOLUTIONS))
            if number > following[source]:
                following[source] = number
                waiting.append(source)
    return [name for name in nodes if following[name] < layers]
