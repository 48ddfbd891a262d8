"""Every op test runs on the CPU, and on a GPU where there is one (`pytest -m cuda`)."""

import pytest
import torch

from pyface.ops._extension import build_info


@pytest.fixture
def cuda() -> str:
    """The name of the GPU's device, for tests that make sense only there."""
    if not torch.cuda.is_available():
        pytest.skip("no usable GPU on this machine")
    assert build_info()["cuda"], "a GPU is here, but pyface was built without CUDA"
    return "cuda"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param if request.param == "cpu" else request.getfixturevalue("cuda")
