"""Freed memory stays with the process, for the next batch."""

import subprocess
import sys

import pytest

from pyface import resources

ROUNDS = """
import resource, sys
sys.path.insert(0, {path!r})
import numpy as np
from pyface.resources import keep_freed_memory
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
    path = str(resources.__file__).removesuffix("/pyface/resources.py")
    result = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(path=path)], capture_output=True, text=True, check=True
    )
    first, second, third = map(int, result.stdout.split())
    assert max(second, third) < first / 4


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(resources.ctypes, "CDLL", lambda name: object())
    resources.keep_freed_memory()
