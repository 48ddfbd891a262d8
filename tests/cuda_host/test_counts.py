"""What kernels cost (benchmarks/test_counts.py): no count grows unnoticed, and the counter counts correctly."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from pyface import ops

pytestmark = pytest.mark.cuda_host

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks/results/cuda_host.json").read_text())["counts"]
TOLERANCE = 1.05  # compilers arrange accesses a little differently
OTHER_COMPILERS = 1.1  # than GCC, which gave the kept counts: Clang splits some instructions


@pytest.fixture(scope="module")
def counts():
    """benchmarks/test_counts.py; benchmarks/ is not a package."""
    spec = importlib.util.spec_from_file_location("counts", ROOT / "benchmarks/test_counts.py")
    module = sys.modules["counts"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(counts):
    return {(case.op, case.task): case for case in counts.cases()}


def worse(kept: dict, now: dict, tolerance: float = TOLERANCE) -> list[str]:
    """The counts that are above the kept ones."""
    return [f"{name}: {kept[name]} -> {now[name]}" for name in now if now[name] > tolerance * kept[name]]


def test_every_case_is_kept(cases):
    assert list(cases) == [(row["op"], row["task"]) for row in ROWS], "run pytest benchmarks -m cuda_host"


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['op']}-{row['task']}" for row in ROWS])
def test_no_count_is_worse(row, cases, counts, emulated_gpu, cuda_host):
    now = counts.count(emulated_gpu, cases[row["op"], row["task"]])
    found = worse(row, now, TOLERANCE if emulated_gpu.module.compiler.startswith("GNU") else OTHER_COMPILERS)
    assert not found, f"if this is intended, run pytest benchmarks -m cuda_host: {found}"


def test_more_than_five_percent_is_worse():
    kept = {"launches": 1, "steps": 100}
    assert worse(kept, {"launches": 1, "steps": 105}) == []
    assert worse(kept, {"launches": 2, "steps": 106}) == ["launches: 1 -> 2", "steps: 100 -> 106"]
    assert worse({"atomics": 0}, {"atomics": 1}) == ["atomics: 0 -> 1"]


def test_a_pass_over_contiguous_maps_moves_its_bytes_once(emulated_gpu, cuda_host):
    logits = torch.randn(2, 4, 16, 32)
    found = emulated_gpu.count(lambda: ops.face_probability(logits, 3))
    assert found["sectors_read"] == logits.nbytes // 32
    assert found["sectors_written"] == logits.nbytes // 32 // 4
    assert (found["launches"], found["atomics"], found["barriers"]) == (1, 0, 0)


def test_counts_repeat(emulated_gpu, cuda_host):
    losses, index = torch.rand(2, 700), (torch.arange(1400).view(2, 700) % 9 == 0).int() - 1
    first, second = (emulated_gpu.count(lambda: ops.hard_negatives(losses, index)) for _ in range(2))
    assert first == second
    assert first["blocks"] == 2
    assert first["contention"] <= first["atomics"]
    assert 0 < first["barriers"] < first["steps"]
