"""The emulated device alone (self_test.cu), by every compiler and on every processor that this machine can test."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cuda_host, pytest.mark.slow]

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
KERNELS = ("nms", "sort", "densebox")
CPU_SOURCES = ("densebox", "nms", "order", "parallel", "simd")


def newest_clang() -> str | None:
    """Clang, if it is new enough to announce all accesses (memory.cpp)."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1))):
        if (path := shutil.which(name)) and int(run(path, "-dumpversion").partition(".")[0]) >= 16:
            return path
    return None


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(compiler: list[str], folder: Path, host) -> Path:
    """Compiles the program with the flags of CMakeLists.txt."""
    host.rewrite(ROOT / "csrc/cuda", folder)
    host.rewrite(FOLDER, folder)
    includes = [f"-I{path}" for path in (FOLDER / "include", ROOT / "csrc/cuda", ROOT / "csrc")]
    kernel_flags = re.search(r"(-O2 .*?-ffp-contract=off)", (FOLDER / "CMakeLists.txt").read_text())[1].split()
    sources = [
        *((folder / f"{name}.cpp", [*kernel_flags, "-DPYFACE_CUDA_HOST"]) for name in (*KERNELS, "self_test")),
        *((FOLDER / f"{name}.cpp", ["-O2"]) for name in ("counts", "device", "memory")),
        *((ROOT / f"csrc/cpu/{name}.cpp", ["-O2", "-ffp-contract=off"]) for name in CPU_SOURCES),
    ]
    objects = []
    for source, flags in sources:
        objects.append(folder / f"{source.parent.name}-{source.stem}.o")
        run(*compiler, "-std=c++17", *flags, *includes, "-c", source, "-o", objects[-1])
    run(*compiler, *objects, "-o", folder / "self_test", "-pthread", "-ldl")
    return folder / "self_test"


@pytest.mark.parametrize(
    ("compiler", "flags", "emulator"),
    [
        pytest.param("c++", ["-DCUDA_HOST_UCONTEXT"], [], id="ucontext"),
        pytest.param("clang++", [], [], id="clang"),
        pytest.param("aarch64-linux-gnu-g++", [], ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"], id="aarch64"),
    ],
)
def test_self_test(compiler, flags, emulator, cuda_host_module, tmp_path):
    found = newest_clang() if compiler == "clang++" else shutil.which(compiler)
    if found is None or not all(shutil.which(program) for program in emulator[:1]):
        pytest.skip(f"this machine lacks {compiler} (Clang: 16 or later) or what runs its programs")
    program = build([found, *flags], tmp_path, cuda_host_module)
    assert run(*emulator, program) == "all well\n"
