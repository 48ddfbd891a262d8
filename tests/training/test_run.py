import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("lightning")

from pyface import FaceDetector
from pyface.cli_train import _hours
from pyface.training import module
from pyface.training.recipes import RECIPES, Recipe, Run
from pyface.training.run import TrainingError, read_config, train, write_config

SMALL = Recipe(size=64, batch_size=2, epochs=4, mosaic=0.3, cut_out=0.3, optimizer="adamw", rate=1e-3)


def small_run(data, **changes):
    return Run(**({"model": "s3fd_lite", "data": (str(data),), "validations": 2, "recipe": SMALL} | changes))


def test_a_run_leaves_weights_measurements_and_logs(data, tmp_path):
    folder = tmp_path / "run"
    train(small_run(data, val=(str(data),), held_out=("1.png",)), folder, accelerator="cpu")
    assert {path.name for path in folder.iterdir()} == {
        "best.safetensors",
        "config.json",
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
    assert "AP@0.5" in (folder / "logs" / "0" / "metrics.csv").read_text()
    assert list((folder / "logs" / "0").glob("events*"))
    assert read_config(folder / "config.json") == small_run(data, val=(str(data),), held_out=("1.png",))
    # The weights stand for themselves.
    found = FaceDetector("s3fd_lite", weights=folder / "best.safetensors", device="cpu")(data / "images" / "0.png")
    assert found.width == 200


def test_a_killed_run_goes_on_with_the_same_samples(data, tmp_path, monkeypatch):
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


def test_time_ends_a_run(data, tmp_path):
    train(small_run(data, max_hours=3 / 3600), tmp_path / "run", accelerator="cpu")
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "mtcnn"])
def test_every_model_trains(name, data, tmp_path):
    recipe = replace(RECIPES[name], size=64, batch_size=3, epochs=1)
    run = Run(model=name, data=(str(data),), validations=1, recipe=recipe)
    train(run, tmp_path, accelerator="cpu")
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())


def test_what_cannot_begin(data, tmp_path):
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(TrainingError, match="holds a run already, continue it with --resume"):
        train(small_run(data), tmp_path)
    with pytest.raises(TrainingError, match=r"holds no last\.ckpt"):
        train(small_run(data), tmp_path / "new", resume=True)
    with pytest.raises(TrainingError, match="the crop rule densebox is for DenseBox"):
        train(small_run(data, recipe=replace(SMALL, crops="densebox")), tmp_path / "new")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no pictures"):
        train(small_run(tmp_path / "empty"), tmp_path / "new")


def test_configurations(tmp_path):
    run = Run("srn_resnet50", ("a", "b"), held_out=("x.jpg",), recipe=RECIPES["srn_resnet50"])
    write_config(run, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == run
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(TrainingError, match=r"other\.json is no configuration of a run"):
        read_config(tmp_path / "other.json")


@pytest.mark.parametrize("change", [{"mosaic": 2}, {"rate": 0}, {"size": 0}])
def test_recipes_are_checked(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} should be"):
        replace(SMALL, **change)


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("2h", 2), ("1h30m", 1.5), ("36s", 0.01)])
def test_times(text, hours):
    assert _hours(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "ten", "90", "m"])
def test_no_times(text):
    with pytest.raises(ValueError, match="--max-time should be a time such as 90m"):
        _hours(text)
