"""Trains your own detector, a small SSD, on a data folder: python examples/ssd.py data/ 2000"""

import sys
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.data.folder import read_folder
from pyface.models.losses import anchors_on, by_anchor, cross_entropy, encode_boxes, face_evidence, matched, smooth_l1
from pyface.training import album, crop_rules, recipes, samples

LEVELS = [ops.AnchorLevel(stride=16, anchors=tuple((8 - r, 8 - r, 8 + r, 8 + r) for r in (12, 24, 48, 96)))]


def loss_of(maps: ops.LevelMaps, faces: Tensor, splits: Tensor, ignore: Tensor) -> Tensor:
    """SSD's loss: cross-entropy of faces and of the hardest background, smooth L1 of the boxes."""
    anchors, rule = anchors_on(LEVELS, [maps]), {"positive": 0.5, "negative": 0.4, "force_best": True}
    index, _ = ops.assign_anchors(anchors, faces, splits, ignore=ignore, **rule)
    errors = cross_entropy(face_evidence([maps.logits], LEVELS), index >= 0)
    chosen = (index >= 0) | ops.hard_negatives(errors, index)
    targets = encode_boxes(anchors, matched(faces, splits, index), (0.1, 0.2))
    boxes = smooth_l1(by_anchor([maps.boxes], LEVELS), targets, index >= 0)
    return (errors[chosen].sum() + boxes) / (index >= 0).sum().clamp(min=1)


def main(folder: str, steps: str) -> None:
    trunk = [
        nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise((3, 16, 32, 64, 64))
    ]
    network = nn.Sequential(*trunk, nn.Conv2d(64, 24, 3, padding=1))  # two logits and four offsets for each anchor
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    photos = album.Album(read_folder(folder), keep=True)
    recipe = recipes.Recipe(size=256, batch_size=8)
    for batch in samples.Samples(photos, recipe, crop_rules.octaves, seed=0, first=0, count=int(steps)):
        logits, boxes = network(samples.render(batch, photos.images) / 64 - 2).split([8, 16], dim=1)
        loss = loss_of(ops.LevelMaps(logits, boxes), *batch.truth[:3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
