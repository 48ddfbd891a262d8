"""Small networks over many crops: the kernel against the same layers in torch."""

import pytest
import torch

from pyface.models.mtcnn_kernels import convnet, convnet_in_torch, pooled_size

# Input side and (out, kernel, pool) of each layer: R-Net, O-Net, and shapes that meet every block of channels.
NETWORKS = {
    "R-Net": (24, [(28, 3, 3), (48, 3, 3), (64, 2, 0)]),
    "O-Net": (48, [(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)]),
    "odd": (11, [(5, 1, 2), (17, 3, 0), (100, 2, 3)]),
    "one pixel": (1, [(3, 1, 0)]),
}


def network(name: str, device: str = "cpu"):
    generator = torch.Generator().manual_seed(0)
    size, layers = NETWORKS[name]
    weights, channels = [], 3
    for out, kernel, _ in layers:
        shapes = ((out, channels, kernel, kernel), (out,), (out,))
        weights += [(torch.randn(shape, generator=generator) * 0.2).to(device) for shape in shapes]
        channels = out
    return size, weights, [pool for *_, pool in layers]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [0, 1, 7, 30])
def test_convnet_equals_its_layers(n, name, device):
    size, weights, pools = network(name, device)
    crops = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    expected = convnet_in_torch(crops, weights, pools)
    torch.testing.assert_close(convnet(crops, weights, pools), expected, rtol=1e-4, atol=1e-3)


def test_pooled_size_equals_that_of_torch():
    for pool in (1, 2, 3, 4):
        for size in range(pool, 40):
            pooled = torch.nn.functional.max_pool2d(torch.zeros(1, 1, size, size), pool, 2, ceil_mode=True)
            assert pooled_size(size, pool) == pooled.shape[2]


SIZE, WEIGHTS, POOLS = network("R-Net")
CROPS = torch.zeros(2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: convnet(CROPS[0], WEIGHTS, POOLS), ValueError, r"\[N, C, S, S\], got \[3, 24, 24\]"),
        (lambda: convnet(CROPS[:, :, :20], WEIGHTS, POOLS), ValueError, r"got \[2, 3, 20, 24\]"),
        (lambda: convnet(CROPS[:, :, :6, :6], WEIGHTS, POOLS), ValueError, "crops must be large enough for layer 1"),
        (lambda: convnet(CROPS[:, :2], WEIGHTS, POOLS), ValueError, r"layer 0's weight .*\[out, 2, k, k\]"),
        (lambda: convnet(CROPS, WEIGHTS[:-1], POOLS), ValueError, "three tensors for each of pools, got 8 and 3"),
        (lambda: convnet(CROPS, [], []), ValueError, "got 0 and 0 pools"),
        (lambda: convnet(CROPS.half(), WEIGHTS, POOLS), TypeError, "crops must be one of float32"),
        (lambda: convnet(CROPS, WEIGHTS, (3, -1, 0)), ValueError, "pools must be 0 or more, got -1"),
        (lambda: convnet(CROPS, [*WEIGHTS[:-1], WEIGHTS[1]], POOLS), ValueError, r"layer 2's slope .*\[64\]"),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_opcheck(device):
    size, weights, pools = network("odd", device)
    torch.library.opcheck(
        torch.ops.pyface.convnet.default, (torch.randn(2, 3, size, size, device=device), weights, pools)
    )
