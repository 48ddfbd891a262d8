"""R-Net's and O-Net's convolutions beside the same layers in torch.

Floor on the CPU: 1.46 M multiply-adds per crop for R-Net and 12.3 M for O-Net, at 16 per cycle and core with AVX-512.
"""

import pytest
import torch

from pyface.models.mtcnn import ONet, RNet
from pyface.models.mtcnn_kernels import convnet, convnet_in_torch


@pytest.mark.parametrize("library", ["pyface", "torch", "torch channels_last"])
@pytest.mark.parametrize("network", [RNet, ONet])
@pytest.mark.parametrize("n", [16, 256])
def test_convnet(library, network, n, device, timed):
    net = network().to(device)
    side = 24 if network is RNet else 48
    crops = torch.randn(n, 3, side, side, device=device)
    expected = convnet_in_torch(crops, net.weights(), net.POOLS)
    torch.testing.assert_close(convnet(crops, net.weights(), net.POOLS), expected, rtol=1e-4, atol=1e-4)
    if library == "torch channels_last":
        net, crops = net.to(memory_format=torch.channels_last), crops.to(memory_format=torch.channels_last)
    layers = convnet if library == "pyface" else convnet_in_torch
    weights = net.weights()
    with torch.inference_mode():
        task = f"{network.__name__}, {n} crops"
        timed(lambda: layers(crops, weights, net.POOLS), "convnet", task, library)
