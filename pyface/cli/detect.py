"""`pyface detect`: faces of any number of images and videos, as lines of results and drawn copies."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from pyface.cli.cluster import ClusterOptions, FolderRequest, detect_on_cluster
from pyface.cli.console import FAILED, INTERRUPTED, PIPE_CLOSED, fail, print_status
from pyface.cli.memory import keep_freed_memory
from pyface.cli.options import (
    BatchSize,
    DetectorRequest,
    Device,
    MinFace,
    Model,
    Multiscale,
    Precision,
    ScoreThreshold,
    Size,
    Threads,
    Weights,
    parse_size,
    takes_options,
)
from pyface.cli.report import Report
from pyface.io.files import own_folder
from pyface.io.sources import Source, is_archive, is_unclear, is_video, source_key, source_name

if TYPE_CHECKING:
    from pyface.cli.outcomes import Run
    from pyface.data.predictions import YoloFolder
    from pyface.detector import FaceDetector
    from pyface.io.results import FinishedFile
    from pyface.redact import Cover


FILES, VIDEOS, PRIVACY, RESULTS = "File selection", "Videos and cameras", "Crops and privacy", "Results"
"""Panels of the help."""


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """The detector, and how it runs."""

    model: Model = "s3fd_lite"
    weights: Weights = "default"
    device: Device = "auto"
    score_threshold: ScoreThreshold = None
    min_face: MinFace = None
    size: Size = None
    multiscale: Multiscale = None
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="PIXELS",
            help="Split huge images into square tiles of this size. Not for mtcnn.",
            show_default="never",
        ),
    ] = None
    precision: Precision = "fp32"
    batch_size: BatchSize = 8
    threads: Threads = None
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Refuse larger images before decoding them.", show_default="134 million"),
    ] = None
    truncated: Annotated[
        Literal["refuse", "accept"], typer.Option(help="What to do with JPEG and PNG files without their end marker.")
    ] = "refuse"

    def request(self) -> DetectorRequest:
        """The detector with these options."""
        options = vars(self) | {"size": parse_size(self.size)}
        if self.max_pixels is None:
            del options["max_pixels"]
        return DetectorRequest(options.pop("model"), options.pop("weights"), options)


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The images and videos to read."""

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Images, videos, .tar and .zip archives of images, folders, patterns like 'a/*.jpg', addresses "
            "(https://, s3://, gs://, rtsp://), or - for a list of files on standard input.",
        ),
    ] = None
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False
    from_file: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Read the names of files from this list: one per line, or separated by NUL.",
            rich_help_panel=FILES,
        ),
    ] = None
    glob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Read only files whose names match, such as '*.jpg'.", rich_help_panel=FILES
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Skip files whose names or folders match, such as 'thumbs/*'.",
            rich_help_panel=FILES,
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Read only the I-th of N parts of the files; a file's path decides which part it is in.",
            rich_help_panel=FILES,
        ),
    ] = None
    camera: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Read camera N of this machine; 0 is the first.", rich_help_panel=VIDEOS),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """The files to write beside the results."""

    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save copies of images and videos with the faces drawn, or covered. In a folder that pyface made, a "
            "new run replaces them; other files are never replaced.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    blur: Annotated[
        bool, typer.Option("--blur", help="Blur the faces in the saved copies.", rich_help_panel=PRIVACY)
    ] = False
    pixelate: Annotated[
        bool, typer.Option("--pixelate", help="Pixelate the faces in the saved copies.", rich_help_panel=PRIVACY)
    ] = False
    box: Annotated[
        bool,
        typer.Option("--box", help="Cover the faces in the saved copies with black boxes.", rich_help_panel=PRIVACY),
    ] = False
    strip_gps: Annotated[
        bool,
        typer.Option(
            "--strip-gps",
            help="Remove the GPS position from the metadata of blurred, pixelated or boxed photos.",
            rich_help_panel=PRIVACY,
        ),
    ] = False
    crops: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save every face, aligned, as an image of 112 x 112 pixels; the results name the files.",
            rich_help_panel=PRIVACY,
        ),
    ] = None
    crop_margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="M",
            help="Crop boxes instead of aligning faces, with a margin of M times the box's size on each side.",
            show_default="aligned faces",
            rich_help_panel=PRIVACY,
        ),
    ] = None

    @property
    def covers(self) -> list[Cover]:
        """The ways in which copies cover the faces; more than one is a mistake."""
        ways: list[tuple[Cover, bool]] = [("blur", self.blur), ("pixelate", self.pixelate), ("box", self.box)]
        return [cover for cover, is_given in ways if is_given]

    @property
    def folders(self) -> list[Path]:
        """Where the files go."""
        return [folder for folder in (self.save, self.crops) if folder is not None]

    def facts(self) -> dict[str, Any]:
        """What decides the results."""
        return {"crops": self.crops and str(self.crops), "crop_margin": self.crop_margin}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface detect`."""

    detector: DetectorOptions
    sources: SourceRequest
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Process one frame in N of each video.", rich_help_panel=VIDEOS)
    ] = 1
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            metavar="F",
            help="Process at most F frames per second of each video.",
            show_default="all frames",
            rich_help_panel=VIDEOS,
        ),
    ] = None
    track: Annotated[
        bool,
        typer.Option(
            "--track",
            help="Give the faces of one person in a video the same id, in results and saved videos.",
            rich_help_panel=VIDEOS,
        ),
    ] = False
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the results to this file, in the format of its suffix: .jsonl, .csv or .parquet. With --ray: "
            "the folder to write to.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    format: Annotated[
        Literal["jsonl", "csv", "parquet", "coco", "yolo", "labelstudio"] | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of --output: jsonl, csv, parquet, coco (JSON), yolo (a folder of labels) or labelstudio "
            "(tasks with predictions).",
            show_default="by the suffix of FILE",
            rich_help_panel=RESULTS,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue --output FILE (.jsonl or .csv, or the folder of --ray): skip the images that it already "
            "has. Model, weights and options must be the same as before; FILE.run.json records them.",
            rich_help_panel=RESULTS,
        ),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --output FILE if it exists.", rich_help_panel=RESULTS)
    ] = False
    copies: CopyRequest
    cluster: ClusterOptions

    @property
    def output_file(self) -> Path | None:
        """The file of results, unless a cluster writes them."""
        return None if self.output is None else Path(self.output)

    @property
    def output_format(self) -> str | None:
        """The format of the results, None if neither the option nor the file's suffix gives one."""
        return self.format or self.output_suffix

    @property
    def output_suffix(self) -> str | None:
        """The format that the file's suffix stands for, None if it stands for none."""
        suffix = "" if self.output_file is None else self.output_file.suffix.lower()
        return suffix[1:] if suffix in (".jsonl", ".csv", ".parquet") else None

    @property
    def is_resumable(self) -> bool:
        """Whether a later run can continue the file of results."""
        return self.output is not None and self.output_format in ("jsonl", "csv")

    @property
    def continues(self) -> bool:
        """Whether there are results that this run continues; its copies may then replace those of the former run."""
        file = self.output_file
        return self.resume and file is not None and file.is_file() and file.stat().st_size > 0

    def facts(self) -> dict[str, Any]:
        """What decides the results, by the names of the options."""
        frames = {"every": self.every, "fps": self.fps, "track": self.track}
        return self.detector.request().facts() | frames | self.copies.facts()


@takes_options
def detect(request: Request) -> None:
    """Finds faces in images, videos and cameras.

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
    pyface detect photos/ --save out/ --blur      # copies with the found faces blurred
    pyface detect photos/ --crops faces/          # every face, aligned
    pyface detect photos.tar s3://bucket/more/    # archives and addresses
    pyface detect photos/ --format coco --output faces.json
    pyface detect s3://bucket/photos --ray auto --output s3://bucket/faces
    ```
    """
    _check_request(request)
    if request.cluster.ray is None:
        detect_sources(request)
    else:
        folder = _cluster_folder(request)
        sources, _, _ = _find_sources(request)
        detect_on_cluster(request.cluster, request.detector.request(), sources, folder)


def detect_sources(request: Request) -> None:
    """Runs a detector on the requested sources, and exits with the command's status."""
    keep_freed_memory()
    sources, places, crops = _find_sources(request)
    owned = _own_folders(request)
    detector = request.detector.request().make()
    _check_landmarks(request, detector)
    from pyface.cli.copies import Copies
    from pyface.cli.outcomes import Run  # after the detector, which reports missing kernels

    with _open_results(request, sources) as (write, done, begun):
        remaining = [source for source in sources if source_key(source) not in done]
        if begun is not None:  # first, so that the lines of a video stay together
            remaining.sort(key=lambda source: source_key(source) != begun[0])
        show_lines = request.output is None and sys.stdout.isatty()
        report = Report(len(sources), len(sources) - len(remaining), show_lines=show_lines)
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
            -1 if begun is None else begun[1],
            request.sources.glob or [],
            request.sources.exclude or [],
            done,
        )
        _write_results(run, remaining, write, request.is_resumable)
    drawn = "faces covered" if request.copies.covers else "drawn"
    report.summarise({"results": request.output_file, drawn: request.copies.save, "crops": request.copies.crops})
    if report.failed.total() or _had_failures(sources, done):
        raise typer.Exit(FAILED)


def _had_failures(sources: list[Source], done: dict[str, bool]) -> bool:
    """Tells whether one of these sources, or an image in one of these archives, failed in an earlier run."""
    keys = {source_key(source) for source in sources}
    folders = tuple(f"{source_key(source)}/" for source in sources if is_archive(source))
    return any(failed for key, failed in done.items() if key in keys or key.startswith(folders))


def _check_request(request: Request) -> None:
    """Fails if options exclude each other or the results have nowhere to go."""
    given = request.sources
    if not given.sources and given.from_file is None and given.camera is None:
        fail("nothing to read is given; name images, videos or folders, or a camera with --camera N")
    if given.from_file is not None and "-" in (given.sources or []):
        fail("--from-file and - are both lists of files; use one of them")
    if request.every > 1 and request.fps is not None:
        fail("--every and --fps both choose the frames of videos; use one of them")
    if request.track and importlib.util.find_spec("trackers") is None:
        fail('--track needs the package trackers: pip install "pyface-engine[track]"')
    copies = request.copies
    if len(copies.covers) > 1:
        fail(f"--{' and --'.join(copies.covers)} exclude each other; use one of them")
    if copies.save is not None and copies.save == copies.crops:
        fail(f"--save and --crops must be two folders, got {copies.save} for both; give one of them another")
    if copies.covers and copies.save is None:
        fail(f"--{copies.covers[0]} changes the saved copies; add --save DIR")
    if copies.strip_gps and not copies.covers:
        fail("--strip-gps needs --blur, --pixelate or --box; drawn copies never keep the position")
    if copies.crop_margin is not None and copies.crops is None:
        fail("--crop-margin is for crops; add --crops DIR")
    if request.output is None and (request.resume or request.overwrite or request.format not in (None, "jsonl")):
        option = "--resume" if request.resume else "--overwrite" if request.overwrite else f"--format {request.format}"
        fail(f"{option} needs a file of results; add --output FILE")
    suffix = request.output_suffix
    if request.cluster.ray is None and suffix is not None and request.format not in (None, suffix):
        fail(f"--format {request.format} contradicts the suffix of {request.output}; leave one of the two out")
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


def _find_sources(request: Request) -> tuple[list[Source], dict[Source, Path] | None, dict[Source, Path] | None]:
    """Returns the images and videos to read, and where the copy and the crops of each go if these are asked for."""
    from pyface.io.sources import SourceError, is_in_shard, is_live, parse_shard, plan_copies

    save = request.copies.save
    shard = request.sources.shard
    try:
        part = (1, 1) if shard is None else parse_shard(shard)
        sources = _select_sources(request.sources, request.copies.folders)
        _check_frame_options(request, sources)
        live = next((source for source in sources if is_live(source)), None)
        if request.resume and live is not None:
            fail(f"{source_name(live)} has no frames to go back to; use --overwrite or another --output, not --resume")
        places = None if save is None else plan_copies(sources, save)
        wanted = request.copies.crops
        crops = None if wanted is None else plan_copies(sources, wanted, lambda name, _: name)
        sources = [source for source in sources if is_in_shard(source, part)]  # copies are named as without shards
    except SourceError as error:
        fail(error)
    return sources, places, crops


def _own_folders(request: Request) -> list[Path]:
    """Makes the folders for copies and crops, and returns those in which files may be replaced."""
    owned = []
    for folder in request.copies.folders:
        try:
            owned += [folder] if own_folder(folder) or request.continues else []
        except OSError as error:
            reason = "it is a file; give a folder" if folder.is_file() else error.strerror
            fail(f"{folder}: the images cannot be saved there ({reason})")
    return owned


def _check_frame_options(request: Request, sources: list[Source]) -> None:
    """Says so if options that choose frames have no effect, which is no mistake: a folder may get videos later."""
    option = "--fps" if request.fps is not None else "--every"
    is_given = request.fps is not None or request.every > 1
    if is_given and not any(is_video(source) or is_unclear(source) for source in sources):
        print_status(f"pyface: {option} has no effect, since none of the sources is a video")


def _select_sources(request: SourceRequest, skip: list[Path]) -> list[Source]:
    """Returns all sources but those that patterns exclude, and prints which kinds of files are skipped."""
    from pyface.io.sources import describe_skipped, find_sources, read_list, select_sources

    skipped: Counter[str] = Counter()
    sources: list[Source] = [] if request.camera is None else [request.camera]
    arguments = request.sources or []
    list_file = "-" if "-" in arguments else request.from_file
    names = [] if list_file is None else read_list(list_file)
    arguments = [argument for argument in arguments if argument != "-"]
    found = find_sources(arguments, names=names, recursive=request.recursive, videos=True, skip=skip, skipped=skipped)
    for text in describe_skipped(skipped):
        print_status(f"pyface: {text}")
    if request.glob or request.exclude:
        return select_sources([*found, *sources], request.glob or [], request.exclude or [])
    return [*found, *sources]


Write: TypeAlias = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def _open_results(
    request: Request, sources: list[Source]
) -> Iterator[tuple[Write, dict[str, bool], tuple[str, int] | None]]:
    """Returns the function that writes a result, the sources that are done, and the video within which the results end.

    Each source that is done comes with whether it failed, and the video with the number of its last frame.
    """
    from pyface.io.results import OutputError, json_line

    output = request.output_file
    if output is None:
        is_terminal = sys.stdout.isatty()

        def print_line(result: dict[str, Any]) -> None:
            if not is_terminal:
                sys.stdout.buffer.write(json_line(result))
                sys.stdout.buffer.flush()

        yield print_line, {}, None
        return
    try:
        if request.is_resumable:
            with _open_growing(request, output, sources) as (write, done, begun):
                yield write, done, begun
        else:
            with _open_finished(request, output, sources) as file:
                has_errors = request.output_format == "parquet"
                yield file.write if has_errors else _reporting_failures(file.write), {}, None
    except OutputError as error:
        fail(error)


@contextlib.contextmanager
def _open_growing(
    request: Request, output: Path, sources: list[Source]
) -> Iterator[tuple[Write, dict[str, bool], tuple[str, int] | None]]:
    """Opens a JSON Lines or CSV file, which may be continued."""
    from pyface.io.results import ResultFile

    file = ResultFile(
        output,
        as_csv=request.output_format == "csv",
        resume=request.resume,
        overwrite=request.overwrite,
        # A saved video and its tracks begin with its first frame.
        whole_videos=request.track or request.copies.save is not None,
        made_by=request.facts(),
    )
    if file.is_unchecked:
        print_status(
            f"pyface: {output} has no {output.name}.run.json beside it, so it is unknown whether the same model "
            f"and options made it"
        )
    begun = None if file.begun is None else (source_key(file.begun[0]), file.begun[1])
    with file:
        if begun is not None and begun[0] not in map(source_key, sources):
            fail(f"{output} ends within {begun[0]}; name that video too, so that it can be finished first")
        yield file.write, {source_key(source): failed for source, failed in file.done.items()}, begun


def _open_finished(request: Request, output: Path, sources: list[Source]) -> FinishedFile | YoloFolder:
    """Opens a file or folder of results that is complete when the run ends."""
    from pyface.data.predictions import CocoFile, LabelStudioFile, YoloFolder
    from pyface.io.results import OutputError, ParquetFile
    from pyface.io.sources import paths_below

    match request.output_format:
        case "parquet":
            return ParquetFile(output, overwrite=request.overwrite)
        case "coco":
            return CocoFile(output, overwrite=request.overwrite)
        case "yolo":
            return YoloFolder(output, paths_below(sources))
        case "labelstudio":
            video = next((source_name(source) for source in sources if is_video(source)), None)
            if video is not None:
                raise OutputError(f"--format labelstudio is for images, got the video {video}; leave it out")
            return LabelStudioFile(output, request.detector.model, overwrite=request.overwrite)
    raise OutputError(
        f"{output}: a file of results must end with .jsonl, .csv or .parquet; otherwise add --format coco, yolo or "
        f"labelstudio"
    )


def _reporting_failures(write: Write) -> Write:
    """Adds a line on standard error about images that failed, for which some formats have no place."""

    def write_or_report(result: dict[str, Any]) -> None:
        write(result)
        if result["error"] is not None:
            print_status(f"pyface: {result['error']}")

    return write_or_report


def _write_results(run: Run, sources: list[Source], write: Callable[[dict[str, Any]], None], resumable: bool) -> None:
    """Detects faces and writes the results; what ends a run early is reported in one sentence."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it exits
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        fail(f"{error.filename or 'the results'} cannot be written: {error.strerror or error}", FAILED)
