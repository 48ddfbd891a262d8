"""Draws docs/detections.jpg for README.md: the faces that each detector with bundled weights finds in one image.

python scripts/draw_detections.py
"""

from pathlib import Path

import cv2
import numpy as np

from pyface import FaceDetector
from pyface.draw import draw
from pyface.io.images import Pixels, read_image
from pyface.models.zoo import REGISTRY

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "examples" / "gallery.jpg"
COLUMNS, WIDTH, GAP, CAPTION = 2, 640, 8, 28


def main() -> None:
    image = read_image(PICTURE)
    panels = [panel(image, "the picture")]
    for name, row in REGISTRY.items():
        if row.weights is not None:
            faces = FaceDetector(name, device="cpu")(image)
            panels.append(panel(draw(image, faces), f"{name}: {len(faces)} faces"))
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % COLUMNS)
    rows = [cv2.hconcat(panels[k : k + COLUMNS]) for k in range(0, len(panels), COLUMNS)]
    path = ROOT / "docs" / "detections.jpg"
    cv2.imwrite(str(path), cv2.vconcat(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(f"{path.name}: {len(panels)} panels")


def panel(picture: Pixels, caption: str) -> Pixels:
    """A reduced image with a caption above and a white border."""
    height = round(picture.shape[0] * WIDTH / picture.shape[1])
    small = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
    framed = cv2.copyMakeBorder(small, CAPTION, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(framed, caption, (GAP, CAPTION - GAP), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()
