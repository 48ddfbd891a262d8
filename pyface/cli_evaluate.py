"""`pyface evaluate`: protocols on the command line. As in `cli.py`, what is slow to import comes late."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pyface.detections import Detections
    from pyface.detector import FaceDetector
    from pyface.evaluation.fddb import Truth
    from pyface.evaluation.regions import Size as PictureSize

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
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the curves.")]


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
        Path | None, typer.Option(metavar="DIR", help="Save the 20 pictures with the most mistakes, drawn.")
    ] = None,
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """Average precision of a detector on annotated pictures, by size of face.

    Folders are in WIDER FACE's format. A detection that matches a box marked invalid counts neither way.
    """
    from pyface.cli import _fail, _make_detector, _parse_size
    from pyface.dataset import DatasetError

    _check_outputs(json_file, plot, worst)
    try:
        pictures = [picture for folder in data for picture in _read_data(folder)]
    except DatasetError as error:
        _fail(error)
    if not any(len(picture.faces) for picture in pictures):
        _fail(f"{', '.join(map(str, data))}: there are no annotated faces, average precision needs some")
    detector = _make_detector(model, weights, _options(lowest_score, device, _parse_size(size), multiscale))
    from rich.console import Console
    from rich.table import Table

    from pyface.evaluation.average_precision import precision_recall
    from pyface.evaluation.faces import evaluate, save_worst

    try:
        report, found = evaluate(detector, pictures, iou, track=lambda results: _progress(results, len(pictures)))
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
        f"IoU {iou[0]:g} with --score-threshold {report.score_threshold:.3f}"
    )
    if report.landmark_error is not None:
        typer.echo(f"landmarks are off by {report.landmark_error:.1%} of a face's size, on average")
    _write_json(json_file, report.to_dict())
    if plot is not None:
        boxes, scores = [of.boxes.numpy() for of in found], [of.scores.numpy() for of in found]
        _plot(plot, "plot_curves", {f"IoU {t:g}": precision_recall(pictures, boxes, scores, t) for t in iou})
    if worst is not None:
        try:
            paths, wrong = save_worst(worst, pictures, found, report.best_threshold, iou[0])
        except (OSError, ValueError) as error:
            _fail(f"the worst pictures cannot be saved: {error}", 1)
        typer.echo(
            f"the worst {len(paths)} of {wrong:,} pictures with mistakes are in {worst}: "
            "missed faces yellow, false ones red, found ones green"
        )


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

    With --model and --images the detector looks at the pictures first and writes its files.
    """
    from pyface.cli import _fail, _make_detector, _parse_size
    from pyface.evaluation.widerface import EvaluationError, evaluate, read_ground_truth, read_predictions

    if predictions is None and model is None:
        _fail("widerface needs --predictions, the files to score, or --model and --images, to make them")
    if model is None:
        _refuse_model_options(context)
    if (model is None) != (images is None):
        _fail("--model and --images belong together")
    predictions = predictions or Path(f"widerface-{model}")
    _check_outputs(json_file, plot)
    failed: list[str] = []
    try:
        truth = read_ground_truth(ground_truth)
        if model is not None and images is not None:
            paths = _wider_pictures(images, truth)
            _check_target(predictions)
            detector = _make_detector(model, weights, _options(lowest_score, device, _parse_size(size), multiscale))
            predictions.mkdir(parents=True, exist_ok=True)
            typer.echo(f"writing predictions to {predictions}", err=True)
            _predict_wider(detector, paths, predictions, failed)
        result = evaluate(read_predictions(predictions), truth)
    except (EvaluationError, ImportError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    if len(result.missing) == len(truth):
        _fail(f"{predictions} holds no predictions for any of the ground truth's images, event/image.txt")
    for name, figure in result.average_precision().items():
        typer.echo(f"{name:<7} {figure:.4f}")
    _tell(["/".join(key) for key in result.missing], "without predictions, counted as empty")
    _tell(["/".join(key) for key in result.unknown], "the ground truth does not know")
    curves = {name: _columns(curve) for name, curve in result.curves.items()}
    _write_json(json_file, {"average_precision": result.average_precision(), "curves": curves})
    if plot is not None:
        _plot(plot, "plot_curves", result.curves)
    if failed:
        raise typer.Exit(1)


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
    model: Model = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The pictures, year/month/day/big/img_N.jpg; regions end at their borders."),
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
    lowest_score: Lowest = LOWEST_SCORE,
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The FDDB protocol: discrete and continuous scores, on files of detections or on a detector's.

    With --model the detector looks at --images first and writes a file for each fold.
    """
    from pyface.cli import _fail, _make_detector, _parse_size
    from pyface.evaluation import fddb as protocol
    from pyface.evaluation.regions import exact_overlap, pixel_overlap

    if predictions is None and model is None:
        _fail("fddb needs --predictions, the detections to score, or --model and --images, to make them")
    if model is None:
        _refuse_model_options(context)
    if model is not None and images is None:
        _fail("--model needs --images, the folder of FDDB's pictures")
    predictions = predictions or Path(f"fddb-{model}")
    _check_outputs(json_file, plot)
    failed: list[str] = []
    try:
        protocol.load_solver()
        truth = protocol.read_annotations(ground_truth)
        paths = {} if images is None else protocol.find_pictures(images, truth.faces)
        if model is not None:
            _check_target(predictions)
            detector = _make_detector(model, weights, _options(lowest_score, device, _parse_size(size), multiscale))
            predictions.mkdir(parents=True, exist_ok=True)
            typer.echo(f"writing predictions to {predictions}", err=True)
            _predict_fddb(detector, paths, truth, predictions, failed)
        result = protocol.evaluate(
            protocol.read_detections(predictions, fit_ellipses=fit_ellipses),
            truth,
            _picture_sizes(paths, failed),
            {"pixels": pixel_overlap, "exact": exact_overlap}[overlap],
        )
    except (protocol.EvaluationError, ImportError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    report = _fddb_report(result, truth, overlap)
    _write_json(json_file, report)
    if plot is not None:
        _plot(plot, "plot_roc", result.roc)
    if len(truth.faces) != protocol.PICTURES:
        typer.echo(f"this is not all of FDDB, which has {protocol.PICTURES:,} pictures in 10 folds", err=True)
    if images is None:
        typer.echo("FDDB's program cuts regions at the pictures' borders, give --images for that", err=True)
    else:
        _tell([key for key in truth.faces if key not in paths], f"not in {images}")
    _tell(result.missing, "without detections, counted as empty")
    _tell(result.unknown, "the annotations do not know")
    if failed:
        raise typer.Exit(1)


def _fddb_report(result: Any, truth: Truth, overlap: str) -> dict[str, Any]:
    """Shows the table of FDDB and returns the same for JSON."""
    from rich.console import Console
    from rich.table import Table

    from pyface.evaluation.fddb import FALSE_POSITIVES

    last = int(result.roc.false_positives.max())
    table = Table("false positives", "discrete", "continuous")
    rates = {}
    for count in FALSE_POSITIVES:
        discrete, continuous = result.roc.at(count)
        rates[str(count)] = {"discrete": discrete, "continuous": continuous}
        table.add_row(f"{count:,}" + ("*" if count > last else ""), f"{discrete:.4f}", f"{continuous:.4f}")
    Console().print(table)
    pictures, faces, folds = len(truth.faces), result.faces, len(truth.folds)
    typer.echo(f"{_count(pictures, 'picture')} in {_count(folds, 'fold')}, {_count(faces, 'face')}")
    if last < FALSE_POSITIVES[-1]:
        typer.echo(f"* the curve ends at {_count(last, 'false positive')}")
    return {
        "pictures": pictures,
        "folds": folds,
        "faces": faces,
        "overlap": overlap,
        "true_positive_rate": rates,
        "roc": _columns(result.roc),
        "missing": result.missing,
    }


def _refuse_model_options(context: typer.Context) -> None:
    """Without a model, what says how it looks would do nothing."""
    from pyface.cli import _fail

    for name in ("weights", "device", "size", "multiscale", "lowest_score"):
        if context.get_parameter_source(name).name == "COMMANDLINE":  # type: ignore[union-attr]
            _fail(f"--{name.replace('_', '-')} is for a --model, leave it out")


def _options(lowest_score: float, device: str, size: Any, multiscale: str | None) -> dict[str, Any]:
    return {"score_threshold": lowest_score, "device": device, "size": size, "multiscale": multiscale}


def _read_data(folder: Path) -> list[Any]:
    from pyface.dataset import read_folder

    pictures = read_folder(folder)
    if not (folder / "bbx_gt.txt").exists():
        count = _count(len(pictures), "picture")
        typer.echo(f"{folder} holds no bbx_gt.txt: taken as {count} without faces", err=True)
    return pictures


# --- running a detector ----------------------------------------------------------------------------------------------


def _wider_pictures(images: Path, truth: Iterable[tuple[str, str]]) -> list[Path]:
    """The pictures below a folder, if some are known to the ground truth and none has the place of another."""
    from pyface.dataset import SUFFIXES
    from pyface.evaluation.files import EvaluationError

    paths: dict[tuple[str, str], Path] = {}
    for path in sorted(path for path in images.rglob("[!.]*") if path.suffix.lower() in SUFFIXES):
        key = path.parent.name, path.stem
        if key in paths:
            raise EvaluationError(f"{path} and {paths[key]} would share one prediction file, give the folder of events")
        paths[key] = path
    if not paths.keys() & set(truth):
        raise EvaluationError(f"{images} should hold the ground truth's pictures, event/image.jpg, there is none")
    return list(paths.values())


def _check_target(folder: Path) -> None:
    from pyface.evaluation.files import EvaluationError

    if folder.exists() and not folder.is_dir():
        raise EvaluationError(f"{folder} should be a folder to write predictions to, it is a file")
    if folder.exists() and any(folder.iterdir()):
        raise EvaluationError(f"{folder} holds something already, give an empty or new folder to write predictions to")


def _predict_wider(detector: FaceDetector, paths: Sequence[Path], target: Path, failed: list[str]) -> None:
    """Writes a prediction file for every picture; one that cannot be read gets none."""
    from pyface.evaluation.widerface import write_predictions

    for path, found in _detect(detector, paths, failed):
        write_predictions(target, (path.parent.name, path.stem), found.boxes.tolist(), found.scores.tolist())


def _predict_fddb(
    detector: FaceDetector, paths: dict[str, Path], truth: Truth, target: Path, failed: list[str]
) -> None:
    """Writes a file of detections for every fold; pictures that are not there or cannot be read are left out."""
    from pyface.evaluation.fddb import write_detections

    for number, fold in enumerate(truth.folds, 1):
        keys = {paths[key]: key for key in fold if key in paths}
        rows = {}
        for path, found in _detect(detector, list(keys), failed, f"Fold {number} of {len(truth.folds)}"):
            x1, y1, x2, y2 = found.boxes.unbind(1)
            columns = [x1, y1, x2 - x1, y2 - y1, found.scores]
            rows[keys[path]] = list(zip(*(column.tolist() for column in columns), strict=True))
        write_detections(target / f"fold-{number:02d}-out.txt", rows)


def _detect(
    detector: FaceDetector, paths: Sequence[Path], failed: list[str], label: str = "Detecting"
) -> Iterator[tuple[Path, Detections]]:
    """Yields paths and what was found there; tells of those that could not be read and adds the reasons to a list."""
    for outcome in _progress(detector.stream(paths), len(paths), label):
        if outcome.detections is None:
            _note(failed, outcome.error)
        else:
            yield Path(outcome.source), outcome.detections


def _progress(items: Iterable[Any], length: int, label: str = "Detecting") -> Iterator[Any]:
    """Passes items on, with a progress bar where a person looks on."""
    if not sys.stderr.isatty():
        yield from items
        return
    with typer.progressbar(items, length=length, label=label, file=sys.stderr) as shown:
        yield from shown


def _note(failed: list[str], error: object) -> None:
    """Tells why a picture could not be read, once."""
    if str(error) not in failed:
        failed.append(str(error))
        typer.echo(f"pyface: {error}", err=True)


def _picture_sizes(paths: dict[str, Path], failed: list[str]) -> dict[str, PictureSize]:
    from pyface.images import EncodedImage, ImageError, open_image

    sizes = {}
    for key, path in paths.items():
        try:
            opened = open_image(path)
        except ImageError as error:
            _note(failed, error)
            continue
        assert isinstance(opened, EncodedImage)
        width, height = opened.header.width, opened.header.height
        sizes[key] = (height, width) if opened.header.orientation > 4 else (width, height)
    return sizes


# --- what is told and written ----------------------------------------------------------------------------------------


def _tell(names: Sequence[str], what: str) -> None:
    """Names up to ten pictures on the standard error."""
    if names:
        more = f", and {len(names) - 10:,} more" if len(names) > 10 else ""
        typer.echo(f"{_count(len(names), 'picture')} {what}: {', '.join(names[:10])}{more}", err=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _columns(curve: Any) -> dict[str, list[float]]:
    return {name: [round(value, 6) for value in column.tolist()] for name, column in curve._asdict().items()}


def _check_outputs(json_file: Path | None, plot: Path | None = None, folder: Path | None = None) -> None:
    """Fails before a long run whose results would have nowhere to go."""
    from pyface.cli import _fail

    for path in (json_file, plot):
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            _fail(f"{path} cannot be written: {'it is a folder' if path.is_dir() else f'there is no {path.parent}'}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            _fail(f"{path} cannot be written: permission denied")
    try:
        if plot is not None:
            from pyface.evaluation.plot import check_plot

            check_plot(plot)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"{folder} cannot be made: {error.strerror}")
    except (ImportError, ValueError) as error:
        _fail(error)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    from pyface.cli import _fail

    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{path} cannot be written: {error.strerror}", 1)


def _plot(path: Path, kind: Literal["plot_curves", "plot_roc"], curves: Any) -> None:
    from pyface.cli import _fail
    from pyface.evaluation import plot

    try:
        getattr(plot, kind)(path, curves)
    except (ImportError, OSError, ValueError) as error:
        _fail(error, 1)
