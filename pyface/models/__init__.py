"""The detectors, and the registry that builds them by name."""

from pyface.models.base import FaceModel, Faces
from pyface.models.mtcnn import MTCNN, MTCNNConfig
from pyface.models.zoo import create_model, list_models

__all__ = ["MTCNN", "FaceModel", "Faces", "MTCNNConfig", "create_model", "list_models"]
