"""Training with Lightning: data, the training step, the optimiser and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyface.models.base import GroundTruth
from pyface.models.single_shot import SingleShot
from pyface.training.album import Album
from pyface.training.crop_rules import Rule
from pyface.training.muon import Muon
from pyface.training.recipes import Recipe
from pyface.training.samples import Batch, Samples, render


class Data(L.LightningDataModule):
    """Samples of an album, with their pixels made on the device.

    Args:
        album: The images.
        recipe: Hyperparameters.
        rule: The crop rule.
        model: The detector; its preprocessing is applied to the pixels.
        seed: Random seed of the samples.
        workers: Number of processes that prepare samples.
    """

    def __init__(self, album: Album, recipe: Recipe, rule: Rule, model: SingleShot, seed: int, workers: int) -> None:
        super().__init__()
        self.album, self.recipe, self.rule, self.seed, self.workers = album, recipe, rule, seed, workers
        self.preprocessing = model.preprocessing
        self.on_device: list[Tensor] | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of an epoch, or what is left of it: they start at the trainer's current step."""
        trainer = self.trainer
        assert trainer is not None
        world = trainer.world_size
        per_epoch = max(1, len(self.album) // (self.recipe.batch_size * world))
        samples = Samples(
            self.album, self.recipe, self.rule, self.seed, trainer.global_step, per_epoch, trainer.global_rank, world
        )
        return DataLoader(samples, batch_size=None, num_workers=self.workers, pin_memory=torch.cuda.is_available())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves ground truth, pixels and colours to the device; crop positions stay on the CPU, which reads them."""
        truth = GroundTruth(*(None if x is None else x.to(device, non_blocking=True) for x in batch.truth))  # type: ignore[arg-type]
        pixels = None if batch.pixels is None else [x.to(device, non_blocking=True) for x in batch.pixels]
        return batch._replace(truth=truth, pixels=pixels, colours=batch.colours.to(device, non_blocking=True))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, GroundTruth]:
        """Turns a batch into the network's input and the ground truth."""
        device = batch.colours.device
        if self.on_device is None and self.album.images is not None:
            self.on_device = [image.to(device) for image in self.album.images]
        images = batch.pixels if self.on_device is None else self.on_device
        samples = render(batch, images or [])
        for k, (mean, std) in enumerate(zip(self.preprocessing.mean, self.preprocessing.std, strict=True)):
            samples[:, k].sub_(mean).div_(std)
        samples = samples.flip(1) if self.preprocessing.bgr else samples
        return samples.contiguous(memory_format=torch.channels_last), batch.truth


class Training(L.LightningModule):
    """A model, its loss and its optimiser.

    Args:
        model: The detector.
        recipe: Hyperparameters.
        steps: Number of steps of the whole run. None: it trains for a fixed time, and a `Timer` gives its progress.
    """

    def __init__(self, model: SingleShot, recipe: Recipe, steps: int | None) -> None:
        super().__init__()
        self.model, self.recipe, self.steps = model, recipe, steps
        self.has_trained = False  # whether this process has trained on a batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimiser; biases and normalisation layers have no weight decay."""
        recipe = self.recipe
        groups: dict[str, dict[str, Any]] = {
            "normalized": {"weight_decay": recipe.weight_decay, "scale": 1.0, "orthogonal": True},
            "weight": {"weight_decay": recipe.weight_decay, "scale": 1.0, "orthogonal": False},
            "scale": {"weight_decay": 0.0, "scale": 1.0, "orthogonal": False},
            "bias": {"weight_decay": 0.0, "scale": recipe.bias_rate, "orthogonal": False},
        }
        for layer in self.modules():  # a subclass may have layers besides its model's
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.requires_grad:
                    groups[kind_of(layer, name, parameter)].setdefault("params", []).append(parameter)
        used = [group for group in groups.values() if "params" in group]
        if recipe.optimizer == "muon":
            return Muon(used, lr=recipe.rate)
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(used, lr=recipe.rate)
        return torch.optim.SGD(used, lr=recipe.rate, momentum=0.9)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the learning rate, which depends only on the run's progress, in steps or in time."""
        self.has_trained = True
        rate = self.recipe.rate * factor(self.recipe, self.progress())
        optimizer = self.optimizers()
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate * group["scale"]
        self.log("rate", rate)

    def progress(self) -> float:
        """The share of the run that is done, from 0 to 1, in steps or in time.

        All ranks must call it together, and get the same value.
        """
        if self.steps is not None:
            return min(1.0, self.trainer.global_step / self.steps)
        timer = next(callback for callback in self.trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
        spent, left = timer.time_elapsed(), timer.time_remaining()
        share = min(1.0, spent / (spent + left)) if left is not None and spent + left > 0 else 0.0
        # Clocks differ between ranks, but the learning rate must not.
        return share if self.trainer.world_size == 1 else self.trainer.strategy.broadcast(share)

    def training_step(self, batch: tuple[Tensor, GroundTruth], batch_idx: int) -> Tensor:
        """Returns the sum of the loss terms and logs each of them."""
        images, truth = batch
        terms = self.model.loss(self.model(images), truth, seed=self.global_step)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({name: value.detach() for name, value in terms.items()}, prog_bar=True)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips by the norm of all gradients together."""
        self.clip_gradients(optimizer, gradient_clip_val=self.recipe.clip, gradient_clip_algorithm="norm")


def kind_of(layer: nn.Module, name: str, parameter: Tensor) -> str:
    """The group of a layer's parameter: "normalized", "weight", "scale" or "bias".

    "normalized" is for convolutions without a bias: the normalisation that follows makes their scale irrelevant.
    """
    if parameter.ndim > 1:
        return "normalized" if isinstance(layer, nn.Conv2d) and layer.bias is None else "weight"
    return "bias" if name == "bias" else "scale"


def factor(recipe: Recipe, progress: float) -> float:
    """The factor of the learning rate when a share `progress` of the run is done.

    Example:
        >>> factor(Recipe(warm_up=0.1), 0.05), round(factor(Recipe(warm_up=0.0), 0.5), 3)
        (0.5, 0.5)
        >>> [factor(Recipe(schedule=(0.5, 0.75), warm_up=0.0), p) for p in (0.4, 0.5, 0.8)]
        [1.0, 0.1, 0.01]
    """
    if progress < recipe.warm_up:
        return progress / recipe.warm_up
    if isinstance(recipe.schedule, tuple):
        return round(0.1 ** sum(progress >= end for end in recipe.schedule), 12)
    rest = (progress - recipe.warm_up) / (1 - recipe.warm_up) if recipe.warm_up < 1 else 1.0
    return (1 + math.cos(math.pi * rest)) / 2
