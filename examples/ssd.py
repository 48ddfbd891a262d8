"""Trains your own detector, a small SSD, on a data folder: python examples/ssd.py data/ 2000"""

import sys

import torch
from torch import Tensor, nn

from pyface import ops
from pyface.data.folder import read_folder
from pyface.models import losses
from pyface.training import album, crop_rules, recipes, samples

LEVELS = [ops.AnchorLevel(stride=16, anchors=tuple((8 - r, 8 - r, 8 + r, 8 + r) for r in (12, 24, 48, 96)))]
CHANNELS = [(3, 16), (16, 32), (32, 64), (64, 64)]


def loss_of(maps: ops.LevelMaps, faces: Tensor, splits: Tensor, ignore: Tensor) -> Tensor:
    """SSD's loss: cross-entropy of faces and of the hardest background, smooth L1 of the boxes."""
    anchors = losses.anchors_on(LEVELS, [maps])
    index, _ = ops.assign_anchors(anchors, faces, splits, positive=0.5, negative=0.4, force_best=True, ignore=ignore)
    errors = losses.cross_entropy(losses.face_evidence([maps.logits], LEVELS), index >= 0)
    chosen = (index >= 0) | ops.hard_negatives(errors, index)
    targets = losses.encode_boxes(anchors, losses.matched(faces, splits, index), (0.1, 0.2))
    boxes = losses.smooth_l1(losses.by_anchor([maps.boxes], LEVELS), targets, index >= 0)
    return (errors[chosen].sum() + boxes) / (index >= 0).sum().clamp(min=1)


trunk = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in CHANNELS]
network = nn.Sequential(*trunk, nn.Conv2d(64, 24, 3, padding=1))  # two logits and four offsets for each anchor
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
photos, recipe = album.Album(read_folder(sys.argv[1]), keep=True), recipes.Recipe(size=256, batch_size=8)
for batch in samples.Samples(photos, recipe, crop_rules.octaves, seed=0, first=0, count=int(sys.argv[2])):
    logits, boxes = network(samples.render(batch, photos.images) / 64 - 2).split([8, 16], dim=1)
    optimizer.zero_grad()
    loss = loss_of(ops.LevelMaps(logits, boxes), *batch.truth[:3])
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")
