"""pyface: face detection for large numbers of images, with compiled CPU and CUDA kernels.

>>> import pyface
>>> detector = pyface.FaceDetector("s3fd_lite")
>>> faces = detector("examples/astronaut.jpg")
>>> len(faces)
1
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ArchiveError",
    "Detections",
    "FaceDetector",
    "ImageError",
    "Tracks",
    "VideoError",
    "VideoWriter",
    "archive",
    "create_model",
    "draw",
    "list_models",
    "ops",
    "read_image",
    "redact",
    "video",
]

# Names are loaded when first used: torch takes a second to import, and `pyface --help` does not need it.
_ROOMS = {
    "ArchiveError": "pyface.io.archives",
    "Detections": "pyface.detections",
    "FaceDetector": "pyface.detector",
    "VideoWriter": "pyface.io.video",
    "ImageError": "pyface.io.images",
    "VideoError": "pyface.io.video",
    "archive": "pyface.io.archives",
    "Tracks": "pyface.detections",
    "create_model": "pyface.models.zoo",
    "list_models": "pyface.models.zoo",
    "read_image": "pyface.io.images",
    "video": "pyface.io.video",
}

if TYPE_CHECKING:
    from pyface import draw, ops, redact
    from pyface.detections import Detections, Tracks
    from pyface.detector import FaceDetector
    from pyface.io.archives import ArchiveError, archive
    from pyface.io.images import ImageError, read_image
    from pyface.io.video import VideoError, VideoWriter, video
    from pyface.models.zoo import create_model, list_models


def __getattr__(name: str) -> Any:
    if name in ("draw", "ops", "redact"):
        return importlib.import_module(f"pyface.{name}")
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'pyface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
