"""`pyface models`, `pyface info`, `pyface convert` and `pyface convert-data`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyface.cli.console import fail, print_status, table_width

if TYPE_CHECKING:
    from rich.table import Table

    from pyface.models.facts import Facts


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """Lists the available detectors and says when to use which.

    Example:

    ```
    pyface models --json | jq ".[].name"
    ```
    """
    from pyface.models.facts import facts
    from pyface.models.zoo import list_models

    known = [facts(name) for name in list_models()]
    if as_json:
        typer.echo(json.dumps([asdict(of) for of in known], indent=1))
    else:
        _print_models(known)


def _print_models(known: Sequence[Facts]) -> None:
    """Prints the figures, when to use which model, and the models without weights."""
    from rich.console import Console

    console = Console(width=table_width(80), highlight=False, markup=False)
    ready = sorted((of for of in known if of.licence), key=lambda of: -sum(_precision(of)))
    figures = ["model", "easy", "medium", "hard", "ms", "params", "threshold", "smallest", "landmarks"]
    console.print(_table(figures, map(_row, ready)))
    console.print(
        "\neasy, medium, hard: average precision on WIDER FACE val. ms: from a decoded image to faces, on two CPU "
        "threads; `pyface benchmark` measures this machine. smallest: the smallest faces found reliably. All at 640 "
        "px, mtcnn on its own image pyramid.\n"
    )
    choice = [(of.name, of.use_when, str(of.licence)) for of in ready]
    console.print(_table(["model", "use it when", "licence of the weights"], choice))
    console.print("\nWithout bundled weights; train them, or give a checkpoint with --weights:\n")
    rest = [(of.name, of.description, _millions(of)) for of in known if not of.licence]
    console.print(_table(["model", "description", "params"], rest))


def _row(of: Facts) -> tuple[str, ...]:
    precision = [f"{value:.3f}" for value in _precision(of)]
    milliseconds = "-" if of.milliseconds is None else f"{of.milliseconds:.0f}"
    landmarks = str(of.landmarks or "-")
    return (
        of.name,
        *precision,
        milliseconds,
        _millions(of),
        f"{of.score_threshold:.3f}",
        f"{of.smallest_face:.0f} px",
        landmarks,
    )


def _precision(of: Facts) -> list[float]:
    """Returns the figures of WIDER FACE's subsets, at the first size that was measured."""
    first: dict[str, float] = next(iter(of.widerface.values()))
    return list(first.values())


def _millions(of: Facts) -> str:
    return f"{of.parameters / 1e6:.2f} M"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Public checkpoint, or a folder of MTCNN's three networks.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Converts a public checkpoint to pyface's own format.

    Popular public checkpoints are detected automatically: S3FD (yxlijun, clcarwin, face-alignment), SRN, SSH (Caffe's
    names) and MTCNN (facenet-pytorch, ipazc). `pyface detect --weights` takes files in either format.

    Example:

    ```
    pyface convert s3fd.pth s3fd.safetensors
    ```
    """
    if target.exists() and not overwrite:
        fail(f"{target} already exists; add --overwrite to replace it")
    try:
        from pyface.models.zoo import CheckpointError
        from pyface.models.zoo import convert as convert_checkpoint
    except ImportError as error:
        fail(error)
    try:
        checkpoint = convert_checkpoint(source, target)
    except (CheckpointError, OSError) as error:
        fail(error)
    print_status(f"{target}: weights of {checkpoint.model}, read as {checkpoint.layout}")


def convert_data(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder in any of these formats.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Data folder to write, with copies of the images.")],
    form: Annotated[
        str, typer.Option("--format", metavar="wider|coco|yolo", help="Annotation format of the new folder.")
    ],
) -> None:
    """Converts a data folder between the formats of WIDER FACE, COCO and YOLO.

    `pyface train` and `pyface evaluate faces` read all three.

    Example:

    ```
    pyface convert-data mine/ mine_coco/ --format coco
    ```
    """
    if form not in ("wider", "coco", "yolo"):
        fail(f"--format must be wider, coco or yolo, got {form}")
    if target.exists():
        fail(f"{target} already exists; give a new folder")
    from pyface.data.annotations import DatasetError, annotated_image
    from pyface.data.folder import read_records, write_folder

    try:
        images = read_records(source)
        annotated = [annotated_image(image.path, image.boxes) for image in images]
        write_folder(annotated, [image.name for image in images], target, form)  # type: ignore[arg-type]
    except OSError as error:
        fail(f"{error.filename or target}: {error.strerror or error}")
    except (DatasetError, ImportError) as error:
        fail(error)
    faces, ignored = (sum(map(len, boxes)) for boxes in zip(*((p.faces, p.ignore) for p in annotated), strict=True))
    print_status(f"{target}: {len(annotated):,} images, {faces:,} faces")
    if form == "yolo" and ignored:
        are = "ignore box is" if ignored == 1 else "ignore boxes are"
        print_status(f"{ignored:,} {are} lost: YOLO has none")


def info(as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Shows versions, devices and how the kernels were built, for bug reports."""
    facts = [*_versions(), *_runtimes(), *_gpus(), *_kernels()]
    if as_json:
        typer.echo(json.dumps(dict(facts), indent=1))
        return
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        typer.echo(f"{name:<{width}}  {_words(value)}")


def _versions() -> list[tuple[str, str]]:
    import platform

    import cv2
    import numpy as np
    import torch

    from pyface import __version__

    return [
        ("pyface", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("opencv", cv2.__version__),
        ("numpy", np.__version__),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"),
    ]


def _runtimes() -> list[tuple[str, str]]:
    from importlib import metadata

    facts = []
    for name, extra in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        try:
            facts.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            facts.append((name, f'not installed (pip install "pyface-engine[{extra}]")'))
    return facts


def _gpus() -> list[tuple[str, str]]:
    import torch

    facts = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        facts.append((f"cuda:{index}", f"{device.name}, {memory}, compute capability {device.major}.{device.minor}"))
    if not torch.cuda.is_available():
        facts.append(("cuda", "no device" if torch.version.cuda else "no device (this build of torch has no CUDA)"))
    return facts


def _kernels() -> list[tuple[str, Any]]:
    try:
        from pyface.ops.extension import build_info

        built = build_info()
    except ImportError as error:
        built = {"kernels": str(error)}
    return [(f"kernels: {name.replace('_', ' ')}", value) for name, value in built.items()]


def _words(value: object) -> str:
    """Formats a fact for reading: yes and no, a dash for none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
