"""`pyface export`: a detector as a file for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pyface.cli.console import check_writable, fail, print_status
from pyface.cli.options import ScoreThreshold, Weights, takes_options

SHARED = ("model", "weights", "heads", "calibrate", "limits", "score_threshold")
"""Options that have the same names in `ExportRequest`."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface export`."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="Detector; `pyface models` lists them.")]
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File to write: .onnx, .xml (OpenVINO, with a .bin) or .pt2 (torch.export)."
        ),
    ]
    weights: Weights = "default"
    heads: Annotated[
        bool, typer.Option("--heads", help="Export the network alone: its outputs are raw maps, not faces.")
    ] = False
    uint8: Annotated[
        bool,
        typer.Option(
            "--uint8",
            help="Take uint8 images [B, H, W, 3] and normalise them in the graph, instead of floats [B, 3, H, W].",
        ),
    ] = False
    size: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="Fix the size of the images.", show_default="any size"),
    ] = None
    precision: Annotated[str, typer.Option(metavar="fp32|fp16", help="Numeric precision of the network.")] = "fp32"
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the network to int8; needs --calibrate DIR.")] = False
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images to calibrate int8 on: a few hundred of your own."),
    ] = None
    limits: Annotated[
        str,
        typer.Option(
            metavar="ap|fast",
            help="Limits on the number of boxes: ap, the paper's, for the best average precision; fast, lower ones "
            "(at most 200 faces per image).",
        ),
    ] = "ap"
    score_threshold: ScoreThreshold = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False


@takes_options
def export(request: Request) -> None:
    """Exports a detector for other runtimes.

    The exported model takes a batch of images and their sizes, and returns boxes, scores, landmarks and counts:
    decoding and suppression are part of the graph. docs/deploy.md describes inputs and outputs. `pyface detect --model
    OUT` runs these files.

    Examples:

    ```
    pyface export s3fd_lite s3fd_lite.onnx
    pyface export s3fd_lite fixed.onnx --size 480x640 --uint8 --limits fast
    pyface export ssh_lite ssh_lite.xml --precision fp16
    pyface export s3fd_lite int8.xml --int8 --calibrate photos/
    pyface export mtcnn mtcnn.onnx                # with mtcnn.rnet.onnx and mtcnn.onet.onnx
    ```
    """
    export_detector(request)


def export_detector(request: Request) -> None:
    """Writes the file, and reports an error in one sentence."""
    _check(request)
    try:
        from pyface.export import ExportRequest
        from pyface.export import export as export_model
        from pyface.models.zoo import CheckpointError
    except ImportError as error:  # the kernels were not built; the error says how to build them
        fail(error)
    options: dict[str, Any] = {name: getattr(request, name) for name in SHARED}
    options |= {
        "input": "uint8" if request.uint8 else "normalised",
        "size": _parse_sides(request.size),
        "precision": "int8" if request.int8 else request.precision,
    }
    takes = "several minutes" if request.int8 else "up to a minute"
    print_status(f"pyface: exporting {request.model} to {request.target}, which takes {takes}")
    try:
        description = export_model(ExportRequest(**options), request.target)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        fail(error)
    shape = "images of any size" if description.size is None else "images of {} x {} pixels".format(*description.size)
    facts = f"{description.model}, {description.outputs} of {shape}, {description.precision}"
    print_status(f"{request.target}: {facts}")


def _check(request: Request) -> None:
    """Fails early if options are wrong or the file cannot be written."""
    target = request.target
    for name, value, choices in (
        ("precision", request.precision, ("fp32", "fp16")),
        ("limits", request.limits, ("ap", "fast")),
    ):
        if value not in choices:
            fail(f"--{name} must be {' or '.join(choices)}, got {value}")
    if request.int8 and request.precision != "fp32":
        fail("--int8 and --precision cannot be combined; use one of them")
    if target.exists() and not request.overwrite:
        fail(f"{target} already exists; add --overwrite to replace it")
    check_writable(target)


def _parse_sides(text: str | None) -> tuple[int, int] | None:
    sides = (text or "").lower().split("x")
    if text is None:
        return None
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
        fail(f"--size must be HEIGHTxWIDTH with sides of 32 pixels or more, such as 480x640, got {text}")
    return int(sides[0]), int(sides[1])
