"""Drawing boxes, scores and landmarks on an image."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from pyface.detections import Detections, format_score, read_original
from pyface.io.images import Pixels

_GREEN = (60, 220, 60)
_LANDMARK = (255, 0, 200)  # unlike any skin colour, in RGB and in BGR order
_DARK = (0, 0, 0)


_TRACKS = (
    (60, 220, 60),
    (250, 160, 40),
    (70, 170, 255),
    (250, 110, 200),
    (240, 230, 60),
    (60, 230, 220),
    (190, 130, 255),
)


def draw(
    image: Any,
    detections: Detections,
    colour: tuple[int, int, int] = _GREEN,
    *,
    ids: Sequence[int | None] | None = None,
) -> Pixels:
    """Draws the faces on a copy of their image; lines and text are scaled to the image.

    Args:
        image: The image the faces were found in, as anything that `FaceDetector` takes.
        detections: The faces of that image.
        colour: Colour of the boxes: three values from 0 to 255, in the channel order of the image.
        ids: Track numbers, one per face, written before the score and shown by colour. None: no track.

    Returns:
        uint8 [H, W, 3], RGB, or the channel order of the array passed.

    Raises:
        ValueError: The image differs in size from the one the faces were found in, or there are not as many ids as
            faces.

    Example:
        >>> faces = Detections([[10, 10, 50, 60]], [0.98], None, width=80, height=80)
        >>> draw(np.zeros((80, 80, 3), np.uint8), faces).shape
        (80, 80, 3)
    """
    canvas = read_original(image, detections.width, detections.height).copy()
    tracks = [None] * len(detections) if ids is None else ids
    if len(tracks) != len(detections):
        raise ValueError(f"ids must be one per face, got {len(tracks)} for {len(detections)} faces")
    faces = list(zip(detections.cpu(), tracks, strict=True))
    for (box, score, landmarks), track in reversed(faces):  # the best face on top
        rim = colour if track is None else _TRACKS[track % len(_TRACKS)]
        x1, y1, x2, y2 = frame(canvas, box.tolist(), rim)
        if landmarks is not None:
            radius = max(1, round((x2 - x1) / 30))
            for x, y in landmarks.clamp(-_FAR, _FAR).round().int().tolist():
                if radius > 1:
                    cv2.circle(canvas, (x, y), radius + 1, _DARK, cv2.FILLED, cv2.LINE_AA)
                cv2.circle(canvas, (x, y), radius, _LANDMARK, cv2.FILLED, cv2.LINE_AA)
        text = format_score(score) if track is None else f"#{track} {format_score(score)}"
        _label(canvas, text, (x1, y1, x2, y2), rim)
    return canvas


def frame(canvas: Pixels, box: Sequence[float], colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Draws a box (x1, y1, x2, y2) on an image, uint8 [H, W, 3]; the line width is scaled to the image.

    Returns:
        The box in whole pixels.
    """
    x1, y1, x2, y2 = (round(min(max(value, -_FAR), _FAR)) for value in box)
    width = _line_width(canvas)
    if max(canvas.shape[:2]) > 300:  # a dark rim keeps the line visible on any colour; small images have no room
        cv2.rectangle(canvas, (x1, y1), (x2, y2), _DARK, width + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width, cv2.LINE_AA)
    return x1, y1, x2, y2


def _line_width(canvas: Pixels) -> int:
    return max(1, round(max(canvas.shape[:2]) / 500))


_FAR = 1e6  # OpenCV's fixed-point coordinates overflow far outside the image


def _label(canvas: Pixels, text: str, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    """Writes text above the box, or inside its top edge if there is no room above."""
    width = _line_width(canvas)
    font, scale, pad = cv2.FONT_HERSHEY_SIMPLEX, max(0.4, width * 0.3), 1 + width
    (text_width, text_height), _ = cv2.getTextSize(text, font, scale, width)
    rows, columns = canvas.shape[:2]
    if text_width + 2 * pad > columns or text_height + 2 * pad > rows:
        return  # the text would cover the whole image
    if text_width > 2 * (box[2] - box[0]):
        return  # in a crowd of small faces, text would cover neighbouring faces
    left = int(np.clip(box[0], 0, columns - text_width - 2 * pad))
    bottom = box[1] if box[1] >= text_height + 2 * pad else box[1] + text_height + 2 * pad
    bottom = int(np.clip(bottom, text_height + 2 * pad, rows))
    top = bottom - text_height - 2 * pad
    cv2.rectangle(canvas, (left, top), (left + text_width + 2 * pad, bottom), colour, cv2.FILLED)
    cv2.putText(canvas, text, (left + pad, bottom - pad), font, scale, _DARK, width, cv2.LINE_AA)
