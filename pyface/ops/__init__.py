"""pyface's ops: compiled CPU and CUDA kernels with a torch face. ``reference`` holds the same ops in plain torch."""

from pyface.ops.anchors import AnchorLevel, Candidates, LevelMaps, anchor_boxes, decode_anchors
from pyface.ops.convnet import convnet
from pyface.ops.nms import batched_nms, box_voting, nms, nms_padded, soft_nms
from pyface.ops.pnet import pnet
from pyface.ops.resample import crop_resize, letterbox
from pyface.ops.scoring import face_probability, maxout_background

__all__ = [
    "AnchorLevel",
    "Candidates",
    "LevelMaps",
    "anchor_boxes",
    "batched_nms",
    "box_voting",
    "convnet",
    "crop_resize",
    "decode_anchors",
    "face_probability",
    "letterbox",
    "maxout_background",
    "nms",
    "nms_padded",
    "pnet",
    "soft_nms",
]
