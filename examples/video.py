"""Draws faces into a video, numbered by person: python examples/video.py party.mp4 drawn.mp4

pip install "pyface-engine[track]"
"""

import sys

import pyface
from pyface.draw import draw


def main(source: str, target: str) -> None:
    """Follows the faces through the frames and writes the video, at the frames' own times."""
    detector = pyface.FaceDetector()
    tracks = pyface.Tracks()
    people = set()
    with pyface.VideoWriter(target) as writer:
        for frame, image, faces, error in detector.stream(pyface.video(source)):
            if error is not None:
                raise error
            ids = tracks.ids(faces, frame.time)
            people.update(ids)
            writer.write(draw(image, faces, ids=ids), frame.time)
    print(f"{len(people - {None})} people in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
