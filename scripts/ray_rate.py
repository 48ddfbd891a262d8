"""Compares detection on a local Ray cluster with one process, on the same cores and images.

python scripts/ray_rate.py photos/            # needs pip install -e ".[ray]"; run nothing else meanwhile
taskset -c 0 python scripts/ray_rate.py photos/ --workers 1

The two take turns. The time of a run over the first 64 images is subtracted, since starting the actors matters little
in a long run. CPU seconds are those of all processes, so they can also be compared on a machine that is not idle.
"""

import argparse
import contextlib
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Self

import ray

from pyface import FaceDetector
from pyface.distributed import ResultFolder, detect, image_dataset
from pyface.io.sources import find_sources
from pyface.resources import keep_freed_memory

START = 64  # images that a worker takes at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--model", default="s3fd_lite")
    parser.add_argument("--images", type=int, default=512, help="repeat the photos up to this number")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as `pyface detect` and Ray's workers do
    found = find_sources([options.photos], recursive=True)
    names = (found * -(-options.images // len(found)))[: options.images]
    detector = FaceDetector(options.model, device="cpu", threads=options.workers)
    worker = FaceDetector(options.model, device="cpu", threads=1)
    ray.init("local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rates: dict[str, list[tuple[float, float]]] = {"one process": [], "Ray": []}
    one_process(detector, names[:START])
    for _ in range(options.rounds):
        for name, run in (
            ("one process", partial(one_process, detector)),
            ("Ray", partial(on_ray, worker, options.workers)),
        ):
            start, end = run(names[:START]), run(names)
            rates[name].append((end[0] - start[0], end[1] - start[1]))
            wall, cpu = ((len(names) - START) / median(column) for column in zip(*rates[name], strict=True))
            print(f"{name:12} {wall:6.1f} images per second, {cpu:6.1f} per CPU second", flush=True)


def one_process(detector: FaceDetector, names: list[str]) -> tuple[float, float]:
    """Returns the seconds and CPU seconds of a stream."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in detector.stream(names):
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def on_ray(detector: FaceDetector, workers: int, names: list[str]) -> tuple[float, float]:
    """Returns the seconds and CPU seconds of the cluster for the same."""
    images = image_dataset(names)
    results = detect(images.dataset, detector, image=images.image, source=images.source, workers=workers)
    with tempfile.TemporaryDirectory() as folder, CpuMeter() as meter:
        start = time.perf_counter()
        ResultFolder(folder).save(results)
        return time.perf_counter() - start, meter.seconds()


class CpuMeter:
    """A context manager that counts the CPU seconds of this process and all below it, also of those that end."""

    def __init__(self) -> None:
        self._first = self._sample()
        self._last = dict(self._first)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def seconds(self) -> float:
        """Returns the CPU seconds so far."""
        self._last |= self._sample()
        ticks = sum(now - self._first.get(process, 0) for process, now in self._last.items())
        return ticks / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            self._last |= self._sample()

    def _sample(self) -> dict[int, int]:
        """The CPU time of each process in clock ticks."""
        parents, ticks = {}, {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):  # it has ended, or is no process
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                parents[int(process.name)], ticks[int(process.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
        ours = {os.getpid()}
        while more := {process for process, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return {process: ticks[process] for process in ours}


if __name__ == "__main__":
    main()
