"""The crops that MTCNN's networks learn from (DETECTORS.md 3.3), and batches of them.

A crop is a picture's number, a box in it, what kind it is and which face it shows: some twenty bytes. Pixels are cut
when a batch is made. P-Net's crops are drawn at random, around faces and anywhere; R-Net's and O-Net's are what the
networks before them propose. Every kind is decided by one matching, `match`.

Everything random in batch k of a network depends on the run's seed, the network and k alone. A run that was cut off
goes on with the batches that would have come.
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
from pyface.data.wider import Picture
from pyface.models.mtcnn import CELL, MTCNN, CropKind, CropTruth, MTCNNConfig, normalised_crops
from pyface.training.album import Album
from pyface.training.recipes import Recipe
from pyface.training.samples import MIRRORED, colours

Net = Literal["pnet", "rnet", "onet"]
NETS: tuple[Net, ...] = ("pnet", "rnet", "onet")
SIDES: dict[Net, int] = {"pnet": 12, "rnet": 24, "onet": 48}

# IoU with a face (the paper's bands); what lies between the first two is of no use.
NEGATIVE_BELOW, PART_FROM, POSITIVE_ABOVE = 0.3, 0.4, 0.65
SHARES = {CropKind.NEGATIVE: 3, CropKind.POSITIVE: 1, CropKind.PART: 1, CropKind.LANDMARK: 2}  # of a batch

# Crops drawn for P-Net (AITTSMD's numbers): anywhere in a picture, near a face, at a face, and for landmarks.
ANYWHERE, NEAR, AT, LANDMARKS = 50, 5, 20, 10
# For R-Net and O-Net, beside those that are proposed. A face that the networks before miss teaches as well, small data
# give enough, and there are negatives even where nothing is proposed.
ANYWHERE_LATER, AT_LATER = 5, 5
# Negatives of a picture that R-Net and O-Net see: the highest scores, the ones that come through in use.
NEGATIVES = 60
# What passes P-Net and R-Net when crops are collected, instead of 0.6 and 0.7. In use a network lets few negatives
# through, fewer still in the pictures that it learned from; and the next one must also know what to do where its
# predecessor has a bad day.
MINING_THRESHOLDS = (0.3, 0.1)
PICTURES_A_CALL = 8

TINTS = 32  # different changes of colour in a batch
_DRAWN, _BATCH, _ORDER = 0, 1, 2  # what a generator is for


class Crops(NamedTuple):
    """Crops of an album's pictures.

    Attributes:
        pictures: int32 [N], number in the album.
        boxes: float32 [N, 4], (x1, y1, x2, y2) in the picture's pixels; squares that may reach beyond it.
        kinds: int8 [N], of `CropKind`.
        faces: int32 [N], number among the picture's faces of the one that is shown; -1 for negatives.
    """

    pictures: NDArray[np.int32]
    boxes: NDArray[np.float32]
    kinds: NDArray[np.int8]
    faces: NDArray[np.int32]


class Matches(NamedTuple):
    """What crops of one picture show.

    Attributes:
        kinds: int8 [N], of `CropKind`; -1: of no use.
        faces: int32 [N], number of the face of highest IoU if that is >= `PART_FROM`, else negative.
        overlap: float32 [N], IoU with the best face.
    """

    kinds: NDArray[np.int8]
    faces: NDArray[np.int32]
    overlap: NDArray[np.float32]


class Batch(NamedTuple):
    """A batch before it has pixels.

    Attributes:
        pictures: int64 [N], number in the album of each crop's picture, or in `pixels` where there are any. On the CPU.
        boxes: float32 [N, 4], in the picture's pixels.
        mirrored: bool [N].
        colours: float32 [N, 3, 4]: what RGB, 0 to 255, and a 1 are multiplied by.
        truth: What the crops show, mirrored where they are.
        pixels: Where pictures are not kept in memory: uint8 [H, W, 3] parts of them.
    """

    pictures: Tensor
    boxes: Tensor
    mirrored: Tensor
    colours: Tensor
    truth: CropTruth
    pixels: list[Tensor] | None


# --- what a crop shows -----------------------------------------------------------------------------------------------


def match(boxes: NDArray[np.float32], picture: Picture, smallest: float) -> Matches:
    """The kind and the face of each crop of a picture.

    Faces whose longer side is below `smallest` count as ignore boxes. A negative is none of: within an ignore box by
    half of its area, or overlapping one by an IoU of `NEGATIVE_BELOW`, as if it were a face.

    Args:
        boxes: [N, 4].
        picture: What is known about it.
        smallest: In pixels.
    """
    known = np.concatenate([picture.faces, picture.ignore])
    is_small = (known[:, 2:] - known[:, :2]).max(1, initial=0) < smallest
    no_face = is_small | (np.arange(len(known)) >= len(picture.faces))
    # The picture twice: with its ignore boxes, and as if they were faces.
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
    """What a network should answer to crops.

    Args:
        net: Which one.
        kinds: int64 [N], of `CropKind`.
        boxes: float32 [N, 4], the crops.
        faces: float32 [N, 4], the face of each; any numbers for negatives.
        landmarks: float32 [N, 5, 2], of that face, NaN where unknown.
        mirrored: bool [N], whether the network sees the mirror image.
    """
    # A face mirrored about its crop's middle.
    both = boxes[:, 0] + boxes[:, 2]
    turned = torch.stack([both - faces[:, 2], faces[:, 1], both - faces[:, 0], faces[:, 3]], 1)
    faces = torch.where(mirrored[:, None], turned, faces)
    points = landmarks[:, MIRRORED] * torch.tensor([-1.0, 1.0])
    points[..., 0] += both[:, None]
    points = torch.where(mirrored[:, None, None], points, landmarks)

    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    base, unit = read_cells(boxes) if net == "pnet" else (boxes, sides)
    return CropTruth(kinds, (faces - base) / unit.repeat(1, 2), (points - corner[:, None]) / sides[:, None])


def read_cells(crops: Tensor) -> tuple[Tensor, Tensor]:
    """The box that detection takes a P-Net window for, and the unit in which it reads the offsets.

    P-Net sees [2i, 2i + 12) / s. The author's box for it is [fix((2i + 1) / s) - 1, fix((2i + 12) / s)], and the first
    calibration takes a side for one pixel shorter (`cell_boxes`, `calibrate`). Rounding takes half a pixel on average.
    So that detection comes out at the face, this is what the offsets are measured from.
    """
    sides = crops[:, 2:] - crops[:, :2]
    boxes = torch.cat([crops[:, :2] + sides / CELL - 1.5, crops[:, 2:] - 0.5], 1)
    return boxes, boxes[:, 2:] - boxes[:, :2] - 1


# --- crops by chance -------------------------------------------------------------------------------------------------


def draw(album: Album, net: Net, seed: int, smallest: float) -> Crops:
    """Crops drawn from all pictures: all that P-Net learns from, and what R-Net and O-Net learn beside proposals.

    Args:
        album: The pictures.
        net: For which network.
        seed: Of the run.
        smallest: Longer side in pixels of the smallest face that is one.
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
    """Squares within a picture, from 12 pixels to half its shorter side."""
    side = _sides(rng, height, width, count)
    return _squares(rng.uniform(0, 1, count) * (width - side), rng.uniform(0, 1, count) * (height - side), side)


def near_faces(
    rng: np.random.Generator, faces: NDArray[np.float32], height: int, width: int, count: int
) -> NDArray[np.float32]:
    """Squares of the same sizes that each touch a face, `count` for each."""
    faces = faces.repeat(count, axis=0)
    side = _sides(rng, height, width, len(faces))
    left, top = (rng.uniform(faces[:, axis] - side, faces[:, axis + 2]) for axis in (0, 1))
    return _squares(left, top, side)


def at_faces(rng: np.random.Generator, faces: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Squares about faces, `count` for each: their sides from 0.8 of the shorter to 1.25 of the longer, their centres
    off by up to 0.2 of the sides."""
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


def matched(k: int, boxes: NDArray[np.float32], picture: Picture, smallest: float) -> Crops:
    """The boxes of picture k that are of use."""
    found = match(boxes, picture, smallest)
    use = found.kinds >= 0
    return Crops(np.full(use.sum(), k, np.int32), boxes[use], found.kinds[use], found.faces[use])


def landmark_crops(k: int, boxes: NDArray[np.float32], picture: Picture, smallest: float) -> Crops:
    """The boxes that show a face with all its landmarks well, to learn these from."""
    crops = matched(k, boxes, picture, smallest)
    show = crops.kinds == CropKind.POSITIVE
    show[show] = np.isfinite(picture.landmarks[crops.faces[show]]).all((1, 2))
    crops = Crops(*(column[show] for column in crops))
    return crops._replace(kinds=np.full_like(crops.kinds, CropKind.LANDMARK))


def joined(parts: Sequence[Crops]) -> Crops:
    """All crops of all parts."""
    return Crops(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


# --- crops by the networks before -----------------------------------------------------------------------------------


class Mined(NamedTuple):
    """What the networks before propose.

    Attributes:
        crops: Proposals that are of use.
        pictures: How many were looked at.
        proposals: How many there were, all in all.
        faces, found: How many faces are large enough, and how many of these have a proposal with an IoU >= 0.5.
    """

    crops: Crops
    pictures: int
    proposals: int
    faces: int
    found: int

    def __str__(self) -> str:
        return (
            f"{self.proposals / max(self.pictures, 1):.0f} proposals a picture in {self.pictures} pictures, "
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
    """Looks for R-Net's or O-Net's crops with the networks before it.

    Args:
        model: With these networks trained, on any device.
        net: For which network.
        album: The pictures, which are looked at in an order that the seed gives.
        seed: Of the run.
        smallest: Longer side in pixels of the smallest face that is one.
        seconds: After so long no more pictures are looked at.
        thresholds: What passes P-Net and R-Net.
    """
    config = replace(model.config, thresholds=(*thresholds, 1.0))
    order = np.random.default_rng((seed, NETS.index(net), 0, _ORDER)).permutation(len(album))
    end = time.monotonic() + seconds
    parts, looked, proposals, faces, found = [], 0, 0, 0, 0
    for at in range(0, len(order), PICTURES_A_CALL):
        if looked and time.monotonic() > end:
            break
        numbers = order[at : at + PICTURES_A_CALL]
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
    """The boxes of every image that come to a network, float32 [N, 4], best score first."""
    proposals = model._propose(images, config)
    if net == "onet":
        proposals = model._refine(images, proposals, config)
    boxes, image = proposals.boxes.cpu().numpy(), proposals.image.cpu().numpy()
    for k in range(len(images)):
        yield boxes[image == k]


def save_crops(path: Path, crops: Crops, seconds: float) -> None:
    """One .npz, replaced when it is complete; with the time that it took to find them."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, **crops._asdict(), seconds=seconds)
    part.replace(path)


def load_crops(path: Path) -> tuple[Crops, float]:
    """What `save_crops` wrote."""
    with np.load(path) as file:
        return Crops(**{name: file[name] for name in Crops._fields}), float(file["seconds"])


# --- batches ---------------------------------------------------------------------------------------------------------


class CropBatches(Dataset[Batch]):
    """Batches by number.

    Args:
        album: The pictures.
        crops: What they are drawn from, with replacement.
        net: Which network sees them.
        recipe: The numbers.
        seed: Of the run.
        first: Number of the batch that is batch 0 here.
        count: How many there are.
    """

    def __init__(self, album: Album, crops: Crops, net: Net, recipe: Recipe, seed: int, first: int, count: int) -> None:
        self.album, self.crops, self.net, self.recipe, self.seed = album, crops, net, recipe, seed
        self.first, self.count = first, count
        self.pools = {kind: np.flatnonzero(crops.kinds == kind) for kind in CropKind}
        self.counts = share_out(recipe.batch_size, {kind: len(pool) for kind, pool in self.pools.items()})
        # The faces of all pictures one after the other; those of picture k begin at starts[k].
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
        # A negative has no face: any will do.
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
    """How many crops of each kind are in a batch: `SHARES`, of the kinds that there are.

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
    """What the network sees, float32 [N, 3, side, side], on the images' device.

    Args:
        batch: What to show.
        images: The album's, or the batch's own.
        net: Which network.
        config: How crops are resized in use.
    """
    device = images[0].device
    used, index = batch.pictures.unique(return_inverse=True)
    boxes, index = (x.to(device, non_blocking=True) for x in (batch.boxes, index))
    crops = normalised_crops([images[k] for k in used.tolist()], boxes, index, (SIDES[net],) * 2, config)
    mirrored = batch.mirrored.to(device, non_blocking=True)
    crops = torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
    # y = M (128 x + 127.5) + b in the pixels' units is M x + (127.5 (M 1 - 1) + b) / 128 in the network's.
    tints = batch.colours.to(device, non_blocking=True)
    matrix, shift = tints[:, :, :3], (tints @ tints.new_tensor([127.5, 127.5, 127.5, 1.0]) - 127.5) / 128
    tinted = torch.baddbmm(shift[:, :, None], matrix, crops.flatten(2)).view_as(crops)
    return tinted.clamp_(-127.5 / 128, 127.5 / 128)
