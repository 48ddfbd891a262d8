"""Training samples: a number determines a sample's crops, faces and colours; `render` makes a batch's pixels.

Random choices in sample k of a run depend only on the run's seed and k. So a resumed run continues with the same
samples as an uninterrupted one, whatever the number of workers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyface import ops
from pyface.models.base import MIRRORED, GroundTruth
from pyface.training.album import Album
from pyface.training.crop_rules import Rule
from pyface.training.recipes import Recipe


class Faces(NamedTuple):
    """The ground truth of a sample, in its pixels.

    Attributes:
        boxes: float32 [G, 4].
        ignore: bool [G], boxes that count neither as faces nor as background.
        landmarks: float32 [G, 5, 2], NaN where unknown.
    """

    boxes: NDArray[np.float32]
    ignore: NDArray[np.bool_]
    landmarks: NDArray[np.float32]


class Batch(NamedTuple):
    """A batch before its pixels are made.

    Samples of one crop come first, then mosaics of four. All tensors but colours, ground truth and pixels stay on the
    CPU.

    Attributes:
        pictures: int64 [T], the index of each crop's image in the album, or in `pixels` if that is set.
        crops: float32 [T, 4], (x1, y1, x2, y2) in the image's pixels, squares that may reach beyond it.
        mirrored: bool [T], whether to mirror the crop.
        mosaics: Number of samples that are mosaics.
        size: Side of the samples in pixels.
        angles: float32 [B], degrees by which each sample is rotated, from the x axis towards the y axis.
        colours: float32 [B, 3, 4], colour matrices for (R, G, B, 1) with RGB from 0 to 255.
        cuts: float32 [C, 6], rectangles to fill: index of the sample, (x1, y1, x2, y2) and a grey.
        truth: The ground truth.
        pixels: uint8 [H, W, 3], the images, if the album does not keep them in memory; else None.
    """

    pictures: Tensor
    crops: Tensor
    mirrored: Tensor
    mosaics: int
    size: int
    angles: Tensor
    colours: Tensor
    cuts: Tensor
    truth: GroundTruth
    pixels: list[Tensor] | None


class Crop(NamedTuple):
    """A square part of an image, as used in a sample."""

    picture: int
    left: float
    top: float
    side: float
    is_mirrored: bool


class Sample(NamedTuple):
    """A sample before its pixels are made.

    Attributes:
        crops: One crop, or the four of a mosaic, row by row.
        angle: Degrees by which the sample is rotated about its centre.
        faces: The ground truth.
        colours: float32 [3, 4], as in `Batch`.
        cuts: Rectangles to fill: (x1, y1, x2, y2) and a grey.
    """

    crops: list[Crop]
    angle: float
    faces: Faces
    colours: NDArray[np.float32]
    cuts: list[tuple[float, ...]]


class Samples(Dataset[Batch]):
    """Batches of samples, by index.

    Args:
        album: The images.
        recipe: Hyperparameters.
        rule: The crop rule.
        seed: Random seed.
        first: Number, within the run, of this dataset's batch 0.
        count: Number of batches.
        rank: Index of this process; in each step, every process takes different samples.
        world: Number of processes.
    """

    def __init__(
        self, album: Album, recipe: Recipe, rule: Rule, seed: int, first: int, count: int, rank: int = 0, world: int = 1
    ) -> None:
        self.album, self.recipe, self.rule, self.seed = album, recipe, rule, seed
        self.first, self.count, self.rank, self.world = first, count, rank, world

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, batch: int) -> Batch:
        if not 0 <= batch < self.count:
            raise IndexError(batch)
        count = self.recipe.batch_size
        start = ((self.first + batch) * self.world + self.rank) * count
        samples = [self.sample(k) for k in range(start, start + count)]
        samples.sort(key=lambda sample: len(sample.crops))
        crops = [crop for sample in samples for crop in sample.crops]
        truth = [sample.faces for sample in samples]
        cuts = [(k, *cut) for k, sample in enumerate(samples) for cut in sample.cuts]
        squares = np.array([(c.left, c.top, c.left + c.side, c.top + c.side) for c in crops], np.float32)
        numbers = np.array([crop.picture for crop in crops])
        pixels = None
        if self.album.images is None:
            # Whole, as if they were kept: in parts, the places to sample would be rounded differently.
            pictures, numbers = np.unique(numbers, return_inverse=True)
            pixels = [self.album[k] for k in pictures.tolist()]
        return Batch(
            pictures=torch.from_numpy(numbers),
            crops=torch.from_numpy(squares),
            mirrored=torch.tensor([crop.is_mirrored for crop in crops]),
            mosaics=sum(len(sample.crops) > 1 for sample in samples),
            size=self.recipe.size,
            angles=torch.tensor([sample.angle for sample in samples]),
            colours=torch.from_numpy(np.stack([sample.colours for sample in samples])),
            cuts=torch.tensor(cuts, dtype=torch.float32).reshape(-1, 6),
            truth=GroundTruth(
                boxes=torch.from_numpy(np.concatenate([faces.boxes for faces in truth])),
                splits=torch.tensor([0, *(len(faces.boxes) for faces in truth)]).cumsum(0),
                ignore=torch.from_numpy(np.concatenate([faces.ignore for faces in truth])),
                landmarks=torch.from_numpy(np.concatenate([faces.landmarks for faces in truth])),
            ),
            pixels=pixels,
        )

    def sample(self, k: int) -> Sample:
        """Draws sample k of the run."""
        rng = np.random.default_rng((self.seed, k))
        epoch, place = divmod(k, len(self.album))
        picture = int(_order(self.seed, epoch, len(self.album))[place])
        recipe, angle, size = self.recipe, 0.0, self.recipe.size
        if rng.random() < recipe.mosaic:
            half = size // 2
            crops, parts = [], []
            for row, column in np.ndindex(2, 2):
                crop, faces = self._crop(rng, picture, half)
                crops.append(crop)
                parts.append(_moved(faces, column * half, row * half))
                picture = int(rng.integers(len(self.album)))
            faces = Faces(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        else:
            crop, faces = self._crop(rng, picture, size)
            crops = [crop]
            if rng.random() < recipe.rotation:
                angle = float(rng.uniform(-recipe.most_rotated, recipe.most_rotated))
                faces = rotated(faces, angle, size, recipe.smallest_face)
        cuts = [cut_out(rng, box) for box in faces.boxes[~faces.ignore] if rng.random() < recipe.cut_out]
        return Sample(crops, angle, faces, colours(rng, recipe.photometric), cuts)

    def _crop(self, rng: np.random.Generator, k: int, size: int) -> tuple[Crop, Faces]:
        height, width = self.album.sizes[k]
        left, top, side = self.rule(rng, self.album.pictures[k], height, width, size)
        crop = Crop(k, left, top, side, bool(rng.random() < 0.5))
        picture = self.album.pictures[k]
        boxes = np.concatenate([picture.faces, picture.ignore])
        ignore = np.arange(len(boxes)) >= len(picture.faces)
        unknown = np.full((len(picture.ignore), 5, 2), np.nan, np.float32)
        faces = Faces(boxes, ignore, np.concatenate([picture.landmarks, unknown]))
        return crop, in_crop(faces, crop, size, self.recipe.smallest_face)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The random order of the images in an epoch."""
    return np.random.default_rng((seed, epoch, 1)).permutation(count)


def in_crop(faces: Faces, crop: Crop, size: int, smallest: float) -> Faces:
    """Converts an image's faces to the pixels of a sample of `size` pixels.

    A face counts if its centre is inside the crop (docs/detectors.md 2.5). Faces with their centre outside, and faces
    smaller than `smallest`, become ignore boxes. All boxes are clipped to the crop, and those wholly outside it are
    removed.
    """
    scale = size / crop.side
    origin = np.array([crop.left, crop.top], np.float32)
    boxes = ((faces.boxes.reshape(-1, 2, 2) - origin) * scale).reshape(-1, 4)
    landmarks = (faces.landmarks - origin) * scale
    if crop.is_mirrored:
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
        landmarks = landmarks[:, MIRRORED] * [-1, 1] + [size, 0]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_inside = ((centre >= 0) & (centre < size)).all(1)
    return _clipped(Faces(boxes, faces.ignore | ~is_inside, landmarks), size, smallest)


def rotated(faces: Faces, degrees: float, size: int, smallest: float) -> Faces:
    """Rotates a sample's faces about its centre.

    A face's new box encloses the ellipse inscribed in its old box. That fits a head better than a box around the old
    corners. Boxes are ignored, clipped and removed as in `in_crop`.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = np.array([[cos, sin], [-sin, cos]])  # of row vectors, y downwards
    middle = size / 2
    centre = ((faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - middle) @ rotation + middle
    half = np.sqrt(((faces.boxes[:, 2:] - faces.boxes[:, :2]) / 2) ** 2 @ rotation**2)
    is_inside = ((centre >= 0) & (centre < size)).all(1)
    boxes = np.concatenate([centre - half, centre + half], 1)
    landmarks = (faces.landmarks - middle) @ rotation + middle
    return _clipped(Faces(boxes, faces.ignore | ~is_inside, landmarks), size, smallest)


def _clipped(faces: Faces, size: int, smallest: float) -> Faces:
    """Clips faces to a sample: removes those wholly outside, and marks those that are then too small as ignored."""
    boxes = faces.boxes.clip(0, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    ignore = faces.ignore | (np.sqrt(sides.prod(1)) < smallest)
    is_seen = (sides > 0).all(1)
    return Faces(
        boxes[is_seen].astype(np.float32),
        ignore[is_seen],
        faces.landmarks[is_seen].astype(np.float32).reshape(-1, 5, 2),
    )


def _moved(faces: Faces, x: float, y: float) -> Faces:
    shift = np.array([x, y], np.float32)
    return Faces(faces.boxes + np.tile(shift, 2), faces.ignore, faces.landmarks + shift)


def cut_out(rng: np.random.Generator, box: NDArray[np.float32]) -> tuple[float, ...]:
    """A random rectangle over a part of a face, 0.3 to 0.6 of its sides, and a grey: (x1, y1, x2, y2, grey)."""
    sides = box[2:] - box[:2]
    extent = sides * rng.uniform(0.3, 0.6, 2)
    x, y = box[:2] + rng.uniform(0, 1, 2) * (sides - extent)
    return float(x), float(y), float(x + extent[0]), float(y + extent[1]), float(rng.uniform(0, 255))


def colours(rng: np.random.Generator, probability: float) -> NDArray[np.float32]:
    """Random colour changes as one [3, 4] matrix: brightness +-32, contrast x 0.5 to 1.5, saturation x 0.5 to 1.5 and
    hue +-18 degrees (docs/detectors.md 2.5).

    Saturation and hue scale and rotate colours about the grey axis; the authors change them in HSV.
    """
    grey = np.array([0.299, 0.587, 0.114])
    matrix, shift = np.eye(3), np.zeros(3)
    if rng.random() < probability:
        shift += rng.uniform(-32, 32)
    if rng.random() < probability:
        contrast = rng.uniform(0.5, 1.5)
        matrix, shift = matrix * contrast, shift * contrast
    if rng.random() < probability:
        saturation = rng.uniform(0.5, 1.5)
        matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ matrix
    if rng.random() < probability:
        matrix = hue(rng.uniform(-18, 18)) @ matrix
    return np.concatenate([matrix, shift[:, None]], 1).astype(np.float32)


def hue(degrees: float) -> NDArray[np.float64]:
    """The rotation about the grey axis, [3, 3] (Rodrigues' formula)."""
    angle = math.radians(degrees)
    axis = np.ones(3) / math.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    return math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)


def render(batch: Batch, images: list[Tensor]) -> Tensor:
    """Makes the pixels of a batch, float32 [B, 3, size, size], RGB from 0 to 255, on the images' device.

    Args:
        batch: The batch, with its colours on the images' device.
        images: The album's images, or the batch's own parts of them.
    """
    size, quarters = batch.size, 4 * batch.mosaics
    single = len(batch.crops) - quarters
    parts = []
    if single:
        parts.append(_crops(batch, images, slice(0, single), size))
    if quarters:
        tiles = _crops(batch, images, slice(single, None), size // 2).unflatten(0, (-1, 2, 2))
        parts.append(tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))
    samples = _rotate(torch.cat(parts), batch.angles)
    matrix, shift = batch.colours[:, :, :3], batch.colours[:, :, 3]
    samples = torch.baddbmm(shift[:, :, None], matrix, samples.flatten(2)).view_as(samples).clamp_(0, 255)
    for k, x1, y1, x2, y2, grey in batch.cuts.tolist():
        samples[int(k), :, round(y1) : round(y2), round(x1) : round(x2)] = grey
    return samples


def _rotate(samples: Tensor, angles: Tensor) -> Tensor:
    """Rotates samples [B, 3, size, size] about their centres by degrees [B] on the CPU; uncovered corners are black."""
    numbers = angles.nonzero().squeeze(1)
    if len(numbers) == 0:
        return samples
    radians = torch.deg2rad(angles[numbers])
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # Where in the sample each pixel comes from: the inverse rotation.
    back = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    back, numbers = back.to(samples.device, non_blocking=True), numbers.to(samples.device, non_blocking=True)
    chosen = samples[numbers]
    grid = F.affine_grid(back, list(chosen.shape), align_corners=False)
    return samples.index_copy_(0, numbers, F.grid_sample(chosen, grid, align_corners=False))


def _crops(batch: Batch, images: list[Tensor], which: slice, size: int) -> Tensor:
    numbers = batch.pictures[which].tolist()
    used = sorted(set(numbers))
    index = torch.tensor([used.index(k) for k in numbers])
    device = images[0].device
    crops = ops.crop_resize(
        [images[k] for k in used],
        batch.crops[which].to(device, non_blocking=True),
        index.to(device, non_blocking=True),
        (size, size),
        interpolation="area",
    )
    mirrored = batch.mirrored[which].to(device, non_blocking=True)
    return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
