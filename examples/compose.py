"""Composes gallery.jpg from astronaut.jpg: one face at several sizes, mirrored, dimmed and tilted.

Run it in this folder: `python compose.py`. It needs OpenCV and NumPy, which pyface requires too.
"""

from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
HEAD = (slice(0, 260), slice(95, 355))  # rows and columns of the astronaut's head and shoulders
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 92]


def tilted(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Turns a square image about its centre; the corners show what was nearest to them."""
    side = picture.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)


def main() -> None:
    """Writes gallery.jpg: 960 x 560, nine faces."""
    head = cv2.imread(str(HERE / "astronaut.jpg"))[HEAD]
    # A gentle gradient from dark to light, so that no background is quite the same.
    slope = np.linspace(70, 170, 960)[None, :, None] + np.linspace(0, 40, 560)[:, None, None]
    canvas = np.repeat(slope, 3, axis=2).astype(np.uint8)
    placed = [
        # side, left, top, what was done to it
        (360, 20, 20, head),
        (240, 400, 20, head[:, ::-1]),
        (240, 680, 20, (head * 0.35).astype(np.uint8)),
        (200, 400, 280, tilted(head, 20)),
        (200, 620, 280, tilted(head[:, ::-1], -15)),
        (140, 20, 400, head),
        (100, 180, 400, head[:, ::-1]),
        (70, 300, 400, head),
        (120, 840, 280, (255 - (255 - head.astype(np.float32)) * 0.6).astype(np.uint8)),
    ]
    for side, left, top, picture in placed:
        shrinks = side < picture.shape[0]
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        canvas[top : top + side, left : left + side] = small
    cv2.imwrite(str(HERE / "gallery.jpg"), canvas, QUALITY)


if __name__ == "__main__":
    main()
