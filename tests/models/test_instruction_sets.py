"""MTCNN's kernels equal their layers with every instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("convnet", "pnet")]


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_every_instruction_set_equals_the_layers(level):
    command = [sys.executable, "-m", "pytest", "-q", "-k", "equals_its_layers and cpu", *FILES]
    environment = os.environ | {"PYFACE_SIMD": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "36 passed" in done.stdout
