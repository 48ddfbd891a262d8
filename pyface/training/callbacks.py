"""What happens during a run besides training: the moving average, measurements and checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyface.data.annotations import AnnotatedImage
from pyface.detections import Detections
from pyface.detector import FaceDetector
from pyface.draw import draw
from pyface.evaluation import LOWEST_SCORE
from pyface.evaluation.faces import Report, detect_all, score
from pyface.io.images import read_image
from pyface.models.checkpoints import save_checkpoint
from pyface.models.single_shot import SingleShot
from pyface.training.folder import MEASURED
from pyface.training.recipes import TrainingError


class Average(L.Callback):
    """The exponential moving average of a model's weights and statistics, kept in a copy of the model.

    Args:
        decay: Largest decay; step n uses (1 + n) / (10 + n) while that is smaller.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model: SingleShot | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Copies the model before training; a checkpoint's state is loaded into the copy."""
        if self.model is None:
            self.model = copy.deepcopy(pl_module.model).eval().requires_grad_(False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Moves the copy to the model's device."""
        assert self.model is not None
        self.model.to(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Updates the average with the model's current weights."""
        assert self.model is not None
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = zip(self.model.state_dict().values(), pl_module.model.state_dict().values(), strict=True)
        ours, theirs = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(list(ours), list(theirs), None)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        assert self.model is not None
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        assert self.model is not None
        self.updates = state_dict["updates"]
        self.model.load_state_dict(state_dict["model"])


class Measuring(L.Callback):
    """Measures the averaged model at intervals during the run, and keeps the best weights.

    Args:
        sets: Images by the name of their set. The first set decides which weights are best, by the mean of its average
            precisions.
        average: Keeps the averaged model, which is measured.
        times: Number of measurements, evenly spread over the run.
        folder: The run's folder, for `best.safetensors`, `last.safetensors`, `measured.jsonl` and `pictures/`.
        name: The model's name in the registry.
    """

    IMAGES = 4  # images per set that are drawn at each measurement

    def __init__(
        self, sets: Mapping[str, Sequence[AnnotatedImage]], average: Average, times: int, folder: Path, name: str
    ) -> None:
        self.sets, self.average, self.times, self.folder, self.name = dict(sets), average, times, folder, name
        self.done, self.best = 0, -1.0
        self.figures: dict[str, float] = {}  # of the newest measurement

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Drops measurements that an interrupted run made after its checkpoint: they are about to be repeated."""
        path = self.folder / MEASURED
        if not trainer.is_global_zero or not path.exists():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
        part = path.with_name(f"{MEASURED}.part")
        part.write_text("".join(kept), encoding="utf-8")
        part.replace(path)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measures at the end of each interval."""
        due = math.floor(pl_module.progress() * self.times)
        if due > self.done:
            self.done = due
            self.measure(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Takes the last measurement if it is still due."""
        if self.done < self.times:
            self.measure(trainer, pl_module)

    def measure(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Detects faces in all images, shared out between the ranks, and writes the results on the first rank."""
        assert self.average.model is not None
        check_finite(pl_module)
        progress = pl_module.progress()
        if trainer.world_size > 1:  # running statistics of normalisation differ between ranks
            for value in self.average.model.state_dict().values():
                torch.distributed.broadcast(value, src=0)
        detector = FaceDetector(
            copy.deepcopy(self.average.model), device=pl_module.device, score_threshold=LOWEST_SCORE
        )
        reports, drawn = {}, {}
        for name, pictures in self.sets.items():
            found = gather(trainer, list(detect_all(detector, pictures[trainer.global_rank :: trainer.world_size])))
            reports[name] = score(pictures, found, (0.5, 0.4))
            drawn[name] = [
                draw(read_image(picture.path), faces[faces.scores >= reports[name].best_threshold])
                for picture, faces in list(zip(pictures, found, strict=True))[: self.IMAGES]
            ]
        if trainer.is_global_zero:
            self._write(trainer, progress, reports, drawn)

    def _write(
        self, trainer: L.Trainer, progress: float, reports: dict[str, Report], drawn: dict[str, list[Any]]
    ) -> None:
        import cv2

        self.figures = figures = {
            f"{name}/AP@{iou:g}": value for name, of in reports.items() for iou, value in of.average_precision.items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                for name, pictures in drawn.items():
                    for k, picture in enumerate(pictures):
                        logger.experiment.add_image(f"{name}/{k}", picture, trainer.global_step, dataformats="HWC")
            logger.save()  # a run may be killed at any moment
        for name, pictures in drawn.items():
            for k, picture in enumerate(pictures):
                path = self.folder / "pictures" / f"{trainer.global_step:06d}_{name}_{k}.jpg"
                path.parent.mkdir(exist_ok=True)
                cv2.imwrite(str(path), picture[..., ::-1])
        self._save("last.safetensors", reports)
        leading = next((statistics.mean(of.average_precision.values()) for of in reports.values()), None)
        if leading is None or leading > self.best:
            self.best = self.best if leading is None else leading
            self._save("best.safetensors", reports)
        line: dict[str, Any] = {"step": trainer.global_step, "progress": round(progress, 4)}
        line |= {name: of.to_dict() for name, of in reports.items()}
        with (self.folder / MEASURED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        values = {"loss": float(trainer.callback_metrics.get("loss", torch.nan)), **figures}
        text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"step {trainer.global_step}, {progress:.0%} of the run: {text}", flush=True)

    def _save(self, file: str, reports: dict[str, Report]) -> None:
        """Saves the weights; the score threshold with the best F1 on the first set becomes the model's default."""
        assert self.average.model is not None
        config: Any = self.average.model.config
        first = next(iter(reports.values()), None)
        if first is not None and first.best_f1 > 0:
            config = self.with_threshold(config, first.score_threshold)
        save(self.folder / file, self.average.model, self.name, config)

    def with_threshold(self, config: Any, threshold: float) -> Any:
        """A model's configuration with the given score threshold."""
        return dataclasses.replace(config, score_threshold=threshold)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"done": self.done, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        self.done, self.best = state_dict["done"], state_dict["best"]


class Saving(L.Callback):
    """Saves the state needed to resume, a hundred times during a run and at its end.

    The file is replaced only when the new one is complete.

    Args:
        path: The file.

    Raises:
        TrainingError: Some weights are NaN or infinite. The file then stays as it was.
        OSError: The file cannot be written; it stays as it was, and `filename` is its name.
    """

    TIMES = 100

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves after each hundredth of the run."""
        due = math.floor(pl_module.progress() * self.TIMES)
        if due > self.done:
            self.done = due
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves the final state."""
        self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves a checkpoint; all ranks must call this, and the first one writes."""
        check_finite(pl_module)
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                with part.open("rb") as file:  # otherwise a power cut may leave an empty file under the final name
                    os.fsync(file.fileno())
                part.replace(self.path)
        except OSError as error:  # Lightning's names a temporary file
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def save(path: Path, model: nn.Module, name: str, config: Any) -> None:
    """Saves weights with the model's complete configuration, since defaults may change."""
    save_checkpoint(path, model, name, dataclasses.asdict(config))


def gather(trainer: L.Trainer, own: list[Detections]) -> list[Detections]:
    """Gathers the detections of all ranks in the order of the images; rank r had images r, r + world, ..."""
    if trainer.world_size == 1:
        return own
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, own)
    return [parts[k % len(parts)][k // len(parts)] for k in range(sum(map(len, parts)))]


def check_finite(module: L.LightningModule) -> None:
    """Stops a run with broken weights before it overwrites good ones.

    Raises:
        TrainingError: Some weights are NaN or infinite.
    """
    if not all(value.isfinite().all() for value in module.state_dict().values()):
        raise TrainingError(
            f"the weights are NaN or infinite after step {module.global_step}; start again with a lower --rate or "
            "with --precision fp32"
        )
