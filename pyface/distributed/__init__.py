"""Detection on many machines with Ray Data; `pyface detect --ray` is its command."""

from pyface.distributed.detection import detect
from pyface.distributed.images import ImageDataset, image_dataset, read_images
from pyface.distributed.results import ResultFolder

__all__ = ["ImageDataset", "ResultFolder", "detect", "image_dataset", "read_images"]
