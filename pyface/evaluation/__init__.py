"""How good detections are, by the protocols that others report: WIDER FACE, FDDB, plain average precision."""
