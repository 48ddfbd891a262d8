"""`pyface evaluate`, and its command for annotated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyface.cli.console import FAILED, check_outputs, fail, print_status, show_progress, write_json, write_plot
from pyface.cli.options import DetectorOptions, JsonFile, Model, Plot, takes_options
from pyface.cli.protocols import fddb, widerface

if TYPE_CHECKING:
    from pyface.data.picture import Picture
    from pyface.detections import Detections
    from pyface.evaluation.faces import Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Measures a detector, or predictions in files, by the standard protocols.

    Examples:

    ```
    pyface evaluate faces --model s3fd_lite --data mine/ --worst worst/
    pyface evaluate widerface --ground-truth gt/ --predictions results.tar.gz
    pyface evaluate fddb --ground-truth folds/ --predictions detections.txt
    ```
    """


@dataclass(frozen=True, kw_only=True)
class FacesRequest:
    """The options of `pyface evaluate faces`."""

    model: Model
    data: Annotated[list[Path], typer.Option(metavar="DIR", help="Folder of images and annotations; may be repeated.")]
    iou: Annotated[list[float], typer.Option(min=0.01, max=1, help="IoU of a match; may be repeated.")] = field(
        default_factory=lambda: [0.5, 0.4]
    )
    detector: DetectorOptions
    worst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the 20 images with the most mistakes, annotated.")
    ] = None
    json_file: JsonFile = None
    plot: Plot = None


@app.command()
@takes_options
def faces(request: FacesRequest) -> None:
    """Average precision of a detector on annotated images, by size of face.

    Folders are in the format of WIDER FACE (images/ and bbx_gt.txt), COCO or YOLO. A detection that matches an ignore
    box does not count.

    Example:

    ```
    pyface evaluate faces --model s3fd_lite --data mine/ --json figures.json
    ```
    """
    from pyface.data.picture import DatasetError

    check_outputs(request.json_file, request.plot, request.worst)
    pictures = _read_folders(request.data)
    detector = request.detector.request(request.model).make()
    from pyface.evaluation.faces import curves, evaluate  # here, so that mistakes above do not wait for torch

    try:
        report, found = evaluate(
            detector, pictures, request.iou, track=lambda results: show_progress(results, len(pictures))
        )
    except (DatasetError, ValueError) as error:
        fail(error)
    _print_faces(report, request.iou)
    write_json(request.json_file, report.to_dict())
    if request.plot is not None:
        write_plot(request.plot, "plot_curves", curves(pictures, found, request.iou))
    if request.worst is not None:
        _save_worst(request.worst, pictures, found, report.best_threshold, request.iou[0])


def _read_folders(folders: Sequence[Path]) -> list[Picture]:
    """Reads the data folders, or fails if they hold no faces to measure by."""
    from pyface.data.picture import DatasetError

    try:
        pictures = [picture for folder in folders for picture in _read_folder(folder)]
    except DatasetError as error:
        fail(error)
    if not any(len(picture.faces) for picture in pictures):
        fail(f"{', '.join(map(str, folders))}: there are no annotated faces; average precision needs some")
    return pictures


def _read_folder(folder: Path) -> list[Picture]:
    from pyface.data.folder import annotations_in, read_folder
    from pyface.io.sources import count_unreadable, describe_skipped

    pictures = read_folder(folder)
    if not annotations_in(folder):
        print_status(f"{folder} has no annotations, so all its images count as having no faces")
        for text in describe_skipped(count_unreadable(path.name for path in (folder / "images").rglob("*"))):
            print_status(f"{folder}: {text}")
    return pictures


def _print_faces(report: Report, iou: Sequence[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("faces", "number", *(f"AP@{threshold:g}" for threshold in iou))
    rows = [("all", report.faces, report.average_precision)]
    rows += [(f"{name} px", of["faces"], of["average_precision"]) for name, of in report.by_size.items()]
    for name, number, figures in rows:
        table.add_row(name, f"{number:,}", *(f"{figures[threshold]:.3f}" if number else "-" for threshold in iou))
    Console().print(table)
    typer.echo(
        f"{report.pictures:,} images, {report.pictures_per_second:.1f} per second; best F1 {report.best_f1:.3f} at "
        f"IoU {iou[0]:g} with --score-threshold {report.score_threshold:.3f}"
    )
    if report.landmark_error is not None:
        typer.echo(f"landmark error: {report.landmark_error:.1%} of a face's size, on average")


def _save_worst(
    folder: Path, pictures: Sequence[Picture], found: Sequence[Detections], threshold: float, iou: float
) -> None:
    from pyface.evaluation.faces import save_worst

    try:
        paths, wrong = save_worst(folder, pictures, found, threshold, iou)
    except (OSError, ValueError) as error:
        fail(f"the worst images cannot be saved: {error}", FAILED)
    typer.echo(
        f"the worst {len(paths)} of {wrong:,} images with mistakes are in {folder}: "
        "missed faces yellow, false ones red, found ones green"
    )


app.command()(widerface)
app.command()(fddb)
