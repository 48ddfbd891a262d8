"""Converts the released MTCNN weights to pyface/weights/mtcnn.safetensors.

    pip download --no-deps mtcnn==1.0.0 facenet-pytorch==2.6.0
    python scripts/convert_mtcnn.py mtcnn-1.0.0-py3-none-any.whl --check facenet_pytorch-2.6.0-py3-none-any.whl

Needs joblib and lz4 beside torch and safetensors. The source's files are joblib pickles, which can run code when they
are read; the wheels' SHA-256 is therefore checked first. What changes on the way (DETECTORS.md 3.2):

- kernels HWIO -> OIHW, dense (in, out) -> (out, in);
- the first dense layer of R-Net and O-Net was trained on features flattened as (W, H, C); its columns are put in
  PyTorch's order (C, H, W) once, here, so that the networks simply flatten;
- the heads become one layer: background and face logits, box offsets, landmarks (the source keeps them apart, in
  the order box, landmarks, classes).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import joblib
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

WHEELS = {
    "mtcnn": "0a96b4868e56db9ae984449519642be6dba03240e608a67e928ebb47833e9144",
    "facenet_pytorch": "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
}
OUTPUT = Path(__file__).parents[1] / "pyface" / "weights" / "mtcnn.safetensors"
# Convolutions, and the side of the map that is flattened behind them.
NETWORKS = {"pnet": (3, None), "rnet": (3, 3), "onet": (4, 3)}


def open_wheel(path: Path, project: str) -> zipfile.ZipFile:
    """Opens the one release that this script knows.

    Raises:
        ValueError: It is another file.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEELS[project]:
        raise ValueError(f"{path} should be the {project} wheel with SHA-256 {WHEELS[project]}, got {found}")
    return zipfile.ZipFile(path)


def from_mtcnn(wheel: zipfile.ZipFile) -> dict[str, Tensor]:
    """The state of `pyface.models.MTCNN` from the lists of arrays in the `mtcnn` wheel."""
    state = {}
    for net, (convolutions, side) in NETWORKS.items():
        arrays = joblib.load(io.BytesIO(wheel.read(f"mtcnn/assets/weights/{net}.lz4")))
        layers = iter(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        for k in range(1, convolutions + 1):
            state[f"{net}.conv{k}.weight"] = next(layers).permute(3, 2, 0, 1)
            state[f"{net}.conv{k}.bias"] = next(layers)
            state[f"{net}.prelu{k}.weight"] = next(layers).flatten()
        if side is not None:
            state[f"{net}.dense.weight"] = torch_columns(next(layers).t(), side)
            state[f"{net}.dense.bias"] = next(layers)
            state[f"{net}.prelu{convolutions + 1}.weight"] = next(layers).flatten()
        *offsets, classes = zip(layers, layers, strict=True)  # (weight, bias) of box, [landmarks,] classes
        weights, biases = zip(classes, *offsets, strict=True)
        axes = (3, 2, 0, 1) if side is None else (1, 0)
        state[f"{net}.heads.weight"] = torch.cat([weight.permute(axes) for weight in weights])
        state[f"{net}.heads.bias"] = torch.cat(biases)
    return {key: value.contiguous() for key, value in state.items()}


def from_facenet(wheel: zipfile.ZipFile) -> dict[str, Tensor]:
    """The same state from the checkpoints in the `facenet-pytorch` wheel."""
    heads = {
        "pnet": ("conv4_1", "conv4_2"),
        "rnet": ("dense5_1", "dense5_2"),
        "onet": ("dense6_1", "dense6_2", "dense6_3"),
    }
    dense = {"rnet": "dense4", "onet": "dense5"}
    state = {}
    for net, (_, side) in NETWORKS.items():
        source = torch.load(io.BytesIO(wheel.read(f"facenet_pytorch/data/{net}.pt")), weights_only=True)
        for kind in ("weight", "bias"):
            state[f"{net}.heads.{kind}"] = torch.cat([source.pop(f"{head}.{kind}") for head in heads[net]])
        if side is not None:
            state[f"{net}.dense.weight"] = torch_columns(source.pop(f"{dense[net]}.weight"), side)
            state[f"{net}.dense.bias"] = source.pop(f"{dense[net]}.bias")
        state.update({f"{net}.{key}": value for key, value in source.items()})
    return state


def torch_columns(weight: Tensor, side: int) -> Tensor:
    """Columns (W, H, C) -> (C, H, W) of a dense layer behind a `side` x `side` map."""
    return weight.reshape(len(weight), side, side, -1).permute(0, 3, 2, 1).flatten(1)


def compare(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Raises ValueError unless both hold the same keys with the same bits."""
    if state.keys() != other.keys():
        raise ValueError(f"keys differ: {sorted(state.keys() ^ other.keys())}")
    for key, value in state.items():
        if value.dtype != torch.float32 or not torch.equal(value, other[key]):
            raise ValueError(f"{key} differs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="mtcnn-1.0.0-py3-none-any.whl")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--check", type=Path, metavar="WHEEL", help="facenet_pytorch-2.6.0-py3-none-any.whl")
    arguments = parser.parse_args()

    with open_wheel(arguments.wheel, "mtcnn") as wheel:
        state = from_mtcnn(wheel)
    if arguments.check is not None:
        with open_wheel(arguments.check, "facenet_pytorch") as wheel:
            compare(state, from_facenet(wheel))
        print(f"{len(state)} tensors, {sum(v.numel() for v in state.values()):,} numbers: equal bit for bit")
    data = save(state, metadata={"licence": "MIT"})
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
