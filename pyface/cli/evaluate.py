"""`pyface evaluate`, and its command for annotated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from pyface.cli.console import (
    FAILED,
    check_outputs,
    fail,
    print_hint,
    print_names,
    print_status,
    show_progress,
    write_json,
    write_plot,
)
from pyface.cli.options import EvaluationOptions, JsonFile, OptionalModel, Plot, takes_options
from pyface.cli.protocols import fddb, widerface

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyface.data.annotations import AnnotatedImage, ImageRecord
    from pyface.detections import Detections
    from pyface.evaluation.faces import Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Scores a detector, or prediction files, by the standard protocols.

    Examples:

    ```
    pyface evaluate faces --data mine/ --model s3fd_lite --worst worst/
    pyface evaluate faces --data mine/ --predictions results.json --format coco
    pyface evaluate widerface --ground-truth gt/ --predictions results.tar.gz
    pyface evaluate fddb --ground-truth folds/ --predictions detections.txt
    ```
    """


@dataclass(frozen=True, kw_only=True)
class FacesRequest:
    """The options of `pyface evaluate faces`."""

    data: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder of images and annotations, or COCO file; may be repeated.")
    ]
    model: OptionalModel = None
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead of --model: any program's detections, .json (COCO), .jsonl or .csv."
        ),
    ] = None
    form: Annotated[
        Literal["faces", "coco"],
        typer.Option("--format", help="Figures: average precision by face size (faces), or COCO's twelve (coco)."),
    ] = "faces"
    iou: Annotated[list[float], typer.Option(min=0.01, max=1, help="Lowest IoU of a match; may be repeated.")] = field(
        default_factory=lambda: [0.5, 0.4]
    )
    detector: EvaluationOptions
    worst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the 20 images with the most mistakes, annotated.")
    ] = None
    json_file: JsonFile = None
    plot: Plot = None


class Measured(NamedTuple):
    """What was detected in the images, and its figures.

    Attributes:
        found: The detections of each image.
        rows: The same as float64 [N, 5]: x, y, width, height and score.
    """

    report: Report
    found: list[Detections]
    rows: list[NDArray[np.float64]]


@app.command()
@takes_options
def faces(context: typer.Context, request: FacesRequest) -> None:
    """Measures the average precision of a detector, or of a file of detections, by face size on annotated images.

    Data folders are in the format of WIDER FACE (images/ and bbx_gt.txt), COCO or YOLO. A detection that matches an
    ignore box does not count. `--format coco` gives the figures of pycocotools.

    Examples:

    ```
    pyface evaluate faces --data mine/ --model s3fd_lite --json figures.json
    pyface evaluate faces --data mine/ --predictions faces.jsonl
    pyface evaluate faces --data mine/ --predictions results.json --format coco
    ```
    """
    if (request.model is None) == (request.predictions is None):
        fail("faces needs --model, a detector to run, or --predictions, a file of detections; give one of them")
    if request.model is None:
        request.detector.refuse(context)
    check_outputs(request.json_file, request.plot, request.worst)
    images = _read_folders(request.data)
    measured = _run_detector(request, images) if request.model else _read_predictions(request, images)
    report = measured.report
    if request.form == "coco":
        figures: dict[str, Any] = _coco_figures(images, measured.rows)
        _print_coco(figures)
    else:
        figures = report.to_dict()
        _print_faces(report, request.iou)
    write_json(request.json_file, figures)
    annotated = _annotated(images)
    if request.plot is not None:
        from pyface.evaluation.faces import curves

        write_plot(request.plot, "plot_curves", curves(annotated, measured.found, request.iou))
    if request.worst is not None:
        _save_worst(request.worst, annotated, measured.found, report.best_threshold, request.iou[0])


def _run_detector(request: FacesRequest, images: Sequence[ImageRecord]) -> Measured:
    from pyface.data.annotations import DatasetError

    detector = request.detector.request(str(request.model)).make()
    from pyface.evaluation.coco import rows_of
    from pyface.evaluation.faces import evaluate  # here, so that mistakes above do not wait for torch

    try:
        report, found = evaluate(
            detector, _annotated(images), request.iou, track=lambda results: show_progress(results, len(images))
        )
    except (DatasetError, ValueError) as error:
        fail(error)
    return Measured(report, found, [rows_of(of) for of in found])


def _read_predictions(request: FacesRequest, images: Sequence[ImageRecord]) -> Measured:
    from pyface.data.annotations import DatasetError
    from pyface.evaluation.faces import score
    from pyface.evaluation.files import EvaluationError
    from pyface.evaluation.predictions import read_predictions

    file, annotated = Path(str(request.predictions)), _annotated(images)
    try:
        predictions = read_predictions(file, images)
        found = predictions.detections(images)
    except (DatasetError, EvaluationError) as error:
        fail(error)
    if len(predictions.missing) == len(images):
        named = f", but it names {predictions.unknown[0]}" if predictions.unknown else ""
        fail(f"{file} must hold detections in images of {', '.join(map(str, request.data))}, got none{named}")
    print_names(predictions.missing, "without predictions, counted as empty")
    print_names(predictions.unknown, "not in the data, left out")
    report = score(annotated, found, request.iou)
    truth = ((rows, image.faces) for rows, image in zip(predictions.rows_as_given(), annotated, strict=True))
    print_hint(file, max(report.average_precision.values()), truth, predictions.form)
    return Measured(report, found, predictions.rows)


def _annotated(images: Sequence[ImageRecord]) -> list[AnnotatedImage]:
    from pyface.data.annotations import annotated_image

    return [annotated_image(image.path, image.boxes) for image in images]


def _read_folders(folders: Sequence[Path]) -> list[ImageRecord]:
    """Reads the data folders, or fails if they hold no annotated faces."""
    from pyface.data.annotations import DatasetError

    try:
        images = [image for folder in folders for image in _read_folder(folder)]
    except (DatasetError, ImportError) as error:
        fail(error)
    if not any(len(image.faces) for image in _annotated(images)):
        fail(f"{', '.join(map(str, folders))}: there are no annotated faces; average precision needs some")
    return images


def _read_folder(folder: Path) -> list[ImageRecord]:
    from pyface.data.folder import annotations_in, read_records
    from pyface.io.sources import count_unreadable, describe_skipped

    images = read_records(folder)
    if not annotations_in(folder):
        print_status(f"{folder} has no annotations, so all its images count as having no faces")
        for text in describe_skipped(count_unreadable(path.name for path in (folder / "images").rglob("*"))):
            print_status(f"{folder}: {text}")
    return images


def _coco_figures(images: Sequence[ImageRecord], rows: Sequence[NDArray[np.float64]]) -> dict[str, float | None]:
    from pyface.evaluation.coco import coco_figures

    try:
        return coco_figures(images, rows)
    except ImportError as error:
        fail(error)


def _print_coco(figures: Mapping[str, float | None]) -> None:
    for name, value in figures.items():
        typer.echo(f"{name:<6} {'-' if value is None else f'{value:.4f}'}")


def _print_faces(report: Report, iou: Sequence[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("faces", "number", *(f"AP@{threshold:g}" for threshold in iou))
    rows = [("all", report.faces, report.average_precision)]
    rows += [(f"{name} px", of["faces"], of["average_precision"]) for name, of in report.by_size.items()]
    for name, number, figures in rows:
        table.add_row(name, f"{number:,}", *(f"{figures[threshold]:.3f}" if number else "-" for threshold in iou))
    Console().print(table)
    best = f"best F1 {report.best_f1:.3f} at IoU {iou[0]:g}"
    if report.pictures_per_second is None:
        typer.echo(f"{report.pictures:,} images; {best} with scores of {report.best_threshold:.6g} or more")
    else:
        speed = f"{report.pictures_per_second:.1f} per second"
        threshold = f"--score-threshold {report.score_threshold:.3f}"
        typer.echo(f"{report.pictures:,} images, {speed}; {best} with {threshold}")
    if report.landmark_error is not None:
        typer.echo(f"landmark error: {report.landmark_error:.1%} of a face's size, on average")


def _save_worst(
    folder: Path, annotated: Sequence[AnnotatedImage], found: Sequence[Detections], threshold: float, iou: float
) -> None:
    from pyface.evaluation.faces import save_worst

    try:
        paths, wrong = save_worst(folder, annotated, found, threshold, iou)
    except (OSError, ValueError) as error:
        fail(f"the worst images cannot be saved: {error}", FAILED)
    typer.echo(
        f"the worst {len(paths)} of {wrong:,} images with mistakes are in {folder}: "
        "missed faces yellow, false ones red, found ones green"
        if wrong
        else f"no image has mistakes, so none is in {folder}"
    )


app.command()(widerface)
app.command()(fddb)
