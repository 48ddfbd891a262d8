"""pyface's ops: compiled CPU and CUDA kernels with a torch face. ``reference`` holds the same ops in plain torch."""

from pyface.ops.convnet import convnet
from pyface.ops.nms import batched_nms, box_voting, nms, nms_padded, soft_nms
from pyface.ops.pnet import pnet
from pyface.ops.resample import crop_resize, letterbox

__all__ = [
    "batched_nms",
    "box_voting",
    "convnet",
    "crop_resize",
    "letterbox",
    "nms",
    "nms_padded",
    "pnet",
    "soft_nms",
]
