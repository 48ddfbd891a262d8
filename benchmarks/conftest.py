"""`pytest benchmarks`: every op and model beside its peers, checked before it is timed.

A group of the printed table is one task; the number in brackets is the ratio to the fastest of the group. Peers that
are not installed are skipped by name. Times on a busy machine are noise: compare within a group of one run.

`-m "slow or not slow"` adds what takes minutes on a small machine: large batches, the papers' networks, torch.compile.
`benchmarks/report.py` makes tables of a run that was kept with `--benchmark-json`.
"""

import importlib
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the `pyface` command does, before torch loads its OpenMP

import cv2
import numpy as np
import pytest
import torch

from pyface.benchmark import machine_facts

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS, ROUNDS = "0.2", 3  # per benchmark, unless the command line says otherwise
PACKAGES = ("torch", "torchvision", "opencv-python", "lsnms", "facenet-pytorch")
# What an import of the peer needs as well; installed with --no-deps, these may be missing.
NEEDS = {"facenet_pytorch": ("torchvision", "requests", "PIL")}


def pytest_configure(config: pytest.Config) -> None:
    # There are hundreds: a second and five rounds each, pytest-benchmark's defaults, would take a quarter of an hour.
    if str(config.getoption("benchmark_max_time", None)) == "1.0":
        config.option.benchmark_max_time = type(config.option.benchmark_max_time)(SECONDS)
    if config.getoption("benchmark_min_rounds", None) == 5:
        config.option.benchmark_min_rounds = ROUNDS


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Adds the facts about the machine that report.py prints."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine_facts(device) | {"threads": 2}
    machine_info["pyface"] = {name: facts[name] for name in ("cpu", "cores", "threads", "gpu", "python")}
    machine_info["versions"] = {name: found for name in PACKAGES if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.fixture(autouse=True)
def two_threads():
    """The project's figures are for two CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no usable GPU on this machine")
    return request.param


@pytest.fixture
def timed(benchmark, device: str, request: pytest.FixtureRequest) -> Callable:
    """Times a call beside the others of its task; on CUDA until its work is done."""

    def run(call: Callable, op: str, task: str, library: str = "pyface", precision: str = "fp32") -> None:
        """Times one call.

        Args:
            call: What to time.
            op: The op or model.
            task: The input, such as "1,000 boxes".
            library: "pyface" or the peer that the call belongs to.
            precision: The numeric precision.
        """
        benchmark.group = f"{op}, {task}, {precision}, {device}"
        benchmark.extra_info.update(
            op=op, task=task, library=library, precision=precision, device=device, threads=torch.get_num_threads()
        )

        def finished() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        finished()
        start = time.perf_counter()
        finished()
        rounds = request.config.getoption("benchmark_min_rounds")
        if rounds * (time.perf_counter() - start) < float(request.config.getoption("benchmark_max_time")):
            benchmark(finished)
        else:  # long calls need no calibration
            benchmark.pedantic(finished, rounds=rounds)

    return run


@pytest.fixture(scope="session")
def peer() -> Callable[[str], ModuleType]:
    """Imports a peer, or skips the benchmark and says what is missing."""

    def load(name: str) -> ModuleType:
        for needed in (name, *NEEDS.get(name, ())):
            pytest.importorskip(needed, reason=f"{needed} is not installed")
        return importlib.import_module(name)

    return load


@pytest.fixture
def facenet(peer: Callable, device: str) -> Callable:
    """Makes facenet-pytorch's MTCNN: the same cascade, weights and thresholds as ours."""
    options = {"min_face_size": 20, "thresholds": [0.6, 0.7, 0.7], "factor": 0.709}
    return lambda: peer("facenet_pytorch").MTCNN(keep_all=True, device=torch.device(device), **options)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """The example image as its file holds it: 512 x 512 pixels, one face."""
    return (EXAMPLES / "astronaut.jpg").read_bytes()


@pytest.fixture(scope="session")
def decode() -> Callable[[bytes], np.ndarray]:
    """Decodes JPEG bytes to RGB with OpenCV, as users of the peers do."""
    return lambda data: cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.fixture
def random_boxes(device: str) -> Callable:
    """Boxes uniform on 1000 x 1000 with sides 10-70, and scores."""

    def make(n: int, *batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(n)
        corner = torch.rand(*batch, n, 2, generator=generator) * 1000
        side = 10 + 60 * torch.rand(*batch, n, 2, generator=generator)
        scores = torch.rand(*batch, n, generator=generator)
        return torch.cat([corner, corner + side], -1).to(device), scores.to(device)

    return make
