"""Covering the faces of an image, so that nobody can be recognised: blurred, pixelated, or under black boxes."""

from typing import Any, Literal, TypeAlias

import cv2
import numpy as np

from pyface.detections import ARCFACE_LANDMARKS, Detections, Face, read_original, similarity
from pyface.io.images import Pixels

Cover: TypeAlias = Literal["blur", "pixelate", "box"]

BLOCKS = 6  # along the longer side of a covered face: too few to recognise a person by
BLOCK_PIXELS = 4  # smallest side of a block, so that small faces get fewer blocks
MOST = 0.5  # how far landmarks can widen a region, as a fraction of the box: wrong ones must not cover the image

# The corners of a face, from the hair to the chin, relative to the five landmarks of ARCFACE_LANDMARKS.
_FACE_CORNERS = np.array([[14, 6, 1], [98, 6, 1], [98, 114, 1], [14, 114, 1]], np.float64)


def redact(image: Any, detections: Detections, how: Cover = "blur", *, margin: float = 0.1) -> Pixels:
    """Covers the faces on a copy of their image.

    Each face is covered by an upright rectangle: its box with a margin, enlarged where the landmarks show that a tilted
    face reaches beyond it. Faces that the detector missed stay visible, so a lower `score_threshold` is safer.

    Args:
        image: The image the faces were found in, as anything that `FaceDetector` takes.
        detections: The faces of that image.
        how: "blur" leaves smooth colours, "pixelate" a few blocks of them, "box" nothing but black.
        margin: Margin to cover on each side of a box, as a fraction of its width and height.

    Returns:
        uint8 [H, W, 3], RGB, or the channel order of the array passed.

    Raises:
        ValueError: The image differs in size from the one the faces were found in, `how` is unknown, or `margin`
            is not a finite number >= 0.

    Example:
        >>> faces = Detections([[10, 10, 50, 60]], [0.98], None, width=80, height=80)
        >>> image = np.full((80, 80, 3), 200, np.uint8)
        >>> redact(image, faces, "box")[[30, 3], 30].tolist()
        [[0, 0, 0], [200, 200, 200]]
    """
    if how not in ("blur", "pixelate", "box"):
        raise ValueError(f"how must be 'blur', 'pixelate' or 'box', got {how!r}")
    if not 0 <= margin < float("inf"):
        raise ValueError(f"margin must be a fraction of the box, 0 or more, got {margin}")
    canvas = read_original(image, detections.width, detections.height).copy()
    for face in detections.cpu():
        x1, y1, x2, y2 = covered_region(face, detections.width, detections.height, margin)
        canvas[y1:y2, x1:x2] = 0 if how == "box" else _coarse(canvas[y1:y2, x1:x2], how)
    return canvas


def covered_region(face: Face, width: int, height: int, margin: float) -> tuple[int, int, int, int]:
    """Returns (x1, y1, x2, y2) in whole pixels of the image; empty only for a face outside it or without an area."""
    start, end = face.box.double().numpy().reshape(2, 2)
    size = np.maximum(end - start, 0)
    low, high = start - margin * size, end + margin * size
    if face.landmarks is not None:
        corners = _corners(face.landmarks.double().numpy())
        low = np.minimum(low, np.maximum(corners.min(0), start - MOST * size))
        high = np.maximum(high, np.minimum(corners.max(0), end + MOST * size))
    limit = np.array([width, height])
    x1, y1 = np.clip(np.floor(low), 0, limit).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(high), 0, limit).astype(int).tolist()
    return x1, y1, x2, y2


def _corners(landmarks: Any) -> Any:
    """Returns the corners [4, 2] of the tilted rectangle around a face with these landmarks."""
    try:
        return _FACE_CORNERS @ similarity(np.array(ARCFACE_LANDMARKS), landmarks).T
    except ValueError:  # landmarks that coincide
        return landmarks


def _coarse(region: Pixels, how: Cover) -> Pixels:
    """Returns the region with only the mean colours of a few blocks left."""
    height, width = region.shape[:2]
    if region.size == 0:
        return region
    block = max(max(height, width) / BLOCKS, BLOCK_PIXELS)
    blocks = (max(1, round(width / block)), max(1, round(height / block)))
    means = cv2.resize(region, blocks, interpolation=cv2.INTER_AREA)
    between = cv2.INTER_NEAREST if how == "pixelate" else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(means, (width, height), interpolation=between))
