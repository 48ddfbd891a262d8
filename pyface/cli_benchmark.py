"""`pyface benchmark`: speed on the user's own machine. As in `cli.py`, what is slow to import comes late."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyface.benchmark import Timing
    from pyface.detector import FaceDetector

DEFAULT_MODELS = ("mtcnn", "densebox_lite", "s3fd_lite", "srn_lite", "ssh_lite")  # the others take seconds a picture


def benchmark(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Detector to time, one of those that `pyface models` shows; may be repeated.",
            show_default="mtcnn and the lite ones",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of pictures, of which up to 64 are used.", show_default="examples/"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="As in `pyface detect`. Not for mtcnn.", show_default="the model's own"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16", help="What the network computes in. Not for mtcnn.")
    ] = "fp32",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each detector.")] = 5.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON as well.")
    ] = None,
) -> None:
    """Times detectors on this machine, from picture files to faces.

    Shows pictures a second, milliseconds a picture by stage, and the most memory held. Detectors that have no weights
    are timed with random ones, at a score threshold that lets through about 300 candidates a picture.
    """
    from pyface.cli import _fail, _parse_size
    from pyface.cli_evaluate import _check_outputs

    # Threads that spin while they wait slow a busy machine down; torch's OpenMP reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from rich.console import Console

        from pyface.benchmark import find_pictures, machine_facts, measure
        from pyface.models.zoo import model_info
        from pyface.sources import SourceError
    except ImportError as error:  # the kernels were not built; the text says how to
        _fail(error)
    _check_outputs(json_file)
    names = list(dict.fromkeys(model or DEFAULT_MODELS))
    if "mtcnn" in names and (size is not None or precision != "fp32"):
        if names == ["mtcnn"]:
            _fail("--size and --precision are not for mtcnn, leave them out")
        typer.echo("pyface: --size and --precision are not for mtcnn, which is timed as it is", err=True)
    options = {"size": _parse_size(size), "precision": precision}
    timings: dict[str, Timing] = {}
    console = Console(stderr=True)
    try:
        for name in names:
            model_info(name)
        sources = find_pictures(images)
        for name in names:
            with console.status(f"{name} ..."):
                detector = _detector(name, options, sources, device=device, batch_size=batch_size)
                timings[name] = measure(detector, sources, seconds)
    except (SourceError, ValueError, MemoryError, OSError) as error:
        _fail(error)
    facts = machine_facts(detector.device)
    settings = {"device": str(detector.device), "batch_size": batch_size, "size": size, "precision": precision}
    _show(timings, facts, settings)
    if json_file is not None:
        _write(json_file, timings, facts, settings)


def _detector(name: str, options: dict[str, Any], sources: list[bytes], **common: Any) -> FaceDetector:
    """Makes a detector that can be timed: with its weights, or with random ones and a threshold that suits them."""
    import torch

    from pyface.benchmark import stand_in_threshold
    from pyface.detector import FaceDetector
    from pyface.models.zoo import model_info

    is_trained = model_info(name).weights is not None
    torch.manual_seed(0)
    detector = FaceDetector(
        name, weights="default" if is_trained else None, **common, **({} if name == "mtcnn" else options)
    )
    if not is_trained:
        detector.score_threshold = stand_in_threshold(detector, sources)
    return detector


def _is_random(name: str) -> bool:
    from pyface.models.zoo import model_info

    return model_info(name).weights is None


def _show(timings: dict[str, Timing], facts: dict[str, Any], settings: dict[str, Any]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from pyface.benchmark import CANDIDATES, STAGES

    on_gpu = facts["gpu"] is not None
    table = Table("model", caption="ms a picture, one stage after the other; pictures/s with decoding in threads")
    for title in ("pictures/s", *(f"{stage} ms" for stage in STAGES), "peak RSS", *(["peak GPU"] if on_gpu else [])):
        table.add_column(title, justify="right")
    for name, timing in timings.items():
        row = [f"{timing.pictures_per_second:.1f}", *(f"{timing.stages[stage]:.1f}" for stage in STAGES)]
        row += [_mebibytes(timing.peak_rss)] + ([_mebibytes(timing.peak_cuda)] if on_gpu else [])
        table.add_row(f"{name} *" if _is_random(name) else name, *row)
    # A pipe has no width, and a table folded to 80 columns is hard to read.
    Console(width=None if sys.stdout and sys.stdout.isatty() else 120).print(table, markup=False, highlight=False)
    if any(map(_is_random, timings)):
        typer.echo(f"* random weights, with a threshold that about {CANDIDATES} candidates a picture pass")
    machine = f"{facts['cpu']}, {facts['cores']} cores" + (f", {facts['gpu']}" if on_gpu else "")
    typer.echo(
        f"{machine}; {facts['threads']} threads, torch {facts['torch']}, pyface {facts['pyface']}; "
        f"{settings['device']}, {settings['precision']}, batches of {settings['batch_size']}"
    )


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f} MiB"


def _write(path: Path, timings: dict[str, Timing], facts: dict[str, Any], settings: dict[str, Any]) -> None:
    from dataclasses import asdict
    from datetime import UTC, datetime

    from pyface.cli import _fail

    models = [{"model": name, "random_weights": _is_random(name)} | asdict(of) for name, of in timings.items()]
    date = datetime.now(UTC).date().isoformat()
    content = {"date": date, "machine": facts, "settings": settings, "models": models}
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{path} cannot be written: {error.strerror}", 1)
