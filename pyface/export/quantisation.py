"""Int8 networks: NNCF measures the ranges of activations on the user's images and rounds weights and activations.

The last convolutions, decoding and suppression stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyface.io.images import ImageError, read_image
from pyface.io.sources import find_sources
from pyface.models.exported import Description, ExportedModel
from pyface.models.single_shot import SingleShot

Inputs = list[dict[str, Any]]
"""Inputs of a graph, by name."""

MOST_IMAGES = 300
CONVOLUTIONS = ("Conv", "ConvTranspose", "Convolution", "GroupConvolution", "ConvolutionBackpropData")


class Recorder(nn.Module):
    """Stands in for the graph of an exported file: keeps its inputs and finds nothing."""

    path = "the exported file"

    def __init__(self) -> None:
        super().__init__()
        self.inputs: Inputs = []

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Keeps the inputs."""
        self.inputs.append({name: value.contiguous().numpy() for name, value in inputs.items()})
        batch = len(inputs["images"])
        return {
            "boxes": torch.zeros(batch, 0, 4),
            "scores": torch.zeros(batch, 0),
            "counts": torch.zeros(batch, dtype=torch.int32),
        }


def calibration_inputs(model: SingleShot, description: Description, folder: Path) -> Inputs:
    """Returns the inputs that the graph gets for the images of a folder, at most `MOST_IMAGES`, evenly spread.

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
    return recorder.inputs[::chosen]


def readable(names: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the images that can be read."""
    for name in names:
        try:
            yield read_image(name)
        except ImageError:
            continue


def quantise(model: Any, inputs: Inputs) -> Any:
    """Quantises the network in an OpenVINO or ONNX model."""
    import nncf

    nncf.set_log_level(30)
    nodes = openvino_nodes(model) if hasattr(model, "get_ops") else onnx_nodes(model)
    ignored = nncf.IgnoredScope(names=kept_in_float(nodes), validate=False)
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


def kept_in_float(nodes: Nodes) -> list[str]:
    """The names of the operators that no convolution depends on: the last convolutions, decoding and suppression.

    The last convolutions take little time, and rounding what they return costs `srn_lite` 0.008 of average precision.

    Example:
        >>> kept_in_float({"a": ("Conv", []), "b": ("Relu", ["a"]), "c": ("Conv", ["b"]), "d": ("Exp", ["c"])})
        ['c', 'd']
    """
    rounded: set[str] = set()
    waiting = [source for kind, sources in nodes.values() if kind in CONVOLUTIONS for source in sources]
    while waiting:
        name = waiting.pop()
        if name not in rounded:
            rounded.add(name)
            waiting += nodes[name][1]
    return [name for name in nodes if name not in rounded]
