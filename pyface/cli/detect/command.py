"""The command `pyface detect`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Literal

import typer

from pyface.cli.console import FAILED, INTERRUPTED, PIPE_CLOSED, fail
from pyface.cli.detect.cluster import FolderRequest, detect_on_cluster
from pyface.cli.detect.outputs import Write, open_output
from pyface.cli.detect.plan import make_plan, own_folders
from pyface.cli.detect.report import Report
from pyface.cli.detect.request import Request
from pyface.cli.options import takes_options
from pyface.io.sources import Source, is_archive, source_key

if TYPE_CHECKING:
    from pyface.cli.detect.run import Run
    from pyface.detector import FaceDetector


@takes_options
def detect(request: Request) -> None:
    """Finds faces in images, videos and camera streams.

    Writes one JSON line per image or frame, in the order of the sources, to a pipe or to --output FILE; --format
    chooses another format. On a terminal without --output it prints a short line per image or video instead. An image
    or video that cannot be read is reported, and the run continues.

    Results are written as soon as they are ready. Repeat an interrupted command with --resume to continue it. Videos
    and cameras need `pip install "pyface-engine[video]"`. Ctrl-C stops reading a camera and completes the saved video.

    Exit status: 0 if everything was read, 1 if something could not be read (with --resume: in this run or an earlier
    one), 2 for a mistake in the command, 130 after Ctrl-C.

    Examples:

    ```
    pyface detect photos/ --save out/             # copies with the faces drawn
    pyface detect photos/ -r --output faces.csv   # subfolders too, as a table
    pyface detect photos/ --output faces.jsonl --resume
    pyface detect big.jpg --size native --tile 1280
    pyface detect "photos/*.jpg" --model mtcnn --min-face 40
    pyface detect video.mp4 --fps 5 --save out/   # five frames per second
    pyface detect video.mp4 --track --save out/   # one id per person
    pyface detect --camera 0 --save out/          # until Ctrl-C
    find photos -newer last -print0 | pyface detect - --output new.jsonl
    pyface detect photos/ --save out/ --blur      # copies with the detected faces blurred
    pyface detect photos/ --crops faces/          # every face, aligned
    pyface detect photos.tar s3://bucket/more/    # archives and URLs
    pyface detect photos/ --format coco --output faces.json
    pyface detect s3://bucket/photos --ray auto --output s3://bucket/faces
    ```
    """
    _check_request(request)
    if request.cluster.ray is None:
        detect_sources(request)
    else:
        folder = _cluster_folder(request)
        plan = make_plan(request)
        detect_on_cluster(request.cluster, request.detector.request(), plan.sources, folder)


def detect_sources(request: Request) -> None:
    """Runs a detector on the requested sources, and exits with the command's status."""
    sources, places, crops = make_plan(request)
    owned = own_folders(request)
    from pyface.resources import keep_freed_memory  # loads torch, for which mistakes in the command need not wait

    keep_freed_memory()
    detector = request.detector.request().make()
    _check_landmarks(request, detector)
    from pyface.cli.detect.copies import Copies
    from pyface.cli.detect.run import Run  # after the detector, which reports missing kernels

    with open_output(request, sources) as (write, done, again, begun):
        remaining = _remaining(sources, done, again, begun)
        show_lines = request.output is None and sys.stdout.isatty()
        before = _count_failures(sources, done)
        report = Report(len(sources), len(sources) - len(remaining), before, show_lines=show_lines)
        wanted = request.copies
        cover = wanted.covers[0] if wanted.covers else None
        copies = Copies(places, cover, not wanted.strip_gps, crops, wanted.crop_margin, owned)
        run = Run(
            detector,
            copies,
            report,
            request.every,
            request.fps,
            request.track,
            begun,
            request.sources.glob or [],
            request.sources.exclude or [],
            done,
        )
        _write_results(run, remaining, write, request.is_resumable)
    drawn = "faces covered" if request.copies.covers else "drawn"
    report.summarise({"results": request.output_file, drawn: request.copies.save, "crops": request.copies.crops})
    if report.failed.total() or before:
        raise typer.Exit(FAILED)


def _remaining(
    sources: list[Source], done: dict[str, bool], again: list[Source], begun: tuple[str, int] | None
) -> list[Source]:
    """Returns the sources that are not done: those tried again, the video that has begun, and the others."""
    tried = set(again)
    others = [source for source in sources if source_key(source) not in done and source not in tried]
    if begun is not None:  # so that the lines of a video stay together
        others.sort(key=lambda source: source_key(source) != begun[0])
    return [*again, *others]


def _count_failures(sources: list[Source], done: dict[str, bool]) -> int:
    """Counts which of these sources, and of the images in these archives, failed in an earlier run."""
    keys = {source_key(source) for source in sources}
    folders = tuple(f"{source_key(source)}/" for source in sources if is_archive(source))
    return sum(failed for key, failed in done.items() if key in keys or key.startswith(folders))


def _check_request(request: Request) -> None:
    """Fails if options cannot be combined, or the results have nowhere to go."""
    given = request.sources
    if not given.sources and given.from_file is None and given.camera is None:
        fail("no images are given; name images, videos or folders, or a camera with --camera N")
    if given.from_file is not None and "-" in (given.sources or []):
        fail("--from-file and - are both lists of files; use one of them")
    if request.every > 1 and request.fps is not None:
        fail("--every and --fps both choose the frames of videos; use one of them")
    if request.track and importlib.util.find_spec("trackers") is None:
        fail('--track needs the package trackers: pip install "pyface-engine[track]"')
    copies = request.copies
    if len(copies.covers) > 1:
        fail(f"--{' and --'.join(copies.covers)} cannot be combined; use one of them")
    if copies.save is not None and copies.save == copies.crops:
        fail(f"--save and --crops must be two folders, got {copies.save} for both; choose different ones")
    if copies.covers and copies.save is None:
        fail(f"--{copies.covers[0]} changes the saved copies; add --save DIR")
    if copies.strip_gps and not copies.covers:
        fail("--strip-gps needs --blur, --pixelate or --box; drawn copies never keep the position")
    if copies.crop_margin is not None and copies.crops is None:
        fail("--crop-margin needs --crops DIR")
    if request.output is None and (request.resume or request.overwrite or request.format not in (None, "jsonl")):
        option = "--resume" if request.resume else "--overwrite" if request.overwrite else f"--format {request.format}"
        fail(f"{option} needs a file of results; add --output FILE")
    formats = request.suffix_formats
    if request.cluster.ray is None and formats and request.format not in (None, *formats):
        fail(f"--format {request.format} contradicts the suffix of {request.output}; change one of the two")
    if request.resume and request.cluster.ray is None and request.output_format not in ("jsonl", "csv", None):
        fail(
            f"--resume continues jsonl and csv files, got --format {request.output_format}; "
            "write jsonl, or start again with --overwrite"
        )
    if request.resume and request.overwrite:
        fail("--resume continues the file of results and --overwrite replaces it; use one of them")
    if sys.stdout is None:  # closed, as by >&- in a shell
        if request.output is None and not copies.folders:
            fail("standard output is closed, so the results have nowhere to go; add --output FILE or --save DIR")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _cluster_folder(request: Request) -> FolderRequest:
    """Returns the folder for the results of a cluster; fails for options that a cluster does not support."""
    others = {
        "--camera": request.sources.camera is not None,
        "--every": request.every > 1,
        "--fps": request.fps is not None,
        "--track": request.track,
        "--save": request.copies.save is not None,
        "--crops": request.copies.crops is not None,
    }
    given = [name for name, is_given in others.items() if is_given]
    if given:
        fail(f"{' and '.join(given)} must be left out with --ray, which only reads images and writes results")
    if request.output is None:
        fail("--ray needs a folder for its results; add --output DIR")
    if request.format not in (None, "parquet", "jsonl"):
        fail(f"--format must be parquet or jsonl with --ray, got {request.format}")
    form: Literal["parquet", "jsonl"] = "jsonl" if request.format == "jsonl" else "parquet"
    return FolderRequest(request.output, form, request.resume, request.overwrite)


def _check_landmarks(request: Request, detector: FaceDetector) -> None:
    """Fails if faces are to be aligned and the model has no landmarks."""
    import numpy as np

    copies = request.copies
    if copies.crops is not None and copies.crop_margin is None:
        nothing = detector(np.zeros((64, 64, 3), np.uint8))
        if nothing.landmarks is None:
            fail(
                f"{request.detector.model} returns no landmarks to align faces by; add --crop-margin 0.2 for plain "
                "crops"
            )


def _write_results(run: Run, sources: list[Source], write: Write, resumable: bool) -> None:
    """Detects faces and writes the results; what ends a run early is reported in one sentence."""
    report = run.report
    try:
        with report, contextlib.closing(run.results(sources)) as results:
            for result in results:
                write(result)
                report.add(result)
    except KeyboardInterrupt:
        hint = "; repeat the command with --resume to continue" if resumable else ""
        fail(f"interrupted, {report.describe_done()}{hint}", INTERRUPTED)
    except BrokenPipeError:  # the reader of our lines has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it exits
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        fail(f"{error.filename or 'the results'} cannot be written: {error.strerror or error}", FAILED)
