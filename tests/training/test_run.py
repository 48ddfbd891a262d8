"""Training runs: their folders, resuming after a kill, limits of time, damaged or missing files, configurations."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyface import Detections, FaceDetector
from pyface.cli.train import parse_hours
from pyface.data.annotations import DatasetError
from pyface.data.folder import read_folder
from pyface.evaluation.faces import score
from pyface.models import create_model
from pyface.models.checkpoints import CheckpointError, configured
from pyface.models.s3fd import S3FDLiteConfig
from pyface.models.zoo import default_weights, model_info
from pyface.training import callbacks, module
from pyface.training.album import Album, measured_sets
from pyface.training.crop_rules import octaves
from pyface.training.folder import best_precision, read_config, say_complete, write_config
from pyface.training.recipes import RECIPES, Recipe, Run, TrainingError
from pyface.training.run import train
from pyface.training.samples import Samples
from pyface.training.trainer import local_devices, started_by_torchrun

SMALL = Recipe(size=64, batch_size=2, epochs=4, mosaic=0.3, cut_out=0.3, optimizer="adamw", rate=1e-3)


def small_run(data, **changes):
    return Run(**({"model": "s3fd_lite", "data": (str(data),), "validations": 2, "recipe": SMALL} | changes))


@pytest.fixture(scope="module")
def complete_run(data, tmp_path_factory):
    """The folder of a run to its end, and what the run printed."""
    folder, printed = tmp_path_factory.mktemp("complete"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        train(small_run(data), folder, accelerator="cpu")
    return folder, printed.getvalue()


@pytest.fixture
def run_to_change(complete_run, tmp_path):
    """A copy of a complete run's folder."""
    return shutil.copytree(complete_run[0], tmp_path / "run")


def test_a_run_leaves_weights_measurements_and_logs(data, tmp_path, capsys):
    folder = tmp_path / "run"
    train(small_run(data, val=(str(data),), held_out=("1.png",)), folder, accelerator="cpu")
    printed = capsys.readouterr().out
    assert f"{data.name}: 5 of 6 images are also in the training data, so the scores are too optimistic" in printed
    # After 8 steps the weights find almost nothing.
    best = max(float(ap) for ap in re.findall(rf"{data.name}/AP@0.4 ([0-9.]+)", printed))
    assert best < 0.1
    assert re.search(r"the average precision is only 0\.0\d\d; train longer .*, or start from the bundled", printed)
    assert {path.name for path in folder.iterdir()} == {
        "best.safetensors",
        "config.json",
        "data.json",
        "last.ckpt",
        "last.safetensors",
        "logs",
        "measured.jsonl",
        "pictures",
    }
    lines = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    assert [line["progress"] for line in lines] == [0.5, 1.0]
    assert lines[-1]["step"] == 4 * (5 // 2)
    assert lines[-1][data.name]["pictures"] == 6
    assert lines[-1]["held_out"]["faces"] == 2
    assert lines[-1]["held_out"]["pictures_per_second"] is None  # which JSON can express, unlike NaN
    assert "AP@0.5" in (folder / "logs" / "0" / "metrics.csv").read_text()
    assert list((folder / "logs" / "0").glob("events*"))
    run = read_config(folder / "config.json")
    assert replace(run, settings=None) == small_run(data, val=(str(data),), held_out=("1.png",))
    assert configured(S3FDLiteConfig(landmarks=False), run.settings) == S3FDLiteConfig()
    # The weights need nothing else of the run.
    found = FaceDetector("s3fd_lite", weights=folder / "best.safetensors", device="cpu")(data / "images" / "0.png")
    assert found.width == 200


def test_a_killed_run_resumes_with_the_same_samples(data, tmp_path, monkeypatch):
    seen = []
    step = module.Training.training_step

    def spy(self, batch, index):
        seen.append(batch[1].boxes.sum().item())
        if len(seen) == killed_at:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(module.Training, "training_step", spy)
    killed_at = None
    train(small_run(data), tmp_path / "whole", accelerator="cpu")
    whole, seen = seen, []

    killed_at = 5  # in the middle of the second epoch
    with pytest.raises(RuntimeError, match="killed"):
        train(small_run(data), tmp_path / "cut", accelerator="cpu")
    before, seen, killed_at = seen, [], None
    train(small_run(data), tmp_path / "cut", accelerator="cpu", resume=True)
    assert before[:4] + seen == whole
    assert [path.name for path in sorted((tmp_path / "cut" / "logs").iterdir())] == ["0", "1"]
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=False) for name in ("whole", "cut")]
    for a, b in zip(*(end["state_dict"].values() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["s3fd_lite", "srn_lite"])
def test_one_sample_on_maps_of_one_cell_is_refused_before_the_folder_is_made(data, tmp_path, model):
    recipe = replace(SMALL, batch_size=1, size=96)
    with pytest.raises(TrainingError, match=r"maps of 1 x 1, .* use --batch-size 2 or more, or a larger --size"):
        train(small_run(data, model=model, recipe=recipe), tmp_path / "run", accelerator="cpu")
    assert not (tmp_path / "run").exists()


def test_time_ends_a_run(data, tmp_path):
    train(small_run(data, max_hours=3 / 3600), tmp_path / "run", accelerator="cpu")
    assert (tmp_path / "run" / "best.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "measured.jsonl").read_text().splitlines()]
    assert lines[-1]["progress"] == 1


def test_a_complete_run_says_so(data, complete_run, capsys):
    folder, printed = complete_run
    lines = printed.splitlines()
    bundled = default_weights(model_info("s3fd_lite"))
    assert lines[:3] == [
        "s3fd_lite: 6 images with 9 faces, 6 of them with landmarks, 4 epochs",
        "6 images may be too few for random initial weights; start from the bundled weights with --weights "
        f"{bundled} --rate 1e-4 (docs/training.md)",
        "no images to measure on, so best.safetensors will be the newest weights; add some with --val DIR",
    ]
    assert [line.split(": ")[0] for line in lines[3:5]] == ["step 6, 50% of the run", "step 12, 100% of the run"]
    assert "loss" in lines[3]
    assert lines[5] == f"the run in {folder} is complete; to use its weights:"
    assert lines[6] == f"  pyface detect IMAGES --model s3fd_lite --weights {folder / 'best.safetensors'}"
    train(small_run(data), folder, accelerator="cpu", resume=True)
    assert f"the run in {folder} was already complete" in capsys.readouterr().out


def test_without_landmarks_the_detector_has_none(data, tmp_path, capsys):
    folder = tmp_path / "plain"
    shutil.copytree(data, folder)
    (folder / "landmarks.txt").unlink()
    for name in ("s3fd_lite", "densebox_lite"):
        run = Run(name, (str(folder),), validations=1, recipe=replace(SMALL, epochs=1, crops=RECIPES[name].crops))
        train(run, tmp_path / name, accelerator="cpu")
        assert "9 faces, 0 of them with landmarks" in capsys.readouterr().out
        model = create_model(name, str(tmp_path / name / "best.safetensors"))
        assert not model.config.landmarks
        again = replace(read_config(tmp_path / name / "config.json"), data=(str(data),))
        train(again, tmp_path / f"{name}_again", accelerator="cpu")  # as it was configured
        assert not create_model(name, str(tmp_path / f"{name}_again" / "best.safetensors")).config.landmarks


@pytest.mark.parametrize("content", [b"", b"half a checkpoint"])
def test_a_damaged_checkpoint_is_named(data, run_to_change, content):
    (run_to_change / "last.ckpt").write_bytes(content)
    with pytest.raises(
        TrainingError, match=r"last\.ckpt is damaged, .* start another one with --weights .*last\.safetensors"
    ):
        train(small_run(data), run_to_change, accelerator="cpu", resume=True)


def test_a_run_without_its_checkpoint_does_not_start_over(data, run_to_change):
    with pytest.raises(
        CheckpointError, match=r"must be a weights file, got the state of a training run; give best\.safetensors beside"
    ):
        create_model("s3fd_lite", str(run_to_change / "last.ckpt"))
    with pytest.raises(CheckpointError, match=r"folder of a training run; give .*best\.safetensors"):
        create_model("s3fd_lite", str(run_to_change))
    (run_to_change / "last.ckpt").unlink()
    with pytest.raises(
        TrainingError, match=r"last\.ckpt is missing, .* start another one with --weights .*last\.safetensors"
    ):
        train(small_run(data), run_to_change, accelerator="cpu", resume=True)


def test_too_large_a_step_is_one_sentence(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module.Training, "training_step", full)
    with pytest.raises(TrainingError, match="use a smaller --batch-size or --size"):
        train(small_run(data), tmp_path, accelerator="cpu")


def test_what_is_left_out_is_printed(data, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "landmarks.txt").unlink()
    for name in ("extra.png", "beyond.png"):
        shutil.copy(folder / "images" / "1.png", folder / "images" / name)
    outside = "1\n5000 10 20 20 0 0 0 0 0 0\n"
    with (folder / "bbx_gt.txt").open("a") as file:
        file.write(f"beyond.png\n{outside}")
    train(small_run(folder, recipe=replace(SMALL, epochs=1)), tmp_path / "run", accelerator="cpu")
    printed = capsys.readouterr().out
    assert "left out: 1 box outside their images" in printed
    assert f"left out: 1 image missing from {folder}/bbx_gt.txt, such as extra.png" in printed

    (folder / "bbx_gt.txt").write_text(f"1.png\n{outside}")
    with pytest.raises(DatasetError, match="no faces to train on: all boxes are outside their images"):
        train(small_run(folder), tmp_path / "none", accelerator="cpu")


def test_missing_devices_are_reported_before_a_run_starts(data, tmp_path):
    with pytest.raises(TrainingError, match="precision must be fp32 or bf16 on a CPU, got fp16"):
        train(small_run(data, precision="16-mixed"), tmp_path / "run", accelerator="cpu")
    if not torch.cuda.is_available():
        for name in ("s3fd_lite", "mtcnn"):
            with pytest.raises(TrainingError, match="this machine has no CUDA GPU; remove --device cuda"):
                train(small_run(data, model=name), tmp_path / "run", accelerator="gpu")
    assert not (tmp_path / "run").exists()


def test_a_run_with_nan_weights_stops(data, tmp_path, monkeypatch):
    step = module.Training.training_step
    monkeypatch.setattr(
        module.Training,
        "training_step",
        lambda self, batch, index: step(self, batch, index) * (1 if self.global_step < 2 else torch.nan),
    )
    with pytest.raises(TrainingError, match="the weights are NaN or infinite after step 3; start again with a lower"):
        train(small_run(data), tmp_path, accelerator="cpu")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_run_killed_before_its_first_checkpoint_starts_again(data, tmp_path, monkeypatch):
    def killed(self, trainer, *_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Saving, "on_train_batch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(small_run(data), tmp_path, accelerator="cpu")
    assert not (tmp_path / "last.ckpt").exists()
    train(small_run(data), tmp_path, accelerator="cpu", resume=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 4 * (6 // 2)


def test_measurements_after_the_checkpoint_are_not_kept_twice(tmp_path):
    measured = tmp_path / "measured.jsonl"
    measured.write_text('{"step": 4}\n{"step": 8}\n{"step": 12}\n{"st')
    measuring = callbacks.Measuring({}, callbacks.Average(0.9), 1, tmp_path, "s3fd_lite")
    measuring.on_train_start(SimpleNamespace(is_global_zero=True, global_step=8), None)
    assert measured.read_text() == '{"step": 4}\n{"step": 8}\n'


def test_a_run_does_not_resume_with_other_data(data, run_to_change, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    annotations = tmp_path / "data" / "bbx_gt.txt"
    annotations.write_text(annotations.read_text().replace("5.png\n0\n", "5.png\n1\n").replace(
        "5.png\n1\n0 0 0 0", "5.png\n1\n9 9 30 30"))  # fmt: skip
    with pytest.raises(TrainingError, match=r"with other data .6 images with 9 faces, not 6 images with 10 faces"):
        train(small_run(tmp_path / "data"), run_to_change, accelerator="cpu", resume=True)


def test_a_model_that_finds_nothing_keeps_its_threshold(data, tmp_path):
    average = callbacks.Average(0.9)
    average.model = create_model("s3fd_lite", weights=None)
    measuring = callbacks.Measuring({}, average, 1, tmp_path, "s3fd_lite")
    pictures = read_folder(data)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), None, 200, 120)
    measuring._save("best.safetensors", {"first": score(pictures, [nothing] * len(pictures), (0.5,))})
    usual = create_model("s3fd_lite", weights=None).score_threshold
    assert create_model("s3fd_lite", str(tmp_path / "best.safetensors")).score_threshold == usual


def test_settings_that_came_with_the_weights_stay(data, tmp_path):
    """Such as those of foreign weights, which have another network's geometry."""
    model = create_model("s3fd_vgg16", weights=None)
    model.config = replace(model.config, fc6_padding=3)
    average = callbacks.Average(0.9)
    average.model = model
    callbacks.Measuring({}, average, 1, tmp_path, "s3fd_vgg16")._save("best.safetensors", {})
    assert create_model("s3fd_vgg16", str(tmp_path / "best.safetensors")).config == model.config


def test_folders_of_the_same_name_are_measured_separately(data, tmp_path):
    for name in "ab":
        shutil.copytree(data, tmp_path / name / "val")
    folders = [str(tmp_path / name) for name in ("a/val", "b/val", "a/../a/val")]
    held = read_folder(data)[:1]
    sets = measured_sets(folders, held)
    assert [len(pictures) for pictures in sets.values()] == [6, 6, 1]
    assert list(sets) == ["val", "val_2", "held_out"]
    assert sets["val"][0].path.is_relative_to(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "held_out")
    assert list(measured_sets([str(tmp_path / "held_out" / "val")], [])) == ["val"]
    with pytest.raises(DatasetError, match="held_out: there are no faces to measure on"):
        measured_sets([], read_folder(data)[5:])
    (tmp_path / "b" / "val" / "images" / "5.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"5\.png: this is not an image"):
        measured_sets(folders[1:2], [])


TWO = """
import sys
from pathlib import Path
from pyface.training import module
from pyface.training.folder import read_config
from pyface.training.run import train

step = module.Training.training_step

def spy(self, batch, index):
    with open(f"{sys.argv[1]}/seen{self.global_rank}.txt", "a") as file:
        print(self.global_step, batch[1].boxes.sum().item(), file=file)
    return step(self, batch, index)

module.Training.training_step = spy
train(read_config(Path(sys.argv[1], "two.json")), Path(sys.argv[1], "run"), accelerator="cpu")
"""


@pytest.mark.slow
def test_two_processes_share_a_run(data, tmp_path):
    """Each takes its part of the samples, each sample once per epoch; both measure, one writes."""
    run = small_run(data, val=(str(data),), devices=2, recipe=replace(SMALL, epochs=2))
    run = replace(run, data=run.data * 2)
    write_config(run, tmp_path / "two.json")
    (tmp_path / "two.py").write_text(TWO)
    done = subprocess.run([sys.executable, tmp_path / "two.py", tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    album = Album(read_folder(data) * 2, keep=True)
    for rank in range(2):
        samples = Samples(album, run.recipe, octaves, run.seed, 0, 6, rank, 2)
        seen = [float(line.split()[1]) for line in (tmp_path / f"seen{rank}.txt").read_text().splitlines()]
        assert seen == [samples[k].truth.boxes.sum().item() for k in range(6)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "measured.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert lines[0][data.name]["pictures"] == 6


def test_a_run_takes_its_processes_from_torchrun(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert started_by_torchrun() == 4
    assert local_devices(small_run(data, devices=4)) == 2
    with pytest.raises(TrainingError, match="torchrun must start 1 processes for this run, got 4"):
        train(small_run(data), tmp_path)


@pytest.mark.parametrize(
    "name",
    # The networks of the papers are large.
    [
        pytest.param(name, marks=[] if name.endswith("_lite") else pytest.mark.slow)
        for name in RECIPES
        if name != "mtcnn"
    ],
)
def test_every_model_trains(name, data, tmp_path):
    recipe = replace(RECIPES[name], size=64, batch_size=3, epochs=1)
    run = Run(model=name, data=(str(data),), validations=1, recipe=recipe)
    train(run, tmp_path, accelerator="cpu")
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())


def test_what_cannot_begin(data, tmp_path):
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(TrainingError, match="has a run already; continue it with --resume"):
        train(small_run(data), tmp_path)
    (tmp_path / "cascade" / "pnet").mkdir(parents=True)
    with pytest.raises(TrainingError, match="has a run already; continue it with --resume"):
        train(small_run(data), tmp_path / "cascade")
    with pytest.raises(TrainingError, match="has no run to resume"):
        train(small_run(data), tmp_path / "new", resume=True)
    with pytest.raises(TrainingError, match="the model must be a DenseBox for the crop rule densebox, got S3FDLite"):
        train(small_run(data, recipe=replace(SMALL, crops="densebox")), tmp_path / "new")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        train(small_run(tmp_path / "empty"), tmp_path / "new")


def test_configurations(tmp_path):
    run = Run("srn_resnet50", ("a", "b"), held_out=("x.jpg",), recipe=RECIPES["srn_resnet50"])
    write_config(run, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == run
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "config.json").read_bytes())
    assert read_config(tmp_path / "marked.json") == run
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(TrainingError, match=r"other\.json is not a run's configuration"):
        read_config(tmp_path / "other.json")


@pytest.mark.parametrize("change", [{"mosaic": 2}, {"rate": 0}, {"size": 0}, {"size": 65}, {"weight_decay": -1}])
def test_recipes_are_checked(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sdg"}, "optimizer must be Literal['muon', 'adamw', 'sgd'], got 'sdg'"),
        ({"schedule": "cosin"}, "schedule must be"),
        ({"schedule": [0.5, "x"]}, "schedule must be"),
        ({"crops": "none"}, "crops must be"),
        ({"size": 64.5}, "size must be int, got 64.5"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"mosaic": True}, "mosaic must be float, got True"),
        ({"rate": float("nan")}, "rate must be more than 0"),
        ({"speed": 3}, "unexpected keyword argument 'speed'"),
    ],
)
def test_configurations_are_checked(change, message, tmp_path):
    write_config(small_run("a"), tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    content["recipe"] |= change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=re.escape(message)):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "change", [{"data": "abc"}, {"data": []}, {"seed": -1}, {"precision": "64"}, {"workers": "2"}, {"max_hours": 0}]
)
def test_runs_are_checked(change, tmp_path):
    write_config(small_run("a"), tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"config\.json is not a run's configuration: .*, got"):
        read_config(tmp_path / "config.json")


def test_older_configurations_are_read(tmp_path):
    write_config(small_run("a"), tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["devices"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path / "config.json") == small_run("a")


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("2h", 2), ("1h30m", 1.5), ("36s", 0.01)])
def test_times(text, hours):
    assert parse_hours(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "ten", "90", "m", "1.2.3h", ".h"])
def test_invalid_times(text):
    with pytest.raises(ValueError, match="--max-time must be a time such as 45s"):
        parse_hours(text)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"the one before")

    def fill(part, weights_only):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/one-of-lightning's")

    trainer = SimpleNamespace(save_checkpoint=fill, is_global_zero=True)
    with pytest.raises(OSError, match="No space left on device") as caught:
        callbacks.Saving(path).save(trainer, torch.nn.Linear(1, 1))
    assert caught.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"last.ckpt": b"the one before"}


def test_what_to_do_is_said_if_a_run_finds_almost_nothing(tmp_path, capsys):
    def measured(*values):
        lines = [
            {"step": 1, "progress": 1.0, "val": {"average_precision": {"0.5": v, "0.4": v + 0.02}}} for v in values
        ]
        (tmp_path / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return best_precision(tmp_path)

    assert best_precision(tmp_path) is None
    assert measured(0.01, 0.03, 0.02) == pytest.approx(0.04)
    started = Run("s3fd_lite", ("data",), weights="s3fd_lite.safetensors", recipe=SMALL)
    for run, words in (
        (started, "the average precision is only 0.040; train longer or on more images\n"),
        (replace(started, weights=None), f"with --weights {default_weights(model_info('s3fd_lite'))} --rate 1e-4"),
        (Run("s3fd_vgg16", ("data",), recipe=SMALL), "with --weights FILE or --backbone FILE (docs/training.md)"),
    ):
        say_complete(run, tmp_path, "is")
        assert words in capsys.readouterr().out
    measured(0.3)
    say_complete(started, tmp_path, "is")
    assert "only" not in capsys.readouterr().out
