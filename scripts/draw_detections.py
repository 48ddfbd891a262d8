"""Draws docs/detections.jpg, the first image of README.md: what the default detector finds in photos of four people.

    python scripts/draw_detections.py

It needs only pyface. docs/photos/README.md names the sources and licences. Below the photos is a crowd of the same
heads: smaller, mirrored, dimmed, washed out or tilted.
"""

from itertools import cycle
from pathlib import Path

import cv2
import numpy as np

from pyface import Detections, FaceDetector
from pyface.io.images import Pixels, read_image

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "docs" / "photos"
WIDTH, HEIGHT = 1280, 760
PLACES = {  # left, top, width and height in the image; a photo that is taller is cut at its lower end
    PHOTOS / "obama.jpg": (0, 0, 405, 470),
    PHOTOS / "hopper.jpg": (405, 0, 405, 470),
    ROOT / "examples" / "astronaut.jpg": (810, 0, 470, 470),
    PHOTOS / "cameraman.jpg": (0, 470, 290, 290),
}
CROWD = (290, 470)  # its left top corner
ROWS = (110, 83, 58, 39)  # sides of the heads in the rows of the crowd
GREEN, MAGENTA = (60, 220, 60), (255, 0, 200)


def main() -> None:
    detector = FaceDetector(device="cpu")
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    heads = []
    for path, (left, top, width, height) in PLACES.items():
        photo = read_image(path)
        heads += heads_in(photo, detector(photo))
        picture[top : top + height, left : left + width] = fitted(photo, width, height)
    left, top = CROWD
    picture[top:, left:] = crowd(heads, WIDTH - left, HEIGHT - top)
    faces = FaceDetector(device="cpu", size=WIDTH)(picture)  # at full size, for the smallest faces
    path = ROOT / "docs" / "detections.jpg"
    cv2.imwrite(str(path), drawn(picture, faces)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(f"{path.name}: {len(heads)} people, {len(faces)} faces found")


def drawn(picture: Pixels, faces: Detections) -> Pixels:
    """Boxes and landmarks in thinner lines than those of pyface.draw, and no scores, for faces this close together."""
    picture = picture.copy()
    for box, _, landmarks in faces:
        x1, y1, x2, y2 = box.round().int().tolist()
        cv2.rectangle(picture, (x1, y1), (x2, y2), GREEN, 2, cv2.LINE_AA)
        for x, y in [] if landmarks is None else landmarks.round().int().tolist():
            cv2.circle(picture, (x, y), max(1, (x2 - x1) // 30), MAGENTA, cv2.FILLED, cv2.LINE_AA)
    return picture


def fitted(photo: Pixels, width: int, height: int) -> Pixels:
    """The photo in the given width, or the upper part of it that has the given height."""
    full = round(photo.shape[0] * width / photo.shape[1])
    return cv2.resize(photo, (width, max(full, height)), interpolation=cv2.INTER_AREA)[:height]


def heads_in(photo: Pixels, faces: Detections) -> list[Pixels]:
    """Squares of twice the face's height around the faces of a photo."""
    heads = []
    for x1, y1, x2, y2 in faces.boxes.tolist():
        side = round(2 * (y2 - y1))
        centre = ((x1 + x2) / 2, (y1 + y2) / 2)
        heads.append(cv2.getRectSubPix(photo, (side, side), centre))
    return heads


def crowd(heads: list[Pixels], width: int, height: int) -> Pixels:
    """Rows of heads, each head changed in one of several ways."""
    changes = cycle((unchanged, mirrored, dimmed, tilted, washed_out))
    picture = np.zeros((height, width, 3), np.uint8)
    top, person = 0, cycle(heads)
    for side in ROWS:
        count = -(-width // side)  # rounded up: a little overlap rather than gaps
        for k in range(count):
            left = round(k * (width - side) / (count - 1))
            head = next(changes)(next(person))
            picture[top : top + side, left : left + side] = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
        top += side
    return picture


def unchanged(head: Pixels) -> Pixels:
    return head


def mirrored(head: Pixels) -> Pixels:
    return head[:, ::-1].copy()


def dimmed(head: Pixels) -> Pixels:
    return cv2.convertScaleAbs(head, alpha=0.4)


def washed_out(head: Pixels) -> Pixels:
    return cv2.convertScaleAbs(head, alpha=0.5, beta=120)


def tilted(head: Pixels) -> Pixels:
    middle = (head.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), 25, 1)
    return cv2.warpAffine(head, matrix, head.shape[:2], borderMode=cv2.BORDER_REPLICATE)


if __name__ == "__main__":
    main()
