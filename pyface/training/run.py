"""A training run: from its configuration to a folder of weights, measurements and logs."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pyface.dataset import DatasetError, Picture, read_folder
from pyface.models.densebox import DenseBox
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import create_model
from pyface.training.album import Album, split
from pyface.training.crops import RULES, Rule, densebox
from pyface.training.module import Average, Data, Measuring, Saving, Training
from pyface.training.recipes import Recipe, Run
from pyface.training.start import freeze, load_backbone

CONFIG, CHECKPOINT = "config.json", "last.ckpt"


class TrainingError(ValueError):
    """A run cannot begin as it was asked for."""


def write_config(run: Run, path: Path) -> None:
    """Everything a run is made of, as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n", encoding="utf-8")


def read_config(path: Path) -> Run:
    """What `write_config` wrote.

    Raises:
        TrainingError: The file is missing or another one.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe(**content.pop("recipe"))
        content |= {key: tuple(content[key]) for key in ("data", "val", "held_out")}
        return Run(**content, recipe=recipe)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{path} is no configuration of a run ({error})") from error


def train(run: Run, folder: Path, *, devices: int = 1, accelerator: str = "auto", resume: bool = False) -> None:
    """Trains a model; MTCNN's networks one after another (`pyface.training.cascade`).

    Args:
        run: What to do; written to `config.json`.
        folder: Where everything goes: `best.safetensors` and `last.safetensors` (averaged weights, which
            `FaceDetector(weights=...)` takes), `measured.jsonl`, `pictures/`, `metrics.csv` and TensorBoard's files in
            `logs/`, and `last.ckpt`, which holds what a run needs to go on.
        devices: GPUs or, on a CPU, processes; as many as `torchrun` started.
        accelerator: "auto", "cpu" or "gpu".
        resume: Go on from `last.ckpt`.

    Raises:
        TrainingError, DatasetError: The data or the folder are not as they should be.
    """
    if run.model == "mtcnn":
        from pyface.training.cascade import train_cascade  # which needs what is here

        train_cascade(run, folder, devices=devices, accelerator=accelerator, resume=resume)
        return
    checkpoint = folder / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise TrainingError(f"{folder} holds no {CHECKPOINT} to go on from")
    if checkpoint.exists() and not resume:
        raise TrainingError(f"{folder} holds a run already, continue it with --resume or give another folder")
    L.seed_everything(run.seed, workers=True, verbose=False)
    model = create_model(run.model, run.weights)
    if not isinstance(model, SingleShot):
        raise TrainingError(f"{run.model} does not train on whole pictures")
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.backbone is not None:
        load_backbone(model, run.backbone)
        freeze(model, run.recipe.frozen)
    learned, held = split(run.data, run.held_out)
    sets = measured_sets(run.val, held)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(run, folder / CONFIG)

    album = Album(learned)
    per_epoch = max(1, len(album) // (run.recipe.batch_size * devices))
    steps = None if run.max_hours is not None else run.recipe.epochs * per_epoch
    average = Average(run.recipe.average)
    measuring = Measuring(sets, average, run.validations, folder, run.model)
    callbacks: list[L.Callback] = [average, measuring, Saving(checkpoint)]
    if sys.stdout.isatty():
        callbacks.append(Bar(measuring))
    trainer = make_trainer(run, folder, callbacks, steps, run.max_hours, devices, accelerator)
    data = Data(album, run.recipe, rule_of(run.recipe, model), model, run.seed, run.workers)
    trainer.fit(Training(model, run.recipe, steps), datamodule=data, ckpt_path=checkpoint if resume else None)


def make_trainer(
    run: Run,
    folder: Path,
    callbacks: Sequence[L.Callback],
    steps: int | None,
    hours: float | None,
    devices: int,
    accelerator: str,
) -> L.Trainer:
    """Lightning's trainer for so many steps, or else for so many hours; its logs go to the folder."""
    quieten()
    torch.set_float32_matmul_precision("high")  # TF32, where there is any
    logs = str(len(list((folder / "logs").glob("*"))))  # one folder each time a run is begun or continued
    timer = [] if hours is None else [Timer(timedelta(hours=hours), verbose=False)]
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=run.precision,  # type: ignore[arg-type]
        max_steps=steps if steps is not None else -1,
        max_epochs=-1,
        callbacks=[*callbacks, *timer],
        logger=[CSVLogger(folder, "logs", version=logs), TensorBoardLogger(folder, "logs", version=logs)],
        log_every_n_steps=20,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        benchmark=True,  # all samples are of one size
        default_root_dir=folder,
    )


def quieten() -> None:
    """Keeps what Lightning says about devices, itself and our ways from a run's output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec",
        ".*does not have many workers",
        ".*smaller than the logging interval",
        ".*your dataloader is not resumable",  # `Data` goes on where the trainer stands
    ):
        warnings.filterwarnings("ignore", message)


def measured_sets(folders: Sequence[str], held: list[Picture]) -> dict[str, list[Picture]]:
    """What a run is measured on, by name: every folder's, and "held_out".

    Raises:
        DatasetError: A folder has no faces, which leaves nothing to measure.
    """
    sets = {Path(folder).resolve().name: read_folder(folder) for folder in folders}
    for name, pictures in sets.items():
        if not any(len(picture.faces) for picture in pictures):
            raise DatasetError(f"{name}: there are no faces to measure on")
    return sets | ({"held_out": held} if held else {})


def rule_of(recipe: Recipe, model: SingleShot) -> Rule:
    """The recipe's crop rule for a model."""
    if recipe.crops == "densebox":
        if not isinstance(model, DenseBox):
            raise TrainingError(f"the crop rule densebox is for DenseBox, the model is {type(model).__name__}")
        return densebox(model.config.face)
    return RULES[recipe.crops]


class Bar(RichProgressBar):
    """Lightning's, with the newest average precision.

    Args:
        measuring: Who knows it.
    """

    def __init__(self, measuring: Measuring) -> None:
        super().__init__(refresh_rate=20)
        self.measuring = measuring

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        items = super().get_metrics(trainer, pl_module) | self.measuring.figures
        items.pop("v_num", None)
        return items
