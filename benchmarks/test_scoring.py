"""Max-out and face probabilities beside plain torch, on the first level of S3FD at 640 x 640.

Floor: each logit is read once and each result written once; 410 KB and 205 KB per image for maxout_background in
float32, 410 KB and 102 KB for face_probability. On CUDA one launch each, where plain torch needs two to four.
"""

import pytest
import torch

from pyface import ops
from pyface.ops import reference

PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16"}


def logits_of(batch: int, layout: str, dtype: torch.dtype, device: str) -> torch.Tensor:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(batch, 4, 160, 160, generator=generator).to(device, dtype)
    return logits.contiguous(memory_format=memory_format)


@pytest.mark.parametrize("library", ["pyface", "plain torch"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("name", ["maxout_background", "face_probability"])
def test_scoring(name, library, batch, layout, dtype, device, timed):
    logits = logits_of(batch, layout, dtype, device)
    ours, theirs = getattr(ops, name), getattr(reference, name)
    torch.testing.assert_close(ours(logits, 3), theirs(logits, 3), rtol=0, atol=1e-6)
    call = ours if library == "pyface" else theirs
    timed(lambda: call(logits, 3), name, f"{batch} x 160 x 160, {layout}", library, PRECISIONS[dtype])


@pytest.mark.parametrize("library", ["pyface", "plain torch"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_maxout_forward_and_backward(library, batch, device, timed):
    logits = logits_of(batch, "NCHW", torch.float32, device).requires_grad_()
    call = ops.maxout_background if library == "pyface" else reference.maxout_background
    gradient = torch.randn(batch, 2, 160, 160, device=device)
    ours, theirs = (
        torch.autograd.grad(function(logits, 3), logits, gradient)[0]
        for function in (ops.maxout_background, reference.maxout_background)
    )
    torch.testing.assert_close(ours, theirs)
    task = f"{batch} x 160 x 160, forward and backward"
    timed(lambda: torch.autograd.grad(call(logits, 3), logits, gradient), "maxout_background", task, library)
