"""Copies photos with their faces blurred and without their GPS position: python examples/privacy.py photos/ out/"""

import sys
from pathlib import Path

import pyface
from pyface.io.metadata import save_photo
from pyface.redact import redact


def main(source: str, target: str) -> None:
    """Covers what the detector finds; look through the copies, since a missed face stays visible."""
    detector = pyface.FaceDetector(score_threshold=0.2)  # low: a mistake blurs a bush, a missed face shows a person
    photos = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for photo, image, faces, error in detector.stream(photos):
        if error is not None:
            print(error, file=sys.stderr)
            continue
        save_photo(Path(target) / photo.name, redact(image, faces, "blur"), original=photo, gps=False)
        print(f"{photo.name}: {len(faces)} covered")


if __name__ == "__main__":
    main(*sys.argv[1:])
