"""Evaluation of detections by the usual protocols: WIDER FACE, FDDB, plain average precision."""

LOWEST_SCORE = 0.02
"""Score above which detections are measured: lower ones cost time and add nothing to the area under a curve."""
