"""`pyface train`. As in `cli.py`, what is slow to import comes late."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyface.training.recipes import Precision, Run

DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}  # as Lightning calls them
PRECISIONS: dict[str, Precision] = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Detector, one of those that `pyface models` shows.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Folder with images/ and bbx_gt.txt, or without annotations: pictures without faces. May be repeated; "
            "a folder that is named twice is seen twice as often.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    val: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR", help="Folder to measure on; the first decides which weights are best.", show_default=False
        ),
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the run.", show_default=False)] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of pictures in --data to measure on, not to learn from, one a line."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data.", show_default="the recipe's")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Train for so long instead, such as 90m, 2h or 1h30m.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples a step and device.", show_default="the recipe's")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=64, help="Side of a sample in pixels.", show_default="the recipe's")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="the recipe's")] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights to start from.", show_default="random ones")
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="torchvision's ImageNet weights for the trunk: vgg16 for s3fd_vgg16 and ssh_vgg16, vgg19 for "
            "densebox_vgg19, resnet50 for srn_resnet50.",
            show_default="random ones",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(metavar="fp32|fp16|bf16", help="What is computed in.")] = "fp32",
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs or, on a CPU, processes.", show_default="1, or as many as torchrun started"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare samples.")] = 0,
    validations: Annotated[int, typer.Option(min=1, help="How often a run is measured.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Repeat the run that wrote this config.json, but for options given here."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder.")] = None,
) -> None:
    """Trains a detector on pictures of your own.

    The run's folder gets best.safetensors, which `pyface detect --weights` takes, measurements, pictures, logs, and
    config.json, with which --config repeats it, on other data too. A run that was cut off goes on with --resume DIR,
    with the samples that would have come.
    """
    from pyface.cli import _fail

    # OpenMP's threads wait for work by spinning, which costs more than it gains where others work too.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import lightning  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError:
        _fail('training needs Lightning and TensorBoard, install them: pip install -e ".[train]"')
    from pyface.dataset import DatasetError
    from pyface.models.zoo import CheckpointError, model_info
    from pyface.training.recipes import RECIPES, Run, TrainingError
    from pyface.training.run import CONFIG, read_config, started_by_torchrun
    from pyface.training.run import train as train_run

    if precision not in PRECISIONS:
        _fail(f"--precision should be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if device not in DEVICES:
        _fail(f"--device should be one of {', '.join(DEVICES)}, got {device!r} (--devices N takes several GPUs)")
    _refuse_idle_options(context)
    try:
        if resume is not None:
            if not (resume / CONFIG).is_file():
                _fail(f"there is no run in {resume}: a run's folder holds {CONFIG}")
            run, folder = read_config(resume / CONFIG), resume
        else:
            if config is not None:
                run = read_config(config)
            elif model is None or not data:
                _fail("name a model and --data DIR (or --config FILE, or --resume DIR)")
            else:
                model_info(model)  # says what there is if there is no such model
                if model not in RECIPES:
                    _fail(f"{model} has no recipe; there are recipes for {', '.join(sorted(RECIPES))}")
                run = Run(model=model, data=tuple(map(str, data)), recipe=RECIPES[model])
            if out is None:
                _fail("name a folder for the run: --out DIR")
            folder = out
            values: dict[str, Any] = {
                "data": tuple(map(str, data)),
                "val": tuple(map(str, val)),
                "held_out": () if held_out is None else _lines(held_out),
                "weights": None if weights is None else str(weights),
                "backbone": None if backbone is None else str(backbone),
                "seed": seed,
                "max_hours": None if max_time is None else _hours(max_time),
                "validations": validations,
                "precision": PRECISIONS[precision],
                "workers": workers,
                "devices": devices or started_by_torchrun(),
            }
            recipe = {"epochs": epochs, "batch_size": batch_size, "size": size, "rate": rate}
            given = _given(context) | ({"devices"} if values["devices"] else set())
            run = _changed(run, values, recipe, {"max_hours" if name == "max_time" else name for name in given})
        train_run(run, folder, accelerator=DEVICES[device], resume=resume is not None)
    except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
        _fail(f"interrupted; go on with pyface train --resume {folder}", 130)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (CheckpointError, DatasetError, TrainingError, ValueError) as error:
        _fail(error)


def _refuse_idle_options(context: typer.Context) -> None:
    """Options that would do nothing are mistakes."""
    from pyface.cli import _fail

    given = _given(context)
    if {"epochs", "max_time"} <= given:
        _fail("--epochs and --max-time both say when a run ends, give one of them")
    idle = sorted(given - {"resume", "device"})
    if "resume" in given and idle:
        names = ", ".join("the model" if name == "model" else "--" + name.replace("_", "-") for name in idle)
        _fail(f"--resume takes a run as it was configured, leave out {names}")
    if {"config", "model"} <= given:
        _fail("--config names the model, leave it out")


def _given(context: typer.Context) -> set[str]:
    """Names of the options on the command line."""
    return {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}  # type: ignore[union-attr]


def _changed(run: Run, values: dict[str, Any], recipe: dict[str, Any], given: set[str]) -> Run:
    """A run with the values that were given. What goes with a value that was replaced goes too."""
    if "data" in given:  # other pictures, of which other ones may be held out
        run = replace(run, held_out=())
    if "epochs" in given:
        run = replace(run, max_hours=None)
    changes = {name: value for name, value in values.items() if name in given}
    changes["recipe"] = replace(run.recipe, **{name: value for name, value in recipe.items() if name in given})
    return replace(run, **changes)


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that hold something."""
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _hours(text: str) -> float:
    """Reads 90m, 2h, 1h30m and 45s."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"--max-time should be a time such as 45s, 90m, 2h or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours + minutes / 60 + seconds / 3600
