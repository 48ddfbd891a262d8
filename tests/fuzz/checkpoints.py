"""Damaged weights files of every format: `read_checkpoint` and `create_model` load them whole, or say why not."""

import functools
import io
import json
import pickle
import struct
import tempfile
import warnings
from argparse import Namespace
from pathlib import Path

import joblib
import lz4.frame
import numpy as np
import torch
from safetensors.torch import save

from pyface.models.checkpoints import CheckpointError, read_checkpoint
from pyface.models.zoo import create_model
from tests.fuzz.faults import expect
from tests.fuzz.files import spoiled_json
from tests.fuzz.mutate import bytes_of, pick


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """Whole files, as suffix and content: pyface's own with settings, torch's three formats, NumPy's, ipazc's."""
    model = create_model("mtcnn")
    state = {key: value for key, value in model.state_dict().items() if key.startswith("pnet.")}
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    settings = json.dumps({"min_face": 20.0, "thresholds": [0.6, 0.7, 0.7]})
    files = [
        (".safetensors", save(whole, {"model": "mtcnn", "settings": settings})),
        (".safetensors", save(state, {"model": "mtcnn"})),
        (".pth", _saved(whole)),
        (".pth", _saved(whole, _use_new_zipfile_serialization=False)),
        (".pth", _saved({"state_dict": state, "args": Namespace(lr=0.1), "epoch": np.float64(1.5)})),
        (".pth", pickle.dumps({"a": np.zeros(3, np.float32)})),
    ]
    file = io.BytesIO()
    np.savez(file, **{key: value.numpy() for key, value in state.items()})
    files.append((".npz", file.getvalue()))
    file = io.BytesIO()
    joblib.dump([value.numpy() for value in state.values()], file)
    files.append((".lz4", lz4.frame.compress(file.getvalue())))
    return files


def _saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def run(rng: np.random.Generator) -> str:
    """Reads one damaged file; returns "read" or "refused"."""
    suffix, data = pick(rng, seeds())
    spoil = INSIDE.get(suffix, bytes_of) if rng.random() < 0.5 else bytes_of
    data = spoil(rng, data)
    with tempfile.NamedTemporaryFile(suffix=suffix, dir="/dev/shm") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path(file.name).write_bytes(data)
        try:
            checkpoint = read_checkpoint(file.name)
            expect(all(isinstance(value, torch.Tensor) for value in checkpoint.state.values()), "not all are tensors")
            model = create_model("mtcnn", weights=file.name)
        except CheckpointError as error:
            expect(len(str(error)) < 3000, f"an error of {len(str(error))} characters")
            return "refused"
    loaded, expected = model.state_dict(), create_model("mtcnn", weights=None).state_dict()
    for key, value in expected.items():
        form = loaded[key].shape, loaded[key].dtype
        expect(form == (value.shape, value.dtype), f"{key} has the form {form}")
    return "read"


def _spoiled_header(rng: np.random.Generator, data: bytes) -> bytes:
    """The JSON of a safetensors file changed, with the right length in front of it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(spoiled_json(rng, json.loads(data[8 : 8 + length]))).encode()
    if rng.random() < 0.3:
        content = json.loads(data[8 : 8 + length])
        settings = {"min_face": 20.0, "thresholds": [0.6, 0.7, 0.7], "factor": 0.7}
        content["__metadata__"]["settings"] = json.dumps(spoiled_json(rng, settings))
        header = json.dumps(content).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _spoiled_content(rng: np.random.Generator, data: bytes) -> bytes:
    """The content of an lz4 file changed, in a frame that is whole."""
    return lz4.frame.compress(bytes_of(rng, lz4.frame.decompress(data)))


# Damage that the container does not notice.
INSIDE = {".safetensors": _spoiled_header, ".lz4": _spoiled_content}
