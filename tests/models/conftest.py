"""Tests of kernels run on the CPU, and on a GPU where there is one (`pytest -m cuda`)."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param if request.param == "cpu" else request.getfixturevalue("cuda")
