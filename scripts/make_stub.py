"""Writes pyface/_C.pyi, the signatures of the compiled kernels.

    python scripts/make_stub.py            # after a change to csrc/ops.h or csrc/bindings.cpp, and a build
    python scripts/make_stub.py --check    # fails if the file is out of date

The docstrings of the built module name the parameters and say which may be None; csrc/ops.h has their C++ types, on
the CPU and on CUDA. mypy's stubtest compares the rest: `stubtest pyface._C`.
"""

import argparse
import re
import sys
from pathlib import Path

from pyface import _C

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "pyface" / "_C.pyi"
WIDTH = 120

HEAD = '''"""The compiled module (csrc/bindings.cpp); pyface/ops/extension.py is its only user.

Written by scripts/make_stub.py.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

'''
# How csrc/bind.h reads C++ types. Enums are integers in Python; structs are tuples of their fields.
NUMBERS = {"bool": "bool", "float": "float", "double": "float", "Dtype": "torch.dtype"}
NUMBERS |= dict.fromkeys(("int", "int32_t", "int64_t", "uint64_t", "size_t"), "int")
NUMBERS |= dict.fromkeys(("Overlap", "SoftNms", "Interpolation"), "int")
TENSORS = ("Map", "Image")
WHOLE = {"const char*": "str", "void*": "int", "void": "None"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the file is out of date")
    check = parser.parse_args().check
    text = make_stub()
    if not check:
        STUB.write_text(text, encoding="utf-8")
    elif STUB.read_text(encoding="utf-8") != text:
        sys.exit(f"{STUB.relative_to(ROOT)} is out of date; run python scripts/make_stub.py")


def make_stub() -> str:
    """The text of the stub."""
    docs = {name: vars(_C.cpu)[name].__doc__ for name in vars(_C.cpu) if not name.startswith("_")}
    attributes = [name for name in vars(_C) if not name.startswith("_") and name not in ("cpu", "cuda")]
    lines = [f"{name}: {type(getattr(_C, name)).__name__}" for name in attributes]
    missing = docs.keys() ^ {name for _, name, _ in declarations("cpu")}
    if missing:
        sys.exit(f"not both in csrc/ops.h and in csrc/bindings.cpp: {', '.join(sorted(missing))}")
    for space in ("cpu", "cuda"):
        lines += ["", f"class _{space.capitalize()}(ModuleType):"]
        lines += [make_function(*declared, docs) for declared in declarations(space)]
    return HEAD + "\n".join([*lines, "", "cpu: _Cpu", "cuda: _Cuda  # where the build has CUDA"]) + "\n"


def declarations(space: str) -> list[tuple[str, str, list[str]]]:
    """The functions of a namespace in csrc/ops.h: the type of their result, their name and their parameters."""
    header = (ROOT / "csrc" / "ops.h").read_text(encoding="utf-8")
    body = header.partition(f"namespace {space} {{")[2].partition(f"}}  // namespace {space}")[0]
    found = re.findall(r"^([\w ]+\*?) (\w+)\(([^)]*)\);", re.sub(r"//.*", "", body), re.MULTILINE)
    return [(result, name, [part.strip() for part in inner.split(",") if part]) for result, name, inner in found]


def make_function(result: str, name: str, declared: list[str], docs: dict[str, str]) -> str:
    """A function's signature, formatted as ruff does."""
    names = [parameter.split()[-1].lstrip("*&") for parameter in declared]
    described = parameters_of(docs.get(name, ""))
    if described and list(described) != names[: len(described)]:
        sys.exit(f"{name} has the parameters {names} in csrc/ops.h and {list(described)} in csrc/bindings.cpp")
    arguments = [
        f"{key}: {python_type(parameter.removesuffix(key).strip(), described.get(key, False))}"
        for key, parameter in zip(names, declared, strict=True)
    ]
    end, inner = f") -> {WHOLE.get(result) or NUMBERS[result]}: ...", ["self", *arguments, "/"]
    one = f"    def {name}({', '.join(inner)}{end}"
    if len(one) <= WIDTH:
        return one
    two = f"        {', '.join(inner)}"
    rows = [two] if len(two) <= WIDTH else [f"        {part}," for part in inner]
    return "\n".join([f"    def {name}(", *rows, f"    {end}"])


def parameters_of(doc: str) -> dict[str, bool]:
    """The parameters in a docstring such as `nms(boxes[batch,n,4], classes[batch,n]?, n)`: whether each may be None."""
    inner = doc[doc.find("(") + 1 : doc.rfind(")")]
    parts = re.split(r",\s*(?![^\[]*\])", inner)
    return {re.match(r"\w+", part)[0]: part.endswith("?") for part in parts if part}


def python_type(declared: str, is_optional: bool) -> str:
    """The Python type that csrc/bind.h takes for a C++ type."""
    if declared in WHOLE:
        return WHOLE[declared]
    kind = declared.removeprefix("const ").rstrip("*&")
    if not declared.endswith("*"):
        return NUMBERS.get(kind) or ("Tensor" if kind in TENSORS else "Sequence[object]")
    if kind == "double":
        return "Sequence[float]"
    if kind in NUMBERS or kind.endswith("_t"):
        return "Tensor | None" if is_optional else "Tensor"
    return "Sequence[Tensor]" if kind in TENSORS else "Sequence[Sequence[object]]"


if __name__ == "__main__":
    main()
