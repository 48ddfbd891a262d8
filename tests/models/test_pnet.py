"""P-Net's kernel against the same layers in torch."""

import pytest
import torch

from pyface.models.mtcnn_kernels import pnet, pnet_in_torch

SHAPES = [(10, 3, 3, 3), (10,), (10,), (16, 10, 3, 3), (16,), (16,), (32, 16, 3, 3), (32,), (32,), (6, 32, 1, 1), (6,)]


def random_weights(device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) * 0.3).to(device) for shape in SHAPES]


@pytest.mark.parametrize(
    "size", [(11, 11), (11, 12), (12, 11), (12, 12), (13, 75), (76, 77), (77, 76), (40, 300), (301, 40), (161, 229)]
)
@pytest.mark.parametrize("batch", [1, 5])
def test_pnet_equals_its_layers(batch, size, device):
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1)).to(device)
    weights = random_weights(device)
    torch.testing.assert_close(pnet(images, weights), pnet_in_torch(images, weights), rtol=1e-4, atol=2e-4)


def test_batches_may_be_empty_and_strided(device):
    weights = random_weights(device)
    assert pnet(torch.zeros(0, 3, 20, 20, device=device), weights).shape == (0, 6, 5, 5)
    images = torch.randn(2, 20, 24, 3, device=device).permute(0, 3, 1, 2)
    torch.testing.assert_close(pnet(images, weights), pnet(images.contiguous(), weights))


IMAGES, WEIGHTS = torch.zeros(1, 3, 12, 12), random_weights()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pnet(IMAGES[:, :, :10], WEIGHTS), ValueError, "11 x 11 pixels or more, got 10 x 12"),
        (lambda: pnet(IMAGES[0], WEIGHTS), ValueError, r"\[B, 3, H, W\], got \[3, 12, 12\]"),
        (lambda: pnet(IMAGES.double(), WEIGHTS), TypeError, "images must be one of float32"),
        (lambda: pnet(IMAGES, WEIGHTS[:-1]), ValueError, "11 tensors .*, got 10"),
        (lambda: pnet(IMAGES, [*WEIGHTS, WEIGHTS[0]]), ValueError, "11 tensors .*, got 12"),
        (lambda: pnet(IMAGES, [*WEIGHTS[:-1], torch.zeros(5)]), ValueError, r"bias_heads .* \[6\], got \[5\]"),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_opcheck(device):
    torch.library.opcheck(torch.ops.pyface.pnet.default, (IMAGES.to(device), random_weights(device)))
