"""Kills `pyface detect` or `pyface train` at random moments and resumes it.

python -m tests.fuzz.kills detect --runs 100
python -m tests.fuzz.kills train --runs 20

Each run is killed once, and everything that it leaves must then equal what an unbroken run leaves. Runs are forked from
this process, which has loaded all modules, so that few kills come before a run has begun.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pyface.cli.app import app
from pyface.io.images import read_image

FORK = multiprocessing.get_context("fork")
MODULES = {
    "detect": ["pyface.detector", "pyface.cli.detect.run", "pyface.cli.detect.copies", "pyface.io.results"],
    "train": ["pyface.training.run", "tensorboard.compat", "torch.utils.tensorboard"],
}
PHOTO = Path(__file__).parents[2] / "docs" / "photos"
LOG = "log.txt"  # what a run prints


class Case(NamedTuple):
    """A command whose runs are killed; it runs in a folder of its own, beside the folder of images.

    Attributes:
        begin: Arguments of the command.
        resume: Arguments of the command that resumes it.
        growing: The file whose lines show how far a run has come.
        status: Exit status of a run that is complete.
        results: Patterns of the files that must be equal.
        images: Number of images.
    """

    begin: list[str]
    resume: list[str]
    growing: str
    status: int
    results: list[str]
    images: int


def detect_case(output: str) -> Case:
    options = ["-o", output, "--crops", "crops", "--save", "copies", "--blur", "--size", "native", "--batch-size", "1"]
    command = ["detect", "../images", "--device", "cpu", *options]
    # Status 1: some images cannot be read.
    results = [output, f"{output}.run.json", "crops/**/*", "copies/**/*"]
    return Case(command, [*command, "--resume"], output, 1, results, 12)


def train_case() -> Case:
    sizes = ["--size", "64", "--batch-size", "2", "--epochs", "3", "--validations", "3"]
    begin = ["train", "s3fd_lite", "--data", "..", "--val", "..", "--out", "run", "--device", "cpu", *sizes]
    results = ["config.json", "data.json", "measured.jsonl", "pictures/*", "*.safetensors"]
    return Case(begin, ["train", "--resume", "run", "--device", "cpu"], LOG, 0, [f"run/{name}" for name in results], 6)


CASES: dict[str, Callable[[], list[Case]]] = {
    "detect": lambda: [detect_case("faces.jsonl"), detect_case("faces.csv")],
    "train": lambda: [train_case()],
}


def write_images(folder: Path, count: int) -> None:
    """Small crops of a photo, some of them broken, with annotations."""
    photo = read_image(next(path for path in sorted(PHOTO.iterdir()) if path.suffix == ".jpg"))[..., ::-1]
    (folder / "images").mkdir()
    rows = []
    for k in range(count):
        side = 0.4 + 0.6 * k / count
        crop = np.ascontiguousarray(photo[: int(photo.shape[0] * side), : int(photo.shape[1] * side)])
        scale = min(1.0, (100 + 2 * k) / max(crop.shape))
        data = cv2.imencode(".jpg", cv2.resize(crop, None, fx=scale, fy=scale))[1].tobytes()
        is_broken = k % 10 == 9
        (folder / "images" / f"{k:03}.jpg").write_bytes(data[:-50] if is_broken else data)
        rows += [] if is_broken else [f"{k:03}.jpg", "1", "10 10 30 30 0 0 0 0 0 0"]
    (folder / "bbx_gt.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def start(arguments: list[str], folder: Path) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    process = FORK.Process(target=run, args=(arguments, folder))
    process.start()
    return process


def run(arguments: list[str], folder: Path) -> None:
    """Runs a command in this process, as `python -m pyface` does."""
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["pyface", *arguments]
    app()


def finish(arguments: list[str], folder: Path, status: int) -> None:
    """Runs a command to its end.

    Raises:
        AssertionError: It ends with another status.
    """
    process = start(arguments, folder)
    process.join()
    if process.exitcode != status:
        log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
        raise AssertionError(f"the run ended with status {process.exitcode}: {log[-2000:]}")


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill(process: BaseProcess, file: Path, lines: int, delay: float) -> bool:
    """Kills a process some time after a file has this many lines; returns False if it ended before."""
    while process.is_alive() and count_lines(file) < lines:
        time.sleep(0.005)
    process.join(delay)
    in_time = process.is_alive()
    process.kill()
    process.join()
    return in_time


def contents(folder: Path, patterns: list[str]) -> dict[str, object]:
    """The content of each file that fits one of the patterns."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): content(path) for path in sorted(paths)}


def content(path: Path) -> object:
    """A file's bytes; of a weights file, whose facts are in a random order, its header and the rest."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def killed_runs(case: Case, runs: int, rng: np.random.Generator) -> Iterator[bool]:
    """Kills, resumes and compares one run after another; yields whether the kill came in time.

    Raises:
        AssertionError: A resumed run fails, or leaves other results than an unbroken one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: those forked from this one would lack OpenCV's threads.
        writer = FORK.Process(target=write_images, args=(folder, case.images))
        writer.start()
        writer.join()
        begun = time.monotonic()
        finish(case.begin, folder / "whole", case.status)
        expected = contents(folder / "whole", case.results)
        lines = count_lines(folder / "whole" / case.growing)
        seconds = (time.monotonic() - begun) / lines
        for k in range(runs):
            broken = folder / f"broken_{k}"
            moment = int(rng.integers(lines + 1)), float(rng.uniform(0, seconds))
            yield kill(start(case.begin, broken), broken / case.growing, *moment)
            has_begun = case.begin[0] == "detect" or (broken / "run" / "config.json").exists()
            finish(case.resume if has_begun else case.begin, broken, case.status)
            got = contents(broken, case.results)
            differ = sorted(name for name in got.keys() | expected if got.get(name) != expected.get(name))
            if differ:
                raise AssertionError(f"run {k}, killed {moment[1]:.3f} s after line {moment[0]}: {differ} differ")


def check_kills(command: str, runs: int, seed: int) -> int:
    """Kills this many runs, divided among the cases of a command; returns how many of the kills came in time."""
    for module in MODULES[command]:
        importlib.import_module(module)
    torch.set_num_threads(1)  # in all runs, or their results would not be equal to the last bit
    rng = np.random.default_rng(seed)
    cases = CASES[command]()
    kills = 0
    for case in cases:
        for in_time in killed_runs(case, runs // len(cases), rng):
            kills += in_time
            print(f"{case.growing}: {kills} kills", flush=True)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=CASES)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_kills(options.command, options.runs, options.seed)
    print(f"{options.runs} runs: the same results as unbroken ones")


if __name__ == "__main__":
    main()
