"""`pyface detect`: faces of any number of image files, as lines of results and drawn copies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyface.cli.console import FAILED, INTERRUPTED, PIPE_CLOSED, count, fail, print_status
from pyface.cli.options import (
    BatchSize,
    DetectorRequest,
    Device,
    MinFace,
    Model,
    Multiscale,
    Precision,
    Size,
    Threads,
    Weights,
    parse_size,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pyface.detector import FaceDetector, Outcome


@dataclass(frozen=True)
class Request:
    """What a call of `pyface detect` asks for; the attributes are its options."""

    sources: list[str]
    recursive: bool
    detector: DetectorRequest
    output: Path | None
    save: Path | None
    resume: bool
    overwrite: bool


def detect(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Images, folders of images, patterns like 'a/*.jpg'.")
    ],
    model: Model = "s3fd_lite",
    weights: Weights = "default",
    device: Device = "auto",
    score_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep faces with a score above this.", show_default="the model's own"),
    ] = None,
    min_face: MinFace = None,
    size: Size = None,
    multiscale: Multiscale = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="PIXELS",
            help="Split huge images into tiles of this side. Not for mtcnn.",
            show_default="never",
        ),
    ] = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 8,
    threads: Threads = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the results to a .jsonl or .csv file."),
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Save copies with the faces drawn.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue --output FILE: skip the images that it already has. Model, weights and options must be the "
            "same as before; FILE.run.json keeps them.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output FILE if it exists.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Refuse larger images, without decoding.", show_default="134 million"),
    ] = None,
    truncated: Annotated[
        Literal["refuse", "accept"], typer.Option(help="What to do with JPEG and PNG files without their end marker.")
    ] = "refuse",
) -> None:
    """Finds faces in images.

    Writes one JSON line per image, in the order of the sources, to a pipe or to --output FILE (or CSV, one row per
    face). On a terminal without --output it prints a short line per image instead. An image that cannot be read is
    reported in its line, and the run continues.

    Results are written as soon as they are ready. Repeat an interrupted command with --resume to continue it.

    Exit status: 0 all images read, 1 some could not be read (with --resume: now or before), 2 a mistake in the
    command, 130 interrupted with Ctrl-C.

    Examples:

    ```
    pyface detect photos/ --save out/             # draw the faces into copies
    pyface detect photos/ -r --output faces.csv   # subfolders too, as a table
    pyface detect photos/ --output faces.jsonl --resume
    pyface detect big.jpg --size native --tile 1280
    pyface detect "photos/*.jpg" --model mtcnn --min-face 40
    ```
    """
    options = {
        "score_threshold": score_threshold,
        "min_face": min_face,
        "batch_size": batch_size,
        "threads": threads,
        "device": device,
        "size": parse_size(size),
        "multiscale": multiscale,
        "tile": tile,
        "precision": precision,
        "truncated": truncated,
    } | ({} if max_pixels is None else {"max_pixels": max_pixels})
    detector = DetectorRequest(model, weights, options)
    detect_sources(Request(sources, recursive, detector, output, save, resume, overwrite))


def detect_sources(request: Request) -> None:
    """Runs a detector on the files that are asked for, and ends with the status of the command."""
    _check_request(request)
    paths, copies = _find_files(request)
    detector = request.detector.make()
    with _open_results(request) as (write, done):
        remaining = [path for path in paths if os.path.normpath(path) not in done]
        show_lines = request.output is None and sys.stdout.isatty()
        report = _Report(len(paths), len(paths) - len(remaining), show_lines=show_lines)
        _write_results(detector, remaining, copies, write, report, resumable=request.output is not None)
    report.summarise(request.output, request.save)
    if report.failed or any(done.get(os.path.normpath(path), False) for path in paths):
        raise typer.Exit(FAILED)


def _check_request(request: Request) -> None:
    """Fails where options exclude each other, or the results have nowhere to go."""
    if request.output is None and (request.resume or request.overwrite):
        option = "--resume" if request.resume else "--overwrite"
        fail(f"{option} needs a file of results; add --output FILE")
    if request.resume and request.overwrite:
        fail("--resume continues the file of results and --overwrite replaces it; use one of them")
    if sys.stdout is None:  # closed, as by >&- in a shell
        if request.output is None and request.save is None:
            fail("the standard output is closed, so the results have nowhere to go; add --output FILE or --save DIR")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _find_files(request: Request) -> tuple[list[str], dict[str, Path] | None]:
    """Returns the files to read, and where the drawn copy of each goes if copies are asked for."""
    from pyface.io.sources import SourceError, describe_skipped, find_sources, plan_copies

    save = request.save
    skipped: Counter[str] = Counter()
    try:
        paths = find_sources(request.sources, recursive=request.recursive, skip=save, skipped=skipped)
        for text in describe_skipped(skipped):
            print_status(f"pyface: {text}")
        copies = None if save is None else plan_copies(paths, save)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
    except SourceError as error:
        fail(error)
    except OSError as error:
        reason = "it is a file; give a folder" if save is not None and save.is_file() else error.strerror
        fail(f"{save}: the images cannot be saved there ({reason})")
    return paths, copies


@contextlib.contextmanager
def _open_results(request: Request) -> Iterator[tuple[Callable[[dict[str, Any]], None], dict[str, bool]]]:
    """Gives the function that writes a result, and the images that are done already, each with whether it failed."""
    from pyface.io.results import OutputError, ResultFile, json_line

    if request.output is not None:
        try:
            file = ResultFile(
                request.output,
                resume=request.resume,
                overwrite=request.overwrite,
                made_by=request.detector.facts(),
            )
        except OutputError as error:
            fail(error)
        if file.is_unchecked:
            print_status(
                f"pyface: {request.output} has no {request.output.name}.run.json beside it, so whether the same model "
                f"and options made it is unknown"
            )
        with file:
            yield file.write, {os.path.normpath(source): failed for source, failed in file.done.items()}
    elif sys.stdout.isatty():
        yield lambda result: None, {}
    else:

        def write(result: dict[str, Any]) -> None:
            sys.stdout.buffer.write(json_line(result))
            sys.stdout.buffer.flush()

        yield write, {}


def _write_results(
    detector: FaceDetector,
    paths: list[str],
    copies: dict[str, Path] | None,
    write: Callable[[dict[str, Any]], None],
    report: _Report,
    resumable: bool,
) -> None:
    """Detects and writes, and turns what may end a run early into one sentence."""
    try:
        with report:
            for result in _detect_and_draw(detector, paths, copies):
                write(result)
                report.add(result)
    except KeyboardInterrupt:
        hint = "; the same command with --resume continues" if resumable else ""
        fail(f"interrupted, {report.done} of {report.total} images are done{hint}", INTERRUPTED)
    except BrokenPipeError:  # the reader of our lines has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        fail(f"{error.filename or 'the results'} cannot be written: {error.strerror or error}", FAILED)


def _detect_and_draw(
    detector: FaceDetector, paths: list[str], copies: dict[str, Path] | None
) -> Iterator[dict[str, Any]]:
    """Yields the result of every image in order, once its drawn copy is saved."""
    from concurrent.futures import ThreadPoolExecutor

    import cv2

    from pyface.io.pipeline import ordered_map

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with an image is in its result
    pool = ThreadPoolExecutor(2, thread_name_prefix="pyface-save")
    try:
        yield from ordered_map(
            pool,
            lambda outcome: _finish(outcome, copies),
            detector.stream(paths),
            ahead=1.0,
            weight=lambda outcome: max(1 / 16, _pixels(outcome) / 2**26),
            eager=True,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(outcome: Outcome) -> int:
    return outcome.detections.width * outcome.detections.height if outcome.detections is not None else 0


def _finish(outcome: Outcome, copies: dict[str, Path] | None) -> dict[str, Any]:
    """Makes the result of an image, and saves its drawn copy if asked to."""
    from pyface.io.results import failed

    if outcome.detections is None:
        return failed(outcome.source, str(outcome.error))
    if copies is not None:
        _save_drawing(outcome, copies[outcome.source])
    return outcome.detections.to_dict()


def _save_drawing(outcome: Outcome, path: Path) -> None:
    import cv2

    from pyface.draw import draw

    assert outcome.detections is not None
    picture = cv2.cvtColor(draw(outcome.image, outcome.detections), cv2.COLOR_RGB2BGR)
    try:
        encoded = cv2.imencode(path.suffix, picture)[1]
    except cv2.error as error:
        raise OSError(0, f"the image cannot be encoded ({error.err})", str(path)) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


class _Report:
    """A progress bar, a line per image and a summary, all of it only on a terminal."""

    def __init__(self, total: int, skipped: int, *, show_lines: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.skipped = total, skipped
        self.done, self.failed, self.faces = skipped, 0, 0
        self._start = time.monotonic()
        self._stderr = Console(stderr=True)
        self._lines: Console | None = None
        if show_lines:  # beside the bar they must go through its console, or they would tear it
            self._lines = self._stderr if self._stderr.is_terminal else Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._stderr,
            transient=True,
            disable=not self._stderr.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("Finding faces", total=total, completed=skipped)

    def __enter__(self) -> _Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, result: dict[str, Any]) -> None:
        """Counts a result and shows it."""
        self.done += 1
        self.failed += result["error"] is not None
        self.faces += len(result["faces"])
        self._bar.advance(self._task)
        if self._lines is None:
            return
        if result["error"] is not None:
            text, style = result["error"], "red"
        else:
            scores = " ".join(f"{face['score']:.2f}" for face in result["faces"][:8])
            more = " ..." if len(result["faces"]) > 8 else ""
            size = f"{result['width']} x {result['height']}"
            text = f"{result['source']}  {size}  {count(len(result['faces']), 'face')}  {scores}{more}".rstrip()
            style = "" if result["faces"] else "dim"
        text = text.encode("utf-8", "replace").decode()  # a file's name may be what no terminal can show
        self._lines.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def summarise(self, output: Path | None, save: Path | None) -> None:
        """Prints totals: on a terminal always, elsewhere if there is a file of results, or images failed."""
        read_now = self.done - self.skipped
        parts = [f"{count(self.faces, 'face')} in {count(read_now - self.failed, 'image')}"]
        if self.failed:
            parts.append(f"{count(self.failed, 'image')} could not be read")
        if self.skipped:
            parts.append(f"{self.skipped} done before")
        parts.append(f"{time.monotonic() - self._start:.1f} s")
        places = [f"results in {output}"] if output else []
        places += [f"drawn in {save}"] if save else []
        text = "; ".join([", ".join(parts), *places])
        if self._stderr.is_terminal or self._lines is not None:
            console = self._stderr if self._stderr.is_terminal else self._lines
            assert console is not None
            console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)
        elif self.failed or output:
            print_status(f"pyface: {text}")
