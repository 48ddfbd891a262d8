"""`pyface models`, and how `pyface --help` begins."""

import json
import re

import pytest

from pyface.models import list_models
from pyface.models.facts import facts


def test_models(run):
    text = run("models").stdout
    assert max(map(len, text.splitlines())) <= 80
    bundled, _, rest = text.partition("Without bundled weights")
    for name in list_models():
        row = re.search(rf"^{name} +(.*)$", bundled if facts(name).licence else rest, re.MULTILINE)
        if facts(name).licence:
            precision = next(iter(facts(name).widerface.values()))
            assert row[1].split()[:3] == [f"{value:.3f}" for value in precision.values()]
            assert row[1].split()[-4:] == [
                f"{facts(name).score_threshold:.3f}", f"{facts(name).smallest_face:.0f}", "px", "5"
            ]  # fmt: skip
        else:
            assert name not in bundled
    together = " ".join(bundled.split())
    assert "mtcnn you need MIT-licensed weights MIT" in together


def test_models_as_json(run):
    content = json.loads(run("models", "--json").stdout)
    assert [of["name"] for of in content] == list_models()
    mtcnn = next(of for of in content if of["name"] == "mtcnn")
    assert mtcnn["licence"] == "MIT"
    assert mtcnn["widerface"] == {"own": {"easy": 0.834, "medium": 0.816, "hard": 0.598}}


def test_help_begins_with_three_examples(run):
    text = run("--help").stdout
    commands = re.findall(r"^ *(pyface .*?) *#", text.partition("Options")[0], re.MULTILINE)
    assert commands == [
        "pyface detect photos/ --save out/",
        "pyface detect photos/ --output faces.jsonl",
        "pyface models",
    ]


def test_info_as_json(run):
    content = json.loads(run("info", "--json").stdout)
    assert content["kernels: cuda"] is False or content["kernels: cuda"] is True
    assert {"pyface", "torch", "opencv"} <= set(content)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["detect"], "no images are given; name images, videos or folders, or a camera with --camera N"),
        (["detect", "a.png", "--every", "0"], "--every must be 1 or more, got 0"),
        (["detect", "a.png", "--score-threshold", "2"], "--score-threshold must be from 0 to 1, got 2"),
        (["detect", "a.png", "--batch-size", "1.5"], "--batch-size must be an integer, 1 or more, got 1.5"),
        (["detect", "a.png", "--fps", "x"], "--fps must be a number, from 0.001 to 100000, got x"),
        (["detect", "a.png", "--truncated", "x"], "--truncated must be one of refuse, accept, got x"),
        (["train", "--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["detect", "a.png", "--fps", "inf"], "--fps must be from 0.001 to 100000, got inf"),
        (["serve", "--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["detect", "a.png", "--save", ""], "argument 4 is empty; give a value, or leave it out"),
        (["detect", "a.png", "--model"], "option '--model' requires an argument; pyface --help"),
        (["detect", "a.png", "--nope"], "no such option: --nope"),
        (["convert", "a.pth"], "missing argument 'OUT.safetensors'; "),
        (["detect", "a.png", "--sav", "out"], "no such option: --sav (did you mean --save, --"),
        (["nope"], "no such command 'nope'; "),
        (["dectect"], "no such command 'dectect' (did you mean 'detect'?); "),
    ],
)
def test_mistakes_are_one_sentence(run, assert_one_sentence, arguments, sentence):
    assert_one_sentence(run(*arguments, status=2), f"pyface: {sentence}")


@pytest.mark.parametrize("arguments", [[], ["evaluate"]])
def test_without_a_command_the_help_is_shown(run, arguments):
    result = run(*arguments, status=2)
    assert "Examples:" in result.stdout
    assert result.stderr == ""


def test_convert_data_names_the_formats(run, assert_one_sentence):
    result = run("convert-data", "a", "b", "--format", "voc", status=2)
    assert_one_sentence(result, "--format must be wider, coco or yolo, got voc")
