"""The short form of scripts/soak.py: results, memory and open files over many small images, some of them broken."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "scripts" / "soak.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("way", ["detect", "threads"])
def test_memory_and_files_stay_and_every_image_has_one_line(way):
    run = subprocess.run(
        [sys.executable, SOAK, "--only", way, "--images", "1500", "--settled", "700"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert f"{way}: 1500 images, 122 broken" in run.stdout
