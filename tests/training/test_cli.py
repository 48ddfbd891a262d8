import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("lightning")

from pyface.cli import app

START = ("s3fd_lite", "--data", "{data}", "--out", "{tmp}/run")


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_a_run_by_command_and_again_by_its_configuration(data, tmp_path):
    small = ("--size", 64, "--batch-size", 3, "--epochs", 2, "--validations", 1, "--device", "cpu")
    result = run("s3fd_lite", "--data", data, "--val", data, "--out", tmp_path / "a", *small)
    assert result.exit_code == 0, result.output
    assert "100% of the run" in result.output
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["model"], config["recipe"]["size"], config["recipe"]["epochs"]) == ("s3fd_lite", 64, 2)

    again = run("--config", tmp_path / "a" / "config.json", "--out", tmp_path / "b", "--device", "cpu")
    assert again.exit_code == 0, again.output
    measured = [json.loads((tmp_path / name / "measured.jsonl").read_text()) for name in "ab"]
    assert measured[0][data.name]["average_precision"] == measured[1][data.name]["average_precision"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model and --data DIR (or --config FILE, or --resume DIR)"),
        (["s3fd_lite"], "name a model and --data DIR"),
        (["s3fd_light", "--data", "{data}", "--out", "{tmp}"], "Did you mean 's3fd_lite'?"),
        (["s3fd_lite", "--data", "{data}"], "name a folder for the run: --out DIR"),
        (["s3fd_lite", "--data", "{tmp}/none", "--out", "{tmp}/run"], "there is no"),
        ([*START, "--precision", "int8"], "fp32, fp16, bf16"),
        ([*START, "--max-time", "soon"], "such as 90m, 2h or 1h30m"),
        ([*START, "--max-time", "1h", "--epochs", "3"], "give one of them"),
        (["--resume", "{tmp}", "--epochs", "3"], "--resume takes a run as it was configured, leave out --epochs"),
        (["--resume", "{tmp}"], "config.json is no configuration of a run"),
        (["--config", "{tmp}/c.json", "--data", "{data}"], "configured, leave out --data"),
        ([*START, "--held-out", "{tmp}/no.txt"], "No such file"),
        ([*START, "--weights", "{tmp}/no.pth"], "no.pth"),
        ([*START, "--backbone", "{tmp}/no.pth"], "no.pth"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(arguments, message, data, tmp_path):
    result = run(*(str(argument).format(data=data, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "last.ckpt").exists()
