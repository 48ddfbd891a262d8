"""pyface's ops: compiled CPU and CUDA kernels for torch tensors. ``reference`` has the same ops in plain torch."""

from pyface.ops.anchors import AnchorLevel, Candidates, LevelMaps, anchor_boxes, decode_anchors
from pyface.ops.densebox import DenseBoxMaps, decode_densebox, densebox_targets
from pyface.ops.matching import assign_anchors
from pyface.ops.mining import balanced_sample, hard_negatives, online_hard
from pyface.ops.nms import batched_nms, box_voting, nms, nms_padded, soft_nms
from pyface.ops.resample import crop_resize, letterbox
from pyface.ops.scoring import face_probability, maxout_background

__all__ = [
    "AnchorLevel",
    "Candidates",
    "DenseBoxMaps",
    "LevelMaps",
    "anchor_boxes",
    "assign_anchors",
    "balanced_sample",
    "batched_nms",
    "box_voting",
    "crop_resize",
    "decode_anchors",
    "decode_densebox",
    "densebox_targets",
    "face_probability",
    "hard_negatives",
    "letterbox",
    "maxout_background",
    "nms",
    "nms_padded",
    "online_hard",
    "soft_nms",
]
