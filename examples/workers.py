"""Detects faces in images that a DataLoader's worker processes read: python examples/workers.py photos/ 4

A detector reads images in threads by itself; this is for programs that have a DataLoader already.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import pyface


class Photos(Dataset):
    """The photos of a folder, as pairs of a path and a tensor [3, H, W]."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor]:
        return self.paths[index], torch.from_numpy(pyface.read_image(self.paths[index])).permute(2, 0, 1)


def main(folder: str, workers: str) -> None:
    """Prints the number of faces in each photo; the detector stays in this process, on its device."""
    batches = DataLoader(Photos(folder), batch_size=8, num_workers=int(workers), collate_fn=list)  # images of any sizes
    pairs = (pair for batch in batches for pair in batch)
    for outcome in pyface.FaceDetector().stream(pairs, copy=False):
        print(f"{outcome.source.name}: {len(outcome.detections)} faces")


if __name__ == "__main__":
    main(*sys.argv[1:])
