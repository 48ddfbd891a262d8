"""The fuzzer's short form: 15 seconds for each kind of input, without a finding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("target", ["images", "files", "checkpoints", "ops"])
def test_a_short_run_finds_nothing(target):
    command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", "15", "--count", "100000"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["inputs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "runs"), [("detect", 6), ("train", 2)])
def test_killed_runs_give_the_results_of_an_unbroken_one(command, runs):
    arguments = [sys.executable, "-m", "tests.fuzz.kills", command, "--runs", str(runs)]
    run = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
