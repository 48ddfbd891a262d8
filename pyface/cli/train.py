"""`pyface train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyface.cli.console import INTERRUPTED, fail
from pyface.cli.options import takes_options

if TYPE_CHECKING:
    from pyface.training.recipes import Precision, Run

DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}  # as Lightning calls them
PRECISIONS: dict[str, Precision] = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options that replace values of the recipe; the fields have the same names."""

    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default="the recipe's")] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per step and device.", show_default="the recipe's")
    ] = None
    size: Annotated[
        int | None, typer.Option(min=64, help="Side of a sample in pixels.", show_default="the recipe's")
    ] = None
    rate: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="the recipe's")] = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options that become fields of `Run`."""

    max_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Length of the run instead of --epochs, such as 90m, 2h or 1h30m."),
    ] = None
    val: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Folder to evaluate on; may be repeated. The first one decides which weights are best.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with the names of images in --data, one per line, to evaluate on rather than train on.",
        ),
    ] = None
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights to start from.", show_default="random ones")
    ] = None
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights for the backbone alone: torchvision's vgg16 for s3fd_vgg16 and ssh_vgg16, vgg19 for "
            "densebox_vgg19, resnet50 for srn_resnet50; or those of a detector with the same backbone.",
            show_default="random ones",
        ),
    ] = None
    precision: Annotated[str, typer.Option(metavar="fp32|fp16|bf16", help="Numeric precision.")] = "fp32"
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of GPUs or, on a CPU, of processes.", show_default="1, or as many as torchrun started"
        ),
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare samples.")] = 0
    validations: Annotated[int, typer.Option(min=1, help="Number of measurements during the run.")] = 20
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface train`."""

    model: Annotated[
        str | None, typer.Argument(help="Detector to train; `pyface models` lists them.", show_default=False)
    ] = None
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Folder of images and annotations, or COCO file; images without annotations count as having no faces. "
            "May be repeated; a folder given twice is used twice as often.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the run.", show_default=False)] = None
    recipe: Recipe
    settings: Settings
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto"
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Repeat the run with this config.json; options given here replace its values."
        ),
    ] = None
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Resume the interrupted run in this folder.")] = (
        None
    )


@takes_options
def train(context: typer.Context, request: Request) -> None:
    """Trains a detector on your own images.

    The run's folder holds best.safetensors (for `pyface detect --weights`), measurements, annotated images, logs and
    config.json. --config repeats a run from its config.json, on the same data or on other data. --resume continues an
    interrupted run with the same samples.

    Examples:

    ```
    pyface train s3fd_lite --data mine/ --val mine_too/ --out runs/first
    pyface train s3fd_lite --data mine/ --out runs/b --max-time 2h
    pyface train --resume runs/first
    pyface train --config runs/first/config.json --data more/ --out runs/c
    ```
    """
    start_training(request, _given_options(context))


def start_training(request: Request, given: frozenset[str]) -> None:
    """Starts or resumes a run, and reports an error in one sentence.

    Args:
        request: The options.
        given: Names of the options on the command line; the others have their defaults.
    """
    _check_options(request, given)
    _check_extras()
    from pyface.data.annotations import DatasetError
    from pyface.models.zoo import CheckpointError
    from pyface.training.recipes import TrainingError
    from pyface.training.run import train as train_run

    try:
        run, folder = _plan_run(request, given)
        train_run(run, folder, accelerator=DEVICES[request.device], resume=request.resume is not None)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the former into the latter
        fail(f"interrupted; continue with pyface train --resume {request.resume or request.out}", INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (CheckpointError, DatasetError, TrainingError, ValueError) as error:
        fail(error)


def _check_extras() -> None:
    try:
        import lightning  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError:
        fail('training needs Lightning and TensorBoard: pip install "pyface-engine[train]"')


def _check_options(request: Request, given: frozenset[str]) -> None:
    """Fails for unknown, missing and ineffective options, before imports that take seconds."""
    precision, device = request.settings.precision, request.device
    if precision not in PRECISIONS:
        fail(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if device not in DEVICES:
        fail(f"--device must be one of {', '.join(DEVICES)}, got {device} (--devices N uses several GPUs)")
    if {"epochs", "max_time"} <= given:
        fail("--epochs and --max-time both say when a run ends; give one of them")
    idle = sorted(given - {"resume", "device"})
    if "resume" in given and idle:
        names = ", ".join("the model" if name == "model" else "--" + name.replace("_", "-") for name in idle)
        fail(f"--resume continues a run as it was configured; leave out {names}")
    if {"config", "model"} <= given:
        fail("--config names the model; leave it out")
    if request.resume is not None:
        return
    if request.config is None and (request.model is None or not request.data):
        fail("a run needs a model and --data DIR; give both, or --config FILE, or --resume DIR")
    if request.out is None:
        fail("a run needs a folder; add --out DIR")


def _plan_run(request: Request, given: frozenset[str]) -> tuple[Run, Path]:
    """Returns the run and its folder.

    Raises:
        ValueError, OSError: A value is not valid, or a file cannot be read.
    """
    from pyface.training.folder import CONFIG, read_config

    if request.resume is not None:
        if not (request.resume / CONFIG).is_file():
            fail(f"there is no run in {request.resume}: a run's folder holds {CONFIG}")
        return read_config(request.resume / CONFIG), request.resume
    assert request.out is not None  # as _check_options has checked
    run = _new_run(request) if request.config is None else read_config(request.config)
    return _with_options(run, request, given), request.out


def _new_run(request: Request) -> Run:
    from pyface.models.zoo import model_info
    from pyface.training.recipes import RECIPES, Run

    assert request.model is not None  # as above
    model_info(request.model)  # lists the names if there is no such model
    return Run(model=request.model, data=tuple(map(str, request.data)), recipe=RECIPES[request.model])


def _with_options(run: Run, request: Request, options: frozenset[str]) -> Run:
    """Returns the run with the values from the command line; values of the run that these make void are dropped."""
    from pyface.training.trainer import started_by_torchrun

    values = {"data": tuple(map(str, request.data))} | _run_fields(request.settings)
    values["devices"] = values["devices"] or started_by_torchrun()
    given = {"max_hours" if name == "max_time" else name for name in options}
    if values["devices"]:
        given.add("devices")
    if "data" in given:  # the held-out images belonged to the other data
        run = replace(run, held_out=())
    if "epochs" in given:
        run = replace(run, max_hours=None)
    changes = {name: value for name, value in values.items() if name in given}
    recipe = {name: value for name, value in vars(request.recipe).items() if name in given}
    return replace(run, recipe=replace(run.recipe, **recipe), **changes)


def _run_fields(settings: Settings) -> dict[str, Any]:
    """Returns options as `Run` has them: paths as text, files read, times in hours."""
    options = dict(vars(settings))
    held_out, max_time = options.pop("held_out"), options.pop("max_time")
    return options | {
        "val": tuple(map(str, options["val"])),
        "held_out": () if held_out is None else _read_lines(held_out),
        "weights": None if options["weights"] is None else str(options["weights"]),
        "backbone": None if options["backbone"] is None else str(options["backbone"]),
        "max_hours": None if max_time is None else parse_hours(max_time),
        "precision": PRECISIONS[options["precision"]],
    }


def _given_options(context: typer.Context) -> frozenset[str]:
    return frozenset(
        name
        for name in context.params
        if context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]
    )


def _read_lines(path: Path) -> tuple[str, ...]:
    """Returns the lines of a text file that are not empty."""
    return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())


def parse_hours(text: str) -> float:
    """Converts a time such as 90m, 2h, 1h30m or 45s to hours.

    Example:
        >>> parse_hours("1h30m")
        1.5
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"--max-time must be a time such as 45s, 90m, 2h or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours + minutes / 60 + seconds / 3600
