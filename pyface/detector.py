"""FaceDetector: pictures of any kind in, faces out."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from pyface.detections import Detections
from pyface.io.images import MAX_PIXELS, EncodedImage, ImageError, Pixels, decode_image, open_image
from pyface.io.pipeline import ordered_map
from pyface.models import zoo
from pyface.models.base import FaceModel, Faces
from pyface.models.fusion import fold_batch_norms
from pyface.models.graphs import CudaGraphs
from pyface.models.single_shot import InferenceOptions, SingleShot
from pyface.models.views import Size
from pyface.ops._extension import build_info

Source: TypeAlias = Any
"""A path, bytes, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]; `read_image` tells the details."""

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH_PIXELS = 2**25  # a batch closes at 34 million pixels, since activations grow with them
_AHEAD_PIXELS = 2**26  # decoded pictures that may wait for the detector


class Outcome(NamedTuple):
    """What became of one source in `FaceDetector.stream`.

    Attributes:
        source: The source, as it was passed.
        image: The picture, uint8 RGB [H, W, 3]: a tensor where a tensor was passed, else an array. None if unreadable.
        detections: Its faces; None where there is an error.
        error: Why there are no detections: an `ImageError`, or a `MemoryError` for a picture too large for the model.
    """

    source: Source
    image: Pixels | Tensor | None
    detections: Detections | None
    error: ImageError | MemoryError | None


class FaceDetector:
    """Finds the faces in pictures.

    A detector may be used by several threads at once, and can be pickled: it then carries its weights along, and looks
    for its device anew where it is unpickled.

    Args:
        model: A name from `list_models()`, or a model of your own: a `FaceModel`, which is put into evaluation mode
            and moved to the device.
        weights: "default" for the weights that pyface brings, the path of a .safetensors file, or None for random ones.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA where both the machine and this build of pyface have
            it, else the CPU.
        score_threshold: Faces have a score > this, from 0 to 1; None means the model's own.
        min_face: Longer side in pixels of the smallest face; pictures are seen as large as that takes. None: the
            model's own way of looking, and all that it finds.
        batch_size: Pictures that go through the model together, at most. Large pictures go in smaller batches, and a
            batch that does not fit into memory is halved until it does.
        max_pixels: Refuse pictures with more pixels than this, before they are decoded.
        size, multiscale, limits, tile, drop_singletons: How a single-shot detector (any but mtcnn, which has a pyramid
            of its own) looks at pictures; see `InferenceOptions`.
        precision: "fp32", "fp16" or "bf16": what a single-shot detector computes in; half precision is for GPUs.
        channels_last: Keep a single-shot detector's maps in that memory format, which suits GPUs in half precision;
            None: whichever is faster on a CPU.
        cuda_graph: Start a single-shot detector as one CUDA graph, captured once for each shape of batch; the last
            eight shapes are kept.

    Raises:
        TypeError: The model is neither a name nor a model, or an option is no number.
        ValueError: An option is out of its range or not one of this model, there is no such model or device, or it has
            no such weights.
        FileNotFoundError: There is no such file of weights.
        RuntimeError: The file of weights belongs to another model.

    Example:
        >>> detector = FaceDetector("mtcnn", device="cpu")
        >>> detector("examples/astronaut.jpg").boxes.shape
        torch.Size([1, 4])
        >>> [len(faces) for faces in detector(["examples/astronaut.jpg", "examples/gallery.jpg"])]
        [1, 9]
    """

    def __init__(
        self,
        model: str | FaceModel = "s3fd_lite",
        *,
        weights: str | os.PathLike[str] | None = "default",
        device: str | torch.device = "auto",
        score_threshold: float | None = None,
        min_face: float | None = None,
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        size: Size | None = None,
        multiscale: Literal["s3fd", "srn", "ssh"] | None = None,
        limits: Literal["ap", "fast"] = "ap",
        tile: int | None = None,
        drop_singletons: bool = False,
        precision: Literal["fp32", "fp16", "bf16"] = "fp32",
        channels_last: bool | None = None,
        cuda_graph: bool = False,
    ) -> None:
        if not isinstance(model, str) and (isinstance(model, type) or not callable(getattr(model, "detect", None))):
            got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise TypeError(f"model should be a name from list_models() or a FaceModel, got {got}")
        for name, number in (("score_threshold", score_threshold), ("min_face", min_face)):
            if number is not None and not isinstance(number, Real):
                raise TypeError(f"{name} should be a number, or None for the model's own, got {number!r}")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(
                f"score_threshold should be from 0 to 1, or None for the model's own, got {score_threshold}"
            )
        if min_face is not None and not 1 <= min_face < float("inf"):
            raise ValueError(f"min_face should be 1 pixel or more, or None for the model's own, got {min_face}")
        for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels)):
            if not isinstance(value, Integral):
                raise TypeError(f"{name} should be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} should be 1 or more, got {value}")
        if not isinstance(model, str) and weights != "default":
            raise ValueError("weights belong to the name of a model, but a model was passed, load them into it instead")
        self.score_threshold = score_threshold
        self.min_face = min_face
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self._wanted_device = str(device)
        self.device = find_device(device)
        self.options = InferenceOptions(size, multiscale, limits, tile, drop_singletons)
        if precision not in _PRECISIONS:
            raise ValueError(f"precision should be one of {', '.join(_PRECISIONS)}, got {precision!r}")
        if cuda_graph and self.device.type != "cuda":
            raise ValueError(f"cuda_graph needs a CUDA device, this detector is on {str(self.device)!r}")
        built = zoo.create_model(model, weights) if isinstance(model, str) else model
        self.model: FaceModel = built.to(self.device).eval()
        if isinstance(built, SingleShot):
            built = self.model = fold_batch_norms(built)  # before the cast, which would round twice
            built.to(dtype=_PRECISIONS[precision])
            is_last = built.channels_last if channels_last is None else channels_last
            built.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)  # type: ignore[call-overload]
            built.graphs = CudaGraphs() if cuda_graph else None
        else:
            usual = asdict(InferenceOptions()) | {"precision": "fp32", "channels_last": None, "cuda_graph": False}
            given = asdict(self.options) | {
                "precision": precision, "channels_last": channels_last, "cuda_graph": cuda_graph
            }  # fmt: skip
            idle = [name for name in given if given[name] != usual[name]]
            if idle:
                raise ValueError(
                    f"{' and '.join(idle)}: for single-shot detectors only, and "
                    f"{model if isinstance(model, str) else type(model).__name__} is none, leave it out"
                )

    @overload
    def __call__(self, images: list[Source] | tuple[Source, ...], *, bgr: bool = False) -> list[Detections]: ...

    @overload
    def __call__(self, images: Source, *, bgr: bool = False) -> Detections: ...

    def __call__(self, images: Source, *, bgr: bool = False) -> Detections | list[Detections]:
        """Finds the faces in one picture, or in each of a list of pictures of any kinds and sizes.

        Args:
            images: One picture or a list or tuple of them: paths, bytes, PIL images, uint8 arrays [H, W, 3] or uint8
                tensors [3, H, W]; grey and transparent ones too, see `read_image`.
            bgr: Numpy arrays are BGR, as OpenCV reads them.

        Returns:
            For one picture its `Detections`, for a list a list of them in the same order; best score first. A picture
            without faces has empty ones.

        Raises:
            ImageError: A picture cannot be read; `stream` goes on after such a picture.
            MemoryError: A picture is too large for the model even when alone.
        """
        several = isinstance(images, list | tuple)
        found = []
        for k, outcome in enumerate(self.stream(images if several else [images], bgr=bgr)):
            if outcome.detections is None:
                error = outcome.error or RuntimeError("a picture has neither detections nor an error")
                raise type(error)(f"images[{k}]: {error}") if several else error
            found.append(outcome.detections)
        return found if several else found[0]

    def stream(self, sources: Iterable[Source], *, bgr: bool = False) -> Iterator[Outcome]:
        """Finds the faces in any number of pictures, one after the other, in bounded memory.

        Reading and decoding run in threads ahead of the detection. A picture that cannot be read does not end the
        stream.

        Args:
            sources: Pictures of the kinds that a call takes; taken one by one, some batches ahead.
            bgr: Numpy arrays are BGR, as OpenCV reads them.

        Yields:
            One `Outcome` a source, in order.

        Example:
            >>> detector = FaceDetector("mtcnn", device="cpu")
            >>> for outcome in detector.stream(["examples/astronaut.jpg", "README.md"]):
            ...     print(len(outcome.detections) if outcome.detections is not None else "unreadable")
            1
            unreadable
        """
        if isinstance(sources, str | os.PathLike | bytes | np.ndarray | Tensor):
            raise TypeError(f"stream takes many pictures, got one {type(sources).__name__}, pass it in a list")
        limits = _Limits(self.batch_size)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="pyface-read")
        try:
            ahead = 2 * self.batch_size
            opened = ordered_map(pool, lambda source: self._open(source, bgr), sources, ahead=2 * ahead)
            decoded = ordered_map(
                pool, _decode, opened, ahead=1.0, weight=lambda item: max(1 / ahead, item.pixels / _AHEAD_PIXELS)
            )
            for batch in _batches(decoded, limits):
                yield from self._detect(batch, limits)
        finally:
            pool.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        return f"FaceDetector({type(self.model).__name__}, device={str(self.device)!r})"

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.device.type != "cpu":  # whoever unpickles it may have no such device
            state["model"] = copy.deepcopy(self.model).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.device = find_device(self._wanted_device)
        self.model = self.model.to(self.device)

    def _open(self, source: Source, bgr: bool) -> _Item:
        try:
            return _Item(source, open_image(source, bgr=bgr, max_pixels=self.max_pixels))
        except ImageError as error:
            return _Item(source, error)
        except MemoryError:
            return _Item(source, _out_of_memory(source))

    def _detect(self, batch: list[_Item], limits: _Limits) -> Iterator[Outcome]:
        readable = [item for item in batch if not isinstance(item.image, ImageError)]
        results = iter(self._run(readable, limits))
        for source, image in batch:
            if isinstance(image, ImageError):
                yield Outcome(source, None, None, image)
                continue
            result = next(results)
            if isinstance(result, MemoryError):
                yield Outcome(source, image, None, result)
            else:
                yield Outcome(source, image, result, None)

    def _run(self, batch: Sequence[_Item], limits: _Limits) -> list[Detections | MemoryError]:
        """Detects in one batch; halves it when memory runs out, and keeps later batches of the stream as small."""
        if not batch:
            return []
        try:
            return list(self._run_model(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the except block, since there the traceback would still hold the tensors that must go.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [self._too_large(batch[0])]
        half = len(batch) // 2
        limits.images = min(limits.images, half)
        return self._run(batch[:half], limits) + self._run(batch[half:], limits)

    def _too_large(self, item: _Item) -> MemoryError:
        height, width = item.image.shape[:2]
        return MemoryError(
            f"{item.path or 'a picture'}: {width} x {height} pixels are too many for the memory of {self.device}, "
            f"make the picture smaller, raise min_face or set tile"
        )

    @torch.inference_mode()
    def _run_model(self, batch: Sequence[_Item]) -> Iterator[Detections]:
        images = [torch.as_tensor(item.image).to(self.device) for item in batch]
        arguments = {"score_threshold": self.score_threshold, "min_face": self.min_face}
        if isinstance(self.model, SingleShot):
            found = self.model.detect(images, **arguments, options=self.options)
        else:
            found = self.model.detect(images, **arguments)
        for item, image, faces in zip(batch, images, _to_cpu(found), strict=True):
            order = faces.scores.argsort(descending=True, stable=True)
            height, width = image.shape[:2]
            landmarks = None if faces.landmarks is None else faces.landmarks[order]
            # Detections outlive the inference mode, so their tensors are made outside of it.
            with torch.inference_mode(False):
                yield Detections(faces.boxes[order], faces.scores[order], landmarks, width, height, item.path)


class _Item(NamedTuple):
    """A source on its way: opened, then decoded, or failed."""

    source: Source
    image: Any  # EncodedImage, then Pixels or Tensor; or ImageError

    @property
    def path(self) -> str | None:
        return os.fsdecode(self.source) if isinstance(self.source, str | os.PathLike) else None

    @property
    def pixels(self) -> int:
        """What it will weigh once decoded; a picture that the caller holds anyway weighs nothing."""
        return self.image.pixels if isinstance(self.image, EncodedImage) else 0


@dataclass
class _Limits:
    """How many pictures a batch may hold; shrinks when memory has run out."""

    images: int


def _decode(item: _Item) -> _Item:
    if isinstance(item.image, ImageError):
        return item
    try:
        return _Item(item.source, decode_image(item.image))
    except ImageError as error:
        return _Item(item.source, error)
    except MemoryError:
        return _Item(item.source, _out_of_memory(item.source))


def _out_of_memory(source: Source) -> ImageError:
    name = os.fsdecode(source) if isinstance(source, str | os.PathLike) else "a picture"
    return ImageError(f"{name}: memory does not suffice to read this picture, make it smaller or free memory")


def _batches(items: Iterable[_Item], limits: _Limits) -> Iterator[list[_Item]]:
    """Groups pictures in order until a batch is full by number or by pixels."""
    batch: list[_Item] = []
    pixels = 0
    for item in items:
        size = 0 if isinstance(item.image, ImageError) else item.image.shape[0] * item.image.shape[1]
        if batch and (len(batch) >= limits.images or pixels + size > _BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(item)
        pixels += size
    if batch:
        yield batch


def _to_cpu(found: Sequence[Faces]) -> list[Faces]:
    """Brings the faces of a batch to the CPU in one transfer, which matters on a GPU."""
    if not found or found[0].boxes.device.type == "cpu":
        return list(found)
    columns = [_as_rows(faces) for faces in found]
    rows = torch.cat(columns).cpu().split([len(part) for part in columns])
    return [
        Faces(part[:, :4], part[:, 4], None if faces.landmarks is None else part[:, 5:].reshape(-1, 5, 2))
        for part, faces in zip(rows, found, strict=True)
    ]


def _as_rows(faces: Faces) -> Tensor:
    landmarks = [] if faces.landmarks is None else [faces.landmarks.flatten(1)]
    return torch.cat([faces.boxes, faces.scores[:, None], *landmarks], dim=1)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out; torch has a class for CUDA's, but only words for the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def find_device(device: str | torch.device) -> torch.device:
    """Chooses the device, and refuses one that cannot be used.

    Raises:
        ValueError: The name is no device, or the device is not there, or pyface was built without it.
    """
    if device == "auto":
        device = "cpu" if _cuda_problem(torch.device("cuda")) else "cuda"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N, got {str(device)!r}, on which pyface cannot run")
    if found.type == "cpu":
        return found
    problem = _cuda_problem(found)
    if problem:
        raise ValueError(f"device {str(device)!r} cannot be used: {problem}, use device 'cpu' or 'auto'")
    # A number, since plain "cuda" means whichever device is the current one at that moment and in that thread.
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _cuda_problem(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device" if torch.version.cuda else "this build of torch has no CUDA"
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"
    if not build_info()["cuda"]:
        return "pyface was built without CUDA (build it again with PYFACE_CUDA=1)"
    return None
