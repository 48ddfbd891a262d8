"""The faces found in one image, their conversion to other forms, and their tracks in a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyface.io.images import Pixels, read_image
from pyface.io.results import was_read

if TYPE_CHECKING:
    import supervision

# Where ArcFace-style recognition networks expect the eyes, the nose and the mouth corners in a 112 x 112 image.
ARCFACE_SIZE = 112
ARCFACE_LANDMARKS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


class Face(NamedTuple):
    """One face: its box float32 [4], its score, and its landmarks float32 [5, 2] or None."""

    box: Tensor
    score: float
    landmarks: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The faces of one image, in pixels of the upright image.

    A `FaceDetector` returns them best score first; for an image without faces they are empty. `len(detections)` is the
    number of faces, and iterating yields one `Face` each. `detections[0]` is a `Face`; `detections[:3]`,
    `detections[mask]` and `detections[indices]` are `Detections` again.

    The tensors are on one device, that of `boxes`: the CPU, unless the detector has `keep_on_device`. Functions that
    convert detections, such as `to_dict`, `crop` and `pyface.draw`, copy them to the CPU themselves.

    Attributes:
        boxes: float32 [N, 4], (x1, y1, x2, y2) in continuous pixels; a box may reach beyond the image.
        scores: float32 [N].
        landmarks: float32 [N, 5, 2], (x, y) of image-left eye, image-right eye, nose, image-left and image-right mouth
            corner; None for detectors without landmarks.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        source: The path of the image; None if the image was not passed as a path.

    Raises:
        ValueError: The shapes do not match, the size is not positive, or a number on the CPU is not finite. Numbers on
            another device are not checked, since that would mean waiting for the device.

    Example:
        >>> detections = Detections([[10, 20, 50, 70]], [0.9], None, width=100, height=100)
        >>> len(detections), len(detections.above(0.95))
        (1, 0)
        >>> detections.to_dict()["faces"]
        [{'box': [10.0, 20.0, 50.0, 70.0], 'score': 0.9, 'landmarks': None}]
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor | None
    width: int
    height: int
    source: str | None = None

    def __post_init__(self) -> None:
        self._take("boxes", self.boxes, 4)
        self._take("scores", self.scores)
        if self.landmarks is not None:
            self._take("landmarks", self.landmarks, 5, 2)
        for name in ("width", "height"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive number of pixels, got {value!r}")

    def _take(self, name: str, values: Any, *sizes: int) -> None:
        """Checks that a field is [N, *sizes], and converts it to a float32 tensor on the device of the boxes."""
        device = self.boxes.device if isinstance(self.boxes, Tensor) else "cpu"
        tensor = torch.as_tensor(values, dtype=torch.float32, device=device).detach()
        if tensor.shape == (0,):  # an empty list does not have the other dimensions
            tensor = tensor.reshape(0, *sizes)
        if tensor.dim() == 0 or tensor.shape[1:] != sizes:
            raise ValueError(f"{name} must be [{', '.join(map(str, ('N', *sizes)))}], got {list(tensor.shape)}")
        if len(tensor) != len(self.boxes):
            raise ValueError(f"there must be as many {name} as boxes, got {len(tensor)} and {len(self.boxes)}")
        if tensor.device.type == "cpu" and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite numbers, got NaN or infinity")
        object.__setattr__(self, name, tensor)

    def __repr__(self) -> str:
        best = f", best score {self.scores.max():.3f}" if len(self) else ""
        source = "" if self.source is None else f" of {self.source!r}"
        noun = "face" if len(self) == 1 else "faces"
        return f"Detections({len(self)} {noun}{source}, {self.width} x {self.height} pixels{best})"

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Face]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            landmarks = None if self.landmarks is None else self.landmarks[index]
            return Face(self.boxes[index], self.scores[index].item(), landmarks)
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.boxes.device)
            index = index.long() if index.numel() == 0 and index.dtype != torch.bool else index
        landmarks = None if self.landmarks is None else self.landmarks[index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], landmarks=landmarks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return self._facts() == other._facts() and all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(self.cpu()._tensors(), other.cpu()._tensors(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def _facts(self) -> tuple[Any, ...]:
        return self.width, self.height, self.source, self.landmarks is None

    def _tensors(self) -> list[Tensor]:
        return [self.boxes, self.scores] + ([] if self.landmarks is None else [self.landmarks])

    def cpu(self) -> Detections:
        """Returns the detections with their tensors on the CPU, or this object if they are there already."""
        if self.boxes.device.type == "cpu":
            return self
        landmarks = None if self.landmarks is None else self.landmarks.cpu()
        return replace(self, boxes=self.boxes.cpu(), scores=self.scores.cpu(), landmarks=landmarks)

    def above(self, score: float) -> Detections:
        """Returns the faces with a score > `score`, in the same order."""
        return self[self.scores > score]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers and lists, as in the line that `pyface detect` writes for the image.

        Coordinates and scores are the shortest decimal numbers that convert back to the same float32. So
        `Detections.from_dict(detections.to_dict()) == detections`.
        """
        host = self.cpu()
        faces = [
            {"box": box, "score": score, "landmarks": landmarks}
            for box, score, landmarks in zip(
                _decimals(host.boxes),
                _decimals(host.scores),
                [None] * len(host) if host.landmarks is None else _decimals(host.landmarks),
                strict=True,
            )
        ]
        return {"source": self.source, "width": self.width, "height": self.height, "faces": faces, "error": None}

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> Detections:
        """Builds detections from one line of `pyface detect`, as read by `json.loads`.

        For an image without faces, `landmarks` is None, whatever the detector.

        Raises:
            ValueError: The line reports an unreadable image, or is not a line of `pyface detect`.
        """
        if not was_read(line):
            raise ValueError(f"the line of {line.get('source')} holds an error instead of faces: {line['error']}")
        try:
            faces = line["faces"]
            landmarks = [face["landmarks"] for face in faces]
            has_landmarks = bool(faces) and None not in landmarks
            return cls(
                [face["box"] for face in faces],  # type: ignore[arg-type]
                [face["score"] for face in faces],  # type: ignore[arg-type]
                landmarks if has_landmarks else None,  # type: ignore[arg-type]
                line["width"],
                line["height"],
                line.get("source"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"line must be one that pyface detect writes, got something else ({error!r})") from None

    def to_torchvision(self) -> dict[str, Tensor]:
        """Returns the faces as torchvision's detectors do: boxes [N, 4], scores [N], labels int64 [N], all of them 1.

        The tensors stay on their device. In torchvision, label 0 is background. Reference: torchvision's
        `fasterrcnn_resnet50_fpn`.
        """
        labels = torch.ones(len(self), dtype=torch.int64, device=self.boxes.device)
        return {"boxes": self.boxes, "scores": self.scores, "labels": labels}

    def to_supervision(self) -> supervision.Detections:
        """Returns a `supervision.Detections` of class 0, "face", with landmarks [N, 5, 2] in `data["landmarks"]`.

        Raises:
            ImportError: The package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        host = self.cpu()
        data: dict[str, Any] = {"class_name": np.full(len(host), "face")}
        if host.landmarks is not None:
            data["landmarks"] = host.landmarks.numpy()
        return supervision.Detections(
            xyxy=host.boxes.numpy(), confidence=host.scores.numpy(), class_id=np.zeros(len(host), dtype=int), data=data
        )

    def crop(self, image: Any, margin: float = 0.0) -> list[Pixels]:
        """Crops the faces from their image.

        Args:
            image: The image the faces were found in, as anything that `FaceDetector` takes.
            margin: Margin to add on each side, as a fraction of the box's width and height.

        Returns:
            One uint8 [h, w, 3] copy per face, clipped to the image, at least one pixel each. RGB, or the channel order
            of the array passed.

        Raises:
            ValueError: The image differs in size from the one the faces were found in, or margin is not a finite
                number >= 0.
        """
        if not 0 <= margin < float("inf"):
            raise ValueError(f"margin must be a fraction of the box >= 0, got {margin}")
        pixels = read_original(image, self.width, self.height)
        boxes = self.boxes.cpu()
        sizes = boxes[:, 2:] - boxes[:, :2]
        start = (boxes[:, :2] - margin * sizes).floor()
        end = (boxes[:, 2:] + margin * sizes).ceil()
        limit = torch.tensor([self.width, self.height], device="cpu")
        start = start.clamp(min=start.new_zeros(2), max=limit - 1).long()
        end = torch.maximum(end.clamp(max=limit).long(), start + 1)
        corners = torch.cat([start, end], dim=1).tolist()
        return [pixels[y1:y2, x1:x2].copy() for x1, y1, x2, y2 in corners]

    def align(self, image: Any, size: int = ARCFACE_SIZE) -> Pixels:
        """Aligns every face: its landmarks are moved to where recognition networks expect them.

        The transform is the similarity (rotation, scale and shift, no reflection) with the least sum of squared
        distances to the five points of the ArcFace template. Larger faces are averaged down rather than sampled. Pixels
        beyond the image are black.

        Args:
            image: The image the faces were found in, as anything that `FaceDetector` takes.
            size: Side of the aligned faces in pixels; the template, made for 112, is scaled to it.

        Returns:
            uint8 [N, size, size, 3], RGB, or the channel order of the array passed.

        Raises:
            ValueError: There are no landmarks, all landmarks of a face coincide, the image differs in size from the
                one the faces were found in, or size is not positive.
        """
        if self.landmarks is None:
            raise ValueError(
                "align needs landmarks, which this detector does not return; use a detector such as mtcnn, or crop"
            )
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {size}")
        pixels = read_original(image, self.width, self.height)
        template = np.array(ARCFACE_LANDMARKS) * (size / ARCFACE_SIZE)
        faces = [_warp(pixels, similarity(points, template), size) for points in self.landmarks.cpu().numpy()]
        return np.stack(faces) if faces else np.zeros((0, size, size, 3), np.uint8)


class Tracks:
    """Matches the faces of one person in successive frames of a video, with ByteTrack from the package trackers.

    A track begins with the second frame in which a face is found, and ends one second after the last.

    Raises:
        ImportError: The package trackers is not installed.
    """

    def __init__(self) -> None:
        from trackers import ByteTrackTracker

        self._tracker = ByteTrackTracker()

    def ids(self, faces: Detections, time: float) -> list[int | None]:
        """Returns the number of each face's track, None for faces without one.

        Args:
            faces: The faces of the next frame.
            time: The time of that frame in seconds, later than that of the previous frame.
        """
        found = faces.to_supervision()
        found.data = {"face": np.arange(len(faces))}  # the tracker changes the order
        tracked = self._tracker.update(found, timestamp=time)
        ids: list[int | None] = [None] * len(faces)
        for face, number in zip(tracked.data.get("face", []), np.asarray(tracked.tracker_id), strict=True):
            ids[face] = int(number) if number >= 0 else None
        return ids


def format_score(score: float) -> str:
    """Returns a score with two digits; "1.00" stands for a score of 1 alone, so that 0.9996 does not look certain.

    Example:
        >>> format_score(0.9996), format_score(0.987), format_score(1.0)
        ('0.99', '0.99', '1.00')
    """
    return f"{min(score, 0.99) if score < 1 else score:.2f}"


def read_original(image: Any, width: int, height: int) -> Pixels:
    """Reads the image in which faces were found, and refuses one of a different size.

    Raises:
        ValueError: The image is not width x height pixels.
    """
    # The detector has accepted the image, so its size is no reason to refuse it here.
    pixels = read_image(image, max_pixels=width * height)
    rows, columns = pixels.shape[:2]
    if (columns, rows) != (width, height):
        raise ValueError(
            f"image must have the {width} x {height} pixels of the one in which the faces were found, got "
            f"{columns} x {rows}; pass the same image"
        )
    return pixels


def similarity(source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """Finds the rotation, scale and shift that map points to target points, by least squares.

    With points as complex numbers this is target = a * source + b. `a` holds rotation and scale and cannot express a
    reflection, and least squares has a closed form.

    Args:
        source: [N, 2] points (x, y).
        target: [N, 2] target points.

    Returns:
        float64 [2, 3], the matrix that maps (x, y, 1) to the target, as `cv2.warpAffine` takes it.

    Raises:
        ValueError: All points of the source coincide.

    Example:
        >>> similarity(np.array([[0, 0], [1, 0]]), np.array([[5, 5], [5, 7]])).round(6).tolist()
        [[0.0, -2.0, 5.0], [2.0, 0.0, 5.0]]
    """
    z, w = (np.asarray(points, np.float64) @ np.array([1, 1j]) for points in (source, target))
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if spread == 0:
        raise ValueError("landmarks must be five distinct points, got a face whose landmarks coincide; crop it instead")
    a = np.vdot(centred, w - w.mean()) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _warp(pixels: Pixels, matrix: NDArray[np.float64], size: int) -> Pixels:
    """Warps to [size, size, 3]. If that would skip pixels, it warps to a finer grid first and averages."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    finer = int(np.clip(1 / max(scale, 1e-6), 1, 16))
    matrix = matrix * finer
    matrix[:, 2] += (finer - 1) / 2  # integer coordinates are pixel centres
    face = cv2.warpAffine(pixels, matrix, (size * finer, size * finer), flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA) if finer > 1 else face)


def _decimals(values: Tensor) -> Any:
    """Returns nested lists of the shortest decimal numbers that convert back to the same float32."""
    flat = np.array([float(str(value)) for value in values.numpy().ravel()], np.float64)
    return flat.reshape(values.shape).tolist()
