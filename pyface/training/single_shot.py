"""Training of single-shot detectors, on samples that a crop rule cuts from whole images."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import cast

import torch

from pyface.models.checkpoints import configured, load_checkpoint, read_checkpoint
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import create_model, model_info
from pyface.training.album import Album
from pyface.training.callbacks import Average, Measuring
from pyface.training.crop_rules import RULES, Rule, densebox
from pyface.training.folder import CHECKPOINT, Job, begin, check_checkpoint, say_complete
from pyface.training.module import Data, Training
from pyface.training.recipes import Recipe, Run, TrainingError
from pyface.training.start import freeze, load_backbone
from pyface.training.trainer import fit, make_trainer, started_by_torchrun


def check_single_shot(run: Run, folder: Path) -> None:
    """Checks a run's number of processes, and its checkpoint if it has one.

    Raises:
        TrainingError: `torchrun` started the wrong number of processes, or the checkpoint is damaged or lost.
    """
    if started_by_torchrun() not in (None, run.devices):
        raise TrainingError(f"torchrun must start {run.devices} processes for this run, got {started_by_torchrun()}")
    check_checkpoint(folder / CHECKPOINT)


def check_batch(run: Run, model: SingleShot) -> None:
    """Checks that batch normalisation has more than one value per channel, even on the coarsest map.

    Raises:
        TrainingError: It has only one: the batch is one sample, and the map is 1 x 1.
    """
    recipe = run.recipe
    if recipe.batch_size > 1:
        return
    try:  # on the meta device, so that nothing is computed and no statistics change
        copy.deepcopy(model).to("meta")(torch.zeros(1, 3, recipe.size, recipe.size, device="meta"))
    except ValueError as error:
        raise TrainingError(
            f"a batch of one sample of {recipe.size} pixels gives {run.model} maps of 1 x 1, which batch normalisation "
            f"cannot train on; use --batch-size 2 or more, or a larger --size"
        ) from error


def train_single_shot(job: Job) -> None:
    """Trains a single-shot detector, or resumes its training.

    Raises:
        TrainingError, DatasetError, CheckpointError: See `pyface.training.run.train`.
    """
    model = starting_model(job.run, job.album)
    run = dataclasses.replace(job.run, settings=dataclasses.asdict(model.config))  # type: ignore[call-overload]
    if run.backbone is not None:
        load_backbone(model, run.backbone)
        freeze(model, run.recipe.frozen)
    rule = rule_of(run.recipe, model)
    check_batch(run, model)
    begin(dataclasses.replace(job, run=run))

    per_epoch = max(1, len(job.album) // (run.recipe.batch_size * run.devices))
    steps = None if run.max_hours is not None else run.recipe.epochs * per_epoch
    average = Average(run.recipe.average)
    trainer = make_trainer(
        run,
        job.folder,
        job.accelerator,
        average=average,
        measuring=Measuring(job.sets, average, run.validations, job.folder, run.model),
        steps=steps,
        per_epoch=per_epoch,
        hours=run.max_hours,
    )
    training = Training(model, run.recipe, steps)
    fit(trainer, training, Data(job.album, run.recipe, rule, model, run.seed, run.workers), job.folder / CHECKPOINT)
    if trainer.is_global_zero:
        say_complete(run, job.folder, "is" if training.has_trained else "was already")


def starting_model(run: Run, album: Album) -> SingleShot:
    """Builds a run's model as it is before training.

    It predicts landmarks only if some faces of the album have landmarks, or if the initial weights include them.

    Raises:
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
    detector = cast(SingleShot, model)  # all models but MTCNN are
    return detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def rule_of(recipe: Recipe, model: SingleShot) -> Rule:
    """The recipe's crop rule for a model."""
    if recipe.crops == "densebox":
        if model.trained_faces is None:
            raise TrainingError(f"the model must be a DenseBox for the crop rule densebox, got {type(model).__name__}")
        return densebox(*model.trained_faces)
    return RULES[recipe.crops]
