"""An annotated image, as every reader of data folders returns it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyface.io.images import EncodedImage, ImageError, open_image


class DatasetError(ValueError):
    """A data folder is malformed or inconsistent."""


class AnnotatedImage(NamedTuple):
    """An image and its annotations.

    Attributes:
        path: The file.
        faces: float32 [F, 4], (x1, y1, x2, y2) in continuous pixels.
        ignore: float32 [I, 4], boxes that count neither as faces nor as background, such as blurred crowds.
        landmarks: float32 [F, 5, 2], NaN where unknown.
    """

    path: Path
    faces: NDArray[np.float32]
    ignore: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def is_coordinate(value: float) -> bool:
    """Whether a number from a file can be a coordinate: neither NaN nor beyond any real image."""
    return abs(value) <= 1e9


class Box(NamedTuple):
    """One annotation of an image, in pixels.

    Attributes:
        xywh: Left, top, width, height.
        ignore: Whether it counts neither as a face nor as background.
        landmarks: float32 [5, 2], NaN where unknown; None: all unknown.
        area: Area in pixels, as COCO's files give it, where it may be that of a mask; None: width times height.
    """

    xywh: tuple[float, float, float, float]
    ignore: bool = False
    landmarks: NDArray[np.float32] | None = None
    area: float | None = None


class ImageRecord(NamedTuple):
    """An image and its annotations as the files have them.

    Attributes:
        path: The file.
        name: Its path within the folder of images.
        boxes: The annotations.
        id: The image's id in a COCO file; None: in another format.
    """

    path: Path
    name: str
    boxes: list[Box]
    id: int | float | str | None = None


def annotated_image(path: Path, boxes: list[Box]) -> AnnotatedImage:
    """Collects the annotations of an image; boxes without width or height are left out."""
    boxes = [box for box in boxes if min(box.xywh[2:]) > 0]
    faces = [box for box in boxes if not box.ignore]
    unknown = np.full((5, 2), np.nan, np.float32)
    landmarks = [unknown if face.landmarks is None else face.landmarks for face in faces]
    return AnnotatedImage(
        path,
        _corners(faces),
        _corners([box for box in boxes if box.ignore]),
        np.array(landmarks, np.float32).reshape(-1, 5, 2),
    )


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file.

    Raises:
        DatasetError: It cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows add a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error})") from error


def size_of(path: Path) -> tuple[int, int]:
    """Reads the height and width of an image without decoding it.

    Raises:
        DatasetError: The image is missing, truncated or too large.
    """
    try:
        opened = open_image(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error  # its message names the file
    assert isinstance(opened, EncodedImage)
    height, width = opened.header.height, opened.header.width
    return (width, height) if opened.header.orientation > 4 else (height, width)


def _corners(boxes: list[Box]) -> NDArray[np.float32]:
    x, y, w, h = np.array([box.xywh for box in boxes], np.float32).reshape(-1, 4).T
    return np.stack([x, y, x + w, y + h], axis=1)
