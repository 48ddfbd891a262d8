"""Options that several commands share, and what they become: sizes and detectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyface.cli.console import fail, print_status

if TYPE_CHECKING:
    from pyface.detector import FaceDetector

Model = Annotated[
    str, typer.Option(help="Detector to run (`pyface models` lists them), or a file written by `pyface export`.")
]
OptionalModel = Annotated[str | None, typer.Option(help="Detector to run; `pyface models` lists them.")]
Weights = Annotated[
    str,
    typer.Option(
        metavar="FILE|none",
        help="Your own weights: .safetensors, or a popular public checkpoint; none: random weights.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Image size for the network: native, the longer side (640), or the shorter side and the largest longer "
        "side (1200x1600). Not for mtcnn.",
        show_default="the model's own",
    ),
]
Multiscale = Annotated[
    str | None,
    typer.Option(
        metavar="s3fd|srn|ssh",
        help="Run at several scales, as these papers do: slower, but finds more faces. Not for mtcnn.",
        show_default="one scale",
    ),
]
Precision = Annotated[str, typer.Option(metavar="fp32|fp16|bf16", help="Numeric precision. Not for mtcnn.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="CPU threads for the model.", show_default="the cores that other processes leave free"
    ),
]
MinFace = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Longer side of the smallest face; images are scaled so that faces of this size can be found.",
        show_default="the model's own",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
LowestScore = Annotated[float, typer.Option(min=0, max=1, help="Measure detections with a score above this.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Plot the curves.")]


def parse_size(text: str | None) -> Any:
    """Reads a longer side or both sides; returns other words as they are, since the detector knows the valid names.

    Example:
        >>> parse_size("640"), parse_size("1200x1600"), parse_size("native")
        (640, (1200, 1600), 'native')
    """
    sides = (text or "").lower().split("x")
    if all(side.isdecimal() for side in sides):
        return int(sides[0]) if len(sides) == 1 else tuple(map(int, sides))
    return text


@dataclass(frozen=True)
class DetectorRequest:
    """The detector named on the command line.

    Attributes:
        model: Its name.
        weights: "default", a file, or "none" for random weights.
        options: Of `FaceDetector`.
    """

    model: str
    weights: str
    options: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What decides the results, by the names of the options: the model, its weights as a hash, and options."""
        from pyface.models.exported import is_exported
        from pyface.models.zoo import model_info, weights_hash

        weights = self.weights
        if is_exported(self.model):
            weights = weights_hash(Path(self.model))[:16]
        elif weights == "default":
            row = model_info(self.model)
            weights = f"default {row.weights.sha256[:16]}" if row.weights is not None else "none"
        elif weights != "none":
            weights = f"{Path(weights).name} {weights_hash(Path(weights))[:16]}"
        idle = ("device", "batch_size", "threads")
        return {"model": self.model, "weights": weights} | {k: v for k, v in self.options.items() if k not in idle}

    def make(self) -> FaceDetector:
        """Makes the detector, or ends the command with the reason why not."""
        try:
            from pyface.detector import FaceDetector
            from pyface.models.zoo import CheckpointError, is_untrained, model_info
        except ImportError as error:  # the kernels were not built; the text says how to
            fail(error)
        try:
            if self.weights == "default" and is_untrained(self.model):
                fail(
                    f"{self.model} has no bundled weights: give it some with --weights FILE, or --weights none for "
                    f"random ones, with which its boxes are random too"
                )
            if self.weights == "none":
                model_info(self.model)
                print_status(f"pyface: {self.model} runs with random weights, so its boxes are random too")
            return FaceDetector(self.model, weights=None if self.weights == "none" else self.weights, **self.options)
        except (CheckpointError, ImportError, OSError, ValueError) as error:
            fail(error)
