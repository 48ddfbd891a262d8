"""Builds the CPU kernels with sanitizers, and runs the op tests and the C++ example under each.

python scripts/sanitize.py            # address with undefined behaviour, then threads
python scripts/sanitize.py --short    # the example alone: what CI runs
python scripts/sanitize.py thread     # one of them

Needs GCC with its sanitizers' libraries, and the test requirements. Builds lie in build/; the installed package stays
as it is. Exits with 1 if a test fails or a sanitizer reports anything.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SANITIZERS = {
    # Python and torch keep memory until the process ends. Kernels allocate only scratch, whose leaks would be seen in
    # scripts/soak.py.
    "address,undefined": ("libasan.so", {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}),
    # torch is not instrumented, so its own synchronisation would be invisible.
    "thread": ("libtsan.so", {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizers", nargs="*", metavar="|".join(SANITIZERS), help="default: all")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    for name in options.sanitizers or SANITIZERS:
        if name not in SANITIZERS:
            parser.error(f"sanitizers must be of {' | '.join(SANITIZERS)}, got {name}")
        run_example(name)
        if not options.short:
            run_op_tests(name)
        print(f"{name}: nothing found", flush=True)


def run_example(sanitizers: str) -> None:
    build = ROOT / "build" / f"example-{sanitizers.replace(',', '-')}"
    run("cmake", "-S", "examples/cpp", "-B", build, "-DPYFACE_CUDA=OFF", f"-DPYFACE_SANITIZE={sanitizers}")
    run("cmake", "--build", build, "--parallel", os.environ.get("MAX_JOBS", "2"))
    run(*FIXED_ADDRESSES, build / "example", **SANITIZERS[sanitizers][1])


def run_op_tests(sanitizers: str) -> None:
    package = ROOT / "build" / f"package-{sanitizers.replace(',', '-')}"
    run(
        sys.executable,
        "setup.py",
        "--quiet",
        "build",
        "--build-lib",
        package,
        PYFACE_CUDA="0",
        PYFACE_SANITIZE=sanitizers,
    )
    library, settings = SANITIZERS[sanitizers]
    # Python is not instrumented, so the run-time library must be loaded first. It needs libstdc++ to see exceptions.
    preload = " ".join(find_library(name) for name in (library, "libstdc++.so.6"))
    environment = {**settings, "LD_PRELOAD": preload, "PYTHONPATH": str(package)}
    python = (*FIXED_ADDRESSES, sys.executable, "-P")
    run(*python, "-c", f"import pyface; assert pyface.__file__.startswith({str(package)!r})", **environment)
    kinds = "not cuda_host and not cuda and not slow"
    run(*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "-m", kinds, **environment)


# ThreadSanitizer's shadow memory collides with addresses that recent kernels choose at random.
FIXED_ADDRESSES = ("setarch", "-R") if shutil.which("setarch") else ()


def find_library(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def run(*command: object, **environment: str) -> None:
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    status = subprocess.run(words, cwd=ROOT, env=os.environ | environment, check=False).returncode
    if status != 0:
        sys.exit(f"ended with {status}: {' '.join(words)}")


if __name__ == "__main__":
    main()
