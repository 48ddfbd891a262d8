"""`pyface evaluate widerface` and `fddb`: benchmarks that exchange predictions in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pyface.cli.console import (
    FAILED,
    check_outputs,
    count,
    fail,
    print_hint,
    print_names,
    print_status,
    show_progress,
    write_json,
    write_plot,
)
from pyface.cli.options import DetectorRequest, EvaluationOptions, JsonFile, OptionalModel, Plot, takes_options

if TYPE_CHECKING:
    from pyface.detector import FaceDetector
    from pyface.evaluation import fddb as fddb_protocol
    from pyface.evaluation import widerface as widerface_protocol
    from pyface.evaluation.regions import Size as ImageSize


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    """The options that `pyface evaluate widerface` and `fddb` share.

    Attributes:
        ground_truth: Where the annotations are.
        predictions: Files to score; with a model, the folder to write them to.
        model: The detector that makes the predictions; None: they exist already.
        images: Folder of the images.
    """

    ground_truth: Path
    predictions: Path | None = None
    model: OptionalModel = None
    images: Path | None = None
    detector: EvaluationOptions
    json_file: JsonFile = None
    plot: Plot = None

    @property
    def detector_request(self) -> DetectorRequest | None:
        """The detector that makes the predictions, if one does."""
        return None if self.model is None else self.detector.request(self.model)


class Failures:
    """Prints why images cannot be read, each reason once."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()

    def report(self, error: object) -> None:
        """Prints the reason for one image, unless it has been printed before."""
        if str(error) not in self.reasons:
            self.reasons.add(str(error))
            print_status(f"pyface: {error}")

    def end(self) -> None:
        """Ends the command with the status for failures if there were any."""
        if self.reasons:
            raise typer.Exit(FAILED)


@dataclass(frozen=True, kw_only=True)
class WiderFaceRequest(ProtocolRequest):
    """The options of `pyface evaluate widerface`."""

    ground_truth: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with wider_face_val.mat and wider_{easy,medium,hard}_val.mat.")
    ]
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|TAR",
            help="Prediction files, event/image.txt; with --model: where to write them.",
            show_default="with --model: widerface-MODEL",
        ),
    ] = None
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="With --model: the images, event/image.jpg.")] = (
        None
    )


@takes_options
def widerface(context: typer.Context, request: WiderFaceRequest) -> None:
    """Scores prediction files, or a detector, by the WIDER FACE protocol.

    With --model and --images the detector runs on the images first and writes prediction files.

    Examples:

    ```
    pyface evaluate widerface --ground-truth gt/ --predictions results.tar.gz
    pyface evaluate widerface --ground-truth gt/ --model s3fd_lite --images val/
    ```
    """
    if request.predictions is None and request.model is None:
        fail("widerface needs --predictions, the files to score, or --model and --images, to make them")
    if request.model is None:
        request.detector.refuse(context)
    if (request.model is None) != (request.images is None):
        fail("--model and --images must be given together, got one of them; add the other")
    score_widerface(request, request.predictions or Path(f"widerface-{request.model}"))


def score_widerface(request: WiderFaceRequest, predictions: Path) -> None:
    """Runs the detector if there is one, scores the prediction files and prints the figures."""
    from pyface.evaluation import widerface as protocol

    check_outputs(request.json_file, request.plot)
    failures = Failures()
    try:
        truth = protocol.read_ground_truth(request.ground_truth)
        if (detector_request := request.detector_request) is not None and request.images is not None:
            paths = protocol.find_images(request.images, truth)
            detector = _prepare(detector_request, predictions)
            protocol.predict(detector, paths, predictions, failures.report, show_progress)
        found = protocol.read_predictions(predictions)
        result = protocol.evaluate(found, truth)
    except (protocol.EvaluationError, ImportError) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    if len(result.missing) == len(truth):
        fail(f"{predictions} holds no predictions for any of the ground truth's images, event/image.txt")
    _print_widerface(result)
    print_hint(predictions, max(result.average_precision().values()), protocol.rows_and_faces(found, truth))
    write_json(request.json_file, result.to_dict())
    if request.plot is not None:
        write_plot(request.plot, "plot_curves", result.curves)
    failures.end()


def _print_widerface(result: widerface_protocol.Result) -> None:
    for name, figure in result.average_precision().items():
        typer.echo(f"{name:<7} {figure:.4f}")
    print_names(["/".join(key) for key in result.missing], "without predictions, counted as empty")
    print_names(["/".join(key) for key in result.unknown], "not in the ground truth")


@dataclass(frozen=True, kw_only=True)
class FddbRequest(ProtocolRequest):
    """The options of `pyface evaluate fddb`."""

    ground_truth: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with FDDB-fold-XX-ellipseList.txt, or one such file.")
    ]
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE|TAR",
            help="Detections in FDDB's text format, one file or several; with --model: the folder to write them to.",
            show_default="with --model: fddb-MODEL",
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The images, year/month/day/big/img_N.jpg. Needed with --model; otherwise only their sizes are read.",
        ),
    ] = None
    overlap: Annotated[
        Literal["pixels", "exact"],
        typer.Option(help="IoU of the pixels that FDDB's program paints, or of the continuous shapes."),
    ] = "pixels"
    fit_ellipses: Annotated[
        bool, typer.Option("--fit-ellipses", help="Convert rectangles to ellipses first, by S3FD's linear map.")
    ] = False


@takes_options
def fddb(context: typer.Context, request: FddbRequest) -> None:
    """Scores files of detections, or a detector, by the FDDB protocol, discrete and continuous.

    With --model the detector runs on --images first and writes one file per fold.

    Examples:

    ```
    pyface evaluate fddb --ground-truth folds/ --predictions detections.txt
    pyface evaluate fddb --ground-truth folds/ --model mtcnn --images pics/
    ```
    """
    if request.predictions is None and request.model is None:
        fail("fddb needs --predictions, the detections to score, or --model and --images, to make them")
    if request.model is None:
        request.detector.refuse(context)
    if request.model is not None and request.images is None:
        fail("--model needs --images, the folder of FDDB's images")
    score_fddb(request, request.predictions or Path(f"fddb-{request.model}"))


def score_fddb(request: FddbRequest, predictions: Path) -> None:
    """Runs the detector if there is one, scores the files of detections and prints the figures."""
    from pyface.evaluation import fddb as protocol
    from pyface.evaluation.regions import exact_overlap, pixel_overlap

    check_outputs(request.json_file, request.plot)
    failures = Failures()
    overlap = {"pixels": pixel_overlap, "exact": exact_overlap}[request.overlap]
    try:
        protocol.load_solver()
        truth = protocol.read_annotations(request.ground_truth)
        paths = {} if request.images is None else protocol.find_images(request.images, truth.faces)
        if (detector_request := request.detector_request) is not None:
            detector = _prepare(detector_request, predictions)
            protocol.predict(detector, paths, truth, predictions, failures.report, show_progress)
        detected = protocol.read_detections(predictions, fit_ellipses=request.fit_ellipses)
        sizes = protocol.bundled_sizes() | protocol.image_sizes(paths, failures.report)
        result = protocol.evaluate(detected, truth, sizes, overlap)
    except (protocol.EvaluationError, ImportError) as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or predictions} cannot be written: {error.strerror}")
    _print_fddb(result, truth)
    facts = {"pictures": len(truth.faces), "folds": len(truth.folds), "overlap": request.overlap}
    write_json(request.json_file, facts | result.to_dict())
    if request.plot is not None:
        write_plot(request.plot, "plot_roc", result.roc)
    _print_fddb_gaps(result, truth, request.images, paths, sizes)
    print_hint(predictions, result.roc.discrete.max(), protocol.rows_and_faces(detected, truth))
    failures.end()


def _print_fddb(result: fddb_protocol.Result, truth: fddb_protocol.Truth) -> None:
    from rich.console import Console
    from rich.table import Table

    from pyface.evaluation.fddb import FALSE_POSITIVES

    last = int(result.roc.false_positives.max())
    table = Table("false positives", "discrete", "continuous")
    for number, (discrete, continuous) in result.rates().items():
        table.add_row(f"{number:,}" + ("*" if number > last else ""), f"{discrete:.4f}", f"{continuous:.4f}")
    Console().print(table)
    images, folds = count(len(truth.faces), "image"), count(len(truth.folds), "fold")
    typer.echo(f"{images} in {folds}, {count(result.faces, 'face')}")
    if last < FALSE_POSITIVES[-1]:
        typer.echo(f"* the curve ends at {count(last, 'false positive')}")


def _print_fddb_gaps(
    result: fddb_protocol.Result,
    truth: fddb_protocol.Truth,
    images: Path | None,
    paths: dict[str, Path],
    sizes: dict[str, ImageSize],
) -> None:
    """Prints why the figures may not be comparable with published ones."""
    from pyface.evaluation.fddb import IMAGES

    if len(truth.faces) != IMAGES:
        print_status(f"this is not all of FDDB, which has {IMAGES:,} images in 10 folds")
    if images is None:
        unknown = [key for key in truth.faces if key not in sizes]
        print_names(unknown, "of unknown size (--images gives it), so regions are not cut at their borders")
    else:
        print_names([key for key in truth.faces if key not in paths], f"not in {images}")
    print_names(result.missing, "without detections, counted as empty")
    print_names(result.unknown, "not in the annotations")


def _prepare(request: DetectorRequest, target: Path) -> FaceDetector:
    """Makes the detector, and the new folder that its predictions are written to."""
    from pyface.evaluation.files import check_new_folder

    check_new_folder(target)
    detector = request.make()
    target.mkdir(parents=True, exist_ok=True)
    print_status(f"writing predictions to {target}")
    return detector
