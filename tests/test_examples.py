"""The programs in examples/ do what they say."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyface.io.images import read_image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_video(astronaut, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from pyface.io.video import VideoWriter, video

    photo = cv2.resize(read_image(astronaut), (256, 256), interpolation=cv2.INTER_AREA)
    with VideoWriter(tmp_path / "video.mp4") as writer:
        for k in range(6):
            writer.write(photo if k < 4 else np.full_like(photo, 90), k / 4)
    lines = run("video.py", tmp_path / "video.mp4", tmp_path / "drawn.mp4").splitlines()
    assert [line.split() for line in lines] == [[f"{k / 4:.2f}", "s:", str(int(k < 4)), "faces"] for k in range(6)]
    drawn = list(video(tmp_path / "drawn.mp4"))
    assert [place.time for place, _ in drawn] == pytest.approx([k / 4 for k in range(6)], abs=1e-3)
    assert np.abs(drawn[0][1].astype(int) - photo).max() > 80  # the box
    assert np.abs(drawn[5][1].astype(int) - 90).max() < 20
