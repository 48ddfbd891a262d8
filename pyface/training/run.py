"""Training runs: a configuration in, a folder of weights, measurements and logs out."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from pyface.training.album import Album, measured_sets, split
from pyface.training.cascade import check_cascade, is_complete, train_cascade
from pyface.training.folder import Job, check_folder, say_complete
from pyface.training.recipes import Run
from pyface.training.single_shot import check_single_shot, train_single_shot
from pyface.training.trainer import check_device, local_devices


def train(run: Run, folder: Path, *, accelerator: str = "auto", resume: bool = False) -> None:
    """Trains a model. MTCNN's networks are trained one after another.

    Args:
        run: The configuration; written to `config.json`.
        folder: The run's folder. It gets `best.safetensors` and `last.safetensors` (averaged weights, which
            `FaceDetector(weights=...)` takes), `measured.jsonl`, `pictures/`, `metrics.csv` and TensorBoard's files in
            `logs/`, and `last.ckpt`, the state needed to resume. MTCNN's networks have their own folders inside it.
        accelerator: "auto", "cpu" or "gpu".
        resume: Continue from `last.ckpt`, or from the beginning if the run was interrupted before writing it.

    Raises:
        TrainingError: The run cannot start as configured, or its weights became NaN.
        DatasetError: The data are malformed, unreadable or without faces.
    """
    is_cascade = run.model == "mtcnn"
    check_folder(folder, resume)
    check_device(run, accelerator)
    if not is_cascade:
        check_single_shot(run, folder)
    else:
        check_cascade(run)
        if is_complete(folder):
            say_complete(run, folder, "was already")
            return
    pictures, held_out = split(run.data, run.held_out)
    sets = measured_sets(run.val, held_out)
    album = Album(pictures, accelerator=accelerator, sharers=local_devices(run))
    L.seed_everything(run.seed, workers=True, verbose=False)
    job = Job(run, folder, resume, accelerator, album, sets)
    if is_cascade:
        train_cascade(job)
    else:
        train_single_shot(job)
