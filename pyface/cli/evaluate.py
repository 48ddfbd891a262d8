"""`pyface evaluate`: protocols on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyface.cli.console import (
    FAILED,
    check_outputs,
    count,
    fail,
    print_names,
    print_status,
    show_progress,
    write_json,
)
from pyface.cli.options import (
    DetectorRequest,
    Device,
    JsonFile,
    LowestScore,
    Model,
    Multiscale,
    OptionalModel,
    Plot,
    Size,
    Weights,
    parse_size,
)
from pyface.evaluation import LOWEST_SCORE

if TYPE_CHECKING:
    from pyface.data.picture import Picture
    from pyface.detections import Detections
    from pyface.detector import FaceDetector
    from pyface.evaluation.faces import Report
    from pyface.evaluation.fddb import Truth
    from pyface.evaluation.regions import Size as PictureSize
    from pyface.evaluation.widerface import Image, ImageKey, Result

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


@dataclass(frozen=True)
class FacesRequest:
    """The options of one call of `pyface evaluate faces`."""

    detector: DetectorRequest
    data: list[Path]
    iou: list[float]
    worst: Path | None
    json_file: Path | None
    plot: Path | None


@dataclass(frozen=True)
class ProtocolRequest:
    """The options of one call of `pyface evaluate widerface` or `fddb`.

    Attributes:
        ground_truth: Where the annotations are.
        predictions: Files to score; with a detector, the folder that it writes them to.
        detector: None: the predictions are there already.
        images: Folder of the images, or None.
    """

    ground_truth: Path
    predictions: Path
    detector: DetectorRequest | None
    images: Path | None
    json_file: Path | None
    plot: Path | None


# --- faces -----------------------------------------------------------------------------------------------------------


@app.command()
def faces(
    model: Model,
    data: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder with images/ and bbx_gt.txt; may be repeated.")
    ],
    iou: Annotated[list[float], typer.Option(min=0.01, max=1, help="IoU of a match; may be repeated.")] = [0.5, 0.4],  # noqa: B006
    weights: Weights = "default",
    device: Device = "auto",
    size: Size = None,
    multiscale: Multiscale = None,
    lowest_score: LowestScore = LOWEST_SCORE,
    worst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the 20 images with the most mistakes, annotated.")
    ] = None,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Average precision of a detector on annotated images, by size of face.

    Folders are in WIDER FACE's format. A detection that matches a box marked invalid is ignored.

    Example:

    ```
    pyface evaluate faces --model s3fd_lite --data mine/ --json figures.json
    ```
    """
    detector = _detector_request(model, weights, lowest_score, device, size, multiscale)
    measure_faces(FacesRequest(detector, data, iou, worst, json_file, plot))


def measure_faces(request: FacesRequest) -> None:
    """Runs the detector, prints its figures and writes what else is asked for."""
    from pyface.data.picture import DatasetError

    check_outputs(request.json_file, request.plot, request.worst)
    try:
        pictures = [picture for folder in request.data for picture in _read_data(folder)]
    except DatasetError as error:
        fail(error)
    if not any(len(picture.faces) for picture in pictures):
        fail(f"{', '.join(map(str, request.data))}: there are no annotated faces; average precision needs some")
    detector = request.detector.make()
    from pyface.evaluation.faces import evaluate  # here, so that mistakes above do not wait for torch

    try:
        report, found = evaluate(
            detector, pictures, request.iou, track=lambda results: show_progress(results, len(pictures))
        )
    except (DatasetError, ValueError) as error:
        fail(error)
    _print_faces(report, request.iou)
    write_json(request.json_file, report.to_dict())
    if request.plot is not None:
        _plot_faces(request.plot, pictures, found, request.iou)
    if request.worst is not None:
        _save_worst(request.worst, pictures, found, report.best_threshold, request.iou[0])


def _read_data(folder: Path) -> list[Picture]:
    from pyface.data.folder import read_folder
    from pyface.io.sources import count_unreadable, describe_skipped

    pictures = read_folder(folder)
    if not (folder / "bbx_gt.txt").exists():
        print_status(f"{folder} has no bbx_gt.txt, so all its images count as having no faces")
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


def _plot_faces(path: Path, pictures: Sequence[Picture], found: Sequence[Detections], iou: Sequence[float]) -> None:
    from pyface.evaluation.average_precision import precision_recall

    boxes, scores = [of.boxes.numpy() for of in found], [of.scores.numpy() for of in found]
    _plot(path, "plot_curves", {f"IoU {t:g}": precision_recall(pictures, boxes, scores, t) for t in iou})


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


# --- WIDER FACE ------------------------------------------------------------------------------------------------------


@app.command()
def widerface(
    context: typer.Context,
    ground_truth: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|TAR",
            help="Prediction files, event/image.txt; with --model: where to write them.",
            show_default="with --model: widerface-MODEL",
        ),
    ] = None,
    model: OptionalModel = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --model: the images, event/image.jpg.")
    ] = None,
    weights: Weights = "default",
    device: Device = "auto",
    size: Size = None,
    multiscale: Multiscale = None,
    lowest_score: LowestScore = LOWEST_SCORE,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """The WIDER FACE protocol, on prediction files or on a detector.

    With --model and --images the detector runs on the images first and writes prediction files.

    Examples:

    ```
    pyface evaluate widerface --ground-truth gt/ --predictions results.tar.gz
    pyface evaluate widerface --ground-truth gt/ --model s3fd_lite --images val/
    ```
    """
    if predictions is None and model is None:
        fail("widerface needs --predictions, the files to score, or --model and --images, to make them")
    if model is None:
        _refuse_model_options(context)
    if (model is None) != (images is None):
        fail("--model and --images belong together")
    detector = None if model is None else _detector_request(model, weights, lowest_score, device, size, multiscale)
    predictions = predictions or Path(f"widerface-{model}")
    score_widerface(ProtocolRequest(ground_truth, predictions, detector, images, json_file, plot))


def score_widerface(request: ProtocolRequest) -> None:
    """Runs the detector if there is one, scores the prediction files and prints the figures."""
    from pyface.evaluation.widerface import (
        EvaluationError,
        evaluate,
        read_ground_truth,
        read_predictions,
        rows_and_faces,
    )

    check_outputs(request.json_file, request.plot)
    failed: list[str] = []
    predictions = request.predictions
    try:
        truth = read_ground_truth(request.ground_truth)
        if request.detector is not None and request.images is not None:
            _predict_widerface(request.detector, request.images, truth, predictions, failed)
        found = read_predictions(predictions)
        result = evaluate(found, truth)
    except (EvaluationError, ImportError) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    if len(result.missing) == len(truth):
        fail(f"{predictions} holds no predictions for any of the ground truth's images, event/image.txt")
    _print_widerface(result)
    _print_hint(predictions, max(result.average_precision().values()), rows_and_faces(found, truth))
    curves = {name: _columns(curve) for name, curve in result.curves.items()}
    write_json(request.json_file, {"average_precision": result.average_precision(), "curves": curves})
    if request.plot is not None:
        _plot(request.plot, "plot_curves", result.curves)
    if failed:
        raise typer.Exit(FAILED)


def _predict_widerface(
    request: DetectorRequest, images: Path, truth: dict[ImageKey, Image], target: Path, failed: list[str]
) -> None:
    """Writes a prediction file for every image; one that cannot be read gets none."""
    from pyface.evaluation.widerface import find_pictures, write_predictions

    paths = find_pictures(images, truth)
    detector = _prepare(request, target)
    for path, found in _detect(detector, paths, failed):
        write_predictions(target, (path.parent.name, path.stem), found.boxes.tolist(), found.scores.tolist())


def _print_widerface(result: Result) -> None:
    for name, figure in result.average_precision().items():
        typer.echo(f"{name:<7} {figure:.4f}")
    print_names(["/".join(key) for key in result.missing], "without predictions, counted as empty")
    print_names(["/".join(key) for key in result.unknown], "not in the ground truth")


# --- FDDB ------------------------------------------------------------------------------------------------------------


@app.command()
def fddb(
    context: typer.Context,
    ground_truth: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with FDDB-fold-XX-ellipseList.txt, or one such file.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE|TAR",
            help="Detections in FDDB's text format, one file or several; with --model: the folder to write them to.",
            show_default="with --model: fddb-MODEL",
        ),
    ] = None,
    model: OptionalModel = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The images, year/month/day/big/img_N.jpg; regions end at their borders."),
    ] = None,
    overlap: Annotated[
        Literal["pixels", "exact"],
        typer.Option(help="IoU of the pixels that FDDB's program paints, or of the continuous shapes."),
    ] = "pixels",
    fit_ellipses: Annotated[
        bool, typer.Option("--fit-ellipses", help="Turn rectangles into ellipses by S3FD's linear map first.")
    ] = False,
    weights: Weights = "default",
    device: Device = "auto",
    size: Size = None,
    multiscale: Multiscale = None,
    lowest_score: LowestScore = LOWEST_SCORE,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """The FDDB protocol: discrete and continuous scores, on files of detections or on a detector.

    With --model the detector runs on --images first and writes one file per fold.

    Examples:

    ```
    pyface evaluate fddb --ground-truth folds/ --predictions detections.txt
    pyface evaluate fddb --ground-truth folds/ --model mtcnn --images pics/
    ```
    """
    if predictions is None and model is None:
        fail("fddb needs --predictions, the detections to score, or --model and --images, to make them")
    if model is None:
        _refuse_model_options(context)
    if model is not None and images is None:
        fail("--model needs --images, the folder of FDDB's images")
    detector = None if model is None else _detector_request(model, weights, lowest_score, device, size, multiscale)
    predictions = predictions or Path(f"fddb-{model}")
    request = ProtocolRequest(ground_truth, predictions, detector, images, json_file, plot)
    score_fddb(request, overlap, fit_ellipses)


def score_fddb(request: ProtocolRequest, overlap: Literal["pixels", "exact"], fit_ellipses: bool) -> None:
    """Runs the detector if there is one, scores the files of detections and prints the figures."""
    from pyface.evaluation import fddb as protocol
    from pyface.evaluation.regions import exact_overlap, pixel_overlap

    check_outputs(request.json_file, request.plot)
    failed: list[str] = []
    predictions = request.predictions
    try:
        protocol.load_solver()
        truth = protocol.read_annotations(request.ground_truth)
        paths = {} if request.images is None else protocol.find_pictures(request.images, truth.faces)
        if request.detector is not None:
            _predict_fddb(request.detector, paths, truth, predictions, failed)
        detected = protocol.read_detections(predictions, fit_ellipses=fit_ellipses)
        sizes = protocol.bundled_sizes() | _picture_sizes(paths, failed)
        result = protocol.evaluate(
            detected,
            truth,
            sizes,
            {"pixels": pixel_overlap, "exact": exact_overlap}[overlap],
        )
    except (protocol.EvaluationError, ImportError) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    write_json(request.json_file, _report_fddb(result, truth, overlap))
    if request.plot is not None:
        _plot(request.plot, "plot_roc", result.roc)
    _print_fddb_gaps(result, truth, request.images, paths, sizes)
    _print_hint(predictions, result.roc.discrete.max(), protocol.rows_and_faces(detected, truth))
    if failed:
        raise typer.Exit(FAILED)


def _predict_fddb(
    request: DetectorRequest, paths: dict[str, Path], truth: Truth, target: Path, failed: list[str]
) -> None:
    """Writes a file of detections for every fold; images that are missing or cannot be read are left out."""
    from pyface.evaluation.fddb import write_detections

    detector = _prepare(request, target)
    for number, fold in enumerate(truth.folds, 1):
        keys = {paths[key]: key for key in fold if key in paths}
        rows = {}
        for path, found in _detect(detector, list(keys), failed, f"Fold {number} of {len(truth.folds)}"):
            x1, y1, x2, y2 = found.boxes.unbind(1)
            columns = [x1, y1, x2 - x1, y2 - y1, found.scores]
            rows[keys[path]] = list(zip(*(column.tolist() for column in columns), strict=True))
        write_detections(target / f"fold-{number:02d}-out.txt", rows)


def _picture_sizes(paths: dict[str, Path], failed: list[str]) -> dict[str, PictureSize]:
    from pyface.io.images import EncodedImage, ImageError, open_image

    sizes = {}
    for key, path in paths.items():
        try:
            opened = open_image(path)
        except ImageError as error:
            _report_failure(failed, error)
            continue
        assert isinstance(opened, EncodedImage)
        width, height = opened.header.width, opened.header.height
        sizes[key] = (height, width) if opened.header.orientation > 4 else (width, height)
    return sizes


def _report_fddb(result: Any, truth: Truth, overlap: str) -> dict[str, Any]:
    """Prints FDDB's table and returns its figures for JSON."""
    from rich.console import Console
    from rich.table import Table

    from pyface.evaluation.fddb import FALSE_POSITIVES

    last = int(result.roc.false_positives.max())
    table = Table("false positives", "discrete", "continuous")
    rates = {}
    for number in FALSE_POSITIVES:
        discrete, continuous = result.roc.at(number)
        rates[str(number)] = {"discrete": discrete, "continuous": continuous}
        table.add_row(f"{number:,}" + ("*" if number > last else ""), f"{discrete:.4f}", f"{continuous:.4f}")
    Console().print(table)
    pictures, faces, folds = len(truth.faces), result.faces, len(truth.folds)
    typer.echo(f"{count(pictures, 'image')} in {count(folds, 'fold')}, {count(faces, 'face')}")
    if last < FALSE_POSITIVES[-1]:
        typer.echo(f"* the curve ends at {count(last, 'false positive')}")
    return {
        "pictures": pictures,
        "folds": folds,
        "faces": faces,
        "overlap": overlap,
        "true_positive_rate": rates,
        "roc": _columns(result.roc),
        "missing": result.missing,
    }


def _print_fddb_gaps(
    result: Any, truth: Truth, images: Path | None, paths: dict[str, Path], sizes: dict[str, PictureSize]
) -> None:
    """Prints why the figures may not be comparable with published ones."""
    from pyface.evaluation.fddb import PICTURES

    if len(truth.faces) != PICTURES:
        print_status(f"this is not all of FDDB, which has {PICTURES:,} images in 10 folds")
    if images is None:
        unknown = [key for key in truth.faces if key not in sizes]
        print_names(unknown, "of unknown size (--images gives it), so regions are not cut at their borders")
    else:
        print_names([key for key in truth.faces if key not in paths], f"not in {images}")
    print_names(result.missing, "without detections, counted as empty")
    print_names(result.unknown, "not in the annotations")


# --- shared -----------------------------------------------------------------------------------------


def _detector_request(
    model: str, weights: str, lowest_score: float, device: str, size: str | None, multiscale: str | None
) -> DetectorRequest:
    options = {
        "score_threshold": lowest_score,
        "device": device,
        "size": parse_size(size),
        "multiscale": multiscale,
    }
    return DetectorRequest(model, weights, options)


def _refuse_model_options(context: typer.Context) -> None:
    """Without a model, options of a model would have no effect."""
    for name in ("weights", "device", "size", "multiscale", "lowest_score"):
        if context.get_parameter_source(name).name == "COMMANDLINE":  # type: ignore[union-attr]
            fail(f"--{name.replace('_', '-')} needs --model; leave it out")


def _print_hint(source: Path, rate: float, pictures: Iterable[tuple[Any, Any]]) -> None:
    """Says what the rows of predictions look like if that explains a rate near 0."""
    from pyface.evaluation.hints import LOW, explain_low

    hint = explain_low(pictures) if rate < LOW else None
    if hint is not None:
        print_status(f"almost nothing matches: the rows of {source} {hint}")


def _prepare(request: DetectorRequest, target: Path) -> FaceDetector:
    """Makes the detector, and the new folder that it writes predictions to."""
    from pyface.evaluation.files import check_new_folder

    check_new_folder(target)
    detector = request.make()
    target.mkdir(parents=True, exist_ok=True)
    print_status(f"writing predictions to {target}")
    return detector


def _detect(
    detector: FaceDetector, paths: Sequence[Path], failed: list[str], label: str = "Detecting"
) -> Iterator[tuple[Path, Detections]]:
    """Yields each path with its faces; reports images that cannot be read and adds the reasons to a list."""
    for outcome in show_progress(detector.stream(paths), len(paths), label):
        if outcome.detections is None:
            _report_failure(failed, outcome.error)
        else:
            yield Path(outcome.source), outcome.detections


def _report_failure(failed: list[str], error: object) -> None:
    """Prints why an image cannot be read, once."""
    if str(error) not in failed:
        failed.append(str(error))
        print_status(f"pyface: {error}")


def _columns(curve: Any) -> dict[str, list[float]]:
    return {name: [round(value, 6) for value in column.tolist()] for name, column in curve._asdict().items()}


def _plot(path: Path, kind: Literal["plot_curves", "plot_roc"], curves: Any) -> None:
    from pyface.evaluation import plot

    try:
        getattr(plot, kind)(path, curves)
    except (ImportError, OSError, ValueError) as error:
        fail(error, FAILED)
