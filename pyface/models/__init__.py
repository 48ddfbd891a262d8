"""The detectors, and the registry that builds them by name."""

from pyface.models.base import FaceModel, Faces, GroundTruth
from pyface.models.checkpoints import CheckpointError
from pyface.models.densebox import DenseBoxConfig, DenseBoxLite, DenseBoxLiteConfig, DenseBoxVGG19
from pyface.models.inference import InferenceOptions
from pyface.models.mtcnn import MTCNN, MTCNNConfig
from pyface.models.s3fd import S3FDVGG16, S3FDLite, S3FDLiteConfig, S3FDVGG16Config
from pyface.models.single_shot import SingleShot
from pyface.models.srn import SRNConfig, SRNLite, SRNLiteConfig, SRNResNet50
from pyface.models.ssh import SSHVGG16, SSHConfig, SSHLite, SSHLiteConfig
from pyface.models.zoo import convert, create_model, list_models

__all__ = [
    "MTCNN",
    "S3FDVGG16",
    "SSHVGG16",
    "CheckpointError",
    "DenseBoxConfig",
    "DenseBoxLite",
    "DenseBoxLiteConfig",
    "DenseBoxVGG19",
    "FaceModel",
    "Faces",
    "GroundTruth",
    "InferenceOptions",
    "MTCNNConfig",
    "S3FDLite",
    "S3FDLiteConfig",
    "S3FDVGG16Config",
    "SRNConfig",
    "SRNLite",
    "SRNLiteConfig",
    "SRNResNet50",
    "SSHConfig",
    "SSHLite",
    "SSHLiteConfig",
    "SingleShot",
    "convert",
    "create_model",
    "list_models",
]
