"""The `pyface` command. Only typer is imported here, so that help and mistakes answer at once; the rest comes late."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pyface import cli_benchmark, cli_evaluate, cli_train

if TYPE_CHECKING:
    from rich.console import Console

    from pyface.detector import FaceDetector, Outcome

app = typer.Typer(
    help="Finds faces in pictures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_evaluate.app, name="evaluate")
app.command()(cli_train.train)

MISTAKE, FAILED, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141


def _fail(message: object, status: int = MISTAKE) -> NoReturn:
    typer.echo(f"pyface: {message}", err=True)
    raise typer.Exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pyface import __version__

        typer.echo(f"pyface {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Finds faces in pictures."""


@app.command()
def detect(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Pictures, folders of pictures, patterns like 'a/*.jpg'.")
    ],
    model: Annotated[str, typer.Option(help="Detector, one of those that `pyface models` shows.")] = "s3fd_lite",
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Weights of your own: .safetensors, or a checkpoint of the usual ports.",
            show_default=False,
        ),
    ] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    score_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Faces have a score above this.", show_default="the model's own"),
    ] = None,
    min_face: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Longer side of the smallest face; pictures are seen as large as that takes.",
            show_default="the model's own",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How large the network sees a picture: native, its longer side (640), or shorter side and longer side "
            "at most (1200x1600). Not for mtcnn.",
            show_default="the model's own",
        ),
    ] = None,
    multiscale: Annotated[
        str | None,
        typer.Option(
            metavar="s3fd|srn|ssh",
            help="Look at many scales, as these papers test: slower, finds more. Not for mtcnn.",
            show_default="one scale",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="PIXELS",
            help="Cut what the network sees into tiles of this side, for huge pictures. Not for mtcnn.",
            show_default="never",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16", help="What the network computes in. Not for mtcnn.")
    ] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 8,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders too.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the results to a .jsonl or .csv file."),
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Save the pictures with the faces drawn in.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue --output FILE: skip the pictures it holds. Repeat the other options as they were.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output FILE if it exists.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Refuse larger pictures unread.", show_default="134 million"),
    ] = None,
) -> None:
    """Finds the faces in pictures.

    Writes one line of JSON a picture, in the order of the sources: to --output FILE (or rows of CSV), or to a pipe. On
    a terminal without --output it shows a short line a picture instead. A picture that cannot be read, or
    is not there though others are named too, is reported in its line, and the run goes on.

    Results leave as soon as they are there. If a run is cut off, repeat it with --resume.

    Exit status: 0 all pictures read, 1 some could not be (with --resume: now or before), 2 a mistake in the command,
    130 interrupted with Ctrl-C.
    """
    if output is None and (resume or overwrite):
        _fail(f"{'--resume' if resume else '--overwrite'} belongs to a file of results, add --output FILE")
    if resume and overwrite:
        _fail("--resume continues the file of results and --overwrite replaces it, use one of them")
    if sys.stdout is None:  # closed, as by >&- in a shell
        if output is None and save is None:
            _fail("the standard output is closed, so the results have nowhere to go, add --output FILE or --save DIR")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    from pyface.sources import SourceError, find_sources, plan_copies

    try:
        paths = find_sources(sources, recursive=recursive, skip=save)
        copies = None if save is None else plan_copies(paths, save)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
    except SourceError as error:
        _fail(error)
    except OSError as error:
        reason = "it is a file, give a folder" if save is not None and save.is_file() else error.strerror
        _fail(f"{save}: the pictures cannot be saved there ({reason})")

    options: dict[str, Any] = {
        "score_threshold": score_threshold,
        "min_face": min_face,
        "batch_size": batch_size,
        "device": device,
        "size": _parse_size(size),
        "multiscale": multiscale,
        "tile": tile,
        "precision": precision,
    }
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    detector = _make_detector(model, weights, options)
    with _open_results(output, resume, overwrite) as (write, done):
        left = [path for path in paths if os.path.normpath(path) not in done]
        report = _Report(len(paths), len(paths) - len(left), show_lines=output is None and sys.stdout.isatty())
        _run(detector, left, copies, write, report, resumable=output is not None)
    report.summarise(output, save)
    if report.failed or any(done.get(os.path.normpath(path), False) for path in paths):
        raise typer.Exit(FAILED)


def _parse_size(text: str | None) -> Any:
    """Reads 640 and 1200x1600; other words go on as they are, to be judged where the names are known."""
    sides = (text or "").lower().split("x")
    if all(side.isdecimal() for side in sides):
        return int(sides[0]) if len(sides) == 1 else tuple(map(int, sides))
    return text


def _make_detector(model: str, weights: str, options: dict[str, Any]) -> FaceDetector:
    # OpenMP's threads wait for work by spinning, which on a machine that has other things to do, such as reading and
    # saving pictures, costs up to ten times the run. torch's OpenMP reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from pyface.detector import FaceDetector
        from pyface.models.zoo import CheckpointError, model_info
    except ImportError as error:  # the kernels were not built; the text says how to
        _fail(error)
    try:
        if weights == "default" and model_info(model).weights is None:
            typer.echo(
                f"pyface: {model} is untrained: what it finds is noise, give it weights with --weights FILE", err=True
            )
            return FaceDetector(model, weights=None, **options)
        return FaceDetector(model, weights=weights, **options)
    except (CheckpointError, OSError, ValueError) as error:
        _fail(error)


@contextlib.contextmanager
def _open_results(
    output: Path | None, resume: bool, overwrite: bool
) -> Iterator[tuple[Callable[[dict[str, Any]], None], dict[str, bool]]]:
    """Gives what takes a result, and the pictures that are done already, each with whether it failed."""
    from pyface.output import OutputError, ResultFile, json_line

    if output is not None:
        try:
            file = ResultFile(output, resume=resume, overwrite=overwrite)
        except OutputError as error:
            _fail(error)
        with file:
            yield file.write, {os.path.normpath(source): failed for source, failed in file.done.items()}
    elif sys.stdout.isatty():
        yield lambda result: None, {}
    else:

        def write(result: dict[str, Any]) -> None:
            sys.stdout.buffer.write(json_line(result))
            sys.stdout.buffer.flush()

        yield write, {}


def _run(
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
            for result in _results(detector, paths, copies):
                write(result)
                report.add(result)
    except KeyboardInterrupt:
        hint = "; the same command with --resume continues" if resumable else ""
        _fail(f"interrupted, {report.done} of {report.total} pictures are done{hint}", INTERRUPTED)
    except BrokenPipeError:  # whoever read our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        _fail(f"{error.filename or 'the results'} cannot be written: {error.strerror or error}", FAILED)


def _results(detector: FaceDetector, paths: list[str], copies: dict[str, Path] | None) -> Iterator[dict[str, Any]]:
    """Yields the result of every picture in order, once its drawn copy is saved."""
    from concurrent.futures import ThreadPoolExecutor

    import cv2

    from pyface.pipeline import ordered_map

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a picture is in its result
    pool = ThreadPoolExecutor(2, thread_name_prefix="pyface-save")
    try:
        yield from ordered_map(
            pool,
            lambda outcome: _result(outcome, copies),
            detector.stream(paths),
            ahead=1.0,
            weight=lambda outcome: max(1 / 16, _pixels(outcome) / 2**26),
            eager=True,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(outcome: Outcome) -> int:
    return outcome.detections.width * outcome.detections.height if outcome.detections is not None else 0


def _result(outcome: Outcome, copies: dict[str, Path] | None) -> dict[str, Any]:
    """Makes the line of a picture, and saves its drawn copy if asked to."""
    from pyface.output import failed

    if outcome.detections is None:
        return failed(outcome.source, str(outcome.error))
    if copies is not None:
        _save(outcome, copies[outcome.source])
    return outcome.detections.to_dict()


def _save(outcome: Outcome, path: Path) -> None:
    import cv2

    from pyface.draw import draw

    assert outcome.detections is not None
    picture = cv2.cvtColor(draw(outcome.image, outcome.detections), cv2.COLOR_RGB2BGR)
    try:
        encoded = cv2.imencode(path.suffix, picture)[1]
    except cv2.error as error:
        raise OSError(0, f"the picture cannot be encoded ({error.err})", str(path)) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


class _Report:
    """What a person sees: a progress bar, a line a picture, a summary; all of it only where there is a terminal."""

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
            text = f"{result['source']}  {size}  {_count(len(result['faces']), 'face')}  {scores}{more}".rstrip()
            style = "" if result["faces"] else "dim"
        text = text.encode("utf-8", "replace").decode()  # a file's name may be what no terminal can show
        self._lines.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def summarise(self, output: Path | None, save: Path | None) -> None:
        """Says how it went: on a terminal always, elsewhere only if pictures failed."""
        looked_at = self.done - self.skipped
        parts = [f"{_count(self.faces, 'face')} in {_count(looked_at - self.failed, 'picture')}"]
        if self.failed:
            parts.append(f"{_count(self.failed, 'picture')} could not be read")
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
        elif self.failed:
            typer.echo(f"pyface: {text}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Checkpoint of a usual port, or a folder of MTCNN's three networks.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Rewrites a foreign checkpoint as pyface's own weights.

    Reads what circulates for S3FD (yxlijun, clcarwin, face-alignment), SRN, SSH (Caffe's names) and MTCNN
    (facenet-pytorch, ipazc), recognised by its keys. `pyface detect --weights` takes both files.
    """
    if target.exists() and not overwrite:
        _fail(f"{target} exists already, add --overwrite to replace it")
    try:
        from pyface.models.zoo import CheckpointError
        from pyface.models.zoo import convert as convert_checkpoint
    except ImportError as error:
        _fail(error)
    try:
        checkpoint = convert_checkpoint(source, target)
    except (CheckpointError, OSError) as error:
        _fail(error)
    typer.echo(f"{target}: weights of {checkpoint.model}, read as {checkpoint.layout}", err=True)


@app.command()
def models() -> None:
    """Shows the detectors that there are, and their weights."""
    from rich.console import Console
    from rich.table import Table

    from pyface.models.zoo import REGISTRY, summary

    table = Table("model", "description", "licence of the weights", "trained on", "measured")
    for row in REGISTRY.values():
        weights = row.weights
        facts = (weights.licence, weights.training_data, summary(row.name)) if weights else ("none", "", "")
        table.add_row(row.name, row.description, *facts)
    # A pipe has no width, and a table folded to 80 columns is hard to search.
    Console(width=None if sys.stdout and sys.stdout.isatty() else 240).print(table, markup=False, highlight=False)


@app.command()
def info() -> None:
    """Shows versions, devices and what the kernels were built with, as a bug report needs them."""
    import platform

    import cv2
    import numpy as np
    import torch

    from pyface import __version__

    facts: list[tuple[str, object]] = [
        ("pyface", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("opencv", cv2.__version__),
        ("numpy", np.__version__),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"),
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        facts.append((f"cuda:{index}", f"{device.name}, {memory}, compute capability {device.major}.{device.minor}"))
    if not torch.cuda.is_available():
        facts.append(("cuda", "no device" if torch.version.cuda else "no device (this build of torch has no CUDA)"))
    try:
        from pyface.ops._extension import build_info

        built = build_info()
    except ImportError as error:
        built = {"kernels": str(error)}
    facts += [(f"kernels: {name.replace('_', ' ')}", _plain(value)) for name, value in built.items()]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        typer.echo(f"{name:<{width}}  {value}")


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value


app.command()(cli_benchmark.benchmark)
