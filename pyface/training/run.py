"""Training runs: a configuration in, a folder of weights, measurements and logs out."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pyface.data.wider import DatasetError, Picture, read_folder, unlisted
from pyface.detector import is_out_of_memory
from pyface.models.checkpoints import configured, is_of_kind, load_checkpoint, read_checkpoint, tupled
from pyface.models.densebox import DenseBox
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import create_model, model_info
from pyface.training.album import Album, size_of, split
from pyface.training.crops import RULES, Rule, densebox
from pyface.training.module import Average, Data, Measuring, Saving, Training
from pyface.training.recipes import Recipe, Run, TrainingError
from pyface.training.start import freeze, load_backbone

CONFIG, CHECKPOINT, DATA = "config.json", "last.ckpt", "data.json"

Config = TypeVar("Config", Run, Recipe)


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
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return fields_of(Run, content | {"recipe": fields_of(Recipe, content["recipe"])})
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is no configuration of a run: it is no JSON") from error
    except KeyError as error:
        raise TrainingError(f"{path} is no configuration of a run: it has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{path} is no configuration of a run ({error})") from error


def fields_of(kind: type[Config], content: dict[str, Any]) -> Config:
    """Builds a dataclass from decoded JSON.

    Raises:
        TypeError, ValueError: A value has the wrong type, or a field is missing, unknown or out of range.
    """
    values = {name: tupled(value) for name, value in content.items()}
    for name, hint in get_type_hints(kind).items():
        if name in values and not is_of_kind(values[name], hint, values[name]):
            text = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise TypeError(f"{name} should be {text}, got {values[name]!r}")
    return kind(**values)


def started_by_torchrun() -> int | None:
    """Number of processes that `torchrun` started; None if this process was started otherwise."""
    return int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else None


def train(run: Run, folder: Path, *, accelerator: str = "auto", resume: bool = False) -> None:
    """Trains a model; MTCNN's networks one after another (`pyface.training.cascade`).

    Args:
        run: The configuration; written to `config.json`.
        folder: The run's folder. It gets `best.safetensors` and `last.safetensors` (averaged weights, which
            `FaceDetector(weights=...)` takes), `measured.jsonl`, `pictures/`, `metrics.csv` and TensorBoard's files in
            `logs/`, and `last.ckpt`, the state needed to resume.
        accelerator: "auto", "cpu" or "gpu".
        resume: Continue from `last.ckpt`, or from the beginning if the run was interrupted before writing it.

    Raises:
        TrainingError: The run cannot start as configured, or its weights became NaN.
        DatasetError: The data are malformed, unreadable or without faces.
    """
    if run.model == "mtcnn":
        from pyface.training.cascade import train_cascade  # here, as it imports this module

        train_cascade(run, folder, accelerator=accelerator, resume=resume)
        return
    check_folder(folder, resume)
    if started_by_torchrun() not in (None, run.devices):
        raise TrainingError(f"the run is for {run.devices} processes, torchrun started {started_by_torchrun()}")
    check_device(run, accelerator)
    checkpoint = folder / CHECKPOINT
    check_checkpoint(checkpoint)
    learned, held = split(run.data, run.held_out)
    sets = measured_sets(run.val, held)
    album = Album(learned, accelerator=accelerator, sharers=local_devices(run))
    L.seed_everything(run.seed, workers=True, verbose=False)
    model = starting_model(run, album)
    run = dataclasses.replace(run, settings=dataclasses.asdict(model.config))  # type: ignore[call-overload]
    if run.backbone is not None:
        load_backbone(model, run.backbone)
        freeze(model, run.recipe.frozen)
    rule = rule_of(run.recipe, model)
    check_batch(run, model)
    begin(run, folder, album, resume)
    announce(run, album, sets)

    per_epoch = max(1, len(album) // (run.recipe.batch_size * run.devices))
    steps = None if run.max_hours is not None else run.recipe.epochs * per_epoch
    average = Average(run.recipe.average)
    measuring = Measuring(sets, average, run.validations, folder, run.model)
    callbacks: list[L.Callback] = [average, measuring, Saving(checkpoint)]
    if sys.stdout.isatty():
        callbacks.append(Bar(measuring, run.recipe.epochs if steps else None))
    trainer = make_trainer(run, folder, callbacks, steps, run.max_hours, accelerator)
    training = Training(model, run.recipe, steps)
    fit(trainer, training, Data(album, run.recipe, rule, model, run.seed, run.workers), checkpoint)
    if trainer.is_global_zero:
        say_complete(run, folder, "is" if training.has_learned else "was already")


def starting_model(run: Run, album: Album) -> SingleShot:
    """Builds a run's model as it is before training.

    It predicts landmarks only if some faces of the album have landmarks, or if the initial weights include them.

    Raises:
        TrainingError: The model does not run on whole images.
        CheckpointError: The run's settings or the weights do not fit the model.
    """
    row = model_info(run.model)
    settings = run.settings
    if run.weights is None and hasattr(row.config, "landmarks") and not album.known_landmarks:
        settings = (settings or {}) | {"landmarks": type(row.config.landmarks)(0)}
    if settings is None:
        model = create_model(run.model, run.weights)
    else:
        model = row.build(configured(row.config, settings, "the run's configuration"))
        if run.weights is not None:
            load_checkpoint(model, read_checkpoint(run.weights, run.model))
    if not isinstance(model, SingleShot):
        raise TrainingError(f"{run.model} does not train on whole pictures")
    return model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def announce(run: Run, album: Album, sets: Mapping[str, Sequence[Picture]]) -> None:
    """Prints what a run is about to do; only one process per machine prints it."""
    if int(os.environ.get("LOCAL_RANK", 0)) != 0:
        return
    faces = sum(len(picture.faces) for picture in album.pictures)
    length = counted(run.recipe.epochs, "epoch") if run.max_hours is None else f"{60 * run.max_hours:.3g} minutes"
    known = f"{album.known_landmarks:,} of them with landmarks"
    print(f"{run.model}: {counted(len(album), 'picture')} with {counted(faces, 'face')}, {known}, {length}", flush=True)
    if album.left_out:
        print(f"left out: {counted(album.left_out, 'box', 'es')} outside their pictures", flush=True)
    for folder in dict.fromkeys(run.data):
        names = unlisted(folder)
        if names:
            print(
                f"left out: {counted(len(names), 'picture')} that {folder}/bbx_gt.txt does not name, such as {names[0]}"
            )
    learned = {picture.path.resolve() for picture in album.pictures}
    for name, pictures in sets.items():
        shared = sum(picture.path.resolve() in learned for picture in pictures)
        if shared:
            print(f"{name}: {shared:,} of {len(pictures):,} pictures are learned from too: its figures will flatter")
    if not sets:
        print("nothing to measure on, so that best.safetensors will be the newest weights: --val DIR names some")


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "face"), counted(1200, "box", "es")
        ('1 face', '1,200 boxes')
    """
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def say_complete(run: Run, folder: Path, verb: str) -> None:
    """Prints how to use a finished run's weights."""
    print(f"the run in {folder} {verb} complete; to use its weights:", flush=True)
    print(f"  pyface detect PICTURES --model {run.model} --weights {folder / 'best.safetensors'}", flush=True)


def check_device(run: Run, accelerator: str) -> None:
    """Checks that this machine has the device that a run needs.

    Raises:
        TrainingError: It does not.
    """
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise TrainingError("there is no CUDA GPU here, leave out --device cuda")
    if run.precision == "16-mixed" and (accelerator == "cpu" or not has_gpu):
        raise TrainingError("fp16 is for GPUs, take --precision fp32 or bf16 on a CPU")


def check_batch(run: Run, model: SingleShot) -> None:
    """Checks that batch normalization has more than one value per channel, even on the coarsest map.

    Raises:
        TrainingError: It has one: a batch of one sample, and a map of 1 x 1.
    """
    recipe = run.recipe
    if recipe.batch_size > 1:
        return
    try:  # on torch's device for shapes alone, so that nothing is computed and no statistics change
        copy.deepcopy(model).to("meta")(torch.zeros(1, 3, recipe.size, recipe.size, device="meta"))
    except ValueError as error:
        raise TrainingError(
            f"a batch of one sample of {recipe.size} pixels gives {run.model} maps of 1 x 1, which batch normalization "
            f"cannot train on: take --batch-size 2 or more, or a larger --size"
        ) from error


def check_checkpoint(path: Path) -> None:
    """Checks that a run's checkpoint can be read, if the run has written one.

    Raises:
        TrainingError: The checkpoint is damaged or lost.
    """
    newest = path.with_name("last.safetensors")
    if newest.exists() and not path.exists():
        raise TrainingError(
            f"{path} is not there to go on from; begin another run, from {newest.name} beside it with --weights"
        )
    try:
        if path.is_file():
            torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path} is damaged; begin another run, from this one's last.safetensors with --weights"
        ) from error


def check_folder(folder: Path, resume: bool) -> None:
    """Checks that a run can start in a folder, or be resumed from it.

    Raises:
        TrainingError: It cannot.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file, a run needs a folder of its own")
    if resume and not (folder / CONFIG).is_file():
        raise TrainingError(f"{folder} holds no run to go on with")
    if not resume and any((folder / name).exists() for name in (CHECKPOINT, "best.safetensors", "pnet")):
        raise TrainingError(f"{folder} holds a run already, continue it with --resume or give another folder")


def begin(run: Run, folder: Path, album: Album, resume: bool) -> None:
    """Records a new run's configuration and data, or checks that a resumed run has the same data as before.

    Raises:
        TrainingError: The data have changed.
        DatasetError: No image has a face inside it.
    """
    facts = album.facts()
    if not facts["faces"]:
        raise DatasetError("there are no faces to learn from, all boxes lie outside their pictures")
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DATA, facts)
        write_config(run, folder / CONFIG)
    elif (folder / DATA).is_file() and (before := json.loads((folder / DATA).read_text(encoding="utf-8"))) != facts:
        then, now = (f"{of['pictures']:,} pictures with {of['faces']:,} faces" for of in (before, facts))
        what = f"{then}, not {now}" if then != now else "as many, but names, sizes or boxes differ"
        raise TrainingError(f"the run began with other data ({what}), begin a new one in another folder")


def local_devices(run: Run) -> int:
    """Number of the run's processes on this machine; `torchrun` may have started others elsewhere."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else run.devices


def fit(trainer: L.Trainer, training: L.LightningModule, data: L.LightningDataModule, checkpoint: Path) -> None:
    """Trains, starting from the checkpoint if there is one.

    Raises:
        DatasetError: An image can no longer be read.
        TrainingError: Memory ran out.
    """
    try:
        trainer.fit(training, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)
    except DatasetError as error:  # a worker's message includes its traceback
        reason = str(error).strip().splitlines()[-1]
        raise DatasetError(reason.rpartition(f"{DatasetError.__name__}: ")[2]) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError("the memory does not suffice for a step, take a smaller --batch-size or --size") from error


def make_trainer(
    run: Run,
    folder: Path,
    callbacks: Sequence[L.Callback],
    steps: int | None,
    hours: float | None,
    accelerator: str,
) -> L.Trainer:
    """Builds Lightning's trainer, limited by steps or else by hours, with logs in the run's folder."""
    quieten()
    torch.set_float32_matmul_precision("high")  # TF32 where available
    logs = str(len(list((folder / "logs").glob("*"))))  # a new folder each time the run is started or resumed
    # Log often enough that short or killed runs have rows too.
    rows = 20 if steps is None else max(1, min(20, steps // 20))
    timer = [] if hours is None else [Timer(timedelta(hours=hours), verbose=False)]
    return L.Trainer(
        accelerator=accelerator,
        devices=local_devices(run),
        num_nodes=run.devices // local_devices(run),
        use_distributed_sampler=False,  # `Samples` shares samples out by number
        precision=run.precision,
        max_steps=steps if steps is not None else -1,
        max_epochs=-1,
        callbacks=[*callbacks, *timer],
        logger=[
            CSVLogger(folder, "logs", version=logs, flush_logs_every_n_steps=rows),
            TensorBoardLogger(folder, "logs", version=logs),
        ],
        log_every_n_steps=rows,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        benchmark=True,  # almost all batches have one shape
        default_root_dir=folder,
    )


def quieten() -> None:
    """Keeps Lightning's notices and warnings out of a run's output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec",
        ".*does not have many workers",
        ".*smaller than the logging interval",
        ".*your dataloader is not resumable",  # `Data` starts at the trainer's current step
    ):
        warnings.filterwarnings("ignore", message)


def measured_sets(folders: Sequence[str], held: list[Picture]) -> dict[str, list[Picture]]:
    """The sets that a run is measured on, by name: one per folder, and "held_out". Repeated folder names get a number.

    Raises:
        DatasetError: A set has no faces to measure on, or an image cannot be read.
    """
    sets: dict[str, list[Picture]] = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        names = (folder.name if k == 1 else f"{folder.name}_{k}" for k in itertools.count(1))
        sets[next(name for name in names if name not in {"held_out", *sets})] = read_folder(folder)
    if held:
        sets["held_out"] = held
    for name, pictures in sets.items():
        if not any(len(picture.faces) for picture in pictures):
            raise DatasetError(f"{name}: there are no faces to measure on")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(size_of, (picture.path for picture in pictures)))
    return sets


def rule_of(recipe: Recipe, model: SingleShot) -> Rule:
    """The recipe's crop rule for a model."""
    if recipe.crops == "densebox":
        if not isinstance(model, DenseBox):
            raise TrainingError(f"the crop rule densebox is for DenseBox, the model is {type(model).__name__}")
        return densebox(model.config.face, model.config.positive_band)
    return RULES[recipe.crops]


class Bar(RichProgressBar):
    """A progress bar: Lightning's, with the newest average precision.

    Args:
        measuring: Gives the average precision; None: nothing is measured.
        epochs: Number of epochs; None: the run is limited by time.
    """

    def __init__(self, measuring: Measuring | None, epochs: int | None) -> None:
        super().__init__(refresh_rate=20)
        self.measuring, self.epochs = measuring, epochs

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The values shown beside the bar."""
        items = super().get_metrics(trainer, pl_module) | (self.measuring.figures if self.measuring else {})
        items.pop("v_num", None)
        return items

    def _get_train_description(self, current_epoch: int) -> str:  # Lightning's own shows max_epochs, -1 here
        return f"epoch {current_epoch + 1}" + (f" of {self.epochs}" if self.epochs else "")
