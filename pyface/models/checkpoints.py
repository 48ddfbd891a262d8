"""Reading weights: pyface's own files and popular public checkpoints of the papers' networks.

The layout of a file is detected by its keys (docs/detectors.md 2.2, 3.2, 4.1, 5.1):

- pyface: a model's state_dict as .safetensors, with the settings that the model needs in its metadata (or written by
  torch.save, without settings);
- S3FD by yxlijun: `vgg.N`, `L2Norm3_3`, `extras.N`, `loc.N`, `conf.N`. Its fc6 has padding 6 and dilation 6, and it
  takes RGB;
- S3FD with Caffe's names (SFD.caffemodel, clcarwin, face-alignment): `conv1_1` ... `conv7_2_mbox_conf`. fc6 has
  padding 3;
- SRN by its author: torchvision's names and `c2_conv` ... `box_subnet_pred`;
- SSH with Caffe's names: `conv1_1` ... `m3@ssh_bbox_pred`;
- MTCNN from facenet-pytorch: a folder with pnet.pt, rnet.pt and onet.pt, or one file with keys `pnet.` ... `onet.`;
- MTCNN from ipazc: a folder with pnet.lz4, rnet.lz4 and onet.lz4, which need the package lz4.

The state may be stored under "state_dict", "weight" or "model", and keys may begin with `module.`. Files are
.safetensors, .npz, or written by torch.save, including its old format. Caffe's .caffemodel is not supported: export its
layers as `name.weight` and `name.bias`, or in a torch file as `name` -> [weight, bias].

No file can run code: torch files are read with `weights_only=True`, .npz without pickles, and ipazc's pickles by a
reader that supports only arrays. NumPy numbers and argparse's Namespace beside the weights are skipped, not loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyface.models.backbones import VGG16
from pyface.models.layers import bilinear_kernel
from pyface.models.s3fd import S3FDVGG16

State = dict[str, Tensor]
Config = TypeVar("Config")


class CheckpointError(RuntimeError):
    """A weights file cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights under pyface's keys, and the settings that a model needs to load them.

    Attributes:
        path: The file.
        layout: The name of the file's layout.
        model: The model's name in the registry; None if the file does not say.
        state: The weights.
        settings: Fields of the model's configuration that differ from its defaults.
        lenient: Whether keys that the model does not have are skipped with a warning.
    """

    path: str
    layout: str
    model: str | None
    state: State
    settings: dict[str, Any] = field(default_factory=dict)
    lenient: bool = False


@dataclass(frozen=True)
class Layout:
    """A public layout of a model's weights.

    Attributes:
        name: The name used in messages.
        model: The model's name in the registry.
        marks: A file with any of these keys has this layout.
        translate: Converts a foreign state to pyface's keys; unknown keys stay as they are.
        settings: Fields that the model's configuration must have.
        lenient: Whether files may hold keys that inference does not use.
    """

    name: str
    model: str
    marks: frozenset[str]
    translate: Callable[[State], State]
    settings: Mapping[str, Any] = field(default_factory=dict)
    lenient: bool = False


OWN = "pyface"


# --- reading, loading, writing ------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """Reads a file (or MTCNN's folder of three files) in any known layout.

    Args:
        path: The file.
        model: The name of the model that the weights must be for; None: any.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file cannot be read, or holds weights of another model.
    """
    path = Path(path)
    raw, metadata = read_any(path)
    if isinstance(raw, Mapping) and "pytorch-lightning_version" in raw:
        raise CheckpointError(
            f"{path} must be a weights file, got the state of a training run; give best.safetensors beside it"
        )
    checkpoint = recognise(str(path), without_prefix(flatten(unwrapped(raw)), "module."), metadata)
    if model is not None and checkpoint.model not in (None, model):
        raise CheckpointError(
            f"{path} must hold weights of {model}, got those of {checkpoint.model}; choose the model {checkpoint.model}"
        )
    return checkpoint


def recognise(path: str, state: State, metadata: Mapping[str, str]) -> Checkpoint:
    """Detects the layout of a state by its keys and translates it; an unknown layout counts as pyface's."""
    if "model" in metadata:
        settings = settings_in(metadata, path)
        return Checkpoint(path, OWN, metadata["model"], state, settings)
    if "onet.heads.weight" in state:
        return Checkpoint(path, OWN, "mtcnn", state)
    own = any(key.startswith("backbone.") for key in state)
    for layout in () if own else LAYOUTS:
        if not layout.marks.isdisjoint(state):
            translated = layout.translate(state)
            return Checkpoint(path, layout.name, layout.model, translated, dict(layout.settings), layout.lenient)
    if "prelu1.weight" in state or "0" in state:
        raise CheckpointError(
            f"{path} must be a folder of pnet, rnet and onet, got one of these files; give their folder"
        )
    return Checkpoint(path, OWN, None, state)


def settings_in(metadata: Mapping[str, str], path: str) -> dict[str, Any]:
    """The settings in the metadata of a pyface file."""
    text = metadata.get("settings", "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: the settings in its metadata must be a JSON object, got {text[:40]!r}")
    return settings


def configured(config: Config, settings: Mapping[str, Any], path: str = "the checkpoint") -> Config:
    """Applies a checkpoint's settings to a configuration.

    Args:
        config: A model's configuration, a dataclass.
        settings: `Checkpoint.settings`; lists stand for tuples.
        path: The file, for messages.

    Raises:
        CheckpointError: A field does not exist, or its value has the wrong type or is out of range.
    """
    values = {}
    kinds = get_type_hints(type(config))
    for name, value in settings.items():
        value = tupled(value)
        if name not in kinds or not is_of_kind(value, kinds[name], getattr(config, name)):
            raise CheckpointError(f"{path}: {type(config).__name__} does not accept {name} = {value!r}")
        values[name] = value
    try:
        return dataclasses.replace(config, **values)  # type: ignore[type-var]
    except ValueError as error:  # a value out of range; the configuration's message names it
        raise CheckpointError(f"{path}: {error}") from error


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint's weights into a model that was built with its settings.

    Raises:
        CheckpointError: Keys are missing or left over, or their tensors have the wrong shape or are not dense and real.
            The message names the first ten of each.
    """
    expected, state = model.state_dict(), checkpoint.state
    # Old torch files lack num_batches_tracked, which inference does not need.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {list(value.shape)} for {list(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    odd = [key for key, value in state.items() if value.layout is not torch.strided or value.is_complex()]
    if expected.keys().isdisjoint(state):
        raise CheckpointError(
            f"{checkpoint.path} has none of the known layouts ({', '.join([OWN, *(of.name for of in LAYOUTS)])}); "
            f"its keys are {list_keys(state)}"
        )
    if checkpoint.lenient and extra:
        # `fc`, the ImageNet classifier of every ResNet, is not worth a warning.
        unknown = [key for key in extra if not key.startswith("fc.")]
        if unknown:
            warnings.warn(f"{checkpoint.path}: ignored {len(unknown)} unknown keys: {list_keys(unknown)}", stacklevel=2)
        state, extra = {key: value for key, value in state.items() if key in expected}, []
    problems = {"missing": missing, "left over": extra, "of another shape": misshapen, "not dense and real": odd}
    found = [f"{len(keys)} {what}: {list_keys(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{checkpoint.path} (layout {checkpoint.layout}) does not fit; keys {'; '.join(found)}")
    model.load_state_dict(state, strict=False)


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, name: str, settings: Mapping[str, Any] | None = None
) -> None:
    """Writes a model's weights as .safetensors, with the name and settings needed to build it again.

    Args:
        path: The file; replaced atomically once the new one is complete.
        model: The model.
        name: Its name in the registry.
        settings: Fields of its configuration; the version that reads the file fills in its own defaults for the others.
    """
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    beside = path.with_name(f"{path.name}.part")
    try:
        # safetensors' `save_file` creates files that only their owner can read.
        metadata = {"model": name, "settings": json.dumps(dict(settings or {}))}
        beside.write_bytes(save(state, metadata))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def foreign(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint if it has a foreign layout.

    Raises:
        CheckpointError: It already has pyface's layout, or no known one.
    """
    if checkpoint.layout == OWN and checkpoint.model is not None:
        raise CheckpointError(
            f"{checkpoint.path} must have a foreign layout, got pyface's own, with weights of {checkpoint.model}"
        )
    if checkpoint.model is None:
        names = ", ".join(layout.name for layout in LAYOUTS)
        raise CheckpointError(
            f"{checkpoint.path} has none of the known foreign layouts ({names}); keys: {list_keys(checkpoint.state)}"
        )
    return checkpoint


def list_keys(keys: Iterable[str], count: int = 10) -> str:
    """Lists the first `count` keys, and how many more there are."""
    keys = list(keys)
    rest = [f"... ({len(keys) - count} more)"] if len(keys) > count else []
    return ", ".join([*keys[:count], *rest]) or "none"


def tupled(value: Any) -> Any:
    """Converts JSON's lists to tuples."""
    return tuple(tupled(part) for part in value) if isinstance(value, list | tuple) else value


def is_of_kind(value: Any, kind: Any, default: Any) -> bool:
    """Whether a value fits a field's annotation and, if the default is a tuple, has the same length.

    Args:
        value: The value from a file.
        kind: A type, a union, a `Literal`, or a tuple of these.
        default: The field's default.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (Union, UnionType):
        return any(is_of_kind(value, part, default) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        defaults = default if isinstance(default, tuple) else value
        return len(value) == len(kinds) == len(defaults) and all(map(is_of_kind, value, kinds, defaults))
    if origin is dict:
        return isinstance(value, dict)
    return type(value) is kind or (kind is float and type(value) is int)


# --- files -----------------------------------------------------------------------------------------------------------


def read_any(path: Path) -> tuple[Any, Mapping[str, str]]:
    """Reads a file's content and its metadata.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file cannot be read.
    """
    if path.is_dir():
        if (best := path / "best.safetensors").is_file():
            raise CheckpointError(f"{path} must be a weights file, got the folder of a training run; give {best}")
        return {net: read_any(part_of(path, net))[0] for net in ("pnet", "rnet", "onet")}, {}
    if path.suffix == ".caffemodel":
        raise CheckpointError(
            f"{path} must be .npz or .pth, got a Caffe file; export its layers first, as name.weight and name.bias"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: torch.from_numpy(file[key]) for key in file.files}, {}
        if path.suffix == ".lz4":
            return {str(k): torch.from_numpy(array) for k, array in enumerate(read_arrays(path))}, {}
        with torch.serialization.safe_globals([(_Skipped, name) for name in _Skipped.NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # torch's message suggests loading the file anyway
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds an object of the class {named[1]} beside tensors, which pyface refuses to load, since "
                f"that could run code; if you trust the file, save its weights alone: "
                f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth')"
            ) from error
        raise CheckpointError(
            f"{path} is not a weights file, or contains code, which pyface refuses to load"
        ) from error
    except (LookupError, EOFError, MemoryError) as error:  # their messages say nothing about the file
        raise CheckpointError(f"{path} is not a weights file, or is damaged") from error
    except Exception as error:  # damaged files raise all kinds of errors, OSError included
        raise CheckpointError(f"{path} cannot be read as weights: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def part_of(folder: Path, net: str) -> Path:
    """The file of one of MTCNN's networks."""
    for suffix in (".pt", ".pth", ".lz4"):
        if (folder / f"{net}{suffix}").is_file():
            return folder / f"{net}{suffix}"
    raise FileNotFoundError(
        f"{folder} is a folder and must hold MTCNN's pnet, rnet and onet as .pt or .lz4, got none for {net}"
    )


def unwrapped(raw: Any) -> Any:
    """The state inside a training file."""
    while isinstance(raw, Mapping):
        inside = next(
            (raw[key] for key in ("state_dict", "weight", "model") if isinstance(raw.get(key), Mapping)), None
        )
        if inside is None:
            break
        raw = inside
    return raw


def flatten(raw: Any, prefix: str = "") -> State:
    """Flattens nested dicts and [weight, bias] lists to one state; values that are not tensors are dropped.

    From the third tensor on, the entries of a list are numbered, so that they are reported as left over.
    """
    if isinstance(raw, Tensor):
        return {prefix: raw}
    if isinstance(raw, list | tuple):
        raw = {("weight", "bias")[k] if k < 2 else k: value for k, value in enumerate(raw)}
    if not isinstance(raw, Mapping):
        return {}
    state: State = {}
    for key, value in raw.items():
        state.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return state


def without_prefix(state: State, prefix: str) -> State:
    """Removes a prefix, such as torch.nn.DataParallel's, from keys."""
    return {key.removeprefix(prefix): value for key, value in state.items()}


class _Skipped:
    """Stands for an object that a training program stored beside the weights; its content is ignored."""

    NAMES = (
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "argparse.Namespace",
    )

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype:
    """Stand-in for numpy.dtype in a joblib file: its code, such as "f4", and its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stand-in for an array in a joblib file, where the array's bytes follow its description."""

    shape: tuple[int, ...]
    order: str
    dtype: _Dtype
    numpy_array_alignment_bytes: int | None = None

    def read(self, file: Any) -> np.ndarray:
        if self.numpy_array_alignment_bytes is not None:
            file.read(file.read(1)[0])  # padding, preceded by its length
        if (self.dtype.code, self.dtype.order, self.order) != ("f4", "<", "C"):
            raise pickle.UnpicklingError(f"arrays of {self.dtype.order}{self.dtype.code}, order {self.order}")
        data = file.read(4 * math.prod(self.shape))
        return np.frombuffer(data, dtype="<f4").reshape(self.shape).copy()


class _ArrayReader(pickle._Unpickler):
    """A reader of joblib's lists of arrays: names in the file can only resolve to the stand-ins in `NAMES`."""

    NAMES = {  # noqa: RUF012
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): type(None),
    }
    dispatch = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return self.NAMES[module, name]

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-1], _Array):
            stack[-1] = stack[-1].read(self.file)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def read_arrays(path: Path) -> list[np.ndarray]:
    """Reads the arrays of an lz4-compressed joblib file."""
    try:
        lz4 = importlib.import_module("lz4.frame")
    except ImportError:
        raise CheckpointError(f"{path} cannot be read without the package lz4; run pip install lz4") from None
    with lz4.open(path) as file:
        arrays = _ArrayReader(file).load()
    if not isinstance(arrays, list) or not all(isinstance(array, np.ndarray) for array in arrays):
        raise pickle.UnpicklingError("it is not a list of arrays")
    return arrays


# --- layouts ---------------------------------------------------------------------------------------------------------


def renamed(state: State, names: Mapping[str, str]) -> State:
    """Renames the layer in keys such as "layer.weight"; unknown layers keep their names."""
    result = {}
    for key, value in state.items():
        layer, dot, kind = key.rpartition(".")
        result[f"{names.get(layer, layer)}{dot}{kind}"] = value
    return result


# conv1_1 -> backbone.conv1_1, in the network's order.
VGG_NAMES = {
    f"conv{block}_{k}": f"backbone.conv{block}_{k}"
    for block, (_, depth) in enumerate(VGG16.BLOCKS, 1)
    for k in range(1, depth + 1)
}
YXLIJUN_VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)  # conv1_1 ... conv5_3, fc6, fc7
YXLIJUN_EXTRAS = ("conv6_1", "conv6_2", "conv7_1", "conv7_2")


def s3fd_from_yxlijun(state: State) -> State:
    """Renames yxlijun's layers, which are numbered as in torch's Sequential."""
    names = {f"vgg.{n}": name for n, name in zip(YXLIJUN_VGG, [*VGG_NAMES.values(), "fc6", "fc7"], strict=True)}
    names |= {f"L2Norm{k}_3": f"conv{k}_3_norm" for k in (3, 4, 5)}
    names |= {f"extras.{n}": name for n, name in enumerate(YXLIJUN_EXTRAS)}
    for n, (source, _) in enumerate(S3FDVGG16.SOURCES):
        names |= {f"loc.{n}": f"{source}_mbox_loc", f"conf.{n}": f"{source}_mbox_conf"}
    return renamed(state, names)


def s3fd_from_caffe(state: State) -> State:
    """Adds the prefix of the backbone to Caffe's names, and flattens its scales, which may be [1, C, 1, 1]."""
    state = renamed(state, VGG_NAMES)
    return {key: value.flatten() if key.endswith("_norm.weight") else value for key, value in state.items()}


def srn_from_author(state: State) -> State:
    """Adds the prefix of the backbone to the author's names."""
    trunk = re.compile(r"(conv1|bn1|layer[1-4])\.")
    return {f"backbone.{key}" if trunk.match(key) else key: value for key, value in state.items()}


SSH_LAYERS = {
    "3x3": "conv3x3",
    "dimred": "dimred",
    "5x5": "conv5x5",
    "7x7-1": "conv7x7_1",
    "7x7": "conv7x7",
    "cls_score": "cls_score",
    "bbox_pred": "bbox_pred",
}


def ssh_from_caffe(state: State) -> State:
    """Renames Caffe's layers: m1@ssh_3x3 -> m1.conv3x3, and so on.

    Drops the kernel of the fixed upsampling if it is the expected one. Drops the `_ohem` layers too, which the author's
    training adds for hard-example mining: they are copies, with the same weights as the layers without `_ohem`.
    """
    state = {key: value for key, value in state.items() if not key.rpartition(".")[0].endswith("_ohem")}
    names = dict(VGG_NAMES)
    for m in (1, 2, 3):
        names |= {f"m{m}@ssh_{theirs}": f"m{m}.{ours}" for theirs, ours in SSH_LAYERS.items()}
    state = renamed(state, names)
    kernel = state.get("conv5_128_up.weight")
    if kernel is not None and kernel.shape == (128, 1, 4, 4) and torch.allclose(kernel.float(), bilinear_kernel(128)):
        del state["conv5_128_up.weight"]
    return state


MTCNN_SIDE = 3  # side of the map that R-Net and O-Net flatten
FACENET_HEADS = {
    "pnet": ("conv4_1", "conv4_2"),
    "rnet": ("dense5_1", "dense5_2"),
    "onet": ("dense6_1", "dense6_2", "dense6_3"),
}
FACENET_DENSE = {"rnet": "dense4", "onet": "dense5"}


def mtcnn_from_facenet(state: State) -> State:
    """Merges the heads into one layer, and reorders the columns of the first dense layer."""
    state = renamed(state, {f"{net}.{dense}": f"{net}.dense" for net, dense in FACENET_DENSE.items()})
    for net, names in FACENET_HEADS.items():
        for kind in ("weight", "bias"):
            keys = [f"{net}.{name}.{kind}" for name in names]
            if all(key in state for key in keys):
                state[f"{net}.heads.{kind}"] = torch.cat([state.pop(key) for key in keys])
    return with_torch_columns(state)


def with_torch_columns(state: State) -> State:
    """Reorders the columns of R-Net's and O-Net's dense layers from (W, H, C) to (C, H, W)."""
    for key in ("rnet.dense.weight", "onet.dense.weight"):
        weight = state.get(key)
        if weight is not None and weight.dim() == 2 and weight.shape[1] % MTCNN_SIDE**2 == 0:
            maps = weight.reshape(len(weight), MTCNN_SIDE, MTCNN_SIDE, -1)
            state[key] = maps.permute(0, 3, 2, 1).flatten(1)
    return state


def mtcnn_from_ipazc(state: State) -> State:
    """Translates ipazc's numbered arrays.

    They hold the convolutions and their PReLUs, the dense layer and its PReLU, then the heads: box, [landmarks,]
    classes. Kernels are HWIO, dense layers (in, out).
    """
    names: dict[str, str] = {}
    for net, convolutions in (("pnet", 3), ("rnet", 3), ("onet", 4)):
        layers = [f"{kind}{k}" for k in range(1, convolutions + 1) for kind in ("conv", "prelu")]
        layers += [] if net == "pnet" else ["dense", f"prelu{convolutions + 1}"]
        classes, *offsets = FACENET_HEADS[net]
        keys = [key for layer in (*layers, *offsets, classes) for key in arrays_of(layer)]
        names |= {f"{net}.{k}": f"{net}.{key}" for k, key in enumerate(keys)}
    return mtcnn_from_facenet({names.get(key, key): array_as_torch(array) for key, array in state.items()})


def arrays_of(layer: str) -> tuple[str, ...]:
    return (f"{layer}.weight",) if layer.startswith("prelu") else (f"{layer}.weight", f"{layer}.bias")


def array_as_torch(array: Tensor) -> Tensor:
    """Reorders axes for torch: HWIO to OIHW, (in, out) to (out, in), (1, 1, C) to (C)."""
    if array.dim() == 4:
        return array.permute(3, 2, 0, 1)
    return array.t() if array.dim() == 2 else array.flatten()


LAYOUTS = (
    Layout(
        name="yxlijun S3FD",
        model="s3fd_vgg16",
        marks=frozenset({"vgg.0.weight", "L2Norm3_3.weight"}),
        translate=s3fd_from_yxlijun,
        settings={"fc6_padding": 6, "fc6_dilation": 6, "bgr": False},
    ),
    Layout(
        name="Caffe S3FD",
        model="s3fd_vgg16",
        marks=frozenset({"conv3_3_norm_mbox_loc.weight", "fc7_mbox_loc.weight"}),
        translate=s3fd_from_caffe,
        settings={"fc6_padding": 3},
    ),
    Layout(
        name="ChiCheng123 SRN",
        model="srn_resnet50",
        marks=frozenset({"cls_subnet_pred.weight", "c2_lateral.weight"}),
        translate=srn_from_author,
        lenient=True,
    ),
    Layout(
        name="Caffe SSH",
        model="ssh_vgg16",
        marks=frozenset({"m1@ssh_3x3.weight", "m3@ssh_bbox_pred.weight"}),
        translate=ssh_from_caffe,
    ),
    Layout(
        name="facenet-pytorch MTCNN",
        model="mtcnn",
        marks=frozenset({"pnet.conv4_1.weight", "rnet.dense4.weight"}),
        translate=mtcnn_from_facenet,
    ),
    Layout(name="ipazc MTCNN", model="mtcnn", marks=frozenset({"pnet.0"}), translate=mtcnn_from_ipazc),
)
