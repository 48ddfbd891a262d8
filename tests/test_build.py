"""The build, as users meet it: alone with CMake, repeated, broken, and with CUDA required where there is none."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyface.ops.extension import build_info

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the build reads, with empty C++ files: they compile at once, and the module is never imported."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for path in (tmp_path / "csrc").rglob("*.cpp"):
        path.write_text("")
    (tmp_path / "pyface").mkdir()
    shutil.copy(ROOT / "pyface" / "__init__.py", tmp_path / "pyface")
    return tmp_path


@pytest.mark.slow
def test_cmake_alone_builds_a_library_that_cpp_users_link(tmp_path: Path):
    (tmp_path / "main.cpp").write_text("""
        #include <cstdio>
        #include <ops.h>
        int main() {
          const float boxes[] = {0, 0, 10, 10, 1, 1, 11, 11, 20, 20, 30, 30}, scores[] = {.9f, .8f, .7f};
          int64_t keep[3];
          int32_t count;
          pyface::cpu::nms(boxes, scores, nullptr, nullptr, 1, 3, 0.5, -1, pyface::Overlap::Union, 3, keep, &count, 1);
          std::printf("%d: %d %d", count, int(keep[0]), int(keep[1]));
        }
    """)
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.24)
        project(user LANGUAGES CXX)
        add_subdirectory({ROOT.as_posix()} pyface)
        add_executable(main main.cpp)
        target_link_libraries(main PRIVATE pyface_core)
    """)
    configured = run("cmake", "-B", "build", "-DPYFACE_CUDA=OFF", cwd=tmp_path)
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", "build", "--parallel", "2", cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr
    assert run(str(tmp_path / "build" / "main"), cwd=tmp_path).stdout == "2: 0 2"


def test_cuda_on_without_nvcc_is_an_error(tmp_path: Path):
    done = run("cmake", "-S", str(ROOT), "-B", "build", "-DPYFACE_CUDA=ON", "-DPYFACE_NVCC=", cwd=tmp_path)
    assert done.returncode != 0
    assert "no nvcc was found" in done.stderr


def test_a_toolkit_that_cannot_compile_is_an_error(tmp_path: Path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho this toolkit is broken >&2\nexit 1\n")
    nvcc.chmod(0o755)
    done = run("cmake", "-S", str(ROOT), "-B", "build", cwd=tmp_path, CUDACXX=str(nvcc))
    assert done.returncode != 0
    assert "Repair the CUDA toolkit" in done.stderr
    assert "this toolkit is broken" in done.stderr


def test_a_broken_build_leaves_no_stale_module(sources: Path):
    build = (sys.executable, "setup.py", "build_ext", "--inplace")
    first = run(*build, cwd=sources, PYFACE_CUDA="0")
    assert first.returncode == 0, first.stderr
    modules = list((sources / "pyface").glob("_C*"))
    assert len(modules) == 1
    with (sources / "csrc" / "cpu" / "simd.cpp").open("a") as file:
        file.write("#error broken\n")
    assert run(*build, cwd=sources, PYFACE_CUDA="0").returncode != 0
    assert not list((sources / "pyface").glob("*_C*"))
    assert run(*build, cwd=sources, PYFACE_CUDA="yes").returncode != 0


def test_a_second_build_compiles_nothing(sources: Path):
    """Otherwise `pip install -e ".[another extra]"` would wait for all kernels again."""
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    builds = [run(*command, cwd=sources, PYFACE_CUDA="0") for _ in range(2)]
    assert [build.returncode for build in builds] == [0, 0], builds[0].stdout + builds[0].stderr
    compiled = [build.stdout.count("Building CXX object") for build in builds]
    assert compiled[0] > 5
    assert compiled[1] == 0


def test_a_later_build_keeps_the_choice_of_cuda(sources: Path):
    nvcc = sources / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    build = (*("env", "-u", "PYFACE_CUDA"), sys.executable, "setup.py", "build_ext", "--inplace")
    assert run(*build[3:], cwd=sources, PYFACE_CUDA="0", CUDACXX=str(nvcc)).returncode == 0
    later = run(*build, cwd=sources, CUDACXX=str(nvcc))
    assert later.returncode == 0, later.stderr
    assert "without CUDA" in later.stdout
    assert run(*build[3:], cwd=sources, PYFACE_CUDA="auto", CUDACXX=str(nvcc)).returncode != 0


def test_build_info_describes_this_build():
    info = build_info()
    assert info["compiler"]
    assert info["simd"] in ("avx512", "avx2", "baseline")
    assert info["threads"] >= 1
    assert (info["cuda_version"] is not None) == info["cuda"]


def test_the_kernels_are_built_from_these_sources():
    assert "older than the sources" not in (build_info()["note"] or ""), "run `pip install -e .` again"


def test_no_torch_header_in_the_core():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not any(f"#include <{name}/" in text for name in ("torch", "ATen", "c10")), path


def test_cpu_and_cuda_share_their_exponential():
    """Libraries differ in the last bit of an exponential, but both sides must decide comparisons alike."""
    library = re.compile(r"\b(std::)?(exp|exp2|expm1|log|log1p|pow|tanh)f?\(")
    shared = [ROOT / "csrc" / name for name in ("geometry.h", "densebox.h", "sampling.h")]
    for path in [*shared, *(ROOT / "csrc" / "cuda").iterdir()]:
        assert not library.search(path.read_text()), path


def test_a_script_beside_the_clone_imports_the_package(tmp_path: Path):
    # There the folder of the clone, also called pyface, comes before the package on the path.
    (tmp_path / "pyface" / "csrc").mkdir(parents=True)
    done = run(sys.executable, "-c", "import pyface; print(pyface.__file__)", cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "pyface" / "__init__.py"), done.stderr
