"""The `pyface` command as people meet it: at a terminal, in a pipe, interrupted, and with every kind of mistake."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest

import pyface
from pyface.detections import Detections
from pyface.io.results import CSV_COLUMNS

FAKE_CLI = Path(__file__).parents[1] / "fake_cli.py"


def start(*arguments, delay=0.0, **options):
    """Starts `pyface` with the fake model as a program of its own."""
    # What goes to a pipe must not depend on a locale.
    environment = os.environ | {"FAKE_DELAY": str(delay), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, str(FAKE_CLI), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


# --- what comes out --------------------------------------------------------------------------------------------------


def test_lines_in_order(run, write_grey):
    for name, level in (("b.png", 80), ("a.jpg", 40), ("c.png", 0)):
        write_grey(name, level)
    lines = lines_of(run("detect", "b.png", "a.jpg", "c.png").stdout)
    assert [line["source"] for line in lines] == ["b.png", "a.jpg", "c.png"]
    assert [len(line["faces"]) for line in lines] == [2, 1, 0]
    assert list(lines[0]) == ["source", "width", "height", "faces", "error"]
    assert lines[0]["faces"][1] == {
        "box": [0, 0, 24, 16],
        "score": 0.1,
        "landmarks": [[3, 3], [9, 3], [6, 6], [3, 9], [9, 9]],
    }
    assert (lines[0]["width"], lines[0]["height"], lines[0]["error"]) == (48, 32, None)
    assert Detections.from_dict(lines[0]).source == "b.png"


def test_more_images_than_any_queue_holds(run, write_grey):
    for k in range(120):
        write_grey(f"in/{k:03}.png", 40 * (k % 5))
    lines = lines_of(run("detect", "in", "--batch-size", 7, "--save", "out").stdout)
    assert [len(line["faces"]) for line in lines] == [k % 5 for k in range(120)]
    assert len(list(Path("out").glob("*.png"))) == 120


def test_hostile_images_are_reported_and_the_run_continues(run, write_grey, tmp_path):
    good = write_grey("a.png").read_bytes()
    files = {
        "cut.png": good[:-20],
        "empty.jpg": b"",
        "words.jpg": b"words words words words words words",
        "bomb.png": good[:16] + b"\0\1\0\0\0\1\0\0" + good[24:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    cv2.imwrite("deep.png", np.full((20, 20), 80 * 257, np.uint16))
    cv2.imwrite("one.png", np.full((1, 1), 40, np.uint8))
    write_grey("z.png", 80)
    result = run("detect", ".", status=1)
    lines = lines_of(result.stdout)
    found = {line["source"].removeprefix("./"): line for line in lines}
    assert list(found) == sorted(["a.png", *files, "deep.png", "one.png", "z.png"])
    for name in files:
        assert name in found[name]["error"]
        assert (found[name]["width"], found[name]["height"], found[name]["faces"]) == (None, None, [])
    for name, faces in (("a.png", 1), ("deep.png", 2), ("one.png", 1), ("z.png", 2)):
        assert found[name]["error"] is None
        assert len(found[name]["faces"]) == faces
    assert "4 images could not be read" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_files_that_a_folder_skips_are_reported_in_one_line(run, write_grey, tmp_path):
    write_grey("in/a.png")
    (tmp_path / "in/photo.cr2").write_bytes(b"x")
    (tmp_path / "in/photo.psd").write_bytes(b"x")
    result = run("detect", "in")
    assert len(lines_of(result.stdout)) == 1
    assert result.stderr.startswith("pyface: skipped 1 .cr2 (develop raw files")
    assert "1 .psd (convert to PNG" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_truncated(run, write_grey):
    path = write_grey("a.jpg", 80)
    path.write_bytes(path.read_bytes()[:-2])
    assert "--truncated accept" in lines_of(run("detect", "a.jpg", status=1).stdout)[0]["error"]
    assert len(lines_of(run("detect", "a.jpg", "--truncated", "accept").stdout)[0]["faces"]) == 2


def test_a_missing_file_among_several_is_reported(run, write_grey):
    write_grey("a.png", 80)
    lines = lines_of(run("detect", "gone.png", "a.png", "http://127.0.0.1:9/b.png", "--save", "out", status=1).stdout)
    assert [len(line["faces"]) for line in lines] == [0, 2, 0]
    assert lines[0]["error"] == "gone.png: there is no such file"
    assert lines[2]["error"].startswith("http://127.0.0.1:9/b.png: Cannot connect")


def test_options_reach_the_detector(run, write_grey):
    write_grey("a.png", 160)
    lines = lines_of(run("detect", "a.png", "--score-threshold", 0.25, "--min-face", 40, "--device", "cpu").stdout)
    assert [face["score"] for face in lines[0]["faces"]] == [0.4, 0.3]
    run("detect", "a.png", "--max-pixels", 48 * 32 - 1, status=1)
    run("detect", "a.png", "--max-pixels", 48 * 32)


def test_models_without_weights_are_refused_unless_that_is_asked_for(run, write_grey, monkeypatch, assert_one_sentence):
    from pyface.models import zoo

    monkeypatch.setitem(zoo.REGISTRY, "srn_lite", replace(zoo.model_info("srn_lite"), weights=None))
    write_grey("a.png", 160)
    arguments = ("detect", "a.png", "--model", "srn_lite", "--size", "64x96", "--device", "cpu")
    assert_one_sentence(
        run(*arguments, status=2), "srn_lite has no bundled weights", "--weights FILE", "--weights none"
    )
    result = run(*arguments, "--weights", "none")
    assert "srn_lite runs with random weights" in result.stderr
    assert lines_of(result.stdout)[0]["error"] is None


@pytest.mark.parametrize("size", ["native", "96", "64x96", "64X96"])
def test_sizes_and_tiles(run, write_grey, tmp_path, size):
    from pyface.models.checkpoints import save_checkpoint
    from pyface.models.zoo import create_model

    write_grey("a.png", 160)
    save_checkpoint("own.safetensors", create_model("ssh_lite", weights=None), "ssh_lite")
    assert (tmp_path / "own.safetensors").is_file()
    arguments = ["--model", "ssh_lite", "--weights", "own.safetensors", "--size", size, "--tile", 64, "--device", "cpu"]
    result = run("detect", "a.png", *arguments, "--precision", "bf16")
    assert result.stderr == ""
    assert lines_of(result.stdout)[0]["width"] == 48


def test_convert(run, tmp_path, assert_one_sentence):
    import torch

    from pyface.models.zoo import create_model

    state = create_model("ssh_vgg16", weights=None).state_dict()
    names = {k: k.replace("backbone.", "") for k in state}
    for module in ("m1", "m2", "m3"):
        for mine, theirs in (
            ("conv3x3", "3x3"),
            ("dimred", "dimred"),
            ("conv5x5", "5x5"),
            ("conv7x7_1", "7x7-1"),
            ("conv7x7", "7x7"),
            ("cls_score", "cls_score"),
            ("bbox_pred", "bbox_pred"),
        ):
            for kind in ("weight", "bias"):
                names[f"{module}.{mine}.{kind}"] = f"{module}@ssh_{theirs}.{kind}"
    torch.save({names[k]: v for k, v in state.items()}, "ssh.pth")
    result = run("convert", "ssh.pth", "ssh.safetensors")
    assert "weights of ssh_vgg16, read as Caffe SSH" in result.stderr
    loaded = create_model("ssh_vgg16", weights="ssh.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert_one_sentence(run("convert", "ssh.pth", "ssh.safetensors", status=2), "already exists", "--overwrite")
    run("convert", "ssh.pth", "ssh.safetensors", "--overwrite")
    assert_one_sentence(run("convert", "gone.pth", "a.safetensors", status=2), "there is no file gone.pth")
    assert_one_sentence(
        run("convert", "ssh.safetensors", "a.safetensors", status=2), "must have a foreign layout, got pyface's own"
    )
    assert_one_sentence(run("convert", "ssh.pth", "a.pth", status=2), "must end with .safetensors, got a.pth")
    (tmp_path / "a.png").write_bytes(b"no weights")
    assert_one_sentence(run("convert", "a.png", "a.safetensors", status=2), "a.png is not a weights file")


def test_csv(run, write_grey, fake_model, tmp_path):
    write_grey('odd, "name".png', 80)
    write_grey("none.png", 0)
    (tmp_path / "bad.png").write_bytes(b"")
    run("detect", 'odd, "name".png', "none.png", "bad.png", "--output", "faces.csv", status=1)
    with open("faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == CSV_COLUMNS
    assert [row["source"] for row in rows] == ['odd, "name".png', 'odd, "name".png', "none.png", "bad.png"]
    assert [row["faces"] for row in rows] == ["2", "2", "0", "0"]
    assert [row["face"] for row in rows] == ["0", "1", "", ""]
    assert (rows[1]["x2"], rows[1]["score"], rows[1]["nose_y"]) == ("24.0", "0.1", "6.0")
    assert rows[2]["error"] == ""
    assert "empty" in rows[3]["error"]
    fake_model.landmarks = False
    run("detect", 'odd, "name".png', "--output", "plain.CSV")
    assert "0.1,,,,,,,,,,,\n" in Path("plain.CSV").read_text()


def test_save(run, write_grey):
    write_grey("in/a.jpg", 80)
    write_grey("in/sub/a.jpg", 40)
    write_grey("in/sub/b.bmp", 40)
    run("detect", "in", "--recursive", "--save", "out/deep")
    saved = sorted(path.relative_to("out/deep").as_posix() for path in Path("out").rglob("?*.*"))
    assert saved == ["a.jpg", "sub/a.jpg", "sub/b.bmp.png"]
    drawn = cv2.imread("out/deep/sub/b.bmp.png")
    assert drawn.shape == (32, 48, 3)
    assert (drawn != 40).any()
    assert (drawn[30:] == 40).all()


def test_save_within_the_sources_is_not_read_again(run, write_grey):
    write_grey("in/a.png")
    for _ in range(2):
        lines = lines_of(run("detect", "in", "-r", "--save", "in/out").stdout)
        assert [line["source"] for line in lines] == [os.path.join("in", "a.png")]


def test_save_never_overwrites_a_source(run, write_grey, assert_one_sentence):
    before = write_grey("in/a.png").read_bytes()
    assert_one_sentence(run("detect", "in", "--save", "in", status=2), "overwrite the image", "a.png", "another folder")
    assert Path("in/a.png").read_bytes() == before


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
def test_resume_after_any_cut(run, write_grey, fake_model, name):
    """Whatever byte the file was cut at, resuming makes it what an uncut run makes."""
    for k, level in enumerate([80, 0, 120, 40]):
        write_grey(f"in/{k}.png", level)
    Path('in/1b\n".png').write_bytes(b"")
    run("detect", "in", "--output", f"whole/{name}", status=1)
    whole = Path(f"whole/{name}").read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1, len(whole)]:
        Path(name).write_bytes(whole[:length])
        run("detect", "in", "--output", name, "--resume", status=1)
        assert Path(name).read_bytes() == whole
    fake_model.batches.clear()
    run("detect", "./in", "--output", name, "--resume", status=1)  # the same images, spelled otherwise
    assert Path(name).read_bytes() == whole.replace(b"in/1b", b"./in/1b")  # this one was tried again
    assert fake_model.batches == []


@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
def test_resume_tries_images_again_that_could_not_be_read(run, write_grey, fake_model, name):
    for k in range(3):
        write_grey(f"in/{k}.png", 40 * k)
    content = Path("in/1.png").read_bytes()
    Path("in/1.png").write_bytes(content[:40])
    run("detect", "in", "--output", name, status=1)
    Path("in/1.png").write_bytes(content)
    fake_model.batches.clear()
    other = run("detect", "in/0.png", "--output", name, "--resume")  # the failed one is not among its sources
    assert fake_model.batches == []
    stderr = run("detect", "in", "--output", name, "--resume").stderr
    assert fake_model.batches == [1]
    assert "1 face in 1 image, 2 done before, " in stderr
    assert "1 done before, " in other.stderr
    run("detect", "in", "--output", f"whole/{name}")
    assert Path(name).read_bytes() == Path(f"whole/{name}").read_bytes()


def test_resume_without_a_file_starts_one(run, write_grey):
    write_grey("a.png")
    run("detect", "a.png", "--output", "faces.jsonl", "--resume")
    write_grey("b.png", 80)
    run("detect", "a.png", "b.png", "--output", "faces.jsonl", "--resume")
    assert [line["source"] for line in lines_of(Path("faces.jsonl").read_text())] == ["a.png", "b.png"]


@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
def test_resume_with_something_else_is_refused(run, write_grey, tmp_path, name, assert_one_sentence):
    """Faces of two models, or of two thresholds, in one file of results would never be noticed."""
    import shutil

    weights = files("pyface") / "weights"
    shutil.copy(str(weights / "s3fd_lite.safetensors"), tmp_path / "a.safetensors")
    write_grey("in/a.png", 80)
    options = ["--score-threshold", 0.05, "--min-face", 2]
    run("detect", "in", "-o", name, *options)
    before = Path(name).read_bytes()
    write_grey("in/b.png", 80)
    for arguments, then, now in (
        (["--min-face", 2], "score_threshold 0.05", "score_threshold not given"),
        (["--score-threshold", 0.05, "--min-face", 3], "min_face 2.0", "min_face 3.0"),
        ([*options, "--truncated", "accept"], "truncated refuse", "truncated accept"),
        ([*options, "--model", "ssh_lite"], "model s3fd_lite, weights default ", "model ssh_lite, weights default "),
        ([*options, "--weights", "a.safetensors"], "weights default ", "weights a.safetensors "),
    ):
        result = run("detect", "in", "-o", name, "--resume", *arguments, status=2)
        assert_one_sentence(result, f"{name} was made with {then}", f"this command has {now}", "another --output")
        assert Path(name).read_bytes() == before
    run("detect", "in", "-o", name, "--resume", *options, "--batch-size", 1)
    assert Path(name).read_bytes().startswith(before)
    assert Path(name).read_bytes() != before
    Path(f"{name}.run.json").write_text("{")
    assert_one_sentence(
        run("detect", "in", "-o", name, "--resume", *options, status=2), "run.json is damaged", "--overwrite"
    )
    run("detect", "in", "-o", name, "--overwrite")
    run("detect", "in", "-o", name, "--resume")


def test_resume_without_the_file_of_options_says_so(run, write_grey):
    write_grey("a.png", 80)
    run("detect", "a.png", "-o", "faces.jsonl")
    Path("faces.jsonl.run.json").unlink()
    stderr = run("detect", "a.png", "-o", "faces.jsonl", "--resume").stderr
    assert "faces.jsonl has no faces.jsonl.run.json beside it" in stderr
    assert Path("faces.jsonl.run.json").exists()


def test_a_redirected_run_ends_with_a_summary(run, write_grey):
    write_grey("a.png", 80)
    write_grey("b.png", 40)
    stderr = run("detect", "a.png", "b.png", "-o", "faces.csv").stderr
    assert stderr.startswith("pyface: 3 faces in 2 images, ")
    assert stderr.endswith("; results in faces.csv\n")
    assert len(stderr.splitlines()) == 1
    assert "0 faces in 0 images, 2 done before" in run("detect", "a.png", "b.png", "-o", "faces.csv", "--resume").stderr


def test_existing_output(run, write_grey, assert_one_sentence):
    write_grey("a.png")
    Path("empty.jsonl").touch()
    run("detect", "a.png", "--output", "empty.jsonl")  # nothing to lose there
    before = Path("empty.jsonl").read_bytes()
    result = run("detect", "a.png", "--output", "empty.jsonl", status=2)
    assert_one_sentence(result, "already exists", "--resume", "--overwrite")
    assert Path("empty.jsonl").read_bytes() == before
    run("detect", "a.png", "--output", "empty.jsonl", "--overwrite")
    assert Path("empty.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "{}\n"),
        ("a.jsonl", "notes\n"),
        ("a.jsonl", "[1]\n"),
        ("a.jsonl", '{"source": [], "error": null}\n'),
        pytest.param("a.jsonl", "[" * 100_000 + "\n", id="deeper than json reads"),
        ("a.csv", "x,y\n1,2\n"),
        ("a.csv", "a\n"),
        pytest.param("a.csv", "a" * 200_000 + "\n", id="more than csv takes"),
    ],
)
def test_resume_leaves_foreign_files_alone(run, write_grey, name, content, assert_one_sentence):
    write_grey("a.png")
    Path(name).write_text(content)
    assert_one_sentence(
        run("detect", "a.png", "--output", name, "--resume", status=2), "line 1 was not written by pyface"
    )
    assert Path(name).read_text() == content


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
def test_killed_and_resumed(run, write_grey, tmp_path, name):
    for k in range(12):
        write_grey(f"in/{k:02}.png", 40)
    output = tmp_path / name
    arguments = ["detect", tmp_path / "in", "--output", output, "--batch-size", 1]
    process = start(*arguments, delay=0.2)
    deadline = time.monotonic() + 60
    while (not output.exists() or output.read_bytes().count(b"\n") < 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    text = output.read_bytes()
    assert text.endswith(b"\n")
    assert 4 <= text.count(b".png") < 12
    run(*arguments, "--resume")
    sources = (
        [line["source"] for line in lines_of(output.read_text())]
        if name.endswith("jsonl")
        else [row["source"] for row in csv.DictReader(output.open())]
    )
    assert sources == [str(tmp_path / f"in/{k:02}.png") for k in range(12)]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupt(write_grey, tmp_path):
    for k in range(20):
        write_grey(f"in/{k:02}.png", 40)
    output = tmp_path / "faces.jsonl"
    process = start(
        "detect", tmp_path / "in", "--output", output, "--batch-size", 1, delay=0.2, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (not output.exists() or output.stat().st_size == 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.startswith("pyface: interrupted, ")
    assert len(stderr.splitlines()) == 1
    assert all(line["error"] is None for line in lines_of(output.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
@pytest.mark.parametrize("output", ["faces.jsonl", "faces.csv"])
def test_names_that_are_hard_to_write(run, write_grey, output):
    names = [b"new\nline.png", b"\r\n.png", b"\xff\xfe.png", b'"quoted".png', b"com,ma.png", b"-dash.png", b" .png"]
    content = write_grey("a.png", 40).read_bytes()
    Path("odd").mkdir()
    for name in names:
        Path("odd", os.fsdecode(name)).write_bytes(content)
    command = ["detect", "odd", "-o", output, "--save", "copies", "--crops", "crops", "--crop-margin", 0.1]
    run(*command)
    whole = Path(output).read_bytes()
    if output.endswith(".csv"):
        with open(output, newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = list(csv.DictReader(file))
        crops = [line["crop"] for line in lines]
    else:
        lines = lines_of(whole.decode())
        crops = [face["crop"] for line in lines for face in line["faces"]]
    assert {os.fsencode(line["source"]) for line in lines} == {b"odd/" + name for name in names}
    assert len(crops) == len(names)
    assert all(Path(crop).is_file() for crop in crops)
    assert {os.fsencode(path.name) for path in Path("copies").iterdir()} - {b".pyface"} == set(names)
    for end in (len(whole) // 3, len(whole) // 2, len(whole) - 1):
        Path(output).write_bytes(whole[:end])
        run(*command, "--resume")
        assert Path(output).read_bytes() == whole


def test_a_clock_that_jumps(run, write_grey, monkeypatch):
    """Durations are measured with a clock that only moves forward."""
    jumps = itertools.cycle([1e9, 4e9, 2e9, 0.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    for k in range(4):
        write_grey(f"in/{k}.png", 40)
    result = run("detect", "in", "-o", "faces.jsonl")
    assert re.search(r", [0-9]{1,3}\.[0-9] s; results in faces.jsonl", result.stderr)


def test_results_that_are_deleted_during_the_run(run, write_grey, fake_model, monkeypatch, assert_one_sentence):
    write_grey("a.png", 40)
    detect = fake_model.detect

    def spy(*arguments, **options):
        Path("faces.jsonl").unlink(missing_ok=True)
        return detect(*arguments, **options)

    monkeypatch.setattr(fake_model, "detect", spy)
    result = run("detect", "a.png", "-o", "faces.jsonl", status=1)
    assert_one_sentence(result, "faces.jsonl cannot be written: the file was deleted during the run")


# --- pipes and terminals ---------------------------------------------------------------------------------------------


def test_pipe_is_quiet_and_pure(write_grey, tmp_path):
    write_grey("in/ä 写.png", 40)
    process = start("detect", tmp_path / "in", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stderr == b""
    assert [Path(line["source"]).name for line in lines_of(stdout)] == ["ä 写.png"]


def test_closed_pipe_is_quiet(write_grey, tmp_path):
    for k in range(30):
        write_grey(f"in/{k:02}.png", 40)
    process = start(
        "detect", tmp_path / "in", "--batch-size", 1, delay=0.05, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert json.loads(process.stdout.readline())["error"] is None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(os.name != "posix", reason="closed descriptors of POSIX")
def test_closed_stdout(write_grey, tmp_path):
    write_grey("a.png", 40)

    def closed(*arguments):
        command = f'"{sys.executable}" "{FAKE_CLI}" {" ".join(arguments)} >&-'
        result = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        return result.returncode, result.stderr

    status, text = closed("detect", "a.png")
    assert status == 2
    assert text.startswith("pyface: standard output is closed")
    assert len(text.splitlines()) == 1
    status, text = closed("detect", "a.png", "--output", "faces.jsonl", "--save", "out")
    assert status == 0
    assert text.startswith("pyface: 1 face in 1 image, ")
    assert len(lines_of((tmp_path / "faces.jsonl").read_text())[0]["faces"]) == 1
    assert (tmp_path / "out/a.png").exists()
    assert closed("models") == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")
def test_terminal(write_grey, tmp_path, monkeypatch):
    import pty

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    write_grey("in/a [1].png", 80)
    (tmp_path / "in/bad.png").write_bytes(b"")
    if sys.platform == "linux":
        write_grey("in/\udcff.png", 40)  # a byte that is no character
    ours, theirs = pty.openpty()
    process = start(
        "detect", "in", "--save", "out", cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # this is how Linux reports the closed end
            break
        if not part:
            break
        shown += part
    os.close(ours)
    text = shown.decode()
    assert process.wait(timeout=60) == 1
    assert "in/a [1].png  48 x 32  2 faces  0.20 0.10" in text
    assert "in/bad.png: the file is empty" in text
    assert "1 image could not be read" in text
    assert "drawn in out" in text
    assert "Finding faces" in text
    assert '{"source"' not in text


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.png"], ["gone.png: there is no such file or folder"]),
        (["*.gif"], ["*.gif: no file matches this pattern"]),
        (["empty"], ["empty: there are no images in this folder; --recursive includes its subfolders"]),
        (["a.png", "--model", "mtcn"], ["there is no model 'mtcn'", "mtcnn"]),
        (["a.png", "--device", "cuda:99"], ["device 'cuda:99' cannot be used"]),
        (["a.png", "--device", "abacus"], ["device must be auto, cpu, cuda", "abacus"]),
        (["a.png", "--min-face", "inf"], ["min_face must be 1 pixel or more"]),
        (["a.png", "--weights", "gone.safetensors"], ["there is no file gone.safetensors"]),
        (["a.png", "--weights", "a.png"], ["a.png is not a weights file, or contains code"]),
        (
            ["a.png", "--model", "mtcnn", "--size", "640"],
            ["mtcnn does not support size; leave it out"],
        ),
        (["a.png", "--size", "12x"], ["--size must be native, the longer side in pixels (640), or the", "got 12x"]),
        (["a.png", "--size", "1600x1200"], ["--size must be native", "(1200x1600), got 1600x1200"]),
        (["a.png", "--multiscale", "all"], ["multiscale must be one of s3fd, srn, ssh", "'all'"]),
        (["a.png", "--precision", "int8"], ["precision must be one of fp32, fp16, bf16"]),
        (["a.png", "--output", "faces.txt"], ["faces.txt", ".jsonl, .csv or .parquet"]),
        (["a.png", "--output", "a.png/faces.csv"], ["a.png/faces.csv cannot be written"]),
        (["a.png", "--save", "a.png"], ["a.png: the images cannot be saved there (it is a file; give a folder)"]),
        (["a.png", "--save", "a.png/out"], ["a.png/out: the images cannot be saved there"]),
        (["a.png", "--resume"], ["--resume needs a file of results; add --output"]),
        (["a.png", "--overwrite"], ["--overwrite needs a file of results; add --output"]),
        (["a.png", "--output", "x.csv", "--resume", "--overwrite"], ["use one of them"]),
    ],
)
def test_mistakes_are_one_sentence(run, write_grey, tmp_path, arguments, words, assert_one_sentence):
    write_grey("a.png")
    (tmp_path / "empty/deeper").mkdir(parents=True)
    assert_one_sentence(run("detect", *arguments, status=2), *words)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "empty"}  # and nothing was left behind


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(run, write_grey, tmp_path, assert_one_sentence):
    write_grey("a.png")
    (tmp_path / "faces.jsonl").symlink_to("/dev/full")
    result = run("detect", "a.png", "--output", "faces.jsonl", status=1)
    assert_one_sentence(result, "faces.jsonl cannot be written: No space left on device")


# --- the other commands ----------------------------------------------------------------------------------------------


def test_version_and_info(run):
    assert run("--version").stdout == f"pyface {pyface.__version__}\n"
    text = run("info").stdout
    for word in ("pyface", "python", "torch", "opencv", "cuda", "kernels: compiler", "kernels: simd"):
        assert word in text


def test_help_is_quick():
    """Help and mistakes must not wait for torch."""
    code = (
        "import sys; from typer.testing import CliRunner; from pyface.cli import app\n"
        "assert CliRunner().invoke(app, ['detect', '--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['detect', 'gone.png']).exit_code == 2\n"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_names_every_option(run):
    text = run("detect", "--help").stdout
    for option in ("model", "weights", "device", "score-threshold", "min-face", "batch-size", "recursive", "output"):
        assert f"--{option}" in text
    for option in ("save", "resume", "overwrite", "max-pixels"):
        assert f"--{option}" in text


def test_end_to_end(astronaut, gallery, tmp_path):
    """The README's command, with the real model."""
    command = [sys.executable, "-c", "from pyface.cli import app; app()", "detect", astronaut, gallery]
    result = subprocess.run([*command, "--save", tmp_path], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert [len(line["faces"]) for line in lines_of(result.stdout)] == [1, 9]
    for path in (astronaut, gallery):
        assert cv2.imread(str(tmp_path / path.name)).shape == cv2.imread(str(path)).shape
