"""Puts the weights of a training run into the package, with their configuration, figures and model card.

    python scripts/ship_weights.py runs/s3fd_lite --val faces/val --widerface ground_truth --images wider_val/images
    python scripts/ship_weights.py --measure mtcnn --val faces/val ...    # measures weights that are bundled already
    python scripts/ship_weights.py --times --val faces/val                # times all bundled weights, in turns

Writes `pyface/weights/NAME.safetensors` (half precision), `NAME.json` (the run's configuration), `NAME.md` (the card)
and the model's part of `figures.json`. Cards, `pyface models` and, through benchmarks/report.py, README.md and mtcnn's
card take their figures from there. Prints the SHA-256 for the registry in `pyface/models/zoo.py`. The score threshold
with the best F1 on the first set (the run's held-out images, or else the first --val) becomes the model's default.
"""

import argparse
import copy
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from pyface import FaceDetector
from pyface.data.annotations import AnnotatedImage
from pyface.data.folder import read_folder
from pyface.evaluation import LOWEST_SCORE
from pyface.evaluation.faces import Report, evaluate
from pyface.io.images import Pixels, read_image
from pyface.models.base import FaceModel
from pyface.models.checkpoints import save_checkpoint
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import REGISTRY, create_model, list_models
from pyface.training.album import split
from pyface.training.folder import CONFIG, counted, read_config, write_config
from pyface.training.recipes import Run

WEIGHTS = Path(__file__).parents[1] / "pyface" / "weights"
FIGURES = WEIGHTS / "figures.json"
SIZES = (640, 1024)
TIMED = "From a decoded image to faces"  # what a card says before its time
SETS = {
    "val": "faces/val, photos, many with medical masks",
    "held_out": "held out of the training data",
    "bare": "held out of part3, bare faces",
}
DATA = (
    "14,330 photos with 83,000 faces and 1,016 without: parts of WIDER FACE's training set, Caltech 10,000 Web Faces, "
    "Face Counting Challenge, ShanghaiTech A, Flickr8k, YouTube Faces frames, Kaggle 'Face Mask Detection' (CC0), mask "
    "photos from the web; some boxes and most landmarks are pseudo labels"
)
LICENCE = "trained on research-only and unlicensed web images: for research; ask a lawyer before other use"
LIMITS = (
    "- Faces under {smallest:.0f} px at the network's scale are missed more often. Use a larger `size`, or `tile`.",
    "- Animals' heads, hands, emblems and bare skin are sometimes detected as faces, even with high scores.",
    "- Accuracy across groups of people has not been measured. Measure it on your own images before you rely on it.",
)


def main() -> None:
    arguments = parse()
    if arguments.times:
        update_times(arguments.val)
    else:
        ship_or_measure(arguments)


def ship_or_measure(arguments: argparse.Namespace) -> None:
    if arguments.measure:
        name, model, run, sets = arguments.measure, create_model(arguments.measure), None, {}
    else:
        run = read_config(arguments.run / CONFIG)
        first = run.weights or run.backbone
        if first is not None and arguments.start is None:
            sys.exit(
                f"the run began with {first}; give --start, a phrase for the card on where these weights come from"
            )
        file = arguments.run / f"{arguments.weights}.safetensors"
        name, model, sets = run.model, rounded_model(run, file), held_out(run)
    sets |= {folder.name: read_folder(folder) for folder in arguments.val}
    if not sets:
        sys.exit("there is nothing to measure on; give --val DIR")
    reports = {
        (of, size): evaluate(FaceDetector(model, size=size, score_threshold=LOWEST_SCORE), pictures)[0]
        for of, pictures in sets.items()
        for size in sizes_of(model)
    }
    if run is not None:
        threshold = reports[next(iter(reports))].score_threshold
        ship(run, model, threshold)
    figures: dict[str, Any] = {} if run is None else {"weights": arguments.weights}
    figures |= figures_of(model, reports, latencies({name: model}, next(iter(sets.values())))[name])
    if arguments.widerface:
        figures["widerface"] = {str(size or "own"): widerface(name, size, arguments) for size in sizes_of(model)}
    everything = read_figures()
    kept = everything.get(name, {}) if run is None else {}  # older figures stay, unless the weights are new
    everything[name] = kept | figures | {"sets": kept.get("sets", {}) | figures["sets"]}
    write_figures(everything)
    if run is not None:
        file = WEIGHTS / f"{name}.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        text = card(run, model, digest, everything[name], arguments.start)
        file.with_suffix(".md").write_text(text, encoding="utf-8")
        print(f"{file.name}: {file.stat().st_size:,} bytes, SHA-256 {digest}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument("--measure", choices=list(REGISTRY), help="measure the package's weights instead")
    parser.add_argument("--times", action="store_true", help="time all of the package's weights instead, in turns")
    parser.add_argument(
        "--weights",
        choices=["best", "last"],
        default="best",
        help="the run's best.safetensors or last.safetensors",
    )
    parser.add_argument("--start", help="initial weights, as a phrase for the card: 'the backbone of ...'")
    parser.add_argument("--val", type=Path, action="append", default=[], help="annotated folder; may be repeated")
    parser.add_argument("--widerface", type=Path, help="folder with WIDER FACE's ground truth")
    parser.add_argument("--images", type=Path, help="folder with its validation images")
    arguments = parser.parse_args()
    if [arguments.run is not None, arguments.measure is not None, arguments.times].count(True) != 1:
        parser.error("name the folder of a run, or a model with --measure, or give --times")
    if arguments.times and not arguments.val:
        parser.error("--times needs images; give --val DIR")
    if (arguments.widerface is None) != (arguments.images is None):
        parser.error("--widerface and --images must be given together")
    return arguments


def held_out(run: Run) -> dict[str, list[AnnotatedImage]]:
    """The images that a run held out; those of part3, faces without masks, are an additional set."""
    if not run.held_out:
        return {}
    pictures = split(run.data, run.held_out)[1]
    bare = [picture for picture in pictures if "part3" in picture.path.parts]
    return {"held_out": pictures} | ({"bare": bare} if bare else {})


def sizes_of(model: FaceModel) -> tuple[int | None, ...]:
    return SIZES if model.takes_options else (None,)


def rounded_model(run: Run, path: Path) -> SingleShot:
    """The model with weights rounded to half precision, as it is shipped and therefore measured."""
    model = create_model(run.model, path).half().float()
    if not model.trains_on_images:
        raise ValueError(f"{run.model} trains on crops; this script ships single-shot detectors only")
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ValueError(f"{path} holds numbers beyond half precision")
    return model


def ship(run: Run, model: SingleShot, threshold: float) -> None:
    """Writes the weights and their configuration."""
    file = WEIGHTS / f"{run.model}.safetensors"
    settings = asdict(replace(model.config, score_threshold=threshold))
    save_checkpoint(file, copy.deepcopy(model).half(), run.model, settings)
    run = replace(run, data=folders(run, run.data), val=folders(run, run.val))
    write_config(replace(run, settings=run.settings or asdict(REGISTRY[run.model].config)), file.with_suffix(".json"))


def folders(run: Run, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Folders relative to the parent of their common folder, such as faces/train."""
    above = Path(os.path.commonpath([os.path.abspath(path) for path in (*run.data, *run.val)])).parent
    return tuple(os.path.relpath(path, above) for path in paths)


def widerface(name: str, size: int | None, arguments: argparse.Namespace) -> dict[str, float]:
    """WIDER FACE's average precision by subset, as `pyface evaluate widerface` prints it for the bundled weights."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "pyface", "evaluate", "widerface", "--model", name]
        command += ["--ground-truth", str(arguments.widerface), "--images", str(arguments.images)]
        command += ["--weights", str(WEIGHTS / f"{name}.safetensors"), "--predictions", f"{folder}/predictions"]
        command += ["--json", str(figures), *([] if size is None else ["--size", str(size)])]
        subprocess.run(command, check=True)
        precision = json.loads(figures.read_text(encoding="utf-8"))["average_precision"]
    return {subset: round(value, 4) for subset, value in precision.items()}


def latencies(models: dict[str, FaceModel], pictures: list[AnnotatedImage], count: int = 40) -> dict[str, float]:
    """Median milliseconds from a decoded image of 640 px to faces, one image at a time on two threads.

    The models take turns, so that what else the machine does meets all of them. The images are scaled beforehand, for
    models that do not scale them.
    """
    torch.set_num_threads(2)
    detectors = {
        name: FaceDetector(model, device="cpu", threads=2, size=sizes_of(model)[0]) for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for picture in pictures[:count]:
        image = scaled(read_image(picture.path))
        for name, detector in detectors.items():
            detector(image)
            start = time.perf_counter()
            detector(image)
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(of) for name, of in times.items()}


def scaled(image: Pixels) -> Pixels:
    """The image with a longer side of 640 px."""
    factor = SIZES[0] / max(image.shape[:2])
    between = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=between)


def update_times(folders: list[Path]) -> None:
    """Times all bundled weights, and changes the times in `figures.json` and in this script's cards."""
    pictures = [picture for folder in folders for picture in read_folder(folder)]
    found = latencies({name: create_model(name) for name in list_models(pretrained=True)}, pictures)
    everything = read_figures()
    for name, milliseconds in found.items():
        milliseconds = everything[name]["milliseconds"] = round(milliseconds, 1)  # rounded once, for both
        file = WEIGHTS / f"{name}.md"
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(rf"(?<={TIMED}: )\d+ ms", f"{milliseconds:.0f} ms", text), encoding="utf-8")
        print(f"{name}: {milliseconds:.1f} ms")
    write_figures(everything)


def read_figures() -> dict[str, Any]:
    """What `figures.json` holds, by model."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def write_figures(everything: dict[str, Any]) -> None:
    FIGURES.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n", encoding="utf-8")


def figures_of(model: FaceModel, reports: dict[tuple[str, int | None], Report], milliseconds: float) -> dict[str, Any]:
    """A model's part of `figures.json`, without the figures of WIDER FACE."""
    sets: dict[str, Any] = {}
    for (name, size), report in reports.items():
        of = sets.setdefault(name, {"pictures": report.pictures, "faces": report.faces})
        of[str(size or "own")] = {
            **{f"AP@{iou:g}": round(value, 4) for iou, value in report.average_precision.items()},
            "best_f1": round(report.best_f1, 4),
            "best_threshold": report.score_threshold,
            "landmark_error": None if report.landmark_error is None else round(report.landmark_error, 4),
            "by_size": {name: round(part["average_precision"][0.5], 4) for name, part in report.by_size.items()},
        }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "milliseconds": round(milliseconds, 1), "sets": sets}


def card(run: Run, model: SingleShot, digest: str, figures: dict[str, Any], start: str | None) -> str:
    """The model card."""
    recipe, name = run.recipe, run.model
    length = f"{run.max_hours:g} hours" if run.max_hours is not None else counted(recipe.epochs, "epoch")
    lines = [
        f"# {name}.safetensors",
        "",
        f"Weights of `{name}`, trained by this project from {start or 'random initial weights'}.",
        "",
        "| | |",
        "|---|---|",
        f"| Trained by | `pyface train --config pyface/weights/{name}.json --out runs/{name}` |",
        f"| Recipe | {length}, {recipe.size} px samples in batches of {recipe.batch_size}, {run.precision}; "
        f"[the configuration]({name}.json) has all settings |",
        f"| Data | {DATA} |",
        f"| SHA-256 | `{digest}` |",
        f"| Licence | {LICENCE} |",
        "",
        "The weights are float16. `scripts/ship_weights.py` wrote them and this card.",
        "",
        *measured(name, model, figures),
        "",
        "## Limits",
        "",
        *(line.format(smallest=model.smallest_face) for line in LIMITS),
    ]
    return "\n".join(lines) + "\n"


def measured(name: str, model: SingleShot, figures: dict[str, Any]) -> list[str]:
    """The lines of the card that show the figures."""
    chosen = "The score threshold was" if figures["weights"] == "last" else "The weights and the score threshold were"
    first = next(iter(figures["sets"]))
    lines = [
        "## Measured",
        "",
        f"One scale; `size` is the longer side in pixels. Detections with a score above {LOWEST_SCORE}.",
        "",
    ]
    if "widerface" in figures:
        lines += [
            f"WIDER FACE validation, all 3,226 images, `pyface evaluate widerface --model {name} --size N`; none of "
            "them was trained on:",
            "",
            "| size | easy | medium | hard |",
            "|---|---|---|---|",
            *(
                f"| {size} | {of['easy']:.3f} | {of['medium']:.3f} | {of['hard']:.3f} |"
                for size, of in figures["widerface"].items()
            ),
            "",
        ]
    lines += [
        f"Other images, `pyface evaluate faces --model {name} --data DIR --size N`:",
        "",
        "| images | size | AP@0.5 | AP@0.4 | best F1 | landmark error |",
        "|---|---|---|---|---|---|",
    ]
    for of, values in figures["sets"].items():
        for size in map(str, sizes_of(model)):
            row = values[size]
            error = "-" if row["landmark_error"] is None else f"{row['landmark_error']:.1%}"
            lines.append(
                f"| {SETS.get(of, of)} ({values['faces']:,} faces) | {size} | {row['AP@0.5']:.3f} | "
                f"{row['AP@0.4']:.3f} | {row['best_f1']:.3f} | {error} |"
            )
    by_size, threshold = (figures["sets"][first][str(SIZES[0])][key] for key in ("by_size", "best_threshold"))
    lines += [
        "",
        "The landmark error is the mean distance of predicted from annotated points, as a share of the square root of "
        f"the face's area. {chosen} chosen on the first set, whose images come from the same sources as the training "
        "data. [docs/training.md](../../docs/training.md) has figures of other detectors.",
        "",
        f"AP@0.5 by face size in the image, {SETS.get(first, first)}, {SIZES[0]} px:",
        "",
        "| " + " | ".join(f"{size} px" for size in by_size) + " |",
        "|" + "---|" * len(by_size),
        "| " + " | ".join(f"{value:.3f}" for value in by_size.values()) + " |",
        "",
        f"{TIMED}: {figures['milliseconds']:.0f} ms at {SIZES[0]} px on two CPU threads. The "
        f"default score threshold, {threshold:.3f}, has the best F1 on the first set.",
    ]
    return lines


if __name__ == "__main__":
    main()
