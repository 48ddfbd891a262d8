"""The interface of all detectors: what they take and what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

MIRRORED = [1, 0, 2, 4, 3]  # order of the landmarks in a mirrored face: left and right swap


class Faces(NamedTuple):
    """The faces of one image, best score first.

    Attributes:
        boxes: float32 [N, 4], (x1, y1, x2, y2) in continuous pixels of the image (pixel k covers [k, k + 1)); they
            may reach beyond it.
        scores: float32 [N], face probability in [0, 1].
        landmarks: float32 [N, 5, 2], (x, y) in the same pixels: image-left eye, image-right eye, nose, image-left and
            image-right mouth corner; None for detectors without landmarks.
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor | None

    def select(self, index: Tensor | slice) -> Faces:
        """Selects faces by index."""
        landmarks = None if self.landmarks is None else self.landmarks[index]
        return Faces(self.boxes[index], self.scores[index], landmarks)

    def at_least(self, min_face: float) -> Faces:
        """Selects the faces with a longer side of at least `min_face` pixels."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return self.select((sides.amax(1) >= min_face).nonzero().squeeze(1))


class GroundTruth(NamedTuple):
    """The annotated faces of a batch of training images, concatenated image by image.

    Attributes:
        boxes: float32 [G, 4], (x1, y1, x2, y2) in continuous pixels of the network's input.
        splits: int64 [B + 1]; image b has the boxes splits[b] ... splits[b + 1] - 1.
        ignore: bool [G], boxes that count neither as faces nor as background; None: all are faces.
        landmarks: float32 [G, 5, 2], NaN where unknown; None: unknown everywhere.
    """

    boxes: Tensor
    splits: Tensor
    ignore: Tensor | None = None
    landmarks: Tensor | None = None


class FaceModel(nn.Module, ABC):
    """A network that finds faces in images of any size.

    Attributes:
        takes_options: Whether `detect` also takes `options` (an `InferenceOptions`), and `for_inference` takes values
            other than its defaults.
        devices: Kinds of devices that the model runs on.
        score_threshold: Default threshold: `detect` returns faces with a score > this.
        lowest_score: Score thresholds below this are not supported.
        smallest_face: Side in pixels of the smallest faces that are found about as reliably as larger ones, at the
            model's default scale; 0: not known.
        has_landmarks: Whether faces have landmarks.
        trains_on_images: Whether the model trains on batches of whole images, through its `loss`. MTCNN trains on
            crops instead.
    """

    takes_options: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    score_threshold: float = 0.0
    lowest_score: float = 0.0
    smallest_face: float = 0.0
    has_landmarks: bool = False
    trains_on_images: ClassVar[bool] = False

    @abstractmethod
    def detect(
        self, images: Sequence[Tensor], *, score_threshold: float | None = None, min_face: float | None = None
    ) -> list[Faces]:
        """Finds the faces of every image.

        Args:
            images: uint8 [H, W, 3] RGB tensors of any sizes, on the model's device.
            score_threshold: Faces have a score > this; None: the model's default.
            min_face: Side in pixels of the smallest faces to find; None: the model's default.

        Returns:
            One `Faces` per image, in the order of the images.
        """

    def check_options(self, options: Any) -> None:  # most models support all options
        """Raises ValueError if the model does not support these `InferenceOptions`."""

    def for_inference(
        self, dtype: torch.dtype = torch.float32, channels_last: bool | None = None, cuda_graph: bool = False
    ) -> FaceModel:
        """Returns the model in the form that detects fastest, which may be the model itself.

        Args:
            dtype: Numeric precision.
            channels_last: Whether to use the channels_last memory format; None: whichever is faster on a CPU.
            cuda_graph: Whether to run the model as one CUDA graph.
        """
        return self

    def networks(self) -> list[nn.Module]:
        """The networks that detection runs, each in one or more forward passes per batch."""
        return list(self.children())

    @property
    def device(self) -> torch.device:
        """The device of the weights, where images must be too."""
        return next(self.parameters()).device


def check_images(images: Sequence[Tensor], device: torch.device) -> None:
    """Checks the images given to `FaceModel.detect`.

    Raises:
        TypeError: An image is not a tensor, or not uint8.
        ValueError: An image is not [H, W, 3], or is not on the model's device.
    """
    for k, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise TypeError(f"images[{k}] must be a uint8 tensor [H, W, 3], got {type(image).__name__}")
        if image.dtype != torch.uint8:
            raise TypeError(f"images[{k}] must be uint8, got {image.dtype}")
        if image.dim() != 3 or image.shape[2] != 3:
            raise ValueError(f"images[{k}] must be [H, W, 3] (RGB), got {list(image.shape)}")
        if image.device != device:
            raise ValueError(f"images[{k}] must be on the model's device {device}, got {image.device}; move it there")
