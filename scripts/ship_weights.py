"""Puts the weights of a training run into the package, with its configuration and a model card of what they reach.

    python scripts/ship_weights.py runs/s3fd_lite

Writes `pyface/weights/NAME.safetensors` (half precision), `NAME.json` (the run's configuration) and `NAME.md`, and
prints the SHA-256 for the registry in `pyface/models/zoo.py`. The score threshold of the best F1 on the first set
becomes the model's own.
"""

import argparse
import copy
import hashlib
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pyface import FaceDetector
from pyface.dataset import Picture
from pyface.evaluation.faces import Report, evaluate
from pyface.images import read_image
from pyface.models.checkpoints import save_checkpoint
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import REGISTRY, create_model
from pyface.training.album import split
from pyface.training.recipes import Run
from pyface.training.run import CONFIG, measured_sets, read_config, write_config

WEIGHTS = Path(__file__).parents[1] / "pyface" / "weights"
SIZES = (640, 1024)
LOWEST_SCORE = 0.02
SETS = {"val": "faces/val, photos, many with medical masks", "held_out": "held out of part3, bare faces"}
DATA = (
    "6,314 photos with 37,866 faces and 1,016 without: Kaggle 'Face Mask Detection' (CC0), mask photos from the web, "
    "Face Counting Challenge, ShanghaiTech A, Flickr8k, YouTube Faces frames; many boxes are pseudo labels"
)
LIMITS = (
    "- Small data: faces on their side, in odd light, painted or drawn are often missed.",
    "- Faces below {smallest:.0f} px in the network's picture are missed more often: give a larger `size` or a `tile`.",
    "- Animals' heads, hands, emblems and bare skin are sometimes taken for faces, with high scores too.",
    "- Nobody measured how well it works across groups of people; measure on your own pictures before you rely on it.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    arguments = parser.parse_args()
    run = read_config(arguments.run / CONFIG)
    if run.weights is not None:
        sys.exit(f"the run began with {run.weights}: the card would have to name its data and licence")
    model = rounded_model(run, arguments.run / "best.safetensors")
    sets = measured_sets(run.val, split(run.data, run.held_out)[1] if run.held_out else [])
    reports = {
        (name, size): evaluate(FaceDetector(model, size=size, score_threshold=LOWEST_SCORE), pictures)[0]
        for name, pictures in sets.items()
        for size in SIZES
    }
    first = reports[next(iter(sets)), SIZES[0]]
    file = WEIGHTS / f"{run.model}.safetensors"
    settings = asdict(replace(model.config, score_threshold=first.score_threshold))
    save_checkpoint(file, copy.deepcopy(model).half(), run.model, settings)
    run = replace(run, data=folders(run, run.data), val=folders(run, run.val))
    write_config(replace(run, settings=run.settings or asdict(REGISTRY[run.model].config)), file.with_suffix(".json"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_suffix(".md").write_text(card(run, model, digest, reports, latency(model, sets[next(iter(sets))])))
    print(f"{file.name}: {file.stat().st_size:,} bytes, SHA-256 {digest}")


def folders(run: Run, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Folders by their names in the one that holds all of the run's, and its own: faces/train."""
    above = Path(os.path.commonpath([os.path.abspath(path) for path in (*run.data, *run.val)])).parent
    return tuple(os.path.relpath(path, above) for path in paths)


def rounded_model(run: Run, path: Path) -> SingleShot:
    """The model with numbers that half precision has, which is how it is shipped and thus measured."""
    model = create_model(run.model, path).half().float()
    assert isinstance(model, SingleShot)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ValueError(f"{path} holds numbers beyond half precision")
    return model


def latency(model: SingleShot, pictures: list[Picture], count: int = 40) -> float:
    """Milliseconds from a decoded picture of 640 px to faces, one at a time on two threads: the median."""
    torch.set_num_threads(2)
    detector = FaceDetector(model, device="cpu", size=SIZES[0])
    times = []
    for picture in pictures[:count]:
        image = read_image(picture.path)
        detector(image)
        start = time.perf_counter()
        detector(image)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def card(run: Run, model: SingleShot, digest: str, reports: dict[tuple[str, int], Report], milliseconds: float) -> str:
    """The model card."""
    recipe, name = run.recipe, run.model
    sets = list(dict.fromkeys(name for name, _ in reports))
    main = reports[sets[0], SIZES[0]]
    length = f"{run.max_hours:g} hours" if run.max_hours is not None else f"{recipe.epochs} epochs"
    lines = [
        f"# {name}.safetensors",
        "",
        f"Weights of `{name}` that this project trained from a random start.",
        "",
        "| | |",
        "|---|---|",
        f"| Trained by | `pyface train --config pyface/weights/{name}.json --out runs/{name}` |",
        f"| Recipe | {length}, {recipe.size} px samples in batches of {recipe.batch_size}, {run.precision}; "
        f"[the configuration]({name}.json) has every number |",
        f"| Data | {DATA} |",
        f"| SHA-256 | `{digest}` |",
        "| Licence | trained on research-only and unlicensed web images: for research; ask a lawyer before other use |",
        "",
        "float16; `scripts/ship_weights.py` made the file and this card.",
        "",
        "## Measured",
        "",
        f"Single scale, by the longer side in pixels, scores down to {LOWEST_SCORE}; "
        f"`pyface evaluate faces --model {name} --data DIR --size N`:",
        "",
        "| pictures | size | AP@0.5 | AP@0.4 | best F1 | landmarks off by |",
        "|---|---|---|---|---|---|",
    ]
    for (of, size), report in reports.items():
        precision = " | ".join(f"{value:.3f}" for value in report.average_precision.values())
        error = "-" if report.landmark_error is None else f"{report.landmark_error:.1%}"
        lines.append(
            f"| {SETS.get(of, of)} ({report.faces:,} faces) | {size} | {precision} | {report.best_f1:.3f} | {error} |"
        )
    parts = " | ".join(f"{part['average_precision'][0.5]:.3f}" for part in main.by_size.values())
    lines += [
        "",
        "Landmarks are off by a share of the square root of a face's area, on average over the five points. "
        "`scripts/ship_weights.py` measures the second set, which has no folder of its own. The first decided which "
        "weights were kept, and the score threshold, and has its sources in common with a part of the training data; "
        "boxes of the second are other detectors', most of them of faces that a person marked. "
        "[docs/training.md](../../docs/training.md) has what other detectors reach.",
        "",
        f"AP@0.5 by size of face in the picture (the network sees most enlarged), {SETS.get(sets[0], sets[0])}, "
        f"{SIZES[0]} px:",
        "",
        "| " + " | ".join(f"{size} px" for size in main.by_size) + " |",
        "|" + "---|" * len(main.by_size),
        f"| {parts} |",
        "",
        f"From a decoded picture to faces: {milliseconds:.0f} ms at {SIZES[0]} px on two CPU threads. The default "
        f"score threshold, {main.score_threshold:.3f}, has the best F1 on the first set.",
        "",
        "## Limits",
        "",
        *(line.format(smallest=model.smallest_face) for line in LIMITS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
