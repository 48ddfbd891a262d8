"""`pyface detect`: faces of any number of images and films, as lines of results and drawn copies."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyface.cli.console import FAILED, INTERRUPTED, PIPE_CLOSED, fail, print_status
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
from pyface.cli.report import Report
from pyface.io.sources import Source, source_key, source_name

if TYPE_CHECKING:
    from pyface.cli.outcomes import Run


@dataclass(frozen=True)
class Request:
    """The options of one call of `pyface detect`."""

    sources: list[str]
    camera: int | None
    recursive: bool
    every: int
    fps: float | None
    detector: DetectorRequest
    output: Path | None
    save: Path | None
    resume: bool
    overwrite: bool


def detect(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Images, films, folders of them, patterns like 'a/*.jpg', addresses of films and cameras (http://, "
            "rtsp://).",
        ),
    ] = None,
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
    camera: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Read this camera of the machine, 0 for the first.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Of films, take one frame in N.")] = 1,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="F", help="Of films, take at most F frames per second.", show_default="all frames"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the results to a .jsonl or .csv file."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save copies of images and films with the faces drawn.")
    ] = None,
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
    """Finds faces in images, films and cameras.

    Writes one JSON line per image or frame, in the order of the sources, to a pipe or to --output FILE (or CSV, one
    row per face). On a terminal without --output it prints a short line per image or film instead. An image or film
    that cannot be read is reported in a line, and the run continues.

    Results are written as soon as they are ready. Repeat an interrupted command with --resume to continue it. Films
    and cameras need `pip install "pyface-engine[video]"`. Ctrl-C ends a camera, and completes the saved film.

    Exit status: 0 all was read, 1 some could not be read (with --resume: now or before), 2 a mistake in the command,
    130 interrupted with Ctrl-C.

    Examples:

    ```
    pyface detect photos/ --save out/             # draw the faces into copies
    pyface detect photos/ -r --output faces.csv   # subfolders too, as a table
    pyface detect photos/ --output faces.jsonl --resume
    pyface detect big.jpg --size native --tile 1280
    pyface detect "photos/*.jpg" --model mtcnn --min-face 40
    pyface detect film.mp4 --fps 5 --save out/    # the film with the faces drawn, five frames per second
    pyface detect --camera 0 --save out/          # until Ctrl-C
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
    detect_sources(Request(sources or [], camera, recursive, every, fps, detector, output, save, resume, overwrite))


def detect_sources(request: Request) -> None:
    """Runs a detector on the sources that are asked for, and ends with the status of the command."""
    _check_request(request)
    sources, copies = _find_sources(request)
    detector = request.detector.make()
    from pyface.cli.outcomes import Run  # not before the detector, which says it if the kernels were not built

    with _open_results(request, sources) as (write, done, begun):
        remaining = [source for source in sources if source_key(source) not in done]
        if begun is not None:  # first, so that the lines of a film are never parted
            remaining.sort(key=lambda source: source_key(source) != begun[0])
        show_lines = request.output is None and sys.stdout.isatty()
        report = Report(len(sources), len(sources) - len(remaining), show_lines=show_lines)
        run = Run(detector, copies, report, request.every, request.fps, after=-1 if begun is None else begun[1])
        _write_results(run, remaining, write, resumable=request.output is not None)
    report.summarise({"results": request.output, "drawn": request.save})
    if report.failed.total() or any(done.get(source_key(source), False) for source in sources):
        raise typer.Exit(FAILED)


def _check_request(request: Request) -> None:
    """Fails where options exclude each other, or the results have nowhere to go."""
    if not request.sources and request.camera is None:
        raise typer.BadParameter("give images, films or folders, or --camera N for a camera", param_hint="SOURCE")
    if request.every > 1 and request.fps is not None:
        fail("--every and --fps both choose the frames of films; use one of them")
    if request.output is None and (request.resume or request.overwrite):
        option = "--resume" if request.resume else "--overwrite"
        fail(f"{option} needs a file of results; add --output FILE")
    if request.resume and request.overwrite:
        fail("--resume continues the file of results and --overwrite replaces it; use one of them")
    if sys.stdout is None:  # closed, as by >&- in a shell
        if request.output is None and request.save is None:
            fail("the standard output is closed, so the results have nowhere to go; add --output FILE or --save DIR")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _find_sources(request: Request) -> tuple[list[Source], dict[Source, Path] | None]:
    """Returns the images and films to read, and where the copy of each goes if copies are asked for."""
    from pyface.io.sources import SourceError, describe_skipped, find_sources, is_live, plan_copies

    save = request.save
    skipped: Counter[str] = Counter()
    try:
        sources: list[Source] = []
        if request.sources:
            sources += find_sources(
                request.sources, recursive=request.recursive, films=True, skip=save, skipped=skipped
            )
        for text in describe_skipped(skipped):
            print_status(f"pyface: {text}")
        sources += [] if request.camera is None else [request.camera]
        live = next((source for source in sources if is_live(source)), None)
        if request.resume and live is not None:
            fail(f"{source_name(live)} has no frames to go back to; use --overwrite or another --output, not --resume")
        copies = None if save is None else plan_copies(sources, save)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
    except SourceError as error:
        fail(error)
    except OSError as error:
        reason = "it is a file; give a folder" if save is not None and save.is_file() else error.strerror
        fail(f"{save}: the images cannot be saved there ({reason})")
    return sources, copies


@contextlib.contextmanager
def _open_results(
    request: Request, sources: list[Source]
) -> Iterator[tuple[Callable[[dict[str, Any]], None], dict[str, bool], tuple[str, int] | None]]:
    """Gives the function that writes a result, the sources that are done, and the film within which the results end.

    The sources come with whether they had failed, the film with the number of its last frame.
    """
    from pyface.io.results import OutputError, ResultFile, json_line

    if request.output is not None:
        try:
            file = ResultFile(
                request.output,
                resume=request.resume,
                overwrite=request.overwrite,
                whole_films=request.save is not None,  # a film is written from its beginning, or not at all
                made_by=request.detector.facts() | {"every": request.every, "fps": request.fps},
            )
        except OutputError as error:
            fail(error)
        if file.is_unchecked:
            print_status(
                f"pyface: {request.output} has no {request.output.name}.run.json beside it, so whether the same model "
                f"and options made it is unknown"
            )
        begun = None if file.begun is None else (source_key(file.begun[0]), file.begun[1])
        with file:
            if begun is not None and begun[0] not in map(source_key, sources):
                fail(f"{request.output} ends within {begun[0]}, name that film too, so that it can be finished first")
            yield file.write, {source_key(source): failed for source, failed in file.done.items()}, begun
    elif sys.stdout.isatty():
        yield lambda result: None, {}, None
    else:

        def write(result: dict[str, Any]) -> None:
            sys.stdout.buffer.write(json_line(result))
            sys.stdout.buffer.flush()

        yield write, {}, None


def _write_results(run: Run, sources: list[Source], write: Callable[[dict[str, Any]], None], resumable: bool) -> None:
    """Detects and writes, and turns what may end a run early into one sentence."""
    report = run.report
    try:
        with report, contextlib.closing(run.results(sources)) as results:
            for result in results:
                write(result)
                report.add(result)
    except KeyboardInterrupt:
        hint = "; the same command with --resume continues" if resumable else ""
        fail(f"interrupted, {report.describe_done()}{hint}", INTERRUPTED)
    except BrokenPipeError:  # the reader of our lines has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        fail(f"{error.filename or 'the results'} cannot be written: {error.strerror or error}", FAILED)
