"""ONNX's operators for `pyface.ops.nms_padded`. Imports onnxscript, so only the export to ONNX imports this module."""

# No `from __future__ import annotations`: the exporter reads the annotations as objects.
import onnxscript
from onnxscript import FLOAT, INT32, INT64
from onnxscript import opset18 as op

NOTHING = -1.0  # the score of what suppression must not keep; real scores are 0 or more


def nms_padded(
    boxes: FLOAT,
    scores: FLOAT,
    counts: INT32,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float | None,
    overlap: str,
) -> tuple[INT64, INT32]:
    """`torch.ops.pyface.nms_padded` for candidates that are sorted by score, at least `max_detections` of them.

    The exporter calls it with all arguments of the op, but `overlap` must be "union" and `score_threshold` None.
    """
    number = op.Shape(scores, start=1, end=2)
    place = op.Range(op.Constant(value_int=0), op.Squeeze(number), op.Constant(value_int=1))
    is_candidate = op.Less(place, op.Unsqueeze(op.Cast(counts, to=onnxscript.INT64.dtype), op.Constant(value_ints=[1])))
    candidates = op.Where(is_candidate, scores, op.Constant(value_float=NOTHING))
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(candidates, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[max_detections]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[NOTHING / 2]),
    )
    # Runtimes differ in the order of what is selected, so it only marks candidates.
    entries = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)  # the image and the candidate
    nothing = op.Expand(op.Constant(value_float=NOTHING), op.Shape(scores))
    kept = op.ScatterND(nothing, entries, op.GatherND(scores, entries))
    best, keep = op.TopK(kept, op.Constant(value_ints=[max_detections]), axis=1)
    is_kept = op.Greater(best, op.Constant(value_float=NOTHING / 2))
    count = op.ReduceSum(op.Cast(is_kept, to=onnxscript.INT32.dtype), op.Constant(value_ints=[1]), keepdims=0)
    return op.Where(is_kept, keep, op.Constant(value_int=-1)), count
