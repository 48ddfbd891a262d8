"""Lightning's trainer: devices, logs, the progress bar, and the errors of a run in one sentence."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pyface.data.annotations import DatasetError
from pyface.detector import is_out_of_memory
from pyface.training.callbacks import Average, Measuring, Saving
from pyface.training.folder import CHECKPOINT
from pyface.training.recipes import Run, TrainingError


def started_by_torchrun() -> int | None:
    """Number of processes that `torchrun` started; None if this process was started otherwise."""
    return int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else None


def local_devices(run: Run) -> int:
    """Number of the run's processes on this machine; `torchrun` may have started others elsewhere."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else run.devices


def check_device(run: Run, accelerator: str) -> None:
    """Checks that this machine has the device that a run needs.

    Raises:
        TrainingError: There is no GPU, or the CPU does not support the precision.
    """
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise TrainingError("this machine has no CUDA GPU; remove --device cuda")
    if run.precision == "16-mixed" and (accelerator == "cpu" or not has_gpu):
        raise TrainingError("precision must be fp32 or bf16 on a CPU, got fp16")


def make_trainer(
    run: Run,
    folder: Path,
    accelerator: str,
    *,
    average: Average,
    measuring: Measuring | None,
    steps: int | None,
    per_epoch: int,
    hours: float | None,
) -> L.Trainer:
    """Builds Lightning's trainer.

    Args:
        run: The run's configuration.
        folder: The folder for the checkpoint and the logs.
        accelerator: "auto", "cpu" or "gpu".
        average: Keeps the averaged weights.
        measuring: Measures the model during training; None: nothing is measured.
        steps: Number of steps; None: training ends after `hours`.
        per_epoch: Number of steps per epoch.
        hours: Length of the training; None: it ends after `steps`.
    """
    quieten()
    torch.set_float32_matmul_precision("high")  # TF32 where available
    logs = str(len(list((folder / "logs").glob("*"))))  # a new folder each time the run is started or resumed
    # Log often enough that short or killed runs have rows too.
    rows = 20 if steps is None else max(1, min(20, steps // 20))
    callbacks: list[L.Callback] = [average, *([measuring] if measuring else []), Saving(folder / CHECKPOINT)]
    if sys.stdout.isatty():
        callbacks.append(Bar(measuring, steps // per_epoch if steps else None))
    if hours is not None:
        callbacks.append(Timer(timedelta(hours=hours), verbose=False))
    return L.Trainer(
        accelerator=accelerator,
        devices=local_devices(run),
        num_nodes=run.devices // local_devices(run),
        use_distributed_sampler=False,  # `Samples` shares samples out by number
        precision=run.precision,
        max_steps=steps if steps is not None else -1,
        max_epochs=-1,
        callbacks=callbacks,
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
        raise TrainingError("there is not enough memory for a step; use a smaller --batch-size or --size") from error


class Bar(RichProgressBar):
    """Lightning's progress bar, with the newest average precision.

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
