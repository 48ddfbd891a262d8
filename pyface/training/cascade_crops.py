"""The training crops of MTCNN's networks (docs/detectors.md 3.3), and batches of them.

A crop is stored as an image's index, a box, its kind and the face it shows: about twenty bytes. Pixels are cut when a
batch is made. P-Net's crops are drawn at random, around faces and anywhere. R-Net and O-Net train on proposals of the
networks before them, and on some random crops. One function, `match`, decides the kind of every crop.

Random choices in batch k of a network depend only on the run's seed, the network and k. So a resumed run continues with
the same batches as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyface import ops
from pyface.data.annotations import AnnotatedImage
from pyface.models.base import MIRRORED
from pyface.models.mtcnn import CELL, MTCNN, CropKind, CropTruth, MTCNNConfig, normalised_crops
from pyface.training.album import Album
from pyface.training.recipes import Recipe
from pyface.training.samples import colours

Net = Literal["pnet", "rnet", "onet"]
NETS: tuple[Net, ...] = ("pnet", "rnet", "onet")
SIDES: dict[Net, int] = {"pnet": 12, "rnet": 24, "onet": 48}

# IoU with a face (the paper's ranges); crops between the first two are not used.
NEGATIVE_BELOW, PART_FROM, POSITIVE_ABOVE = 0.3, 0.4, 0.65
SHARES = {CropKind.NEGATIVE: 3, CropKind.POSITIVE: 1, CropKind.PART: 1, CropKind.LANDMARK: 2}  # parts of a batch

# Numbers of crops drawn for P-Net (AITTSMD's): per image, anywhere in it; per face, near it, at it, and for landmarks.
ANYWHERE, NEAR, AT, LANDMARKS = 50, 5, 20, 10
# Crops drawn for R-Net and O-Net, in addition to proposals. They include faces that the networks before miss, give
# enough crops on small data, and guarantee negatives even where nothing is proposed.
ANYWHERE_LATER, AT_LATER = 5, 5
# Most proposed negatives per image for R-Net and O-Net: those with the highest scores, which pass in detection too.
NEGATIVES = 60
# Thresholds of P-Net and R-Net when crops are mined, instead of 0.6 and 0.7. In detection a network lets few negatives
# through, and even fewer on its own training images. The next network must also cope with images on which its
# predecessor does worse.
MINING_THRESHOLDS = (0.3, 0.1)
IMAGES_PER_CALL = 8

TINTS = 32  # different colour changes per batch
_DRAWN, _BATCH, _ORDER = 0, 1, 2  # last part of a generator's seed: its purpose


class Crops(NamedTuple):
    """Crops of an album's images.

    Attributes:
        pictures: int32 [N], the image's index in the album.
        boxes: float32 [N, 4], (x1, y1, x2, y2) in the image's pixels; squares that may reach beyond it.
        kinds: int8 [N], values of `CropKind`.
        faces: int32 [N], index of the face shown, among the image's faces; -1 for negatives.
    """

    pictures: NDArray[np.int32]
    boxes: NDArray[np.float32]
    kinds: NDArray[np.int8]
    faces: NDArray[np.int32]


class Matches(NamedTuple):
    """Kinds and faces of the crops of one image.

    Attributes:
        kinds: int8 [N], values of `CropKind`; -1: not used.
        faces: int32 [N], index of the face with the highest IoU if that is >= `PART_FROM`, else negative.
        overlap: float32 [N], IoU with the best face.
    """

    kinds: NDArray[np.int8]
    faces: NDArray[np.int32]
    overlap: NDArray[np.float32]


class Batch(NamedTuple):
    """A batch before its pixels are made.

    Attributes:
        pictures: int64 [N], the index of each crop's image in the album, or in `pixels` if that is set. On the CPU.
        boxes: float32 [N, 4], in the image's pixels.
        mirrored: bool [N], whether to mirror the crop.
        colours: float32 [N, 3, 4], colour matrices for (R, G, B, 1) with RGB from 0 to 255.
        truth: The ground truth, mirrored where the crop is.
        pixels: uint8 [H, W, 3] parts of the images, if the album does not keep images in memory; else None.
    """

    pictures: Tensor
    boxes: Tensor
    mirrored: Tensor
    colours: Tensor
    truth: CropTruth
    pixels: list[Tensor] | None


# --- kinds and ground truth of crops ---------------------------------------------------------------------------------


def match(boxes: NDArray[np.float32], picture: AnnotatedImage, smallest: float) -> Matches:
    """Decides the kind and the face of each crop of an image.

    Faces with a longer side below `smallest` count as ignore boxes. A crop is not a negative if at least half of its
    area lies within an ignore box, or if its IoU with one reaches `NEGATIVE_BELOW`.

    Args:
        boxes: [N, 4], the crops.
        picture: The image's annotations.
        smallest: Longer side in pixels of the smallest box that counts as a face.
    """
    known = np.concatenate([picture.faces, picture.ignore])
    is_small = (known[:, 2:] - known[:, :2]).max(1, initial=0) < smallest
    no_face = is_small | (np.arange(len(known)) >= len(picture.faces))
    # The image is matched twice: with its ignore boxes, and with these taken for faces.
    index, overlap = ops.assign_anchors(
        torch.from_numpy(boxes),
        torch.from_numpy(np.tile(known, (2, 1))),
        torch.arange(3) * len(known),
        positive=PART_FROM,
        negative=NEGATIVE_BELOW,
        ignore=torch.from_numpy(np.concatenate([no_face, np.zeros_like(no_face)])),
    )
    faces, best = index[0].numpy(), overlap[0].numpy()
    kinds = np.full(len(boxes), -1, np.int8)
    kinds[(index == -1).all(0).numpy()] = CropKind.NEGATIVE
    kinds[faces >= 0] = CropKind.PART
    kinds[(faces >= 0) & (best > POSITIVE_ABOVE)] = CropKind.POSITIVE
    return Matches(kinds, faces, best)


def targets(
    net: Net,
    kinds: Tensor,
    boxes: Tensor,
    faces: Tensor,
    landmarks: Tensor,
    mirrored: Tensor,
) -> CropTruth:
    """Returns the ground truth for crops.

    Args:
        net: The network that takes the crops.
        kinds: int64 [N], values of `CropKind`.
        boxes: float32 [N, 4], the crops.
        faces: float32 [N, 4], the face of each crop; any values for negatives.
        landmarks: float32 [N, 5, 2], landmarks of that face, NaN where unknown.
        mirrored: bool [N], whether the crop is mirrored.
    """
    # Mirror each face about the middle of its crop.
    both = boxes[:, 0] + boxes[:, 2]
    turned = torch.stack([both - faces[:, 2], faces[:, 1], both - faces[:, 0], faces[:, 3]], 1)
    faces = torch.where(mirrored[:, None], turned, faces)
    points = landmarks[:, MIRRORED] * torch.tensor([-1.0, 1.0], dtype=torch.float32)
    points[..., 0] += both[:, None]
    points = torch.where(mirrored[:, None, None], points, landmarks)

    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    base, unit = read_cells(boxes) if net == "pnet" else (boxes, sides)
    return CropTruth(kinds, (faces - base) / unit.repeat(1, 2), (points - corner[:, None]) / sides[:, None])


def read_cells(crops: Tensor) -> tuple[Tensor, Tensor]:
    """The box that detection assigns to a P-Net window, and the unit of its offsets.

    P-Net's window covers [2i, 2i + 12) / s. The author's box for it is [fix((2i + 1) / s) - 1, fix((2i + 12) / s)], and
    the first calibration takes sides to be one pixel shorter (`cell_boxes`, `calibrate`). Rounding subtracts half a
    pixel on average. Training targets are measured from this box, so that detected boxes end up on the face.
    """
    sides = crops[:, 2:] - crops[:, :2]
    boxes = torch.cat([crops[:, :2] + sides / CELL - 1.5, crops[:, 2:] - 0.5], 1)
    return boxes, boxes[:, 2:] - boxes[:, :2] - 1


# --- random crops ----------------------------------------------------------------------------------------------------


def draw(album: Album, net: Net, seed: int, smallest: float) -> Crops:
    """Draws crops from all images: all crops of P-Net, and those that R-Net and O-Net train on besides proposals.

    Args:
        album: The images.
        net: The network to train.
        seed: The run's seed.
        smallest: Longer side in pixels of the smallest box that counts as a face.
    """
    parts = []
    for k, picture in enumerate(album.pictures):
        rng = np.random.default_rng((seed, NETS.index(net), k, _DRAWN))
        known = np.concatenate([picture.faces, picture.ignore])
        large = np.flatnonzero((picture.faces[:, 2:] - picture.faces[:, :2]).max(1, initial=0) >= smallest)
        height, width = album.sizes[k]
        drawn = [
            anywhere(rng, height, width, ANYWHERE if net == "pnet" else ANYWHERE_LATER),
            at_faces(rng, picture.faces[large], AT if net == "pnet" else AT_LATER),
        ]
        if net == "pnet":
            drawn.append(near_faces(rng, known, height, width, NEAR))
        parts.append(matched(k, np.concatenate(drawn), picture, smallest))
        marked = large[np.isfinite(picture.landmarks[large]).all((1, 2))]
        parts.append(landmark_crops(k, at_faces(rng, picture.faces[marked], LANDMARKS), picture, smallest))
    return joined(parts)


def anywhere(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.float32]:
    """Random squares within an image, with sides from 12 pixels to half its shorter side."""
    side = _sides(rng, height, width, count)
    return _squares(rng.uniform(0, 1, count) * (width - side), rng.uniform(0, 1, count) * (height - side), side)


def near_faces(
    rng: np.random.Generator, faces: NDArray[np.float32], height: int, width: int, count: int
) -> NDArray[np.float32]:
    """Random squares that touch a face, with sides as in `anywhere`, `count` per face."""
    faces = faces.repeat(count, axis=0)
    side = _sides(rng, height, width, len(faces))
    left, top = (rng.uniform(faces[:, axis] - side, faces[:, axis + 2]) for axis in (0, 1))
    return _squares(left, top, side)


def at_faces(rng: np.random.Generator, faces: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Random squares around faces, `count` per face.

    Their sides range from 0.8 of a face's shorter side to 1.25 of its longer one. Their centres are at most 0.2 of the
    face's sides away from its centre.
    """
    faces = faces.repeat(count, axis=0)
    extent = faces[:, 2:] - faces[:, :2]
    side = rng.uniform(0.8 * extent.min(1, initial=np.inf), 1.25 * extent.max(1, initial=0))
    centre = (faces[:, :2] + faces[:, 2:]) / 2 + rng.uniform(-0.2, 0.2, extent.shape) * extent
    left, top = (centre - side[:, None] / 2).T
    return _squares(left, top, side)


def _sides(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.float64]:
    shorter = min(height, width)
    return rng.uniform(min(CELL, shorter), max(shorter / 2, min(CELL, shorter)), count)


def _squares(left: NDArray[np.float64], top: NDArray[np.float64], side: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.stack([left, top, left + side, top + side], 1).astype(np.float32)


def matched(k: int, boxes: NDArray[np.float32], picture: AnnotatedImage, smallest: float) -> Crops:
    """The crops of image k that can be used, with their kinds and faces."""
    found = match(boxes, picture, smallest)
    use = found.kinds >= 0
    return Crops(np.full(use.sum(), k, np.int32), boxes[use], found.kinds[use], found.faces[use])


def landmark_crops(k: int, boxes: NDArray[np.float32], picture: AnnotatedImage, smallest: float) -> Crops:
    """Landmark crops: the boxes that are positives and show a face with all five landmarks."""
    crops = matched(k, boxes, picture, smallest)
    show = crops.kinds == CropKind.POSITIVE
    show[show] = np.isfinite(picture.landmarks[crops.faces[show]]).all((1, 2))
    crops = Crops(*(column[show] for column in crops))
    return crops._replace(kinds=np.full_like(crops.kinds, CropKind.LANDMARK))


def joined(parts: Sequence[Crops]) -> Crops:
    """Concatenates crops."""
    return Crops(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


# --- crops proposed by the networks before ---------------------------------------------------------------------------


class Mined(NamedTuple):
    """Crops mined with the preceding networks, and counts.

    Attributes:
        crops: Proposals that can be used.
        pictures: Number of images searched.
        proposals: Number of all proposals.
        faces: Number of faces that are large enough.
        found: Number of these that have a proposal with an IoU >= 0.5.
    """

    crops: Crops
    pictures: int
    proposals: int
    faces: int
    found: int

    def __str__(self) -> str:
        return (
            f"{self.proposals / max(self.pictures, 1):.0f} proposals per image in {self.pictures} images, "
            f"{self.found / max(self.faces, 1):.1%} of {self.faces} faces among them (IoU 0.5)"
        )


@torch.no_grad()
def mine(
    model: MTCNN,
    net: Net,
    album: Album,
    seed: int,
    smallest: float,
    seconds: float = math.inf,
    thresholds: tuple[float, float] = MINING_THRESHOLDS,
) -> Mined:
    """Mines crops for R-Net or O-Net with the networks before it.

    Args:
        model: The cascade, with these networks trained, on any device.
        net: The network to train.
        album: The images. They are searched in an order that depends on the seed.
        seed: The run's seed.
        smallest: Longer side in pixels of the smallest box that counts as a face.
        seconds: Time after which mining stops; at least one group of images is searched.
        thresholds: Score thresholds of P-Net and R-Net.
    """
    config = replace(model.config, thresholds=(*thresholds, 1.0))
    order = np.random.default_rng((seed, NETS.index(net), 0, _ORDER)).permutation(len(album))
    end = time.monotonic() + seconds
    parts, looked, proposals, faces, found = [], 0, 0, 0, 0
    for at in range(0, len(order), IMAGES_PER_CALL):
        if looked and time.monotonic() > end:
            break
        numbers = order[at : at + IMAGES_PER_CALL]
        images = [album[k].to(model.device) for k in numbers]
        for k, boxes in zip(numbers, propose(model, net, images, config), strict=True):
            picture = album.pictures[k]
            matches = match(boxes, picture, smallest)
            kinds = matches.kinds
            kinds[np.flatnonzero(kinds == CropKind.NEGATIVE)[NEGATIVES:]] = -1
            use = kinds >= 0
            parts.append(Crops(np.full(use.sum(), k, np.int32), boxes[use], kinds[use], matches.faces[use]))
            looked, proposals = looked + 1, proposals + len(boxes)
            faces += int(((picture.faces[:, 2:] - picture.faces[:, :2]).max(1, initial=0) >= smallest).sum())
            found += len(np.unique(matches.faces[(matches.faces >= 0) & (matches.overlap >= 0.5)]))
    return Mined(joined(parts), looked, proposals, faces, found)


def propose(model: MTCNN, net: Net, images: Sequence[Tensor], config: MTCNNConfig) -> Iterator[NDArray[np.float32]]:
    """Yields, for each image, the boxes that a network is given, float32 [N, 4], best score first."""
    proposals = model.propose(images, config)
    if net == "onet":
        proposals = model.refine(images, proposals, config)
    boxes, image = proposals.boxes.cpu().numpy(), proposals.image.cpu().numpy()
    for k in range(len(images)):
        yield boxes[image == k]


def save_crops(path: Path, crops: Crops, seconds: float) -> None:
    """Writes crops and the time it took to collect them to an .npz file, which is replaced only when complete."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, **crops._asdict(), seconds=seconds)
    part.replace(path)


def load_crops(path: Path) -> tuple[Crops, float]:
    """Reads what `save_crops` wrote: the crops and the seconds it took to collect them."""
    with np.load(path) as file:
        return Crops(**{name: file[name] for name in Crops._fields}), float(file["seconds"])


# --- batches ---------------------------------------------------------------------------------------------------------


class CropBatches(Dataset[Batch]):
    """Batches of crops, by index.

    Args:
        album: The images.
        crops: Crops to draw from, with replacement.
        net: The network to train.
        recipe: Hyperparameters.
        seed: The run's seed.
        first: Number, within the run, of this dataset's batch 0.
        count: Number of batches.
    """

    def __init__(self, album: Album, crops: Crops, net: Net, recipe: Recipe, seed: int, first: int, count: int) -> None:
        self.album, self.crops, self.net, self.recipe, self.seed = album, crops, net, recipe, seed
        self.first, self.count = first, count
        self.pools = {kind: np.flatnonzero(crops.kinds == kind) for kind in CropKind}
        self.counts = share_out(recipe.batch_size, {kind: len(pool) for kind, pool in self.pools.items()})
        # The faces of all images, concatenated; those of image k begin at starts[k].
        self.faces = np.concatenate([picture.faces for picture in album.pictures])
        self.landmarks = np.concatenate([picture.landmarks for picture in album.pictures])
        counts = np.array([len(picture.faces) for picture in album.pictures])
        self.starts = counts.cumsum() - counts

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, batch: int) -> Batch:
        if not 0 <= batch < self.count:
            raise IndexError(batch)
        rng = np.random.default_rng((self.seed, NETS.index(self.net), self.first + batch, _BATCH))
        chosen = np.concatenate(
            [self.pools[kind][rng.integers(len(self.pools[kind]), size=n)] for kind, n in self.counts.items() if n]
        )
        pictures, boxes, kinds, faces = (column[chosen] for column in self.crops)
        # A negative has no face; index 0 stands in, since the loss ignores it.
        face = np.where(faces < 0, 0, self.starts[pictures] + faces)
        mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)
        tints = np.stack([colours(rng, self.recipe.photometric) for _ in range(TINTS)])
        truth = targets(
            self.net,
            torch.from_numpy(kinds.astype(np.int64)),
            torch.from_numpy(boxes),
            torch.from_numpy(self.faces[face]),
            torch.from_numpy(self.landmarks[face]),
            mirrored,
        )
        pixels = None
        if self.album.images is None:
            pixels, boxes = self.album.parts(pictures, boxes)
            pictures = np.arange(len(chosen))
        return Batch(
            torch.from_numpy(pictures.astype(np.int64)),
            torch.from_numpy(boxes),
            mirrored,
            torch.from_numpy(tints[rng.integers(TINTS, size=len(chosen))]),
            truth,
            pixels,
        )


def share_out(batch_size: int, crops: dict[CropKind, int]) -> dict[CropKind, int]:
    """The number of crops of each kind in a batch, by `SHARES`; kinds without crops are left out.

    Example:
        >>> list(share_out(384, dict.fromkeys(CropKind, 1000)).values())
        [164, 55, 55, 110]
    """
    shares = {kind: SHARES[kind] if crops[kind] else 0 for kind in CropKind}
    exact = {kind: batch_size * share / max(sum(shares.values()), 1) for kind, share in shares.items()}
    counts = {kind: math.floor(value) for kind, value in exact.items()}
    nearest = sorted((kind for kind in CropKind if shares[kind]), key=lambda kind: counts[kind] - exact[kind])
    for kind in nearest[: batch_size - sum(counts.values())]:
        counts[kind] += 1
    return counts


def render(batch: Batch, images: Sequence[Tensor], net: Net, config: MTCNNConfig) -> Tensor:
    """Makes the network's input, float32 [N, 3, side, side], on the images' device.

    Args:
        batch: The batch.
        images: The album's images, or the batch's own parts of them.
        net: The network to train.
        config: How crops are resized in detection.
    """
    device = images[0].device
    used, index = batch.pictures.unique(return_inverse=True)
    boxes, index = (x.to(device, non_blocking=True) for x in (batch.boxes, index))
    crops = normalised_crops([images[k] for k in used.tolist()], boxes, index, (SIDES[net],) * 2, config)
    mirrored = batch.mirrored.to(device, non_blocking=True)
    crops = torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
    # The change y = M (128 x + 127.5) + b of pixel values is M x + (127.5 (M 1 - 1) + b) / 128 of normalised ones.
    tints = batch.colours.to(device, non_blocking=True)
    matrix, shift = tints[:, :, :3], (tints @ tints.new_tensor([127.5, 127.5, 127.5, 1.0]) - 127.5) / 128
    tinted = torch.baddbmm(shift[:, :, None], matrix, crops.flatten(2)).view_as(crops)
    return tinted.clamp_(-127.5 / 128, 127.5 / 128)
