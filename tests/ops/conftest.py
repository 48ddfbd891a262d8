"""Every op test runs on the CPU, on the emulated GPU, and on a GPU where there is one (`pytest -m cuda`)."""

import pytest


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda_host", marks=pytest.mark.cuda_host),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param if request.param == "cpu" else request.getfixturevalue(request.param)
