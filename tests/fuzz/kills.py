"""Kills `pyface detect` at random moments and resumes it: `python -m tests.fuzz.kills --runs 100`."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from pyface.io.images import read_image

PHOTO = Path(__file__).parents[2] / "docs" / "photos"
OUTPUTS = ("faces.jsonl", "faces.csv")


def detect(folder: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pyface", "detect", folder / "in", "-o", output, "--batch-size", "1", *options]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def write_images(folder: Path, count: int) -> None:
    """Crops of a photo of many sizes, and some files that are broken."""
    photo = read_image(next(path for path in sorted(PHOTO.iterdir()) if path.suffix == ".jpg"))[..., ::-1]
    (folder / "in").mkdir()
    for k in range(count):
        side = 0.4 + 0.6 * k / count
        crop = np.ascontiguousarray(photo[: int(photo.shape[0] * side), : int(photo.shape[1] * side)])
        scale = min(1.0, 480 / max(crop.shape))
        data = cv2.imencode(".jpg", cv2.resize(crop, None, fx=scale, fy=scale))[1].tobytes()
        (folder / "in" / f"{k:03}.jpg").write_bytes(data[:-50] if k % 10 == 9 else data)


def killed_run(folder: Path, output: Path, moments: np.ndarray) -> int:
    """Runs to the end, with a kill after each of these times; returns how many kills came in time."""
    kills = 0
    for moment in moments:
        process = detect(folder, output, "--resume")
        time.sleep(moment)
        kills += process.poll() is None
        process.kill()
        process.wait()
    # Status 1: some images cannot be read.
    if (status := detect(folder, output, "--resume").wait()) != 1:
        raise AssertionError(f"the resumed run ended with status {status}")
    return kills


def check_kills(runs: int, count: int, seed: int = 0) -> int:
    """Compares killed and resumed runs with an unbroken one, byte for byte; returns the number of kills."""
    rng = np.random.default_rng(seed)
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        start = time.monotonic()
        for output in OUTPUTS:
            detect(folder, folder / output).wait()
        seconds = (time.monotonic() - start) / len(OUTPUTS)
        for run in range(runs):
            whole = folder / OUTPUTS[run % len(OUTPUTS)]
            broken = folder / f"broken_{run}{whole.suffix}"
            kills += killed_run(folder, broken, rng.uniform(0, seconds, 1))
            if broken.read_bytes() != whole.read_bytes():
                raise AssertionError(f"run {run}: the results differ from those of the unbroken run")
            print(f"run {run}: the same results, {kills} kills so far", flush=True)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--images", type=int, default=30)
    options = parser.parse_args()
    check_kills(options.runs, options.images)


if __name__ == "__main__":
    main()
