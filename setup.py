"""Builds pyface._C with CMake and Ninja; everything else about the package is in pyproject.toml.

Environment: PYFACE_CUDA=0|1|auto builds without CUDA, with it, or with it when nvcc is found (the default), and
PYFACE_CUDA_ARCHS="80;90" chooses the architectures (default: the visible GPU's, else PTX for any GPU since Turing).
Later editable installs keep both choices, so that one that adds an extra need not repeat them.
PYFACE_SANITIZE=address,undefined or thread compiles with sanitizers in another build folder (scripts/sanitize.py).
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(p for p in [*ROOT.glob("csrc/**/*.[ch]*"), ROOT / "CMakeLists.txt"] if p.name[0] != ".")


def source_hash() -> str:
    """Digest of the C++ and CUDA sources, the same rule as in pyface/ops/extension.py."""
    digest = hashlib.sha256()
    for path in SOURCES:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def run(*command: str) -> None:
    """Runs a build command, whose own messages tell what went wrong."""
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(
            "pyface's kernels could not be built: see CMake's message above. They need a C++17 compiler "
            "(Debian and Ubuntu: apt install g++); a CUDA toolkit that fails is left out with PYFACE_CUDA=0."
        )


def put(module: Path, place: Path) -> None:
    """Copies a file aside and renames it, so that no reader ever gets half of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".pyface-{os.getpid()}-{place.name}")
    shutil.copyfile(module, aside)
    os.replace(aside, place)


class CMakeBuild(build_ext):
    """Runs CMake in a folder that stays between builds, then renames the finished module into place."""

    def run(self) -> None:
        # First, so that a build which fails or is interrupted leaves no module of older sources behind.
        self.stays_here = bool(self.inplace or self.editable_mode)  # setuptools changes `inplace` during the build
        if self.stays_here:
            for ext in self.extensions:
                self._place(ext).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        sanitize = os.environ.get("PYFACE_SANITIZE", "")
        name = "-".join(filter(None, ["python", sys.implementation.cache_tag, self.plat_name, *sanitize.split(",")]))
        build = ROOT / "build" / name
        self._configure(build, sanitize)
        run("cmake", "--build", str(build), "--target", "_C")
        put(build / self._place(ext).name, self._built(ext))

    def copy_extensions_to_source(self) -> None:
        # What setuptools calls at the end of an editable build.
        for ext in self.extensions:
            put(self._built(ext), self._place(ext))

    def _built(self, ext: Extension) -> Path:
        """Where setuptools collects what goes into a wheel."""
        return Path(self.build_lib) / self.get_ext_filename(ext.name)

    def _place(self, ext: Extension) -> Path:
        """Where an editable install has the module."""
        return ROOT / self.get_ext_filename(ext.name)

    def _configure(self, build: Path, sanitize: str) -> None:
        cuda = os.environ.get("PYFACE_CUDA") or "auto"
        if cuda not in ("auto", "0", "1"):
            raise SystemExit(f"PYFACE_CUDA must be 0 (CPU only), 1 (with CUDA) or auto, got {cuda!r}; or unset it.")
        settings = {
            "PYFACE_PYTHON": "ON",
            "PYFACE_CUDA": {"auto": "AUTO", "0": "OFF", "1": "ON"}[cuda],
            "PYFACE_CUDA_ARCHS": os.environ.get("PYFACE_CUDA_ARCHS", ""),
            "PYFACE_SANITIZE": sanitize,
            "PYFACE_VERSION": self.distribution.get_version(),
            "PYFACE_SOURCE_HASH": source_hash(),
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja") or "ninja",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        settings |= self._earlier_choices(build / "CMakeCache.txt")
        options = [f"-D{name}={value}" for name, value in settings.items()]
        # Forgets the paths of build tools that lay in pip's last isolated environment. Object files stay, which --fresh
        # would delete.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options)

    def _earlier_choices(self, cache: Path) -> dict[str, str]:
        """What an earlier build of this clone was told with variables that are not set now.

        A wheel, which may go elsewhere, does not depend on that.
        """
        if not self.stays_here or not cache.exists():
            return {}
        found = re.findall(r"^(PYFACE_CUDA|PYFACE_CUDA_ARCHS):\w+=(.*)$", cache.read_text(), re.MULTILINE)
        return {name: value for name, value in found if name not in os.environ}


setup(ext_modules=[Extension("pyface._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
