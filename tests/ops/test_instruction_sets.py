"""Every instruction set and every number of threads gives the same results."""

import os
import subprocess
import sys

import pytest
import torch

from pyface import ops


def results(threads: int) -> list[float]:
    """Sums over what several ops return for fixed input."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [*image_results(), *matching_results()]
    finally:
        torch.set_num_threads(before)


def image_results() -> list[float]:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(3000, 4, generator=generator) * 300
    boxes[:, 2:] = boxes[:, :2] + 40
    image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8, generator=generator)
    keep = ops.nms(boxes, torch.rand(3000, generator=generator), 0.4)
    return [(keep * torch.arange(len(keep))).sum().item(), ops.letterbox([image], (50, 50))[0].double().sum().item()]


def matching_results() -> list[float]:
    generator = torch.Generator().manual_seed(1)
    anchors = torch.rand(3, 9000, 4, generator=generator) * 300
    anchors[..., 2:] = anchors[..., :2] + 40
    faces = torch.rand(300, 4, generator=generator) * 300
    faces[:, 2:] = faces[:, :2] + 30
    options = {"positive": 0.5, "negative": 0.3, "force_best": True, "compensate": 9}
    index, overlap = ops.assign_anchors(
        anchors, faces, torch.tensor([0, 100, 100, 300]), ignore=torch.arange(300) % 7 == 0, **options
    )
    negatives = ops.balanced_sample(overlap, index, seed=5)
    numbers = torch.arange(9000)
    return [(index * numbers).sum().item(), overlap.double().sum().item(), (negatives * numbers).sum().item()]


@pytest.mark.parametrize(("level", "threads"), [("baseline", 1), ("avx2", 2)])
def test_the_same_results(level, threads):
    # In a process of its own, since the kernels choose their instruction set once. This process uses the best.
    done = subprocess.run(
        [sys.executable, __file__, str(threads)],
        env=os.environ | {"PYFACE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{results(3)}\n", done.stderr


if __name__ == "__main__":
    print(results(int(sys.argv[1])))
