"""Detectors in exported files, run by onnxruntime, OpenVINO or torch; `pyface export` writes such files.

The file holds the network with decoding and suppression. Everything around it (resizing, pyramids, tiles, mapping back)
is that of the model that was exported. MTCNN is three files with one network each; pyface runs the cascade.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyface import ops
from pyface.models.base import Faces, GroundTruth
from pyface.models.checkpoints import CheckpointError
from pyface.models.mtcnn import MTCNN, MTCNNConfig
from pyface.models.single_shot import InferenceOptions, Preprocessing, SingleShot

Run: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Runs a graph: takes the inputs by name, and returns the outputs by name."""


@dataclass(frozen=True)
class Description:
    """The description of an exported file; stored in it, one property per field.

    Attributes:
        model: The model's name.
        config: The model's configuration.
        outputs: "faces", "heads" for the raw maps, or "network" for one of MTCNN's networks.
        input: "normalised" for float32 [B, 3, H, W], (pixel - mean) / std in RGB order; "uint8" for [B, H, W, 3].
        size: Height and width that images must have; None: any.
        precision: Numeric precision of the network, "fp32", "fp16" or "int8".
        limits: Limits on the number of boxes, "ap" or "fast".
        max_detections: Largest number of faces per image, which is the padded size of the outputs.
        score_threshold: Faces have a score > this.
        nms_threshold: Faces are dropped if their IoU with a better one is > this.
        mean, std: Mean and standard deviation of the normalisation, in pixel values and RGB order.
        licence: Licence of the weights.
        pyface: The version of pyface that exported the file.
    """

    model: str
    config: dict[str, Any]
    outputs: Literal["faces", "heads", "network"]
    input: Literal["normalised", "uint8"]
    size: tuple[int, int] | None
    precision: Literal["fp32", "fp16", "int8"]
    limits: Literal["ap", "fast"]
    max_detections: int
    score_threshold: float
    nms_threshold: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    pyface: str

    def properties(self) -> dict[str, str]:
        """The fields as text; those that are not text already are written as JSON."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, properties: Mapping[str, str], path: str) -> Description:
        """Reads what `properties` returned.

        Raises:
            CheckpointError: A property is missing or damaged.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in properties:
                raise CheckpointError(f"{path} has no property {field.name}, so `pyface export` did not write it")
            text = properties[field.name]
            is_text = field.type == "str" or str(field.type).startswith("Literal")
            try:
                values[field.name] = text if is_text else json.loads(text)
            except ValueError:
                raise CheckpointError(f"{path}: the property {field.name} is damaged; export the model again") from None
        values |= {name: tuple(values[name]) for name in ("size", "mean", "std") if values[name] is not None}
        return cls(**values)


class Graph(nn.Module):
    """The graph of an exported file in its runtime, on the CPU. Takes inputs and returns outputs by name.

    Several threads may use it at once. A pickled graph includes the file's content, and is opened again where it is
    unpickled.

    Attributes:
        path: The file.
        properties: The file's properties as text.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = str(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        files = [Path(path)] if not self.path.endswith(".xml") else [Path(path), Path(path).with_suffix(".bin")]
        self._content = [file.read_bytes() for file in files]
        self._open()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self._run(inputs)

    def _open(self) -> None:
        try:
            self.properties, self._run = OPENERS[Path(self.path).suffix](self._content)
        except ImportError as error:
            extra = "openvino" if self.path.endswith(".xml") else "onnx"
            raise ImportError(f'{self.path} needs {error.name}: pip install "pyface-engine[{extra}]"') from None
        except Exception as error:  # the runtimes raise classes of their own
            reason = str(error).strip().splitlines()
            raise CheckpointError(f"{self.path} cannot be opened: {reason[0] if reason else type(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()


def open_onnx(content: Sequence[bytes]) -> tuple[dict[str, str], Run]:
    """Opens an ONNX file in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content[0], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(None, {name: value.contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return dict(session.get_modelmeta().custom_metadata_map), run


def open_openvino(content: Sequence[bytes]) -> tuple[dict[str, str], Run]:
    """Opens an OpenVINO file on the CPU, with as many threads as torch has."""
    import openvino

    core = openvino.Core()
    model = core.read_model(model=content[0], weights=content[1])
    # Without the hint, some processors would compute float32 models in bfloat16.
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        request = compiled.create_infer_request()  # one per call: requests are not thread-safe
        found = request.infer({name: value.contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(found[k].copy()) for k, name in enumerate(names)}

    properties = json.loads(model.get_rt_info(["pyface"]).astype(str)) if model.has_rt_info(["pyface"]) else {}
    return properties, run


def open_torch(content: Sequence[bytes]) -> tuple[dict[str, str], Run]:
    """Opens a torch.export file. Images that are smaller than the graph accepts are padded."""
    files = {"pyface": "{}"}
    program = torch.export.load(io.BytesIO(content[0]), extra_files=files)
    properties, module = json.loads(files["pyface"]), program.module()
    is_raw = properties.get("input") == "uint8"
    least = [smallest_size(program, axis) for axis in ((1, 2) if is_raw else (2, 3))]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        images = inputs["images"]
        height, width = images.shape[1:3] if is_raw else images.shape[2:]
        padding = [0, max(0, least[1] - width), 0, max(0, least[0] - height)]
        return module(**inputs | {"images": F.pad(images, [0, 0, *padding] if is_raw else padding)})

    return properties, run


def smallest_size(program: torch.export.ExportedProgram, axis: int) -> int:
    """The smallest size that the graph accepts along an axis of the images."""
    images = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    size = images.meta["val"].shape[axis]
    return size if isinstance(size, int) else int(program.range_constraints[size.node.expr].lower)


OPENERS: dict[str, Callable[[Sequence[bytes]], tuple[dict[str, str], Run]]] = {
    ".onnx": open_onnx,
    ".xml": open_openvino,
    ".pt2": open_torch,
}


def is_exported(name: str) -> bool:
    """Whether the name of a model is the path of an exported file."""
    return Path(name).suffix in OPENERS


class ExportedModel(SingleShot):
    """A single-shot detector whose network, decoding and suppression are in an exported file.

    Args:
        graph: The file, opened.
        description: Its description.
        original: The model that was exported. Its weights are not used, and may be on the meta device.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    trains_on_images: ClassVar[bool] = False

    def __init__(self, graph: Graph, description: Description, original: SingleShot) -> None:
        super().__init__()
        self.graph, self.description = graph, description
        self._original = (original,)  # in a tuple, since its weights are not this model's
        for name in (
            "limits",
            "size",
            "most_enlarged",
            "smallest_face",
            "has_landmarks",
            "nms_threshold",
            "nms_overlap",
            "nms_plus_one",
        ):
            setattr(self, name, getattr(original, name))
        self.score_threshold = self.lowest_score = description.score_threshold
        is_raw = description.input == "uint8"
        self.preprocessing = (
            Preprocessing((0.0, 0.0, 0.0)) if is_raw else Preprocessing(description.mean, description.std)
        )

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of resized images."""
        return torch.float32

    def detect(
        self,
        images: Sequence[Tensor],
        *,
        score_threshold: float | None = None,
        min_face: float | None = None,
        options: InferenceOptions | None = None,
    ) -> list[Faces]:
        """Finds the faces of every image; see `SingleShot.detect`.

        If the file has a fixed size, `min_face` does not set the scale.
        """
        if self.description.size is None or min_face is None:
            return super().detect(images, score_threshold=score_threshold, min_face=min_face, options=options)
        found = super().detect(images, score_threshold=score_threshold, options=options)
        return [faces.at_least(min_face) for faces in found]

    def find(
        self,
        images: Tensor,
        sizes: Tensor | None = None,
        *,
        score_threshold: float | None = None,
        limits: str = "ap",
        levels: int | None = None,
        suppress: bool = True,
    ) -> ops.Candidates:
        """Runs the graph; see `SingleShot.find`. What is fixed in the file cannot be chosen; see `check_options`."""
        batch, _, height, width = images.shape
        sizes = torch.tensor([[height, width]] * batch) if sizes is None else sizes.long()
        if self.description.size is not None:
            rows, columns = self.description.size
            images = F.pad(images, (0, columns - width, 0, rows - height))  # a negative number crops
        if self.description.input == "uint8":
            images = images.round().to(torch.uint8).permute(0, 2, 3, 1)
        found = self.graph(images=images, sizes=sizes)
        boxes, scores, count = found["boxes"], found["scores"], found["counts"]
        if score_threshold is not None:  # scores are sorted, and 0 after the last face
            count = (scores > score_threshold).sum(1, dtype=torch.int32)
        landmarks = found.get("landmarks", boxes.new_zeros(*boxes.shape[:2], 0, 2))
        return ops.Candidates(boxes, scores, landmarks, torch.full_like(scores, -1, dtype=torch.int64), count)

    def for_inference(
        self, dtype: torch.dtype = torch.float32, channels_last: bool | None = None, cuda_graph: bool = False
    ) -> ExportedModel:
        """Returns the model itself: what the arguments would choose is fixed in the file.

        Raises:
            ValueError: An argument is not the default.
        """
        for name, is_default in (
            ("precision", dtype == torch.float32),
            ("channels_last", channels_last is None),
            ("cuda_graph", not cuda_graph),
        ):
            if not is_default:
                raise ValueError(f"{name} is fixed in {self.graph.path}; leave it out")
        return self

    def networks(self) -> list[nn.Module]:
        """The graph."""
        return [self.graph]

    def own_scale(self, height: int, width: int) -> float:
        """The default scale for an image; with a fixed size, the largest one that fits."""
        if self.description.size is None:
            return self._original[0].own_scale(height, width)
        rows, columns = self.description.size
        return min(rows / height, columns / width)

    def plan(self, view: Any, options: InferenceOptions) -> Any:
        """The views that the exported model runs on."""
        return self._original[0].plan(view, options)

    def check_options(self, options: InferenceOptions) -> None:
        """Raises ValueError for options that the file or the exported model does not support."""
        path, size = self.graph.path, self.description.size
        if options.limits != "ap":
            raise ValueError(f"limits are fixed in {path}; leave them out, or export with --limits {options.limits}")
        if options.multiscale == "ssh":
            raise ValueError(
                f"multiscale='ssh' merges candidates before suppression, which {path} does not return; use 's3fd', "
                "'srn', or the model's name instead of the file"
            )
        if size is not None:
            for name in ("size", "multiscale", "tile"):
                if getattr(options, name) is not None:
                    raise ValueError(
                        f"{name} must be left out for {path}, which takes images of {size[0]} x {size[1]} pixels only; "
                        "or export without --size"
                    )
        self._original[0].check_options(options)

    def forward(self, images: Tensor) -> Any:
        """Raises an error: an exported file returns no maps."""
        raise NotImplementedError(f"{self.graph.path} returns faces, not maps; call detect or find")

    def candidates(
        self, maps: Any, *, score_threshold: float, max_candidates: int, sizes: Tensor | None = None
    ) -> ops.Candidates:
        """Raises an error: an exported file returns no maps."""
        return self.forward(maps)

    def loss(self, maps: Any, truth: GroundTruth, *, seed: int = 0) -> dict[str, Tensor]:
        """Raises an error: exported models are not trained."""
        raise NotImplementedError(f"{self.graph.path} cannot be trained; train the model and export it again")


class ExportedNetwork(nn.Module):
    """One of MTCNN's networks in an exported file; takes and returns the same shapes as the original network."""

    def __init__(self, graph: Graph, channels: int) -> None:
        super().__init__()
        self.graph, self.channels = graph, channels

    def forward(self, images: Tensor) -> Tensor:
        """Runs the graph, which takes one image or more."""
        return self.graph(images=images)["outputs"] if len(images) else images.new_zeros(0, self.channels)


class ExportedCascade(MTCNN):
    """MTCNN whose networks are exported files.

    Args:
        pnet: The file of P-Net, opened. Those of R-Net and O-Net are beside it; see `network_file`.
        config: The cascade's configuration.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(self, pnet: Graph, config: MTCNNConfig) -> None:
        super().__init__(config)
        self.pnet = ExportedNetwork(pnet, 6)  # type: ignore[assignment]
        self.rnet = ExportedNetwork(Graph(network_file(Path(pnet.path), "rnet")), 6)  # type: ignore[assignment]
        self.onet = ExportedNetwork(Graph(network_file(Path(pnet.path), "onet")), 16)  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


def network_file(path: Path, network: str) -> Path:
    """Returns the file of one of MTCNN's networks: P-Net's is the given one, the others are beside it.

    Example:
        >>> network_file(Path("mtcnn.onnx"), "rnet").name
        'mtcnn.rnet.onnx'
    """
    return path if network == "pnet" else path.with_name(f"{path.stem}.{network}{path.suffix}")
