"""`pyface train`, end to end on a small folder, and its mistakes."""

import json
import shutil

import pytest
from typer.testing import CliRunner

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


def test_a_configuration_with_other_data(data, tmp_path):
    config = {"model": "s3fd_lite", "data": ["elsewhere"], "held_out": ["1.png"], "max_hours": 2.0, "seed": 7}
    config |= {"recipe": {"size": 64, "batch_size": 3, "cut_out": 0.125}, "settings": {"negative_ratio": 5.0}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "landmarks.txt").unlink()
    options = ("--data", tmp_path / "data", "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")
    result = run("--config", tmp_path / "c.json", *options)
    assert result.exit_code == 0, result.output
    done = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (done["data"], done["held_out"], done["max_hours"], done["seed"]) == ([str(tmp_path / "data")], [], None, 7)
    assert (done["recipe"]["epochs"], done["recipe"]["size"], done["recipe"]["cut_out"]) == (1, 64, 0.125)
    assert (done["settings"]["negative_ratio"], done["settings"]["landmarks"]) == (5.0, False)


def test_held_out_names_are_lines(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "images" / "1.png").rename(tmp_path / "data" / "images" / "a b.png")
    annotations = tmp_path / "data" / "bbx_gt.txt"
    annotations.write_text(annotations.read_text().replace("1.png", "a b.png"))
    (tmp_path / "names.txt").write_text("\n  a b.png \n\n")
    options = ("--held-out", tmp_path / "names.txt", "--out", tmp_path / "run", "--size", 64, "--batch-size", 3)
    result = run("s3fd_lite", "--data", tmp_path / "data", *options, "--epochs", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["held_out"] == ["a b.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a run needs a model and --data DIR; give both, or --config FILE, or --resume DIR"),
        (["s3fd_lite"], "a run needs a model and --data DIR"),
        (["s3fd_light", "--data", "{data}", "--out", "{tmp}"], "Did you mean 's3fd_lite'?"),
        (["s3fd_lite", "--data", "{data}"], "a run needs a folder; add --out DIR"),
        (["s3fd_lite", "--data", "{tmp}/none", "--out", "{tmp}/run"], "there is no"),
        ([*START, "--precision", "int8"], "fp32, fp16, bf16"),
        ([*START, "--max-time", "soon"], "such as 45s, 90m, 2h or 1h30m"),
        ([*START, "--max-time", "0m"], "the length of a run must be more than 0 hours, got 0"),
        ([*START, "--size", "75"], "size must be even"),
        (["mtcnn", *START[1:], "--backbone", "{tmp}/no.pth"], "mtcnn has no backbone"),
        (["--resume", "{tmp}", "--devices", "2"], "leave out --devices"),
        ([*START, "--max-time", "1h", "--epochs", "3"], "give one of them"),
        (["--resume", "{tmp}", "--epochs", "3"], "--resume continues a run as it was configured; leave out --epochs"),
        (["--resume", "{tmp}"], "a run's folder holds config.json"),
        ([*START, "--device", "tpu"], "--device must be one of auto, cpu, cuda, got tpu"),
        (["s3fd_lite", "--config", "{tmp}/c.json"], "--config names the model; leave it out"),
        (["--config", "{tmp}/c.json", "--out", "{tmp}/run"], "c.json cannot be read: No such file"),
        (["--config", "{data}/bbx_gt.txt", "--out", "{tmp}/run"], "is not a run's configuration: it is not JSON"),
        ([*START[:-1], "{data}/bbx_gt.txt"], "the run's folder must be a folder, got the file"),
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


def test_other_json_is_not_a_configuration(tmp_path):
    (tmp_path / "data.json").write_text('{"pictures": 3}')
    result = run("--config", tmp_path / "data.json", "--out", tmp_path / "run")
    assert "is not a run's configuration: it has no 'recipe'" in result.output.replace("\n", " ")
