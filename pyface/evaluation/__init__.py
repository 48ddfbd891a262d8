"""Evaluation of detections by the usual protocols: WIDER FACE, FDDB, plain average precision."""
