"""Lists what every CUDA kernel takes according to ptxas, for compute capability 8.0 and 9.0. Needs nvcc, no GPU.

python scripts/kernel_resources.py   # rewrites benchmarks/results/kernel_resources.json
python benchmarks/report.py          # then the table of docs/cuda.md
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks/results/kernel_resources.json"
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
# Bytes of shared memory of a multiprocessor and blocks on it, by compute capability (CUDA C++ Programming Guide).
MULTIPROCESSORS = {"8.0": (164 << 10, 32), "9.0": (228 << 10, 32)}
REGISTERS, THREADS = 64 << 10, 2048  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that CUDA adds to each block
WITHOUT_BOUNDS = 256  # threads of the kernels that name no limit


def tool(name: str) -> str:
    """The path of one of CUDA's programs."""
    found = shutil.which(name) or shutil.which(name, path=CUDA / "bin")
    if found is None:
        raise SystemExit(f"{name} was not found on PATH or in {CUDA}/bin; install the CUDA toolkit or set CUDA_HOME.")
    return found


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def ptx_of(source: Path) -> Path:
    """A source's PTX, for every GPU since 8.0; it stays in build/ until a source changes."""
    target = ROOT / "build/kernel_resources" / f"{source.stem}.ptx"
    newest = max(path.stat().st_mtime for path in [source, *ROOT.glob("csrc/**/*.*h")])
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ("-std=c++17", "-O3", "--fmad=false", "-arch=compute_80", "-ptx")
        output_of(tool("nvcc"), *flags, str(source), "-o", str(target))
    return target


def kernels_of(ptx: Path, capability: str) -> dict[str, dict[str, int]]:
    """Registers, bytes of shared memory and spills, and threads of a block, by mangled name."""
    architecture = f"-arch=sm_{capability.replace('.', '')}"
    report = output_of(tool("ptxas"), "-v", architecture, str(ptx), "-o", os.devnull)
    bounds = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx.read_text()))
    found = {}
    for entry in report.split("Compiling entry function '")[1:]:
        name = entry.partition("'")[0]
        shared = re.search(r"(\d+) bytes smem", entry)
        found[name] = {
            "registers": int(re.search(r"Used (\d+) registers", entry)[1]),
            "shared": int(shared[1]) if shared else 0,
            "spilled": int(re.search(r"(\d+) bytes spill stores", entry)[1]),
            "threads": int(bounds.get(name, WITHOUT_BOUNDS)),
        }
    return found


def blocks_per_sm(kernel: dict[str, int], capability: str) -> int:
    """How many blocks a multiprocessor holds at once."""
    shared_bytes, most = MULTIPROCESSORS[capability]
    warps = -(-kernel["threads"] // 32)
    registers = -(-kernel["registers"] * 32 // 256) * 256 * warps
    return min(most, THREADS // (32 * warps), REGISTERS // registers, shared_bytes // (kernel["shared"] + RESERVED))


def readable(mangled: list[str]) -> list[str]:
    """Names without namespaces, parameters and return types."""
    names = output_of(tool("c++filt"), *mangled).splitlines()
    short = [re.sub(r"\(anonymous namespace\)::|pyface::(cuda::)?", "", name) for name in names]
    return [re.sub(r"^void |\((?!\w+\)\d).*$", "", name).replace("(bool)", "") for name in short]


def main() -> None:
    kernels: dict[str, dict] = {}
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        if source.stem == "sort":  # CUB's kernels
            continue
        for capability in MULTIPROCESSORS:
            found = kernels_of(ptx_of(source), capability)
            for name, kernel in zip(readable(list(found)), found.values(), strict=True):
                if "(Dtype)" in name and "(Dtype)0" not in name:
                    continue  # float16 and bfloat16 differ only in how they load an element
                kernel["blocks_per_sm"] = blocks_per_sm(kernel, capability)
                full = f"{source.stem}: {name.replace('<(Dtype)0>', '')}"
                new = {"kernel": full, "threads": kernel.pop("threads"), "by_capability": {}}
                kernels.setdefault(full, new)["by_capability"][capability] = kernel
    version = re.search(r"release ([\d.]+)", output_of(tool("nvcc"), "--version"))[1]
    KEPT.write_text(json.dumps({"nvcc": version, "kernels": list(kernels.values())}, indent=1) + "\n")
    print(f"wrote {KEPT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
