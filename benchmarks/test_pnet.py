"""P-Net's kernel beside the same layers in torch.

Floor on the CPU: 0.51 G multiply-adds for an image of 614 x 460, at 16 per cycle and core with AVX-512.
"""

import pytest
import torch

from pyface.models.mtcnn import PNet
from pyface.models.mtcnn_kernels import pnet, pnet_in_torch


@pytest.mark.parametrize("library", ["pyface", "torch"])
@pytest.mark.parametrize("size", [(460, 614), (40, 54)])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_pnet(library, batch, size, device, timed):
    if batch == 32 and size[0] > 100 and device == "cpu":
        pytest.skip("tells nothing beyond a batch of 8")
    weights = PNet().to(device).weights()
    images = torch.randn(batch, 3, *size, device=device)
    torch.testing.assert_close(pnet(images, weights), pnet_in_torch(images, weights), rtol=1e-4, atol=1e-4)
    network = pnet if library == "pyface" else pnet_in_torch
    with torch.inference_mode():
        timed(lambda: network(images, weights), "pnet", f"{batch} x {size[1]} x {size[0]}", library)
