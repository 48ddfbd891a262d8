"""The networks alone, without resizing, decoding and suppression: one picture of 640 x 640, float32, eager.

Floor on two Zen 4 cores: about 100 G multiply-adds a second; a lite network has 2.9 G (S3FD), 3.4 G (SSH), 4.2 G (SRN).
Batch normalisation is folded, as detectors run. The aim for the lite networks is 40 ms, and 60 ms for SRN.
"""

import pytest
import torch

from pyface.models.fusion import fold_batch_norms
from pyface.models.s3fd import S3FDVGG16, S3FDLite
from pyface.models.srn import SRNLite, SRNResNet50
from pyface.models.ssh import SSHVGG16, SSHLite

NETWORKS = {
    "s3fd_lite": S3FDLite,
    "ssh_lite": SSHLite,
    "srn_lite": SRNLite,
    "s3fd_vgg16": S3FDVGG16,
    "ssh_vgg16": SSHVGG16,
    "srn_resnet50": SRNResNet50,
}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_network(network, memory_format, device, timed, benchmark):
    benchmark.group = f"{network} 640 x 640 {device}"
    torch.manual_seed(0)
    model = NETWORKS[network]().eval().to(device)
    picture = torch.randn(1, 3, 640, 640, device=device)
    layout = FORMATS[memory_format]
    with torch.inference_mode():
        folded = fold_batch_norms(model).to(memory_format=layout)
        expected, arranged = model(picture), picture.contiguous(memory_format=layout)
        for level, plain in zip(folded(arranged), expected, strict=True):
            for a, b in zip(level, plain, strict=True):
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))
        timed(lambda: folded(arranged))
