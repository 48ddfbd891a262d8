"""`pyface` with the fake model, within the process of the test."""

import pytest
from typer.testing import CliRunner

from pyface.cli import app


@pytest.fixture
def run(fake_model, monkeypatch, tmp_path):
    """Runs `pyface` with the fake model, within the folder that write_grey writes to."""
    from pyface.models import zoo

    real = zoo.create_model

    def create_model(name, weights="default"):
        zoo.model_info(name)
        return fake_model if weights == "default" else real(name, weights)

    monkeypatch.setattr(zoo, "create_model", create_model)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, status=0, stdin=None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

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
