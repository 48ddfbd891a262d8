"""Every op test runs on the CPU, on the emulated GPU, and on a GPU where there is one (`pytest -m cuda`)."""

import mmap
from collections.abc import Callable, Iterable

import pytest
import torch


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda_host", marks=pytest.mark.cuda_host),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param if request.param == "cpu" else request.getfixturevalue(request.param)


@pytest.fixture(
    params=[
        pytest.param("cuda_host", marks=pytest.mark.cuda_host),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def gpu_without_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU, real or emulated, whose kernels get splits that nothing has checked."""
    for module in ("densebox", "matching"):
        monkeypatch.setattr(f"pyface.ops.{module}.check_splits", lambda *_: None)
    return request.getfixturevalue(request.param)


def is_emulated(item: pytest.Item) -> bool:
    """Whether a test runs on the emulated GPU."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("device") == "cuda_host"


@pytest.fixture
def some(request: pytest.FixtureRequest) -> Callable[[Iterable], list]:
    """On the emulated GPU, which is slow, the first and the last of a test's repetitions; elsewhere all."""

    def thin_out(values: Iterable) -> list:
        every = list(values)
        return [every[0], every[-1]] if is_emulated(request.node) else every

    return thin_out


@pytest.fixture
def sparse() -> Callable[[int, str], torch.Tensor]:
    """Makes this many zero bytes on a device. On the CPU only those that are touched take memory."""
    unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 has the name

    def zeros(size: int, device: str) -> torch.Tensor:
        if device != "cpu":
            return torch.zeros(size, dtype=torch.uint8, device=device)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved)
        return torch.frombuffer(pages, dtype=torch.uint8)

    return zeros


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what would take minutes on the emulated GPU, and marks as slow what takes seconds there."""
    for item in items:
        if is_emulated(item) and item.get_closest_marker("slow_emulated"):
            item.add_marker(pytest.mark.slow)
    too_large = [item for item in items if is_emulated(item) and item.get_closest_marker("large")]
    if too_large:
        config.hook.pytest_deselected(items=too_large)
        items[:] = [item for item in items if item not in set(too_large)]
