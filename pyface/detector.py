"""FaceDetector: images of any kind in, faces out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from pyface.detections import Detections
from pyface.io.images import (
    MAX_PIXELS,
    EncodedImage,
    ImageError,
    Pixels,
    Truncated,
    decode_image,
    folder_advice,
    open_image,
)
from pyface.io.pipeline import hold_error, ordered_map, readers
from pyface.models import zoo
from pyface.models.base import FaceModel, Faces
from pyface.models.inference import InferenceOptions
from pyface.models.views import Size
from pyface.ops.extension import build_info
from pyface.resources import is_forked, threads_for, torch_threads

Source: TypeAlias = Any
"""A path, bytes, an open file, a PIL image, a uint8 array [H, W, 3] or a tensor [3, H, W]; see `read_image`."""

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH_PIXELS = 2**25  # a batch has at most 34 million pixels, since the memory of activations grows with them
_AHEAD_PIXELS = 2**26  # pixels of decoded images that may wait for the detector


class Outcome(NamedTuple):
    """The result for one source of `FaceDetector.stream`.

    Attributes:
        source: The source as passed, or the key of a pair (key, image).
        image: The image, uint8 RGB [H, W, 3]: a tensor if a tensor was passed, else an array. None if unreadable.
        detections: The faces; None if there was an error.
        error: Why there are no detections: an `ImageError`, or a `MemoryError` for an image too large for the model.
    """

    source: Source
    image: Pixels | Tensor | None
    detections: Detections | None
    error: ImageError | MemoryError | None


class FaceDetector:
    """A face detector: finds the faces in images.

    Several threads may use a detector at once. A pickled detector includes its weights; it chooses its device again
    where it is unpickled.

    Args:
        model: A name from `list_models()`; the path of a file that `pyface export` wrote (.onnx, .xml or .pt2), which
            runs on the CPU with its own weights, limits and precision; or your own `FaceModel`, which is put into
            evaluation mode and moved to the device.
        weights: "default" for the bundled weights, the path of a weights file, or None for random weights.
        device: "cpu", "cuda", "cuda:1", ...; "auto" uses CUDA if both the machine and this build of pyface support it,
            else the CPU.
        score_threshold: Faces have a score > this, from 0 to 1; None: the model's default. The attribute of the same
            name holds the threshold in use, and may be set.
        min_face: Longer side in pixels of the smallest faces to return; images are scaled so that faces of this size
            can be found. None: the model's default scale, and all faces that it finds.
        batch_size: Largest number of images per batch. Large images go in smaller batches, and a batch that does not
            fit into memory is halved until it does.
        max_pixels: Refuse images with more pixels than this, before decoding them.
        truncated: "refuse" JPEG and PNG files without their end marker, or "accept" them; see `read_image`.
        size, multiscale, limits, tile, drop_singletons: Options of single-shot detectors for image scale, tiling and
            numbers of boxes; see `InferenceOptions`. mtcnn, which has its own pyramid, does not support them.
        precision: Numeric precision of a single-shot detector: "fp32", "fp16" or "bf16"; half precision is for GPUs.
        channels_last: Whether a single-shot detector uses the channels_last memory format, which suits GPUs in half
            precision; None: whichever is faster on a CPU.
        keep_on_device: Leave the tensors of `Detections` on the device, for further work there, instead of copying them
            to the CPU.
        threads: Number of CPU threads that the model runs on. None: as many as torch is set to, but no more than the
            cores that this process may use and that others leave free. A detector in a forked process runs on one.
        cuda_graph: Run a single-shot detector as one CUDA graph, captured once per batch shape; the last eight shapes
            are kept.

    Raises:
        TypeError: The model is neither a name nor a model, or an option is not a number.
        ValueError: An option is out of range or not supported by this model, the model or device does not exist, or
            the model has no default weights.
        FileNotFoundError: The weights file or the exported file does not exist.
        RuntimeError: The weights file or the exported file cannot be read, or is for another model.
        ImportError: An exported file needs a package that is not installed.

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
        truncated: Truncated = "refuse",
        size: Size | None = None,
        multiscale: Literal["s3fd", "srn", "ssh"] | None = None,
        limits: Literal["ap", "fast"] = "ap",
        tile: int | None = None,
        drop_singletons: bool = False,
        precision: Literal["fp32", "fp16", "bf16"] = "fp32",
        channels_last: bool | None = None,
        cuda_graph: bool = False,
        keep_on_device: bool = False,
        threads: int | None = None,
    ) -> None:
        if not isinstance(model, str) and (isinstance(model, type) or not callable(getattr(model, "detect", None))):
            got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise TypeError(f"model must be a name from list_models() or a FaceModel, got {got}")
        for name, number in (("score_threshold", score_threshold), ("min_face", min_face)):
            if number is not None and not isinstance(number, Real):
                raise TypeError(f"{name} must be a number, or None for the model's own, got {number!r}")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be from 0 to 1, or None for the model's own, got {score_threshold}")
        if min_face is not None and not 1 <= min_face < float("inf"):
            raise ValueError(f"min_face must be 1 pixel or more, or None for the model's own, got {min_face}")
        whole_numbers = {
            "batch_size": batch_size,
            "max_pixels": max_pixels,
            "threads": 1 if threads is None else threads,
        }
        for name, value in whole_numbers.items():
            if not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not isinstance(model, str) and weights != "default":
            raise ValueError("weights must be left out when model is a FaceModel; load them into the model")
        if truncated not in ("refuse", "accept"):
            raise ValueError(f"truncated must be 'refuse' or 'accept', got {truncated!r}")
        self.threads = threads
        self.keep_on_device = keep_on_device
        self.min_face = min_face
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.truncated: Truncated = truncated
        self._wanted_device = str(device)
        self.device = find_device(device)
        self.options = InferenceOptions(size, multiscale, limits, tile, drop_singletons)
        if precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
        if cuda_graph and self.device.type != "cuda":
            raise ValueError(f"cuda_graph needs a CUDA device, got {str(self.device)!r}")
        with zoo.usual_tensors(), torch_threads(threads_for(threads)):
            built = zoo.create_model(model, weights) if isinstance(model, str) else model
        name = model if isinstance(model, str) else type(model).__name__
        if not built.takes_options:
            usual = asdict(InferenceOptions()) | {"precision": "fp32", "channels_last": None, "cuda_graph": False}
            given = asdict(self.options) | {
                "precision": precision, "channels_last": channels_last, "cuda_graph": cuda_graph
            }  # fmt: skip
            idle = [option for option in given if given[option] != usual[option]]
            if idle:
                them = "it" if len(idle) == 1 else "them"
                raise ValueError(f"{name} does not support {' or '.join(idle)}; leave {them} out")
        if score_threshold is not None and score_threshold < built.lowest_score:
            raise ValueError(
                f"score_threshold must be {built.lowest_score} or more for {name}, got {score_threshold}; "
                "or export with a lower --score-threshold"
            )
        if built.takes_options:
            built.check_options(self.options)
        if self.device.type not in built.devices:
            if self._wanted_device != "auto":
                raise ValueError(f"device must be auto or cpu for {name}, got {self._wanted_device!r}")
            self.device = torch.device("cpu")
        with zoo.usual_tensors(), torch_threads(threads_for(threads)):
            model_on_device = built.to(self.device).eval()
            self.model: FaceModel = model_on_device.for_inference(_PRECISIONS[precision], channels_last, cuda_graph)
        self.score_threshold = self.model.score_threshold if score_threshold is None else score_threshold

    @overload
    def __call__(self, images: list[Source] | tuple[Source, ...], *, bgr: bool = False) -> list[Detections]: ...

    @overload
    def __call__(self, images: Source, *, bgr: bool = False) -> Detections: ...

    def __call__(self, images: Source, *, bgr: bool = False) -> Detections | list[Detections]:
        """Finds the faces in one image, or in each of a list of images of any kinds and sizes.

        Args:
            images: One image, or a list or tuple of them: paths, bytes, open files, PIL images, uint8 arrays [H, W, 3]
                or tensors [3, H, W], uint8 or floating point with values from 0 to 1. Greyscale and transparent images
                are accepted too; see `read_image`.
            bgr: Whether numpy arrays are BGR, as OpenCV reads them.

        Returns:
            The `Detections` of the image, best score first; for a list, a list of them in the same order. They are
            empty for an image without faces.

        Raises:
            ImageError: An image cannot be read; `stream` continues after such an image.
            MemoryError: An image is too large for the model, even on its own.
        """
        several = isinstance(images, list | tuple)
        found = []
        for k, outcome in enumerate(self.stream(images if several else [images], bgr=bgr, copy=False)):
            if outcome.detections is None:
                error = outcome.error or RuntimeError("an image has neither detections nor an error")
                raise type(error)(f"images[{k}]: {error}") if several else error
            found.append(outcome.detections)
        return found if several else found[0]

    def stream(self, sources: Iterable[Source], *, bgr: bool = False, copy: bool = True) -> Iterator[Outcome]:
        """Finds the faces in any number of images, in bounded memory.

        Images are read and decoded in threads, ahead of the detection. An unreadable image does not end the stream. If
        the sources themselves raise an error, it is raised after the outcomes of the images that came before it.

        Args:
            sources: Images of any kind that a call accepts, or pairs (key, image), whose key becomes the outcome's
                source. They are consumed one by one, a few batches ahead.
            bgr: Whether numpy arrays are BGR, as OpenCV reads them.
            copy: Whether to copy arrays and tensors, and to read PIL images and file objects, when they are taken from
                `sources`; their owner may then change or close them at once, as a video reader does with its buffer.
                False saves time and memory, but they must not change until their outcome is yielded.

        Yields:
            One `Outcome` per source, in order.

        Example:
            >>> detector = FaceDetector("mtcnn", device="cpu")
            >>> for outcome in detector.stream(["examples/astronaut.jpg", ("my key", "README.md")]):
            ...     print(outcome.source, outcome.detections is None)
            examples/astronaut.jpg False
            my key True
        """
        if isinstance(sources, str | os.PathLike | bytes | np.ndarray | Tensor):
            if isinstance(sources, str | os.PathLike) and os.path.isdir(sources):
                got, advice = "a folder", folder_advice(os.fspath(sources))
            else:
                got, advice = f"one {type(sources).__name__}", "pass it in a list"
            raise TypeError(f"sources must be several images, got {got}; {advice}")
        limits = _Limits(self.batch_size)
        ahead = 2 * self.batch_size
        taken = (self._take(source, bgr, copy) for source in sources)
        opened = ordered_map(
            readers(), lambda item: self._open(item, bgr), taken, ahead=1.0, weight=_share_of_memory(2 * ahead)
        )
        decoded = ordered_map(readers(), _decode, opened, ahead=1.0, weight=_share_of_memory(ahead))
        with closing(opened), closing(decoded):
            for batch in _batches(decoded, limits):
                yield from self._detect(batch, limits)

    def __repr__(self) -> str:
        return f"FaceDetector({type(self.model).__name__}, device={str(self.device)!r})"

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.device.type != "cpu":  # the device may not exist where it is unpickled
            state["model"] = copy.deepcopy(self.model).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        device = find_device(self._wanted_device)
        self.device = device if device.type in self.model.devices else torch.device("cpu")
        self.model = self.model.to(self.device)

    def _take(self, source: Source, bgr: bool, copy: bool) -> _Item:
        """Takes a source; with `copy`, in a form that its owner can no longer change or close."""
        is_pair = isinstance(source, tuple) and len(source) == 2
        key, given = source if is_pair else (source, source)
        item = _Item(key, given, None)
        if not copy or isinstance(given, str | os.PathLike | bytes):
            return item
        item = self._open(item, bgr)
        return item._replace(image=_own(item.image, given), given=None)

    def _open(self, item: _Item, bgr: bool) -> _Item:
        if item.image is not None:
            return item
        try:
            image = open_image(item.given, bgr=bgr, max_pixels=self.max_pixels, truncated=self.truncated)
            return item._replace(image=image)
        except ImageError as error:
            return item._replace(image=error)
        except MemoryError:
            return item._replace(image=_out_of_memory(item))

    def _detect(self, batch: list[_Item], limits: _Limits) -> Iterator[Outcome]:
        readable = [item for item in batch if not isinstance(item.image, ImageError)]
        results = iter(self._run(readable, limits))
        for source, _, image in batch:
            if isinstance(image, ImageError):
                yield Outcome(source, None, None, image)
                continue
            result = next(results)
            if isinstance(result, MemoryError):
                yield Outcome(source, image, None, result)
            else:
                yield Outcome(source, image, result, None)

    def _run(self, batch: Sequence[_Item], limits: _Limits) -> list[Detections | MemoryError]:
        """Detects in one batch; halves it if memory runs out, and limits later batches of the stream to that size."""
        if not batch:
            return []
        try:
            return [*self._run_model(batch)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block, where the traceback would keep the tensors alive.
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
            f"{item.path or 'an image'}: {width} x {height} pixels are too many for the memory of {self.device}; "
            f"make the image smaller, raise min_face or set tile"
        )

    def _run_model(self, batch: Sequence[_Item]) -> list[Detections]:
        """Runs the model on a batch, whatever torch's defaults have been set to in this thread or process."""
        if is_forked() and self.device.type == "cuda":
            raise RuntimeError(
                f"{self.device} cannot be used in a forked process; start processes with the method 'spawn'"
            )
        with (
            torch_threads(threads_for(self.threads)),
            zoo.default_on_cpu(),
            torch.autocast(self.device.type, enabled=False),
            torch.inference_mode(),
        ):
            return list(self._detect_batch(batch))

    def _detect_batch(self, batch: Sequence[_Item]) -> Iterator[Detections]:
        images = [torch.as_tensor(item.image).to(self.device) for item in batch]
        # The model's own threshold is its default, which may have exceptions, as SRN's has on small maps.
        own = self.score_threshold == self.model.score_threshold
        threshold = None if own else self.score_threshold
        arguments: dict[str, Any] = {"score_threshold": threshold, "min_face": self.min_face}
        if self.model.takes_options:
            arguments["options"] = self.options
        found = self.model.detect(images, **arguments)
        for item, image, faces in zip(batch, images, found if self.keep_on_device else _to_cpu(found), strict=True):
            order = faces.scores.argsort(descending=True, stable=True)
            height, width = image.shape[:2]
            landmarks = None if faces.landmarks is None else faces.landmarks[order]
            # Detections outlive inference mode, so their tensors are made outside it.
            with torch.inference_mode(False):
                yield Detections(faces.boxes[order], faces.scores[order], landmarks, width, height, item.path)


class _Item(NamedTuple):
    """A source in the pipeline: taken, opened, decoded, or failed."""

    source: Source  # or the key of a pair
    given: Source  # the image as passed; None once it is opened for good
    image: Any  # None, EncodedImage, then Pixels or Tensor; or ImageError

    @property
    def path(self) -> str | None:
        """The key if it is a name, else the image's path if it has one."""
        names = (name for name in (self.source, self.given) if isinstance(name, str | os.PathLike))
        return next((os.fsdecode(name) for name in names), None)

    @property
    def pixels(self) -> int:
        """Number of pixels that the decoded image takes in memory."""
        if isinstance(self.image, EncodedImage):
            return self.image.pixels
        return self.image.shape[0] * self.image.shape[1] if isinstance(self.image, np.ndarray | Tensor) else 0


def _share_of_memory(most: int) -> Callable[[_Item], float]:
    """The share of the queue that an item fills: 1 / most, or its pixels / _AHEAD_PIXELS if that is more."""
    return lambda item: max(1 / most, item.pixels / _AHEAD_PIXELS)


def _own(image: Any, given: Source) -> Any:
    """Copies an opened image if it shares the memory of the source."""
    if isinstance(image, np.ndarray) and isinstance(given, np.ndarray) and np.may_share_memory(image, given):
        return image.copy()
    if isinstance(image, Tensor) and image.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
        return image.clone()
    return image


@dataclass
class _Limits:
    """The largest number of images per batch; it shrinks when memory runs out."""

    images: int


def _decode(item: _Item) -> _Item:
    if isinstance(item.image, ImageError):
        return item
    try:
        return item._replace(image=decode_image(item.image))
    except ImageError as error:
        return item._replace(image=error)
    except MemoryError:
        return item._replace(image=_out_of_memory(item))


def _out_of_memory(item: _Item) -> ImageError:
    name = item.path or "an image"
    return ImageError(f"{name}: there is not enough memory to read this image; make it smaller or free memory")


def _batches(items: Iterable[_Item], limits: _Limits) -> Iterator[list[_Item]]:
    """Groups images, in order, into batches limited by number and by pixels; an error from the items comes last."""
    batch: list[_Item] = []
    pixels = 0
    errors: list[Exception] = []
    for item in hold_error(items, errors):
        if batch and (len(batch) >= limits.images or pixels + item.pixels > _BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(item)
        pixels += item.pixels
    if batch:
        yield batch
    if errors:
        raise errors[0]


def _to_cpu(found: Sequence[Faces]) -> list[Faces]:
    """Copies the faces of a batch from a GPU to the CPU in one transfer instead of many."""
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
    """Whether an error means that memory ran out; torch has a class for this on CUDA, but only a message on CPUs."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def find_device(device: str | torch.device) -> torch.device:
    """Chooses the device, and checks that it can be used.

    Raises:
        ValueError: The name is not a device, the device does not exist, or pyface was built without CUDA.
    """
    if device == "auto":
        device = "cpu" if _cuda_problem(torch.device("cuda")) else "cuda"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}, on which pyface cannot run")
    if found.type == "cpu":
        return found
    problem = _cuda_problem(found)
    if problem:
        raise ValueError(f"device {str(device)!r} cannot be used: {problem}; use device 'cpu' or 'auto'")
    # With an index, since plain "cuda" means the current device, which differs by thread and may change.
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _cuda_problem(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device" if torch.version.cuda else "this build of torch has no CUDA"
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"
    if not build_info()["cuda"]:
        return "pyface was built without CUDA (build it again with PYFACE_CUDA=1)"
    return None
