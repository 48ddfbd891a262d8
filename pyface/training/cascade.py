"""Training of MTCNN: its three networks one after another, each on crops that the networks before it let through
(docs/detectors.md 3.3).

Each network has its own folder inside the run's: `crops.npz` (its training crops), `last.ckpt` (the state needed to
resume), `logs/`, and `weights.safetensors` once it is done. That file holds the whole cascade as far as it is
trained. A resumed run finds out from these files where to continue.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyface.models.checkpoints import load_checkpoint, read_checkpoint
from pyface.models.mtcnn import MTCNN, CropKind, CropTruth, MTCNNConfig, WithLandmarks
from pyface.models.zoo import create_model
from pyface.training.album import Album
from pyface.training.callbacks import Average, Measuring, save
from pyface.training.cascade_crops import (
    NETS,
    SHARES,
    Batch,
    CropBatches,
    Crops,
    Net,
    draw,
    joined,
    load_crops,
    mine,
    render,
    save_crops,
    share_out,
)
from pyface.training.folder import CHECKPOINT, Job, begin, check_checkpoint, say_complete
from pyface.training.module import Training
from pyface.training.recipes import RECIPES, Recipe, Run, TrainingError
from pyface.training.trainer import fit, make_trainer, started_by_torchrun

CROPS, WEIGHTS, MINED = "crops.npz", "weights.safetensors", "mined.jsonl"

# Epochs as a share of the recipe's; AITTSMD trains for 30, 22 and 22.
EPOCHS: dict[Net, float] = {"pnet": 1.0, "rnet": 22 / 30, "onet": 22 / 30}
TIME: dict[Net, float] = {"pnet": 0.25, "rnet": 0.3, "onet": 0.45}  # share of the run's time, if it is limited by time
MINING_TIME = 0.5  # largest share of a network's time that is spent on mining its crops


class CropData(L.LightningDataModule):
    """Batches of crops, with their pixels made on the device.

    Args:
        album: The images.
        crops: Crops of these images.
        net: The network to train.
        run: Gives the seed, the recipe and the number of workers.
        model: Gives the configuration, so that crops are resized as in detection.
        per_epoch: Number of batches per epoch.
    """

    def __init__(self, album: Album, crops: Crops, net: Net, run: Run, model: MTCNN, per_epoch: int) -> None:
        super().__init__()
        self.album, self.crops, self.net, self.run, self.per_epoch = album, crops, net, run, per_epoch
        self.config = model.config
        self.on_device: list[Tensor] | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of an epoch, or what is left of it: they start at the trainer's current step."""
        assert self.trainer is not None
        step = self.trainer.global_step
        batches = CropBatches(self.album, self.crops, self.net, self.run.recipe, self.run.seed, step, self.per_epoch)
        return DataLoader(batches, batch_size=None, num_workers=self.run.workers, pin_memory=torch.cuda.is_available())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves the ground truth and pixels to the device; crop positions stay on the CPU, which reads them."""
        truth = CropTruth(*(x.to(device, non_blocking=True) for x in batch.truth))
        pixels = None if batch.pixels is None else [x.to(device, non_blocking=True) for x in batch.pixels]
        return batch._replace(truth=truth, pixels=pixels)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, CropTruth]:
        """Turns a batch into the network's input and the ground truth."""
        if self.on_device is None and self.album.images is not None:
            self.on_device = [image.to(batch.truth.kind.device) for image in self.album.images]
        images = batch.pixels if self.on_device is None else self.on_device
        return render(batch, images or [], self.net, self.config), batch.truth


class NetTraining(Training):
    """One network of the cascade, its loss and its optimiser.

    Args:
        model: The cascade.
        net: The network to train.
        with_landmarks: Whether any crops have landmarks to train on. P-Net and R-Net train on them as an auxiliary
            task, as in the paper, but do not return landmarks in detection.
        recipe: Hyperparameters.
        steps: Number of steps for this network. None: it trains for a fixed time, and a `Timer` gives its progress.
    """

    def __init__(self, model: MTCNN, net: Net, with_landmarks: bool, recipe: Recipe, steps: int | None) -> None:
        super().__init__(model, recipe, steps)  # type: ignore[arg-type]
        self.cascade, self.name = model, net
        learner = getattr(model, net)
        model.train().requires_grad_(False)
        learner.requires_grad_(True).to(memory_format=torch.channels_last)  # a third faster on CPUs
        self.net = WithLandmarks(learner) if with_landmarks and net != "onet" else learner

    def training_step(self, batch: tuple[Tensor, CropTruth], batch_idx: int) -> Tensor:  # type: ignore[override]
        """Returns the sum of the loss terms and logs each of them."""
        crops, truth = batch
        outputs = self.net(crops.contiguous(memory_format=torch.channels_last))
        terms = self.cascade.loss(self.name, outputs, truth)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({name: value.detach() for name, value in terms.items()}, prog_bar=True)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss


class MeasuringCascade(Measuring):
    """Measures the cascade during training; the chosen score threshold becomes O-Net's."""

    def with_threshold(self, config: MTCNNConfig, threshold: float) -> MTCNNConfig:
        """The configuration with the given threshold for O-Net."""
        return replace(config, thresholds=(*config.thresholds[:2], threshold))


def train_cascade(job: Job) -> None:
    """Trains MTCNN's networks one after another, or resumes their training.

    Raises:
        TrainingError, DatasetError, CheckpointError: See `pyface.training.run.train`.
    """
    run, folder = job.run, job.folder
    model = cast(MTCNN, create_model(run.model, run.weights))
    if run.weights is None:
        initialise(model)
    # The released weights shift boxes by one pixel; networks trained here do not.
    model.config = replace(model.config, output_shift=0.0)
    begin(job)
    for net in NETS:
        if not (folder / net / WEIGHTS).exists():
            train_net(job, model, net)
        load_checkpoint(model, read_checkpoint(folder / net / WEIGHTS))
    say_complete(run, folder, "is")


def initialise(model: MTCNN) -> None:
    """Initialises the weights so that activations keep their scale through the layers (He et al., PReLU slope 0.25).

    With torch's default they shrink, and O-Net takes longer to tell faces from background.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.endswith("heads"):
            nn.init.kaiming_normal_(layer.weight, a=0.25)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def is_complete(folder: Path) -> bool:
    """Whether a run's folder has the weights of its last network."""
    return (folder / NETS[-1] / WEIGHTS).exists()


def check_cascade(run: Run) -> None:
    """Checks that a run sets only options that the cascade supports.

    Raises:
        TrainingError: It sets other options.
    """
    if run.settings is not None:
        raise TrainingError(f"{run.model} trains with its default settings only; remove those of the configuration")
    if run.backbone is not None:
        raise TrainingError(f"{run.model} has no backbone for ImageNet weights; remove --backbone")
    if run.devices > 1 or (started_by_torchrun() or 1) > 1:
        raise TrainingError(f"{run.model} trains on one device, since its networks are small; remove --devices")
    least = sum(SHARES.values())
    if run.recipe.batch_size < least:
        raise TrainingError(
            f"batch_size must be {least} or more, to hold crops of all kinds, got {run.recipe.batch_size}"
        )
    usual = RECIPES[run.model].size
    if run.recipe.size != usual:
        raise TrainingError(
            f"size must be {usual} for {run.model}, whose networks take 12, 24 and 48 px, got {run.recipe.size}"
        )


def train_net(job: Job, model: MTCNN, net: Net) -> None:
    """Trains one network, or resumes its training, and writes its weights.

    The cascade is complete, and therefore measured, only while its last network trains.

    Args:
        job: The run.
        model: The cascade, with the networks before this one trained.
        net: The network to train.
    """
    run, folder = job.run, job.folder / net
    hours = None if run.max_hours is None else TIME[net] * run.max_hours
    folder.mkdir(exist_ok=True)
    if not (folder / CROPS).exists():
        start = time.monotonic()
        crops = collect(job, model, net, hours)
        save_crops(folder / CROPS, crops, time.monotonic() - start)
    crops, seconds = load_crops(folder / CROPS)
    counts = count_kinds(run, net, crops)
    per_epoch = math.ceil(counts[CropKind.POSITIVE] / share_out(run.recipe.batch_size, counts)[CropKind.POSITIVE])
    steps = None if hours is not None else max(1, round(EPOCHS[net] * run.recipe.epochs)) * per_epoch
    if hours is not None:
        hours = max(hours - seconds / 3600, 0.1 * hours)
    check_checkpoint(folder / CHECKPOINT)
    average = Average(run.recipe.average)
    is_last = net == NETS[-1]
    trainer = make_trainer(
        run,
        folder,
        job.accelerator,
        average=average,
        measuring=MeasuringCascade(job.sets, average, run.validations, job.folder, run.model) if is_last else None,
        steps=steps,
        per_epoch=per_epoch,
        hours=hours,
    )
    data = CropData(job.album, crops, net, run, model, per_epoch)
    training = NetTraining(model, net, counts[CropKind.LANDMARK] > 0, run.recipe, steps)
    fit(trainer, training, data, folder / CHECKPOINT)
    data.on_device = None  # frees memory: the next network makes its own copy
    assert average.model is not None
    save(folder / WEIGHTS, average.model, run.model, model.config)


def count_kinds(run: Run, net: Net, crops: Crops) -> dict[CropKind, int]:
    """Counts a network's crops by kind, and prints the counts.

    Raises:
        TrainingError: There are no positives or no negatives.
    """
    counts = {kind: int((crops.kinds == kind).sum()) for kind in CropKind}
    print(f"{net}: {describe(counts)}", flush=True)
    if not counts[CropKind.POSITIVE] or not counts[CropKind.NEGATIVE]:
        raise TrainingError(
            f"the data have {describe(counts)} for {net}; give images with background and with faces of "
            f"{run.recipe.smallest_face:g} px or more"
        )
    if not counts[CropKind.LANDMARK]:
        print(f"{net}: no face has all five landmarks, so it is not trained on landmarks", flush=True)
    return counts


def collect(job: Job, model: MTCNN, net: Net, hours: float | None) -> Crops:
    """Collects a network's training crops, and records the recall of the networks before it in `mined.jsonl`."""
    run, album, smallest = job.run, job.album, job.run.recipe.smallest_face
    drawn = draw(album, net, run.seed, smallest)
    if net == "pnet":
        return drawn
    device = "cuda" if job.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
    print(f"{net}: searching {len(album)} images for crops", flush=True)
    seconds = math.inf if hours is None else 3600 * MINING_TIME * hours
    mined = mine(model.to(device).eval(), net, album, run.seed, smallest, seconds)
    print(f"{net}: {mined}", flush=True)
    line = {"net": net, **{name: value for name, value in mined._asdict().items() if name != "crops"}}
    with (job.folder / MINED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return joined([drawn, mined.crops])


def describe(counts: dict[CropKind, int]) -> str:
    """Describes how many crops of each kind there are."""
    names = {CropKind.NEGATIVE: "negatives", CropKind.POSITIVE: "positives", CropKind.PART: "parts"}
    return ", ".join(f"{n:,} {names.get(kind, 'with landmarks')}" for kind, n in counts.items())
