"""Draws the faces into a video: python examples/video.py party.mp4 drawn.mp4"""

import sys

import pyface
from pyface.draw import draw


def main(source: str, target: str) -> None:
    """Reads a video, finds the faces in every frame, and writes it with their boxes drawn, at the frames' own times."""
    detector = pyface.FaceDetector()
    with pyface.VideoWriter(target) as writer:
        for outcome in detector.stream(pyface.video(source)):
            if outcome.detections is None:
                raise outcome.error
            writer.write(draw(outcome.image, outcome.detections), outcome.source.time)
            print(f"{outcome.source.time:8.2f} s: {len(outcome.detections)} faces")


if __name__ == "__main__":
    main(*sys.argv[1:])
