"""`pytest benchmarks`: every op and model beside its peers, checked before it is timed.

A group of the printed table is one task; the number in brackets is the ratio to the fastest of the group. Peers that
are not installed are skipped by name. Times on a busy machine are noise: compare within a group of one run.
"""

from collections.abc import Callable

import pytest
import torch


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
def timed(benchmark, device: str) -> Callable:
    """Times a call; on CUDA until its work is done."""

    def run(call: Callable) -> None:
        def finished() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        finished()
        benchmark(finished)

    return run
