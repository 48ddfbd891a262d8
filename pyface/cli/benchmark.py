"""`pyface benchmark`: speed on the user's own machine."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyface.cli.console import check_outputs, fail, print_status, table_width, write_json
from pyface.cli.options import BatchSize, Device, JsonFile, Precision, Size, parse_size, takes_options

if TYPE_CHECKING:
    from pyface.benchmark import Timing
    from pyface.detector import FaceDetector

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
DEFAULT_MODELS = ("mtcnn", "densebox_lite", "s3fd_lite", "srn_lite", "ssh_lite")  # the others take seconds per image


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface benchmark`."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Detector to time; `pyface models` lists them. May be repeated.",
            show_default="mtcnn and the lite detectors",
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images; up to 64 of them are used.", show_default="examples/"),
    ] = None
    size: Size = None
    batch_size: BatchSize = 8
    device: Device = "auto"
    precision: Precision = "fp32"
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each detector.")] = 5.0
    runtimes: Annotated[
        bool,
        typer.Option(
            "--runtimes", help="Also time the exported detectors in onnxruntime and OpenVINO, if these are installed."
        ),
    ] = False
    json_file: JsonFile = None

    @property
    def models(self) -> list[str]:
        """The names of the detectors, each once."""
        return list(dict.fromkeys(self.model or DEFAULT_MODELS))


@takes_options
def benchmark(request: Request) -> None:
    """Measures the speed of detectors on this machine, from image files to faces.

    Prints images per second, milliseconds per image by stage, and peak memory. Detectors without weights are timed
    with random weights and a score threshold that lets about 300 candidates per image pass.

    Examples:

    ```
    pyface benchmark
    pyface benchmark --model s3fd_lite --images photos/ --size native
    pyface benchmark --model s3fd_lite --runtimes
    ```
    """
    time_detectors(request)


def time_detectors(request: Request) -> None:
    """Times the requested detectors, prints the table and writes the file."""
    try:
        from rich.console import Console

        from pyface.benchmark import find_images, machine_facts, measure
        from pyface.io.sources import SourceError
        from pyface.models.zoo import CheckpointError, is_untrained
    except ImportError as error:  # the kernels were not built; the error says how to build them
        fail(error)
    check_outputs(request.json_file)
    if request.runtimes and request.precision != "fp32":
        fail("--runtimes is for fp32; leave --precision out")
    _refuse_mtcnn_options(request)
    timings: dict[str, Timing] = {}
    console = Console(stderr=True)
    try:
        for name in request.models:
            is_untrained(name)  # lists the names if there is no such model
        sources = find_images(request.images)
        with tempfile.TemporaryDirectory() as folder:
            models = dict(_models_and_exports(request, Path(folder)))
            for name, model in models.items():
                with console.status(f"{name} ..."):
                    detector = _make_detector(model, request, sources)
                    timings[name] = measure(detector, sources, request.seconds)
    except (SourceError, CheckpointError, ImportError, ValueError, MemoryError, OSError) as error:
        fail(error)
    facts = machine_facts(detector.device)
    settings = {
        "device": str(detector.device),
        "batch_size": request.batch_size,
        "size": request.size,
        "precision": request.precision,
    }
    _print_table(timings, facts, settings)
    if request.json_file is not None:
        write_json(request.json_file, _content(timings, facts, settings))


def _models_and_exports(request: Request, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields each model's name in the table and what `FaceDetector` takes for it; exports models for runtimes."""
    from pyface.export import ExportRequest, export

    for name in request.models:
        yield name, name
        for suffix, package in RUNTIMES.items() if request.runtimes and not _is_random(name) else ():
            if importlib.util.find_spec(package) is not None:
                export(ExportRequest(name), folder / f"{name}{suffix}")
                yield f"{name}{suffix}", str(folder / f"{name}{suffix}")


def _refuse_mtcnn_options(request: Request) -> None:
    if "mtcnn" in request.models and (request.size is not None or request.precision != "fp32"):
        if request.models == ["mtcnn"]:
            fail("--size and --precision must be left out for mtcnn")
        print_status("pyface: --size and --precision do not apply to mtcnn, which is timed without them")


def _make_detector(name: str, request: Request, sources: list[bytes]) -> FaceDetector:
    """Makes a detector that can be timed: with its weights, or with random ones and a threshold that suits them."""
    import torch

    from pyface.benchmark import stand_in_threshold
    from pyface.detector import FaceDetector

    options: dict[str, Any] = {"device": request.device, "batch_size": request.batch_size}
    if Path(name).stem != "mtcnn":
        options |= {"size": parse_size(request.size), "precision": request.precision}
    torch.manual_seed(0)
    detector = FaceDetector(name, weights=None if _is_random(name) else "default", **options)
    if _is_random(name):
        detector.score_threshold = stand_in_threshold(detector, sources)
    return detector


def _is_random(name: str) -> bool:
    from pyface.models.zoo import is_untrained

    return is_untrained(name)


def _print_table(timings: dict[str, Timing], facts: dict[str, Any], settings: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pyface.benchmark import CANDIDATES, STAGES

    on_gpu = facts["gpu"] is not None
    table = Table("model", caption="ms per image, one stage after the other; images/s with decoding in threads")
    for title in ("images/s", *(f"{stage} ms" for stage in STAGES), "peak RSS", *(["peak GPU"] if on_gpu else [])):
        table.add_column(title, justify="right")
    for name, timing in timings.items():
        row = [f"{timing.pictures_per_second:.1f}", *(f"{timing.stages[stage]:.1f}" for stage in STAGES)]
        row += [_mebibytes(timing.peak_rss)] + ([_mebibytes(timing.peak_cuda)] if on_gpu else [])
        table.add_row(f"{name} *" if _is_random(name) else name, *row)
    Console(width=table_width(120)).print(table, markup=False, highlight=False)
    if any(map(_is_random, timings)):
        typer.echo(f"* random weights, with a threshold that lets about {CANDIDATES} candidates per image pass")
    machine = f"{facts['cpu']}, {facts['cores']} cores" + (f", {facts['gpu']}" if on_gpu else "")
    typer.echo(
        f"{machine}; {facts['threads']} threads, torch {facts['torch']}, pyface {facts['pyface']}; "
        f"{settings['device']}, {settings['precision']}, batches of {settings['batch_size']}"
    )


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f} MiB"


def _content(timings: dict[str, Timing], facts: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The content of the JSON file."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    models = [{"model": name, "random_weights": _is_random(name)} | asdict(of) for name, of in timings.items()]
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "machine": facts, "settings": settings, "models": models}
