"""The images of a run: decoded once and kept in memory if they fit, otherwise decoded on each access."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyface.data.annotations import AnnotatedImage, DatasetError, size_of
from pyface.data.folder import read_folder
from pyface.io.images import ImageError, read_image

MEMORY_SHARE = 0.5  # share of the free memory that decoded images may take


class Album:
    """The images of a run, by index.

    Args:
        pictures: Path and annotations of each image.
        keep: Whether to decode all images now and keep them. None: keep them if they fit into half of the free memory
            of the machine and, if there is one, of the GPU.
        accelerator: "cpu", or a name that may mean a GPU.
        sharers: Number of processes on this machine that each keep their own copy of the images.

    Attributes:
        pictures: As passed, without boxes that are empty or lie outside their image.
        left_out: Number of boxes removed.
        sizes: Height and width of each image.
        images: One uint8 [H, W, 3] tensor per image, or None if images are decoded on each access.

    Raises:
        DatasetError: An image is missing, damaged or too large.
    """

    def __init__(
        self,
        pictures: Sequence[AnnotatedImage],
        keep: bool | None = None,
        *,
        accelerator: str = "cpu",
        sharers: int = 1,
    ) -> None:
        paths = list(dict.fromkeys(picture.path for picture in pictures))  # a folder may be given twice
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = dict(zip(paths, pool.map(size_of, paths), strict=True))
            if keep is None:
                pixels = sum(height * width for height, width in sizes.values())
                keep = 3 * pixels < MEMORY_SHARE * _free_memory(accelerator, sharers)
            images = dict(zip(paths, pool.map(read, paths), strict=True)) if keep else None
        self.sizes = [sizes[picture.path] for picture in pictures]
        self.pictures = [_with_boxes_inside(picture, *sizes[picture.path]) for picture in pictures]
        self.left_out = sum(_boxes(before) - _boxes(now) for before, now in zip(pictures, self.pictures, strict=True))
        self.images = None if images is None else [images[picture.path] for picture in pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def known_landmarks(self) -> int:
        """Number of faces with all five landmarks."""
        return sum(int(np.isfinite(picture.landmarks).all((1, 2)).sum()) for picture in self.pictures)

    def facts(self) -> dict[str, Any]:
        """Identifies the data, wherever the files are: counts, and a digest of names, sizes and annotations."""
        digest = hashlib.sha256()
        for picture, size in zip(self.pictures, self.sizes, strict=True):
            digest.update(f"{picture.path.name} {size}".encode())
            for array in (picture.faces, picture.ignore, picture.landmarks):
                digest.update(array.tobytes())
        faces = sum(len(picture.faces) for picture in self.pictures)
        return {"pictures": len(self), "faces": faces, "sha256": digest.hexdigest()}

    def __getitem__(self, k: int) -> Tensor:
        return read(self.pictures[k].path) if self.images is None else self.images[k]

    def parts(
        self, numbers: NDArray[np.integer], boxes: NDArray[np.float32]
    ) -> tuple[list[Tensor], NDArray[np.float32]]:
        """Cuts out the parts of images that boxes [N, 4] cover; each image is decoded once.

        Args:
            numbers: [N], the index of each box's image.
            boxes: (x1, y1, x2, y2) in the image's pixels.

        Returns:
            The parts of the images, and the boxes relative to these parts.
        """
        images = {k: self[k] for k in np.unique(numbers).tolist()}
        limits = np.array([images[k].shape[1::-1] for k in numbers.tolist()])
        low = np.floor(boxes[:, :2]).clip(0, limits - 1).astype(int)
        high = np.minimum(np.maximum(np.ceil(boxes[:, 2:]), low + 1), limits).astype(int)
        corners = zip(numbers.tolist(), low, high, strict=True)
        parts = [images[k][y1:y2, x1:x2].contiguous() for k, (x1, y1), (x2, y2) in corners]
        return parts, boxes - np.tile(low, 2).astype(np.float32)


def read(path: Path) -> Tensor:
    """Reads an image's pixels, uint8 RGB [H, W, 3].

    Raises:
        DatasetError: The image cannot be read.
    """
    try:
        return torch.from_numpy(read_image(path))
    except ImageError as error:
        raise DatasetError(str(error)) from error  # its message names the file


def split(folders: Sequence[str], held_out: Sequence[str]) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Splits the images of data folders into those to train on and those that are held out.

    Args:
        folders: Data folders.
        held_out: Names of images, with enough of their parent folders in front to make each name unique.

    Raises:
        DatasetError: A folder is malformed, a name matches no image or several, or no faces are left to train on.
    """
    meant: dict[str, set[Path]] = {name: set() for name in held_out}
    trained_on, held = [], {}
    for folder in folders:
        for picture in read_folder(folder):
            parts = picture.path.parts
            names = meant.keys() & {"/".join(parts[-k:]) for k in range(1, len(parts) + 1)}
            if names:
                held[picture.path.resolve()] = picture
            else:
                trained_on.append(picture)
            for name in names:
                meant[name].add(picture.path.resolve())
    missing = sorted(name for name, paths in meant.items() if not paths)
    if missing:
        raise DatasetError(f"held-out images must be in the data folders, got {', '.join(missing[:10])}")
    for name, paths in meant.items():
        if len(paths) > 1:
            places = " and ".join(sorted(map(str, paths)))
            raise DatasetError(
                f"a held-out image must be unambiguous, got {name}, which could be {places}; write it with its folders"
            )
    if not any(len(picture.faces) for picture in trained_on):
        raise DatasetError(f"{', '.join(map(str, folders))}: there are no faces to train on")
    return trained_on, list(held.values())


def measured_sets(folders: Sequence[str], held: list[AnnotatedImage]) -> dict[str, list[AnnotatedImage]]:
    """The sets that a run is measured on, by name: one per folder, and "held_out". Repeated folder names get a number.

    Raises:
        DatasetError: A set has no faces to measure on, or an image cannot be read.
    """
    sets: dict[str, list[AnnotatedImage]] = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        names = (folder.name if k == 1 else f"{folder.name}_{k}" for k in itertools.count(1))
        sets[next(name for name in names if name not in {"held_out", *sets})] = read_folder(folder)
    if held:
        sets["held_out"] = held
    for name, pictures in sets.items():
        if not any(len(picture.faces) for picture in pictures):
            raise DatasetError(f"{name}: there are no faces to measure on")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(size_of, (picture.path for picture in pictures)))
    return sets


def _boxes(picture: AnnotatedImage) -> int:
    return len(picture.faces) + len(picture.ignore)


def _with_boxes_inside(picture: AnnotatedImage, height: int, width: int) -> AnnotatedImage:
    """Removes boxes that are empty in float32 or lie outside the image."""

    def is_inside(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        seen = boxes.clip(0, [width, height] * 2)
        return np.asarray((seen[:, 2:] > seen[:, :2]).all(1))

    faces = is_inside(picture.faces)
    return picture._replace(
        faces=picture.faces[faces], ignore=picture.ignore[is_inside(picture.ignore)], landmarks=picture.landmarks[faces]
    )


def _free_memory(accelerator: str, sharers: int) -> float:
    """Bytes available to each of `sharers` processes: in main memory and, if there is a GPU, on it as well."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # fallback where free memory is unknown
    with contextlib.suppress(OSError):
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = 1024 * int(facts["MemAvailable"].split()[0])  # counts reclaimable caches, unlike MemFree
    with contextlib.suppress(OSError, ValueError):  # a container's limit, if it has one
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if accelerator != "cpu" and torch.cuda.is_available():
        return min(free / sharers, torch.cuda.mem_get_info()[0])
    return free / sharers
