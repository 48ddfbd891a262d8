"""Builds the CUDA kernels for the emulated device, and calls them in place of the CPU's on CPU tensors."""

import ctypes
import fcntl
import importlib.machinery
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch
from torch import Tensor

from pyface.ops import extension

ROOT = Path(__file__).resolve().parents[2]

INPUT, OUTPUT, WORKSPACE = range(3)
DEVICE, STREAM = 1, 0xABC  # of every call: neither is what CUDA takes by default
# What each launcher writes, by its parameters' names; everything else it only reads.
OUTPUTS = {
    "nms": {"keep", "keep_count"},
    "soft_nms": {"keep", "kept_scores", "keep_count"},
    "box_voting": {"voted_boxes", "voted_scores", "voted_count"},
    "letterbox": {"out"},
    "crop_resize": {"out"},
    "maxout_background": {"out"},
    "maxout_background_backward": {"out"},
    "face_probability": {"out"},
    "decode_anchors": {"out"},
    "decode_densebox": {"out"},
    "densebox_targets": {"label", "offsets", "landmark_label"},
    "assign_anchors": {"index", "overlap"},
    "hard_negatives": {"selected"},
    "balanced_sample": {"selected"},
    "online_hard": {"selected"},
}


COUNTS = ("launches", "blocks", "sectors_read", "sectors_written", "atomics", "contention", "barriers", "steps")


class EmulationError(AssertionError):
    """What the emulated device found wrong with a kernel."""


def rewrite(source: Path, target: Path) -> None:
    """Rewrites a folder of CUDA sources as C++."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("rewrite.py")), str(source), str(target)], check=True)


def build(source: Path, folder: Path) -> Path:
    """Compiles the kernels of a source tree; returns the module's path. Fast when nothing has changed."""
    settings = {
        "PYFACE_CUDA": "HOST",
        "PYFACE_PYTHON": "ON",
        "CMAKE_BUILD_TYPE": "Debug",  # of what is not emulated: it must only compile quickly, so without -g
        "CMAKE_CXX_FLAGS_DEBUG": "",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be building
        # A build tool that lay in pip's isolated environment is gone.
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        for command in (
            ["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *options],
            ["cmake", "--build", str(folder), "--target", "_C"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"the kernels do not compile for the emulated device:\n{done.stdout}\n{done.stderr}")
    return folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def build_with(folder: Path, kernels: Path, unit: str, module: Path) -> None:
    """Links a module from what was built in ``folder``, but compiles one file from other rewritten kernels."""
    compiled = {
        path.name: entry
        for entry in json.loads((folder / "compile_commands.json").read_text())
        if (path := Path(entry["file"])).parent.name in ("kernels", "csrc")
    }
    arguments = shlex.split(compiled[unit]["command"])
    object_ = kernels / f"{unit}.o"
    arguments[arguments.index("-o") + 1] = str(object_)
    arguments[-1] = str(kernels / unit)
    bindings = shlex.split(compiled["bindings.cpp"]["command"])
    built = [folder / bindings[bindings.index("-o") + 1], object_, folder / "libpyface_core.a"]
    for command in (arguments, [arguments[0], "-shared", "-o", str(module), *map(str, built), "-pthread", "-ldl"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode != 0:
            raise RuntimeError(f"a kernel with a mistake does not compile:\n{done.stderr}")


class Device:
    """The emulated device: a module whose ``cuda`` launchers take CPU tensors."""

    def __init__(self, path: Path):
        # A name of its own: modules of one name would share their submodule `cuda`.
        name = f"cuda_host_{zlib.crc32(str(path).encode()):08x}._C"
        loader = importlib.machinery.ExtensionFileLoader(name, str(path))
        self.path = path
        self.module: ModuleType = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(self.module)
        library = ctypes.CDLL(str(path))
        self._begin, self._buffer, self._end = (
            library.cuda_host_begin,
            library.cuda_host_buffer,
            library.cuda_host_end,
        )
        self._begin.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        self._counts = library.cuda_host_counts
        self._counts.restype = ctypes.POINTER(ctypes.c_uint64)
        self._buffer.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
        self._end.restype = ctypes.c_char_p
        self.seed = 0
        self.checks_values = True  # else only bounds and barriers: a test's input makes values undefined
        self.counts: dict[str, int] | None = None  # of the calls since `count` began, else None

    def launch(self, op: str, device: torch.device, *arguments: Any, workspace: tuple[int, ...] | None = None) -> None:
        """Does what pyface.ops.extension.launch does for tensors on a GPU."""
        function = getattr(self.module.cuda, op)
        names = re.findall(r"(\w+)(?:\[[^\]]*\])*\??(?:, |\)$)", function.__doc__.partition("(")[2])
        assert len(names) == len(arguments), (op, names)
        self.seed += 1  # every call has an order of its own
        self._begin(self.seed, self.counts is not None, self.checks_values, DEVICE, STREAM)
        for name, argument in zip(names, arguments, strict=True):
            for tensor in tensors_of(argument):
                self._expose(f"{op}'s {name}", tensor, OUTPUT if name in OUTPUTS[op] else INPUT)
        if workspace is not None:
            size = getattr(self.module.cuda, f"{op}_workspace")(*workspace)
            scratch = torch.empty(size, dtype=torch.uint8)
            self._expose(f"{op}'s workspace", scratch, WORKSPACE)
            arguments += (scratch.data_ptr(), size)
        status = function(*arguments, DEVICE, STREAM)
        wrong = self._end()
        if wrong is not None:
            raise EmulationError(f"{op}, with order {self.seed}: {self._with_line(wrong.decode())}")
        if status != 0:
            raise RuntimeError(f"{op} failed: {self.module.cuda.error_string(status)}")
        if self.counts is not None:
            self._add_counts()

    def count(self, call: Callable[[], object]) -> dict[str, int]:
        """What a call's launches cost: the threads run in order, so the figures are the same on every machine."""
        self.counts = dict.fromkeys(COUNTS, 0)
        try:
            call()
            return self.counts
        finally:
            self.counts = None

    def _add_counts(self) -> None:
        for name, value in zip(COUNTS, self._counts()[: len(COUNTS)], strict=True):
            worst = max(self.counts[name], value)
            self.counts[name] = worst if name == "contention" else self.counts[name] + value

    def _expose(self, name: str, tensor: Tensor, kind: int) -> None:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = (extent if tensor.numel() else 0) * tensor.element_size()
        self._buffer(name.encode(), tensor.data_ptr(), size, tensor.element_size(), kind)

    def _with_line(self, message: str) -> str:
        """The message with file and line in place of an instruction's address."""

        def line(match: re.Match) -> str:
            command = ["addr2line", "-e", str(self.path), match[1]]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                return match[0]
            return f"at {'/'.join(done.stdout.split()[0].split('/')[-2:])}"

        return re.sub(r"\[at (0x[0-9a-f]+)\]", line, message)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors within an argument of a launcher."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_of(entry)


def use(device: Device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Sends the ops' launches to the emulated device until the end of a test; ``name`` seeds its order of threads."""
    device.seed = zlib.crc32(name.encode()) << 20
    on_cpu = extension.launch

    def launch(op: str, where: torch.device, *arguments: Any, workspace: tuple[int, ...] | None = None) -> None:
        if op in OUTPUTS:
            device.launch(op, where, *arguments, workspace=workspace)
        else:  # of the CPU alone
            on_cpu(op, where, *arguments, workspace=workspace)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pyface.ops") and vars(module).get("launch") is on_cpu:
            monkeypatch.setattr(module, "launch", launch)
