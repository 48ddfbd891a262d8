"""Leaves out examples of docstrings whose extra is not installed, and reports how many slow tests did not run."""

from importlib.util import find_spec

import pytest

NEEDS = {"pyface/serve": "fastapi_offline", "pyface/export": "onnxscript", "pyface/distributed": "ray"}
collect_ignore = [folder for folder, package in NEEDS.items() if find_spec(package) is None]
LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Counts the slow tests that the default run leaves out."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.config.stash[LEFT_OUT] = item.config.stash.get(LEFT_OUT, 0) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says so at the end, unless -k or -m chose the tests."""
    count = config.stash.get(LEFT_OUT, 0)
    if count and config.option.markexpr == "not slow" and not config.option.keyword:
        terminalreporter.write_line(
            f"{count} slow tests were left out; to run every test: pytest -m 'slow or not slow'", yellow=True
        )
