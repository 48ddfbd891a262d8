"""The folder of a run: its configuration, the record of its data, and checks before a run starts or resumes in it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

from pyface.data.annotations import AnnotatedImage, DatasetError
from pyface.data.folder import annotations_in, unlisted
from pyface.models.checkpoints import is_of_kind, tupled
from pyface.models.zoo import default_weights, model_info
from pyface.training.album import Album
from pyface.training.recipes import Recipe, Run, TrainingError

CONFIG, CHECKPOINT, DATA, MEASURED = "config.json", "last.ckpt", "data.json", "measured.jsonl"

FEW = 1000
"""From fewer images, a detector that starts from random weights learns little."""
LOW = 0.1
"""A run whose average precision is below this has found almost nothing."""

Config = TypeVar("Config", Run, Recipe)


@dataclass(frozen=True)
class Job:
    """A run with its data, ready to start.

    Attributes:
        run: The configuration.
        folder: The run's folder.
        resume: Whether the run was interrupted and continues.
        accelerator: "auto", "cpu" or "gpu".
        album: The images to train on.
        sets: The images to measure on, by the name of their set.
    """

    run: Run
    folder: Path
    resume: bool
    accelerator: str
    album: Album
    sets: Mapping[str, Sequence[AnnotatedImage]]


def write_config(run: Run, path: Path) -> None:
    """Writes a run's configuration as JSON."""
    write_json(path, dataclasses.asdict(run))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, replacing it only when complete; several processes may do so at once."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read_config(path: Path) -> Run:
    """Reads what `write_config` wrote.

    Raises:
        TrainingError: The file is missing or not a run's configuration, or a value has the wrong type or is out of
            range.
    """
    try:
        content: dict[str, Any] = json.loads(
            path.read_text(encoding="utf-8-sig")
        )  # editors on Windows add a byte order mark
        return fields_of(Run, content | {"recipe": fields_of(Recipe, content["recipe"])})
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{path} is not a run's configuration: it is not JSON") from error
    except KeyError as error:
        raise TrainingError(f"{path} is not a run's configuration: it has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{path} is not a run's configuration: {error}") from error


def fields_of(kind: type[Config], content: dict[str, Any]) -> Config:
    """Builds a dataclass from decoded JSON.

    Raises:
        TypeError, ValueError: A value has the wrong type, or a field is missing, unknown or out of range.
    """
    values = {name: tupled(value) for name, value in content.items()}
    for name, hint in get_type_hints(kind).items():
        if name in values and not is_of_kind(values[name], hint, values[name]):
            text = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise TypeError(f"{name} must be {text}, got {values[name]!r}")
    return kind(**values)


def check_folder(folder: Path, resume: bool) -> None:
    """Checks that a run can start in a folder, or be resumed from it.

    Raises:
        TrainingError: The folder is a file, has a run already, or has none to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"the run's folder must be a folder, got the file {folder}")
    if resume and not (folder / CONFIG).is_file():
        raise TrainingError(f"{folder} has no run to resume")
    if not resume and any((folder / name).exists() for name in (CHECKPOINT, "best.safetensors", "pnet")):
        raise TrainingError(f"{folder} has a run already; continue it with --resume or give another folder")


def check_checkpoint(path: Path) -> None:
    """Checks that a run's checkpoint can be read, if the run has written one.

    Raises:
        TrainingError: The checkpoint is damaged or lost.
    """
    newest = path.with_name("last.safetensors")
    if newest.exists() and not path.exists():
        raise TrainingError(
            f"{path} is missing, so the run cannot be resumed; start another one with --weights {newest}"
        )
    try:
        if path.is_file():
            torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path} is damaged, so the run cannot be resumed; start another one with --weights {newest}"
        ) from error


def begin(job: Job) -> None:
    """Records a new run's configuration and data, or checks that a resumed run has the same data; announces the run.

    Raises:
        TrainingError: The data have changed.
        DatasetError: No image has a face inside it.
    """
    folder, facts = job.folder, job.album.facts()
    if not facts["faces"]:
        raise DatasetError("there are no faces to train on: all boxes are outside their images")
    if not job.resume:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DATA, facts)
        write_config(job.run, folder / CONFIG)
    elif (folder / DATA).is_file() and (before := json.loads((folder / DATA).read_text(encoding="utf-8"))) != facts:
        then, now = (f"{of['pictures']:,} images with {of['faces']:,} faces" for of in (before, facts))
        what = f"{then}, not {now}" if then != now else "as many, but names, sizes or boxes differ"
        raise TrainingError(f"the run started with other data ({what}); start a new one in another folder")
    announce(job.run, job.album, job.sets)


def announce(run: Run, album: Album, sets: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    """Prints what a run is about to do; only one process per machine prints it."""
    if int(os.environ.get("LOCAL_RANK", 0)) != 0:
        return
    faces = sum(len(picture.faces) for picture in album.pictures)
    length = counted(run.recipe.epochs, "epoch") if run.max_hours is None else f"{60 * run.max_hours:.3g} minutes"
    known = f"{album.known_landmarks:,} of them with landmarks"
    print(f"{run.model}: {counted(len(album), 'image')} with {counted(faces, 'face')}, {known}, {length}", flush=True)
    if len(album) < FEW and run.weights is None and run.backbone is None:
        print(f"{counted(len(album), 'image')} may be too few for random initial weights; {_other_start(run)}")
    if album.left_out:
        print(f"left out: {counted(album.left_out, 'box', 'es')} outside their images", flush=True)
    for folder in dict.fromkeys(run.data):
        names = unlisted(folder)
        if names:
            where = folder if Path(folder).is_file() else Path(folder) / annotations_in(folder)[0]
            print(f"left out: {counted(len(names), 'image')} missing from {where}, such as {names[0]}")
    trained_on = {picture.path.resolve() for picture in album.pictures}
    for name, pictures in sets.items():
        shared = sum(picture.path.resolve() in trained_on for picture in pictures)
        if shared:
            print(
                f"{name}: {shared:,} of {len(pictures):,} images are also in the training data, so the scores are too "
                f"optimistic"
            )
    if not sets:
        print("no images to measure on, so best.safetensors will be the newest weights; add some with --val DIR")


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "face"), counted(1200, "box", "es")
        ('1 face', '1,200 boxes')
    """
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def say_complete(run: Run, folder: Path, verb: str) -> None:
    """Prints how to use a finished run's weights, or first what to do if they find almost nothing."""
    precision = best_precision(folder)
    if precision is not None and precision < LOW:
        more = f", or {_other_start(run)}" if run.weights is None else ""
        print(f"the average precision is only {precision:.3f}; train longer or on more images{more}")
    print(f"the run in {folder} {verb} complete; to use its weights:", flush=True)
    print(f"  pyface detect IMAGES --model {run.model} --weights {folder / 'best.safetensors'}", flush=True)


def best_precision(folder: Path) -> float | None:
    """Returns the best measured average precision of a run, which chose its weights; None: nothing was measured."""
    lines = (folder / MEASURED).read_text(encoding="utf-8").splitlines() if (folder / MEASURED).is_file() else []
    measured = [list(json.loads(line).values())[2:] for line in lines]  # behind "step" and "progress", a report per set
    return max((statistics.mean(sets[0]["average_precision"].values()) for sets in measured if sets), default=None)


def _other_start(run: Run) -> str:
    row = model_info(run.model)
    if row.weights is None:
        return "start from trained weights with --weights FILE or --backbone FILE (docs/training.md)"
    return f"start from the bundled weights with --weights {default_weights(row)} --rate 1e-4 (docs/training.md)"
