"""Freed memory stays with the process, for the next batch."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyface
from pyface.cli.detect import memory

ROUNDS = """
import resource, sys
sys.path.insert(0, {path!r})
import numpy as np
from pyface.cli.detect.memory import keep_freed_memory
keep_freed_memory()
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*counts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_the_second_batch_has_no_page_faults():
    path = str(Path(pyface.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(path=path)], capture_output=True, text=True, check=True
    )
    first, second, third = map(int, result.stdout.split())
    assert max(second, third) < first / 4


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
