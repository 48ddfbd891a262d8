"""Compares exported detectors with the detectors that they were exported from, on a folder of photos.

python scripts/compare_exports.py                          # the lite models and mtcnn, on the examples
python scripts/compare_exports.py photos/ --most 50        # on your own photos
python scripts/compare_exports.py photos/ --seconds 20     # and images per second, the runtimes alternating

For each model and format it prints the number of faces that both find, the faces that only one of them finds, and the
largest differences of scores and of box edges. Its status is 1 if faces are missing or a difference is too large.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pyface import Detections, FaceDetector
from pyface.benchmark import find_images
from pyface.export import ExportRequest, export

MODELS = ("s3fd_lite", "srn_lite", "ssh_lite", "densebox_lite", "mtcnn")
PACKAGES = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}
SCORE, PIXELS = 1e-4, 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", help="folder of images; default: examples/")
    parser.add_argument("--most", type=int, default=50, help="use the first images only")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--suffixes", nargs="+", choices=PACKAGES, default=[".onnx", ".xml"])
    parser.add_argument("--seconds", type=float, default=0.0, help="also time every model for so long")
    options = parser.parse_args()
    suffixes = [suffix for suffix in options.suffixes if importlib.util.find_spec(PACKAGES[suffix])]
    photos = find_images(options.photos)[: options.most]
    print(f"{len(photos)} photos, {torch.get_num_threads()} threads")
    is_same = True
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            detectors = {"torch": FaceDetector(name, device="cpu")}
            expected = detectors["torch"](photos)
            for suffix in suffixes:
                if (name, suffix) == ("mtcnn", ".pt2"):
                    continue
                path = Path(folder) / f"{name}{suffix}"
                export(ExportRequest(name), path)
                detectors[PACKAGES[suffix] + suffix] = detector = FaceDetector(str(path), device="cpu")
                is_same &= compare(f"{name}{suffix}", detector(photos), expected)
            if options.seconds:
                time_detectors(name, detectors, photos, options.seconds)
    sys.exit(0 if is_same else 1)


def compare(name: str, found: Sequence[Detections], expected: Sequence[Detections]) -> bool:
    """Prints how two lists of results differ, and returns whether they are the same within the limits."""
    both, alone, score, pixels = 0, 0, 0.0, 0.0
    for one, other in zip(found, expected, strict=True):
        pairs = nearest(one, other)
        both, alone = both + len(pairs), alone + len(one) + len(other) - 2 * len(pairs)
        for i, k in pairs:
            score = max(score, abs(one.scores[i] - other.scores[k]).item())
            pixels = max(pixels, (one.boxes[i] - other.boxes[k]).abs().max().item())
    print(
        f"{name:20} {both:5} faces, {alone} found by one only; scores differ by {score:.1e}, boxes by {pixels:.1e} px"
    )
    return alone == 0 and score <= SCORE and pixels <= PIXELS


def nearest(one: Detections, other: Detections, most: float = 1.0) -> list[tuple[int, int]]:
    """Pairs faces whose box edges all differ by less than `most` pixels: the order of equal scores may differ."""
    if not len(one) or not len(other):
        return []
    distances = (one.boxes[:, None] - other.boxes[None]).abs().amax(2).numpy()
    best = distances.argmin(1)
    pairs = [(i, int(k)) for i, k in enumerate(best) if distances[i, k] < most]
    return list({k: (i, k) for i, k in pairs}.values())


def time_detectors(name: str, detectors: dict[str, FaceDetector], photos: list[bytes], seconds: float) -> None:
    """Prints images per second in each runtime, which take turns, and the median of their ratios to torch."""
    times: dict[str, list[float]] = {runtime: [] for runtime in detectors}
    batch = photos[:16]
    for detector in detectors.values():
        detector(batch)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times["torch"]) < 5:
        for runtime, detector in detectors.items():
            before = time.process_time()
            detector(batch)
            times[runtime].append(time.process_time() - before)
    for runtime, taken in times.items():
        ratio = median(np.divide(times["torch"], taken))
        print(f"{name:20} {runtime:18} {1000 * median(taken) / len(batch):7.1f} ms CPU per image, {ratio:.2f} x torch")


if __name__ == "__main__":
    main()
