"""Writes detectors as ONNX (.onnx), OpenVINO (.xml) and torch.export (.pt2) files."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pyface import __version__
from pyface.export.graph import Faces, Heads, Network
from pyface.export.quantisation import Calibration, calibrate, quantise
from pyface.models.exported import Description, is_exported, network_file
from pyface.models.mtcnn import MTCNN
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import create_model, model_info

OPSET = 18  # old enough for most runtimes, and what torch's exporter writes without conversion
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float32}
"""The precision in which a graph is traced; int8 quantisation comes afterwards."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        model: A name from `list_models()`. MTCNN becomes three files, and only its weights can be chosen.
        weights: "default", or the path of a weights file.
        heads: Export the network alone, whose outputs are raw maps.
        input: "normalised" for float32 [B, 3, H, W], (pixel - mean) / std in RGB order; "uint8" for [B, H, W, 3].
        size: Height and width of the images; None: any.
        precision: Numeric precision of the network, "fp32", "fp16" or "int8"; decoding is always in float32.
        calibrate: Folder of images on which int8 is calibrated: a few hundred, like those that the model will run on.
        limits: Limits on the number of boxes, "ap" or "fast"; see `InferenceOptions`.
        score_threshold: Faces have a score > this; None: the model's default.
    """

    model: str
    weights: str = "default"
    heads: bool = False
    input: Literal["normalised", "uint8"] = "normalised"
    size: tuple[int, int] | None = None
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    calibrate: Path | None = None
    limits: Literal["ap", "fast"] = "ap"
    score_threshold: float | None = None


def export(request: ExportRequest, target: str | os.PathLike[str]) -> Description:
    """Exports a detector to a file.

    Args:
        request: What to export.
        target: The file, with the suffix .onnx, .xml (and .bin beside it) or .pt2.

    Returns:
        The description that was stored in the file.

    Raises:
        ValueError: The model does not exist or has no weights, the suffix is unknown, or the model does not support an
            option of the request.
        ImportError: The format needs a package that is not installed.
        FileNotFoundError, CheckpointError: As for `create_model`.
    """
    path = Path(target)
    if path.suffix not in WRITERS:
        raise ValueError(f"OUT must end with .onnx, .xml or .pt2, got {path}")
    if is_exported(request.model):
        raise ValueError(f"MODEL must be a name that `pyface models` lists, got the exported file {request.model}")
    model = create_model(request.model, request.weights)
    if isinstance(model, MTCNN):
        return export_cascade(request, model, path)
    folded = folded_model(request, cast(SingleShot, model))
    description = describe(request, folded)
    calibration = calibrated(request, folded, description, path)
    require(*CONVERTERS[path.suffix])
    WRITERS[path.suffix](trace(request, folded), description, path, calibration)
    return description


def calibrated(request: ExportRequest, model: SingleShot, description: Description, path: Path) -> Calibration | None:
    """Returns what int8 is calibrated with, None for other precisions.

    Raises:
        ValueError: The request lacks the folder, has one without int8, or has int8 for raw maps or a .pt2 file.
        ImportError: NNCF is not installed.
    """
    if (request.precision == "int8") != (request.calibrate is not None):
        raise ValueError("--int8 and --calibrate DIR must be given together, got one of them")
    if request.calibrate is None:
        return None
    if request.heads or path.suffix == ".pt2":
        given = "--heads" if request.heads else path
        raise ValueError(f"--int8 must be used for faces in .onnx or .xml files, got {given}")
    calibration = calibrate(model, description, request.calibrate)
    require(["nncf"], "--int8", "int8")
    return calibration


def export_cascade(request: ExportRequest, model: MTCNN, path: Path) -> Description:
    """Exports MTCNN's networks to three files.

    Raises:
        ValueError: The request has options, or the suffix is .pt2, whose graphs are too strict about sizes.
    """
    if request != ExportRequest(request.model, request.weights):
        raise ValueError(
            f"all options but --weights must be left out for {request.model}, whose networks are exported as they are"
        )
    if path.suffix == ".pt2":
        raise ValueError(f"OUT must end with .onnx or .xml for {request.model}, got {path}")
    require(*CONVERTERS[path.suffix])
    config = model.config
    description = Description(
        model=request.model,
        config=asdict(config),
        outputs="network",
        input="normalised",
        size=None,
        precision="fp32",
        limits="ap",
        max_detections=0,
        score_threshold=config.thresholds[2],
        nms_threshold=config.onet_nms,
        mean=(127.5,) * 3,
        std=(128.0,) * 3,
        licence=licence(request),
        pyface=__version__,
    )
    for name, sides in (("pnet", (45, 61)), ("rnet", (24, 24)), ("onet", (48, 48))):
        free = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if name == "pnet" else {}
        images = {"images": torch.zeros(3, 3, *sides)}
        shapes = {"images": {0: Dim.DYNAMIC} | free}
        with torch.no_grad():
            network = Network(getattr(model, name)).eval()
            program = torch.export.export(network, (), images, dynamic_shapes=shapes, strict=False)
        WRITERS[path.suffix](program, description, network_file(path, name), None)
    return description


def licence(request: ExportRequest) -> str:
    """The licence of the exported weights."""
    weights = model_info(request.model).weights
    return weights.licence if request.weights == "default" and weights else "that of the weights file"


def folded_model(request: ExportRequest, model: SingleShot) -> SingleShot:
    """Returns a single-shot detector in the requested precision.

    Raises:
        ValueError: ONNX cannot express its suppression.
    """
    if model.nms_overlap != "union" and not request.heads:
        raise ValueError(
            f"MODEL must measure overlaps by the union, as ONNX does, but {request.model} has nms_overlap='min'; "
            "use --heads"
        )
    # No channels_last: runtimes choose their own memory formats.
    folded = cast(SingleShot, model.for_inference(PRECISIONS[request.precision], channels_last=False))
    if request.score_threshold is not None:
        folded.score_threshold = request.score_threshold
    return folded


def describe(request: ExportRequest, model: SingleShot) -> Description:
    """The description that is stored in the file."""
    return Description(
        model=request.model,
        config=asdict(cast(Any, model).config),
        outputs="heads" if request.heads else "faces",
        input=request.input,
        size=request.size,
        precision=request.precision,
        limits=request.limits,
        max_detections=model.limits[request.limits].detections,
        score_threshold=model.score_threshold,
        nms_threshold=model.nms_threshold,
        mean=model.preprocessing.mean,
        std=model.preprocessing.std,
        licence=licence(request),
        pyface=__version__,
    )


def trace(request: ExportRequest, model: SingleShot) -> ExportedProgram:
    """Traces the graph, for any batch size and, unless the request fixes it, any image size."""
    # Three different numbers that occur nowhere in a network: equal ones could be taken for the same size.
    batch, (height, width) = 3, request.size or (352, 416)
    if request.input == "uint8":
        images, axes = torch.zeros(batch, height, width, 3, dtype=torch.uint8), (1, 2)
    else:
        images, axes = torch.zeros(batch, 3, height, width, dtype=torch.float32), (2, 3)
    shape: dict[int, Any] = {0: Dim.DYNAMIC}
    if request.size is None:
        shape |= dict.fromkeys(axes, Dim.DYNAMIC)
    sizes = torch.tensor([[height, width]] * batch)
    if request.heads:
        module: nn.Module = Heads(model, request.input)
        arguments: dict[str, Tensor] = {"images": images}
        shapes = {"images": shape}
    else:
        module = Faces(model, request.input, request.limits)
        arguments = {"images": images, "sizes": sizes}
        shapes = {"images": shape, "sizes": {0: Dim.DYNAMIC}}
    return torch.export.export(module.eval(), (), arguments, dynamic_shapes=shapes, strict=False)


def write_torch(program: ExportedProgram, description: Description, path: Path, _: Calibration | None) -> None:
    """Writes a .pt2 file."""
    content: dict[str, Any] = {"pyface": json.dumps(description.properties())}
    write(path, lambda file: torch.export.save(program, file, extra_files=content))


def write_onnx(program: ExportedProgram, description: Description, path: Path, calibration: Calibration | None) -> None:
    """Writes an .onnx file, after checking it."""
    model = onnx_model(program, description)
    if calibration is not None:
        model = finished(quantise(model, calibration), description)
    content = model.SerializeToString()
    write(path, lambda file: file.write_bytes(content))


def write_openvino(
    program: ExportedProgram, description: Description, path: Path, calibration: Calibration | None
) -> None:
    """Writes an .xml file and its .bin file, converted from ONNX."""
    import openvino

    model = openvino.Core().read_model(model=onnx_model(program, description).SerializeToString())
    model = model if calibration is None else quantise(model, calibration)
    model.set_rt_info(json.dumps(description.properties()), ["pyface"])
    openvino.save_model(model, path, compress_to_fp16=False)


def onnx_model(program: ExportedProgram, description: Description) -> Any:
    """Converts a traced graph to a checked `onnx.ModelProto`."""
    from pyface.export.suppression import nms_padded

    outputs = list(cast(Any, program.call_spec.out_spec).context)  # the keys of the dictionary that the graph returns
    with quiet_exporter():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=outputs,
            custom_translation_table={torch.ops.pyface.nms_padded.default: nms_padded},
            verbose=False,
        )
    assert converted is not None
    model = converted.model_proto
    forget_sources(model)
    is_raw = description.input == "uint8"
    name_axes(model, ("batch", "height", "width", "channel") if is_raw else ("batch", "channel", "height", "width"))
    return finished(model, description)


def finished(model: Any, description: Description) -> Any:
    """Adds the properties to an `onnx.ModelProto` and checks it."""
    import onnx

    onnx.helper.set_model_props(model, description.properties())
    model.producer_name, model.producer_version = "pyface", __version__
    onnx.checker.check_model(model, full_check=True)
    return model


def forget_sources(model: Any) -> None:
    """Removes the exporter's notes on source files, which contain paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")


def name_axes(model: Any, axes: tuple[str, ...]) -> None:
    """Gives the free axes of inputs and outputs readable names.

    Args:
        model: The `onnx.ModelProto`.
        axes: The names of the images' axes.
    """
    shape = model.graph.input[0].type.tensor_type.shape
    names = {dim.dim_param: name for dim, name in zip(shape.dim, axes, strict=True) if dim.dim_param}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides torch's notes on its own deprecated calls, and on torchvision's ops, which no detector uses."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def require(modules: Iterable[str], purpose: str, extra: str) -> None:
    """Imports modules, so that a missing package is reported before the graph is traced, which takes half a minute.

    Raises:
        ImportError: A package is not installed.
    """
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {error.name}: pip install "pyface-engine[{extra}]"') from None


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Writes a file to a temporary folder beside it and moves it into place, so that no half-written file is left."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyface-") as folder:
        part = Path(folder) / path.name
        save(part)
        os.replace(part, path)


WRITERS: dict[str, Callable[[ExportedProgram, Description, Path, Calibration | None], None]] = {
    ".onnx": write_onnx,
    ".xml": write_openvino,
    ".pt2": write_torch,
}

CONVERTERS: dict[str, tuple[list[str], str, str]] = {
    ".onnx": (["pyface.export.suppression"], "exporting to .onnx", "onnx"),
    ".xml": (["openvino", "pyface.export.suppression"], "exporting to .xml", "openvino"),
    ".pt2": ([], "exporting to .pt2", ""),
}
"""What `require` checks for each format."""
