"""Options that several commands share, and what they become: sizes and detectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pyface.cli.console import fail, print_status
from pyface.evaluation import LOWEST_SCORE

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
        help="Image size for the network: native (unscaled), the longer side (640), or the shorter side and a limit "
        "for the longer one (1200x1600). Not for mtcnn.",
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
        help="Ignore faces smaller than this (longer side), and scale images so that faces of this size can be found.",
        show_default="the model's own",
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Keep faces with a score above this.", show_default="the model's own"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
LowestScore = Annotated[float, typer.Option(min=0, max=1, help="Evaluate only detections with a score above this.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Plot the curves.")]


def parse_size(text: str | None) -> Any:
    """Parses the size of images for the network, or fails.

    Example:
        >>> parse_size("640"), parse_size("1200x1600"), parse_size("native")
        (640, (1200, 1600), 'native')
    """
    if text in (None, "native"):
        return text
    sides = text.lower().split("x")
    numbers = tuple(int(side) for side in sides if side.isdecimal())
    if len(numbers) != len(sides) or len(sides) > 2 or not 0 < numbers[0] <= numbers[-1]:
        fail(
            "--size must be native, the longer side in pixels (640), or the shorter side and a limit for the longer "
            f"one (1200x1600), got {text}"
        )
    return numbers[0] if len(numbers) == 1 else numbers


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Makes the fields of a command's dataclasses its options, so that each option is written down once.

    A field has its option's type and default. A field that is a dataclass itself contributes its own fields.

    Example:
        >>> @dataclass
        ... class Request:
        ...     size: Size = None
        >>> @takes_options
        ... def command(request: Request) -> None:
        ...     print(request.size)
        >>> command(size="640")
        640
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    for name in signature(command).parameters:
        hint = hints[name]
        parameters += _options_in(hint) if is_dataclass(hint) else [_option(name, hint)]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**{name: _build(hints[name], values, name) for name in signature(command).parameters})

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options_in(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _options_in(hint)
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield _option(field.name, hint, Parameter.empty if default is MISSING else default)


def _option(name: str, hint: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _build(hint: Any, values: Mapping[str, Any], name: str) -> Any:
    """The value of a parameter or field: an instance of a dataclass, or the option's value."""
    if not is_dataclass(hint):
        return values[name]
    hints = get_type_hints(hint)
    return hint(**{field.name: _build(hints[field.name], values, field.name) for field in fields(hint)})  # type: ignore[operator]


@dataclass(frozen=True)
class DetectorRequest:
    """The detector named on the command line.

    Attributes:
        model: Its name.
        weights: "default", a file, or "none" for random weights.
        options: Options of `FaceDetector`.
    """

    model: str
    weights: str
    options: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """The options that affect the results, by name: the model, a hash of its weights, and others."""
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
        except ImportError as error:  # the kernels were not built; the error says how to build them
            fail(error)
        try:
            if self.weights == "default" and is_untrained(self.model):
                fail(
                    f"{self.model} has no bundled weights; give a file with --weights FILE, or use --weights none for "
                    "random weights and random boxes"
                )
            if self.weights == "none":
                model_info(self.model)
                print_status(f"pyface: {self.model} runs with random weights, so its boxes are random too")
            return FaceDetector(self.model, weights=None if self.weights == "none" else self.weights, **self.options)
        except (CheckpointError, ImportError, OSError, ValueError) as error:
            fail(error)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How to run the detector that is evaluated."""

    weights: Weights = "default"
    device: Device = "auto"
    size: Size = None
    multiscale: Multiscale = None
    lowest_score: LowestScore = LOWEST_SCORE

    def refuse(self, context: typer.Context) -> None:
        """Fails if one of these options is given, since without a model it has no effect."""
        for option in fields(self):
            if context.get_parameter_source(option.name).name == "COMMANDLINE":  # type: ignore[union-attr]
                fail(f"--{option.name.replace('_', '-')} needs --model; leave it out")

    def request(self, model: str) -> DetectorRequest:
        """The detector of this name with these options."""
        size, score_threshold = parse_size(self.size), self.lowest_score
        options = {"device": self.device, "size": size, "multiscale": self.multiscale}
        return DetectorRequest(model, self.weights, options | {"score_threshold": score_threshold})
