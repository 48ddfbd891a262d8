"""Compares the faces of two photos with a recognition network: python examples/recognise.py arcface.onnx a.jpg b.jpg

pip install onnxruntime
"""

import sys

import numpy as np
import onnxruntime

import pyface


def network_input(chips: np.ndarray) -> np.ndarray:
    """Aligned faces, uint8 [N, 112, 112, 3] -> float32 [N, 3, 112, 112] from -1 to 1, as ArcFace's networks take."""
    return chips.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def main(network: str, *photos: str) -> None:
    """Prints the cosine similarity of each face of the first photo with each of the second, best score first."""
    session = onnxruntime.InferenceSession(network)
    name = session.get_inputs()[0].name
    vectors = []
    for photo, faces in zip(photos, pyface.FaceDetector()(photos), strict=True):
        found = session.run(None, {name: network_input(faces.align(photo))})[0]
        vectors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    print((vectors[0] @ vectors[1].T).round(3))


if __name__ == "__main__":
    main(*sys.argv[1:])
