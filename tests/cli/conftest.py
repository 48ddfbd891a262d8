"""`pyface` with the fake model, within the process of the test."""

import pytest


@pytest.fixture
def run(fake_model, monkeypatch, invoke):
    """Runs `pyface` with the fake model, within the folder that write_grey writes to."""
    from pyface.models import zoo

    real = zoo.create_model

    def create_model(name, weights="default"):
        zoo.model_info(name)
        return fake_model if weights == "default" else real(name, weights)

    monkeypatch.setattr(zoo, "create_model", create_model)
    return invoke


@pytest.fixture
def assert_one_sentence():
    """Checks the result of a mistaken command: one sentence with these words, nothing on stdout."""

    def check(result, *words):
        assert result.stdout == ""
        assert result.stderr.startswith("pyface: ")
        assert len(result.stderr.splitlines()) == 1
        for word in words:
            assert word in result.stderr

    return check
