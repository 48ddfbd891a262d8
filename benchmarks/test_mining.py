"""Mining beside plain torch: the two sorts of SSD's code, topk, and random permutations.

Floor: losses and index are read and the mask written once, 9 bytes per anchor. Beyond that the CPU counts the digits of
keys three times and sorts nothing; on CUDA no size is known to the host, so nothing may wait for it.
"""

import pytest
import torch
from torch import Tensor

from pyface import ops
from pyface.ops import reference

BATCH, ANCHORS, POSITIVES = 32, 34_125, 100
TASK = f"{BATCH} x {ANCHORS:,} anchors"


def batch_of_losses(device: str) -> tuple[Tensor, Tensor]:
    losses = torch.rand(BATCH, ANCHORS, generator=torch.Generator().manual_seed(0))
    index = torch.full((BATCH, ANCHORS), -1, dtype=torch.int32)
    index[:, :: ANCHORS // POSITIVES] = 0
    return losses.to(device), index.to(device)


def two_sorts(losses: Tensor, index: Tensor) -> Tensor:
    """Hard negatives by the rank of each loss, as the circulating ports of SSD find them."""
    rank = losses.masked_fill(index >= 0, 0).argsort(1, descending=True).argsort(1)
    return (rank < 3 * (index >= 0).sum(1, keepdim=True)) & (index == -1)


def sorts_and_permutations(losses: Tensor, index: Tensor) -> Tensor:
    """DenseBox's sample of images with equally many positives, image by image."""
    selected = index >= 0
    for b in range(BATCH):
        positives = int(selected[b].sum())
        background = torch.where(index[b] == -1)[0]
        order = background[losses[b, background].argsort(descending=True)]
        size = max(-(-len(order) // 100), positives // 2)
        for part in (order[:size], order[size:]):
            selected[b, part[torch.randperm(len(part), device=part.device)[: positives // 2]]] = True
    return selected


@pytest.mark.parametrize("library", ["pyface", "plain torch, two sorts"])
def test_hard_negatives(library, device, timed):
    losses, index = batch_of_losses(device)
    selected = ops.hard_negatives(losses, index)
    assert torch.equal(selected, reference.hard_negatives(losses, index))
    if library == "pyface":
        timed(lambda: ops.hard_negatives(losses, index), "hard_negatives", TASK)
    else:
        assert torch.equal(two_sorts(losses, index).sum(1), selected.sum(1))
        timed(lambda: two_sorts(losses, index), "hard_negatives", TASK, library)


@pytest.mark.parametrize("library", ["pyface", "plain torch, an image at a time"])
def test_balanced_sample(library, device, timed):
    losses, index = batch_of_losses(device)
    selected = ops.balanced_sample(losses, index, seed=1)
    assert torch.equal(selected, reference.balanced_sample(losses, index, seed=1))
    if library == "pyface":
        timed(lambda: ops.balanced_sample(losses, index, seed=1), "balanced_sample", TASK)
    else:
        assert (sorts_and_permutations(losses, index).sum(1) - selected.sum(1)).abs().max() <= 1
        timed(lambda: sorts_and_permutations(losses, index), "balanced_sample", TASK, library)


@pytest.mark.parametrize("library", ["pyface", "plain torch, topk"])
@pytest.mark.parametrize("n", [384, 100_000])
def test_online_hard(library, n, device, timed):
    losses = torch.rand(n, generator=torch.Generator().manual_seed(0)).to(device)
    kept = int(-(-0.7 * n // 1))
    assert torch.equal(ops.online_hard(losses), reference.online_hard(losses))

    def topk() -> Tensor:
        return torch.zeros_like(losses, dtype=torch.bool).index_fill_(0, losses.topk(kept, sorted=False).indices, True)

    assert torch.equal(topk(), ops.online_hard(losses))
    timed((lambda: ops.online_hard(losses)) if library == "pyface" else topk, "online_hard", f"{n:,} losses", library)
