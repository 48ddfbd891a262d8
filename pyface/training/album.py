"""The pictures of a run: decoded once and kept in memory where they fit, decoded anew each time where they do not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyface.dataset import DatasetError, Picture, read_folder
from pyface.images import EncodedImage, ImageError, open_image, read_image

MEMORY_SHARE = 0.5  # of the machine's free memory, that decoded pictures may take


class Album:
    """Pictures by number.

    Args:
        pictures: What is known about each.
        keep: Whether all are decoded now and kept; None: if they fit into half of the free memory.

    Attributes:
        pictures: As passed.
        images: uint8 [H, W, 3] each, or None where they are decoded anew each time.
    """

    def __init__(self, pictures: Sequence[Picture], keep: bool | None = None) -> None:
        self.pictures = list(pictures)
        self.images: list[Tensor] | None = None
        if _fit(self.pictures, MEMORY_SHARE * _free_memory()) if keep is None else keep:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self.images = list(pool.map(read, self.pictures))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, k: int) -> Tensor:
        return read(self.pictures[k]) if self.images is None else self.images[k]

    def parts(
        self, numbers: NDArray[np.integer], boxes: NDArray[np.float32]
    ) -> tuple[list[Tensor], NDArray[np.float32]]:
        """The parts of pictures that boxes [N, 4] show, and the boxes as seen from these; each is decoded once."""
        images = {k: self[k] for k in np.unique(numbers).tolist()}
        limits = np.array([images[k].shape[1::-1] for k in numbers.tolist()])
        low = np.floor(boxes[:, :2]).clip(0, limits - 1).astype(int)
        high = np.minimum(np.maximum(np.ceil(boxes[:, 2:]), low + 1), limits).astype(int)
        corners = zip(numbers.tolist(), low, high, strict=True)
        parts = [images[k][y1:y2, x1:x2].contiguous() for k, (x1, y1), (x2, y2) in corners]
        return parts, boxes - np.tile(low, 2).astype(np.float32)


def read(picture: Picture) -> Tensor:
    """A picture's pixels, uint8 RGB [H, W, 3].

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        return torch.from_numpy(read_image(picture.path))
    except ImageError as error:
        raise DatasetError(f"{picture.path} cannot be read: {error}") from error


def split(folders: Sequence[str], held_out: Sequence[str]) -> tuple[list[Picture], list[Picture]]:
    """The pictures of data folders, and of these the ones that are held out, by file name.

    Raises:
        DatasetError: A folder is malformed, a name is in none of them, or nothing is left to learn from.
    """
    names = set(held_out)
    learned, held = [], {}
    for folder in folders:
        for picture in read_folder(folder):
            if picture.path.name in names:
                held[picture.path.resolve()] = picture
            else:
                learned.append(picture)
    missing = names - {picture.path.name for picture in held.values()}
    if missing:
        raise DatasetError(f"held-out pictures that are in no data folder: {', '.join(sorted(missing)[:10])}")
    if not any(len(picture.faces) for picture in learned):
        raise DatasetError(f"{', '.join(map(str, folders))}: there are no faces to learn from")
    return learned, list(held.values())


def _fit(pictures: Sequence[Picture], limit: float) -> bool:
    """Whether the decoded pictures take less than `limit` bytes."""
    for picture in pictures:
        try:
            opened = open_image(picture.path)
        except ImageError as error:
            raise DatasetError(f"{picture.path} cannot be read: {error}") from error
        limit -= 3 * (opened.pixels if isinstance(opened, EncodedImage) else 0)
        if limit < 0:
            return False
    return True


def _free_memory() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
