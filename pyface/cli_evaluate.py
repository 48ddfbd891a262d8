"""`pyface evaluate`: protocols on the command line. As in `cli.py`, what is slow to import comes late."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyface.detector import FaceDetector
    from pyface.evaluation.curves import Curve

app = typer.Typer(help="Measures a detector, or predictions, by the usual protocols.", no_args_is_help=True)

LOWEST_SCORE = 0.02  # below it nothing adds to the area under a curve but time

Model = Annotated[str | None, typer.Option(help="Detector to run, one of those that `pyface models` shows.")]
Weights = Annotated[str, typer.Option(metavar="FILE", help="Weights of your own.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Size = Annotated[
    str | None, typer.Option(metavar="SIZE", help="As in `pyface detect`.", show_default="the model's own")
]
Multiscale = Annotated[
    str | None, typer.Option(metavar="s3fd|srn|ssh", help="As in `pyface detect`.", show_default="one scale")
]
Lowest = Annotated[float, typer.Option(min=0, max=1, help="Detections with a score above this are looked at.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the precision-recall curves.")]


@app.command()
def faces(
    model: Annotated[str, typer.Option(help="Detector to run, one of those that `pyface models` shows.")],
    data: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder with images/ and bbx_gt.txt; may be repeated.")
    ],
    iou: Annotated[list[float], typer.Option(min=0.01, max=1, help="IoU of a match; may be repeated.")] = [0.5, 0.4],  # noqa: B006
    weights: Weights = "default",
    device: Device = "auto",
    size: Size = None,
    multiscale: Multiscale = None,
    lowest_score: Lowest = LOWEST_SCORE,
    worst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the pictures with the most mistakes, drawn.")
    ] = None,
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """Average precision of a detector on annotated pictures, by size of face.

    Folders are in WIDER FACE's format. A detection that matches a box marked invalid counts neither way.
    """
    from pyface.cli import _fail, _make_detector, _parse_size

    detector = _make_detector(model, weights, _options(lowest_score, device, _parse_size(size), multiscale))
    from rich.console import Console
    from rich.table import Table

    from pyface.dataset import DatasetError, read_folder
    from pyface.evaluation.average_precision import precision_recall
    from pyface.evaluation.faces import evaluate, save_worst

    try:
        pictures = [picture for folder in data for picture in read_folder(folder)]
        report, found = evaluate(detector, pictures, iou)
    except (DatasetError, ValueError) as error:
        _fail(error)
    table = Table("faces", "number", *(f"AP@{threshold:g}" for threshold in iou))
    rows = [("all", report.faces, report.average_precision)]
    rows += [(f"{name} px", of["faces"], of["average_precision"]) for name, of in report.by_size.items()]
    for name, count, figures in rows:
        table.add_row(name, f"{count:,}", *(f"{figures[threshold]:.3f}" if count else "-" for threshold in iou))
    Console().print(table)
    typer.echo(
        f"{report.pictures:,} pictures, {report.pictures_per_second:.1f} a second; best F1 {report.best_f1:.3f} at "
        f"IoU {iou[0]:g} with --score-threshold {report.best_threshold:.3f}"
    )
    if worst is not None:
        paths = save_worst(worst, pictures, found, report.best_threshold)
        typer.echo(f"{len(paths)} pictures with mistakes in {worst}: truth yellow, ignored grey")
    _write_json(json_file, report.to_dict())
    if plot is not None:
        boxes, scores = [of.boxes.numpy() for of in found], [of.scores.numpy() for of in found]
        _plot(plot, {f"IoU {t:g}": precision_recall(pictures, boxes, scores, t) for t in iou})


@app.command()
def widerface(
    ground_truth: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR|TAR", help="Prediction files, event/image.txt; with --model: where to write them."),
    ] = None,
    model: Model = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --model: the pictures, event/image.jpg.")
    ] = None,
    weights: Weights = "default",
    device: Device = "auto",
    size: Size = None,
    multiscale: Multiscale = None,
    lowest_score: Lowest = LOWEST_SCORE,
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The WIDER FACE protocol, on prediction files or on a detector's.

    With --model and --images the detector looks at the pictures first and writes its files to --predictions.
    """
    from pyface.cli import _fail, _make_detector, _parse_size
    from pyface.evaluation.widerface import EvaluationError, evaluate, read_ground_truth, read_predictions

    if predictions is None:
        _fail("widerface needs --predictions: the files to score, or with --model the folder to write them to")
    if (model is None) != (images is None):
        _fail("--model and --images belong together")
    try:
        truth = read_ground_truth(ground_truth)
        if model is not None and images is not None:
            detector = _make_detector(model, weights, _options(lowest_score, device, _parse_size(size), multiscale))
            _predict(detector, images, predictions)
        result = evaluate(read_predictions(predictions), truth)
    except (EvaluationError, ImportError, OSError) as error:
        _fail(error)
    for name, figure in result.average_precision().items():
        typer.echo(f"{name:<7} {figure:.4f}")
    if result.missing:
        typer.echo(
            f"{_count(result.missing)} without predictions, counted as empty: {_names(result.missing)}", err=True
        )
    if result.unknown:
        typer.echo(f"{_count(result.unknown)} the ground truth does not know: {_names(result.unknown)}", err=True)
    curves = {name: _columns(curve) for name, curve in result.curves.items()}
    _write_json(json_file, {"average_precision": result.average_precision(), "curves": curves})
    if plot is not None:
        _plot(plot, result.curves)


def _options(lowest_score: float, device: str, size: Any, multiscale: str | None) -> dict[str, Any]:
    return {"score_threshold": lowest_score, "device": device, "size": size, "multiscale": multiscale}


def _predict(detector: FaceDetector, images: Path, target: Path) -> None:
    """Writes a prediction file for every picture below a folder."""
    from pyface.dataset import SUFFIXES
    from pyface.evaluation.widerface import EvaluationError, write_predictions

    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise EvaluationError(f"{images} holds no pictures, event/image.jpg")
    if target.exists() and any(target.iterdir()):
        raise EvaluationError(f"{target} holds something already, give an empty or new folder to write predictions to")
    with typer.progressbar(detector.stream(paths), length=len(paths), label="Detecting") as outcomes:
        for outcome in outcomes:
            if outcome.detections is None:
                raise EvaluationError(f"{outcome.source} cannot be read: {outcome.error}")
            path = Path(outcome.source)
            found = outcome.detections
            write_predictions(target, (path.parent.name, path.stem), found.boxes.tolist(), found.scores.tolist())


def _count(keys: list[tuple[str, str]]) -> str:
    return f"{len(keys):,} image{'' if len(keys) == 1 else 's'}"


def _names(keys: list[tuple[str, str]]) -> str:
    names = ["/".join(key) for key in keys[:10]]
    return ", ".join(names) + (f", and {len(keys) - 10:,} more" if len(keys) > 10 else "")


def _columns(curve: Curve) -> dict[str, list[float]]:
    return {name: [round(float(value), 6) for value in column] for name, column in curve._asdict().items()}


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    from pyface.cli import _fail

    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{path} cannot be written: {error.strerror}", 1)


def _plot(path: Path, curves: Mapping[str, Curve]) -> None:
    from pyface.cli import _fail
    from pyface.evaluation.plot import plot_curves

    try:
        plot_curves(path, curves)
    except (ImportError, OSError, ValueError) as error:
        _fail(error, 1)
