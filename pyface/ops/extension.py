"""The only module that uses the compiled kernels, ``pyface._C``: checks, conversions, registration and launches.

Whatever could make a kernel access memory out of bounds is checked here and in the ops' own ``_check`` functions. The
latter run in both the real and the fake implementation.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

try:
    from pyface import _C
except ImportError as error:
    raise ImportError(
        f"pyface's kernels cannot be loaded ({error}); build them with `pip install -e .` in pyface's source folder."
    ) from error

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAP_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of csrc/ops.h's Dtype
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
OVERLAPS = ("union", "min")
_MAX_ENTRIES = 2**31 - 1

library = torch.library.Library("pyface", "DEF")


def register(schema: str, implementation: Callable, fake: Callable) -> None:
    """Defines torch.ops.pyface.<name> for CPU and CUDA, with a fake implementation for tracing.

    It uses ``Library`` instead of ``custom_op``, whose calls take four times as long.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"pyface::{name}", fake, lib=library)


_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[Tensor | None]: "Tensor?[]",
    int: "SymInt",
    list[int]: "int[]",
    float: "float",
    list[float]: "float[]",
}


def schema_of(name: str, request: type, returns: int) -> str:
    """The schema of an op that takes the fields of a NamedTuple and returns ``returns`` tensors."""
    fields = ", ".join(f"{_SCHEMA_TYPES[kind]} {field}" for field, kind in get_type_hints(request).items())
    return f"{name}({fields}) -> ({', '.join(['Tensor'] * returns)})"


# --- checks ----------------------------------------------------------------------------------------------------------


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape for an error message: ``[3, 4]``."""
    return f"[{', '.join(map(str, tensor.shape))}]"


def check_tensors(op: str, names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Raises TypeError unless all are dense tensors, ValueError unless they are on one CPU or CUDA device."""
    first_name, first = names[0], tensors[0]
    for name, value in zip(names, tensors, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor."
            )
        if value.layout is not torch.strided:
            raise TypeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}; call .to_dense().")
        if value.device != first.device:
            raise ValueError(
                f"{op}: {first_name} and {name} must be on one device, got {first.device} and {value.device}; "
                "move one of them."
            )
    if first.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{op}: {first_name} must be on cpu or cuda, got {first.device}; move it with .cpu().")


def check_one_device(op: str, first: Tensor, *others: Tensor) -> None:
    """Raises ValueError unless all tensors are on the device of the first; for direct calls of torch.ops.pyface."""
    for other in others:
        if other.device != first.device:
            raise ValueError(
                f"{op}: all tensors must be on one device, got {first.device} and {other.device}; move one of them."
            )


def check_dtype(op: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raises TypeError when the tensor's dtype is not among the allowed ones."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{op}: {name} must be one of {names}, got {tensor.dtype}; convert it first.")


def check_shape(op: str, name: str, tensor: Tensor, fits: bool, expected: str) -> None:
    """Raises ValueError with the expected and the actual shape unless ``fits``."""
    if not fits:
        raise ValueError(f"{op}: {name} must have the shape {expected}, got {shape_of(tensor)}.")


def check_size(op: str, entries: int) -> None:
    """Raises ValueError if there are more boxes than the kernels can index."""
    if isinstance(entries, int) and entries > _MAX_ENTRIES:
        raise ValueError(
            f"{op}: the number of boxes must be at most {_MAX_ENTRIES:,}, got {entries:,}; split the call."
        )


def check_splits(op: str, splits: Tensor, entries: int) -> None:
    """Raises ValueError unless splits [B + 1] rise from 0 to ``entries``.

    They are checked on the CPU only, where this costs nothing. CUDA kernels stay in bounds whatever splits contain.
    """
    if splits.device.type != "cpu":
        return
    if splits[0] != 0 or splits[-1] != entries or bool((splits.diff() < 0).any()):
        shown = splits.tolist() if len(splits) <= 8 else f"{splits[:4].tolist()} ... {splits[-4:].tolist()}"
        raise ValueError(
            f"{op}: splits must rise from 0 to G = {entries}, got {shown}; image b has the boxes "
            "splits[b] to splits[b + 1] - 1."
        )


def check_int(op: str, name: str, value: Any, least: int = -(2**63), most: int = 2**63 - 1) -> None:
    """Raises TypeError unless the value is an integer, ValueError unless it is in range.

    torch's own messages about integers that are too large do not name the argument.
    """
    is_int = isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)
    if not is_int:
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}.")
    if not value >= least:
        raise ValueError(f"{op}: {name} must be {least} or more, got {value}.")
    if not value <= most:
        raise ValueError(f"{op}: {name} must be {most} or less, got {value}.")


def check_numbers(op: str, **values: Any) -> None:
    """Raises TypeError unless all values are numbers; torch's own messages about schemas do not name the argument."""
    for name, value in values.items():
        if not isinstance(value, (Real, torch.SymInt, torch.SymFloat)):
            raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}.")


def check_fraction(op: str, name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value <= 1; NaN is refused too."""
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {name} must be between 0 and 1, got {value}.")


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_not_nan(op: str, name: str, value: float) -> None:
    """Raises ValueError for NaN."""
    if math.isnan(value):
        raise ValueError(f"{op}: {name} must be a number, got NaN.")


# --- launches --------------------------------------------------------------------------------------------------------


def contiguous_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as kernels take it: contiguous and of this dtype."""
    if tensor.dtype == dtype and tensor.is_contiguous():  # the calls below cost microseconds in any case
        return tensor
    return tensor.detach().to(dtype).contiguous()


_CPU = vars(_C.cpu)  # a dictionary is quicker than attributes
_observers: list[Callable[[str], None]] = []


@contextlib.contextmanager
def observed_launches(observer: Callable[[str], None]) -> Iterator[None]:
    """Calls `observer` with the kernel's name before each launch, for timing."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def launch(op: str, device: torch.device, *arguments: Any, workspace: tuple[int, ...] | None = None) -> None:
    """Calls a kernel on the current stream of a device.

    Tensors are passed as they are: csrc/bind.h checks their dtypes and lengths again before it takes their addresses.
    The arguments keep them alive during the call; after it, on CUDA, the stream order of the caching allocator does.
    CPU kernels get torch's number of threads.

    Args:
        op: The kernel's name.
        device: The device of the tensors.
        arguments: The launcher's arguments, in its order.
        workspace: The arguments of the kernel's workspace function; None if it has none.

    Raises:
        RuntimeError: The kernel reported an error, or this build has no CUDA kernels.
        TypeError, ValueError: The arguments do not fit the launcher.
    """
    for observe in _observers:
        observe(op)
    if device.type == "cpu":
        _CPU[op](*arguments, torch.get_num_threads())
        return
    if not _C.has_cuda:
        raise RuntimeError(
            f"{op}: tensors must be on the CPU, as pyface was built without CUDA, got {device}; build it again with "
            "`PYFACE_CUDA=1 pip install -e .`, or move the tensors to the CPU."
        )
    if torch.cuda.current_device() == device.index:
        _launch_on_gpu(op, device, arguments, workspace)
        return
    # The launcher would switch devices as well, but CUDA sets up a context, of hundreds of megabytes, on a GPU that it
    # switches back to. torch does not switch back to a GPU that has none.
    with torch.cuda.device(device):
        _launch_on_gpu(op, device, arguments, workspace)


def _launch_on_gpu(
    op: str, device: torch.device, arguments: tuple[Any, ...], workspace: tuple[int, ...] | None
) -> None:
    if workspace is not None:
        size = getattr(_C.cuda, f"{op}_workspace")(*workspace)
        scratch = torch.empty(size, dtype=torch.uint8, device=device)
        arguments += (scratch.data_ptr(), size)
    stream = torch.cuda.current_stream(device).cuda_stream
    status = getattr(_C.cuda, op)(*arguments, device.index, stream)
    if status != 0:
        raise RuntimeError(f"{op} failed on {device}: {_C.cuda.error_string(status)}.{_driver_hint()}")


def _driver_hint() -> str:
    runtime, driver = _C.cuda.runtime_version(), _C.cuda.driver_version()
    if driver >= runtime:
        return ""
    have = f"supports CUDA {_version(driver)}" if driver else "was not found"
    return f" pyface was built with CUDA {_version(runtime)} and the GPU's driver {have}: update the driver."


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# --- what was built --------------------------------------------------------------------------------------------------


def build_info() -> dict[str, Any]:
    """How the kernels were built, for ``pyface info``: strings, numbers, booleans and None."""
    info: dict[str, Any] = {
        "compiler": _C.compiler,
        "simd": _C.simd,
        "threads": torch.get_num_threads(),
        "cuda": _C.has_cuda,
        "cuda_version": _C.cuda_compiler or None,
        "cuda_archs": _C.cuda_archs or None,
        "cuda_driver": None,
        "note": None,
    }
    if _C.has_cuda:
        driver = _C.cuda.driver_version()
        info["cuda_driver"] = _version(driver) if driver else None
        if driver and driver < _C.cuda.runtime_version():
            info["note"] = _driver_hint().strip()
    if _sources_changed():
        info["note"] = "The kernels are older than the sources in csrc/: run `pip install -e .` again."
    return info


def _sources_changed() -> bool:
    """Whether csrc/ (of an editable install) has changed since the module was built, by setup.py's digest."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc").is_dir():
        return False
    sources = sorted(path for path in [*root.glob("csrc/**/*.[ch]*"), root / "CMakeLists.txt"] if path.name[0] != ".")
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16] != _C.source_hash
