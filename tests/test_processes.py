"""A detector in forked and spawned processes, in workers of torch's DataLoader, in threads, and under asyncio."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from pyface import resources
from pyface.detector import FaceDetector

# A program of its own, since what hangs or forks must not be pytest: it prints the number of faces per child.
PROGRAM = """
import multiprocessing, os, sys
import cv2, numpy as np, torch
import pyface

class Images(torch.utils.data.Dataset):
    def __init__(self, detector, picture):
        self.detector, self.picture = detector, picture
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return len(self.detector(self.picture))

def child(detector, picture, queue):
    queue.put(len((detector or pyface.FaceDetector(device="cpu"))(picture)))

if __name__ == "__main__":
    how, picture = sys.argv[1:]
    torch.set_num_threads(2)  # so that OpenMP has threads which a fork leaves behind
    detector = pyface.FaceDetector(device="cpu", threads=2)
    print(len(detector(picture)), "in the parent", flush=True)
    cv2.cvtColor(np.zeros((3000, 3000, 3), np.uint8), cv2.COLOR_RGB2BGR)  # OpenCV's threads too
    if how.startswith("loader"):
        context = how.split()[1]
        loader = torch.utils.data.DataLoader(
            Images(detector, picture), batch_size=1, num_workers=2, multiprocessing_context=context, timeout=100
        )
        print([int(faces) for faces in loader])
    else:
        context = multiprocessing.get_context(how.split()[0])
        queue = context.Queue()
        given = None if how.endswith("made there") else detector
        children = [context.Process(target=child, args=(given, picture, queue)) for _ in range(2)]
        for process in children:
            process.start()
        print([queue.get(timeout=100) for _ in children])
        for process in children:
            process.join()
    print(len(detector(picture)), "in the parent again")
"""

HAS_FORK = hasattr(os, "fork") and sys.platform != "darwin"


@pytest.mark.parametrize(
    "how",
    [
        *("fork", "spawn", "loader fork"),
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("fork made there", "loader spawn")),
    ],
)
def test_other_processes(tmp_path, astronaut, how):
    if "fork" in how and not HAS_FORK:
        pytest.skip("processes cannot be forked here")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), how, str(astronaut)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    children = "[1, 1, 1, 1]" if how.startswith("loader") else "[1, 1]"
    assert result.stdout.splitlines() == ["1 in the parent", children, "1 in the parent again"]


def test_asyncio(astronaut):
    detector = FaceDetector(device="cpu")

    async def serve():
        loop = asyncio.get_running_loop()
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*(loop.run_in_executor(None, detector, str(astronaut)) for _ in range(4)))
        ticking.cancel()
        return found, ticks

    found, ticks = asyncio.run(serve())
    assert [len(faces) for faces in found] == [1] * 4
    assert ticks > 0


def test_sixteen_threads(astronaut):
    """Every thread gets the faces of its own images, and torch's number of threads stays the same."""
    detector = FaceDetector(device="cpu", batch_size=2)
    picture = cv2.imread(str(astronaut))[..., ::-1].copy()
    blank = np.zeros_like(picture)
    before, start = torch.get_num_threads(), threading.Barrier(16)

    def work(number):
        torch.get_num_threads()
        start.wait()
        sources = [picture if (number >> k) & 1 else blank for k in range(4)]
        return [len(faces) for faces in detector(sources)]

    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(work, range(16)))
    assert counts == [[(number >> k) & 1 for k in range(4)] for number in range(16)]
    assert torch.get_num_threads() == before


# --- how many threads -------------------------------------------------------------------------------------------------


@pytest.fixture
def seen_threads(fake_model, monkeypatch):
    """A function that makes a detector, and the number of torch's threads while its model runs."""
    detect = fake_model.detect

    def run(threads):
        seen = []

        def spy(images, **options):
            seen.append(torch.get_num_threads())
            return detect(images, **options)

        monkeypatch.setattr(fake_model, "detect", spy)
        FaceDetector(fake_model, device="cpu", threads=threads)(np.zeros((8, 8, 3), np.uint8))
        return seen[0]

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield run
    torch.set_num_threads(before)


def test_number_of_threads(seen_threads, monkeypatch):
    monkeypatch.setattr(resources, "own_cores", lambda: 8)
    monkeypatch.setattr(resources, "free_cores", lambda: 8)
    assert seen_threads(None) == 4  # what torch is set to
    assert seen_threads(1) == 1
    assert seen_threads(6) == 6
    monkeypatch.setattr(resources, "free_cores", lambda: 2)
    assert seen_threads(None) == 2
    monkeypatch.setattr(resources, "own_cores", lambda: 1)
    assert seen_threads(None) == 1
    assert seen_threads(3) == 3
    assert torch.get_num_threads() == 4
    monkeypatch.setattr(resources, "_is_forked", True)
    assert seen_threads(3) == 1


@pytest.mark.parametrize("threads", [0, -1, 2.5, "two"])
def test_threads_out_of_range(fake_model, threads):
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        FaceDetector(fake_model, device="cpu", threads=threads)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "7:memory:/x\n4:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            float("inf"),
        ),
        ({}, float("inf")),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "nonsense"}, float("inf")),
    ],
)
def test_a_containers_quota(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resources._quota(tmp_path) == quota


def test_own_cores(monkeypatch):
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for quota, number in ((float("inf"), 4), (1.5, 2), (0.2, 1), (2.4, 2), (9, 4)):
        monkeypatch.setattr(resources, "_quota", lambda _, quota=quota: quota)
        assert resources.own_cores() == number


def test_free_cores(monkeypatch):
    """The time of other processes is the total less this process's own, over a long enough interval."""
    monkeypatch.setattr(resources.os, "cpu_count", lambda: 4)
    used = [(0.0, 0.0)]
    monkeypatch.setattr(resources.FreeCores, "_used", lambda self: used[0])
    free = resources.FreeCores()
    assert free() == 4
    for now, others, number in ((1, 0.1, 4), (1.1, 9, 4), (2, 1.1, 3), (3, 3.2, 2), (4, 9.2, 1), (9, 9.2, 4)):
        used[0] = (now, others)
        assert free() == number
    used[0] = None
    assert free() == 4
    assert resources.FreeCores()() == 4  # where the system does not tell
