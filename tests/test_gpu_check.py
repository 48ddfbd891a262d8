"""scripts/gpu_check.sh on a machine whose GPU, Python and sanitizer are stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.sh"
PROGRAMS = {
    "nvidia-smi": "echo NVIDIA Stand-in",
    "compute-sanitizer": "echo 0 errors",
    # The step of graphs fails; all steps record their arguments.
    "python": 'echo "$@" >> calls.txt; case "$*" in *"-k cuda_graph"*) exit 3;; esac',
}

STEPS = [
    "build",
    "info",
    "graphs",
    "ops",
    "tests",
    "benchmarks",
    "keep",
    "memcheck",
    "racecheck",
    "synccheck",
    "compiled",
]


@pytest.fixture
def gpu_check(tmp_path):
    """Runs a copy of the script; returns its result and the arguments of its calls of Python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, str]:
        where = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python")}
        command = [str(tmp_path / "scripts/gpu_check.sh"), *arguments]
        done = subprocess.run(
            command, env=os.environ | where | environment, capture_output=True, text=True, check=False
        )
        return done, (tmp_path / "calls.txt").read_text()

    return run


def test_a_step_that_fails_does_not_stop_the_others(gpu_check, tmp_path):
    done, calls = gpu_check()
    assert done.returncode == 1, done.stderr
    summary = (tmp_path / "gpu_check/summary.txt").read_text()
    assert summary == done.stdout
    assert summary.count(" failed with status ") == 1
    assert "-- graphs failed with status 3" in summary
    assert "--keep gpu_check/benchmarks.json --name nvidia-stand-in" in calls
    for step in STEPS:
        assert f"== {step} " in summary
        assert (tmp_path / f"gpu_check/{step}.log").exists()


def test_without_time_only_the_figures_are_kept(gpu_check, tmp_path):
    done, calls = gpu_check(SECONDS="600")  # bash counts on from there
    assert done.returncode == 1
    assert done.stdout.count("no time is left") == len(STEPS) - 1
    assert "--keep" in calls
    assert "-m pytest" not in calls


def test_a_dry_run_runs_no_step(gpu_check, tmp_path):
    done, calls = gpu_check("--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "gpu_check").exists()
    assert calls.count("--collect-only") == 3
    assert calls.count("-m pytest") == 3
