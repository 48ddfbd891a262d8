"""P-Net's kernel beside the same layers in torch.

Floor on the CPU: 0.51 G multiply-adds for a picture of 614 x 460, at 16 a cycle and core with AVX-512.
"""

import pytest
import torch

from pyface import ops
from pyface.models.mtcnn import PNet
from pyface.ops import reference


@pytest.mark.parametrize("library", ["pyface", "torch"])
@pytest.mark.parametrize("size", [(460, 614), (40, 54)])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_pnet(library, batch, size, device, timed):
    if batch == 32 and size[0] > 100 and device == "cpu":
        pytest.skip("tells nothing beyond a batch of 8")
    weights = PNet().to(device).weights()
    pictures = torch.randn(batch, 3, *size, device=device)
    torch.testing.assert_close(ops.pnet(pictures, weights), reference.pnet(pictures, weights), rtol=1e-4, atol=1e-4)
    module = ops if library == "pyface" else reference
    with torch.inference_mode():
        timed(lambda: module.pnet(pictures, weights), "pnet", f"{batch} x {size[1]} x {size[0]}", library)
