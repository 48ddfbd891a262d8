"""How each model is trained: frozen hyperparameters, which every run records so that it can be repeated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

CropRule = Literal["octaves", "s3fd", "srn", "ssh", "densebox"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


class TrainingError(ValueError):
    """A run cannot start as configured, or cannot continue."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        size: Side of the square samples, in pixels.
        batch_size: Samples per step and device.
        epochs: Passes over the images, unless the run is limited by time.
        crops: The crop rule, which cuts a sample from an image: one of `crop_rules.RULES`, or "densebox".
        mosaic: Share of the samples that are four crops of half the side, which gives many small faces.
        rotation: Share of the other samples that are rotated.
        most_rotated: Largest angle of that rotation, in degrees either way.
        cut_out: Probability that a rectangle of one grey covers a part of a face.
        photometric: Probability of each change of brightness, contrast, saturation and hue.
        smallest_face: Faces that are smaller in the sample (square root of the area, in pixels) are ignored: they count
            neither as faces nor as background. MTCNN applies it to the longer side in the image instead.
        optimizer: "muon" (for convolutions that a normalisation follows, AdamW for all else), "adamw", or "sgd" with
            momentum 0.9.
        rate: Highest learning rate.
        bias_rate: Factor of the learning rate for biases, which have no weight decay.
        schedule: "cosine", or the shares of the run after which the rate drops to a tenth.
        warm_up: Share of the run over which the rate rises from 0.
        weight_decay: Weight decay of parameters with two or more dimensions.
        clip: Largest norm of all gradients together.
        average: Largest decay of the moving average of the weights, which is measured and saved. After n steps the
            decay is at most (1 + n) / (10 + n), so that short runs average over their last tenth.
        frozen: Layers of the backbone that stay fixed if the run starts from ImageNet weights.
    """

    size: int = 640
    batch_size: int = 32
    epochs: int = 100
    crops: CropRule = "octaves"
    mosaic: float = 0.0
    rotation: float = 0.0
    most_rotated: float = 90.0
    cut_out: float = 0.0
    photometric: float = 0.5
    smallest_face: float = 6.0
    optimizer: Literal["muon", "adamw", "sgd"] = "sgd"
    rate: float = 1e-3
    bias_rate: float = 1.0
    schedule: Literal["cosine"] | tuple[float, ...] = "cosine"
    warm_up: float = 0.02
    weight_decay: float = 5e-4
    clip: float = 10.0
    average: float = 0.999
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mosaic", "rotation", "cut_out", "photometric", "warm_up", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("size", "batch_size", "epochs", "rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        for name in ("smallest_face", "bias_rate", "weight_decay", "most_rotated"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.mosaic > 0 and self.size % 2:
            raise ValueError(f"size must be even, as a mosaic is four samples of half the size, got {self.size}")


# For small data: face sizes are spread over octaves, and mosaics give small faces. Cut-out and strong colour changes
# cost accuracy (docs/training.md).
_LITE = Recipe(
    size=384,
    batch_size=32,
    epochs=120,
    mosaic=0.25,
    photometric=0.2,
    optimizer="muon",
    rate=2e-3,
    weight_decay=0.02,
    average=0.9995,
)

RECIPES: dict[str, Recipe] = {
    "s3fd_lite": _LITE,
    "ssh_lite": _LITE,
    "srn_lite": _LITE,
    "densebox_lite": replace(_LITE, crops="densebox", mosaic=0.0),
    # The papers' recipes (docs/detectors.md 2.5, 4.4, 5.3, 1.4). Epochs are their iterations, converted to passes over
    # WIDER FACE's 12,880 images.
    "s3fd_vgg16": Recipe(
        size=640, batch_size=32, epochs=300, crops="s3fd", rate=1e-3, bias_rate=2.0, schedule=(80 / 120, 100 / 120)
    ),
    "srn_resnet50": Recipe(
        size=1024,
        batch_size=32,
        epochs=120,
        crops="srn",
        rate=1e-2,
        schedule=(80 / 120, 100 / 120),
        warm_up=0.01,
        weight_decay=1e-4,
        frozen=("conv1", "bn1"),
    ),
    "ssh_vgg16": Recipe(
        size=1024,
        batch_size=4,
        epochs=7,
        crops="ssh",
        photometric=0.0,
        rate=4e-3,
        bias_rate=2.0,
        schedule=(18 / 21,),
        frozen=("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
    ),
    "densebox_vgg19": Recipe(
        size=240, batch_size=10, epochs=100, crops="densebox", photometric=0.0, rate=1e-3, schedule=(1 / 3, 2 / 3)
    ),
    # The cascade (3.3): its crops are mined, not cut by a rule. Epochs are P-Net's passes over its positive crops;
    # R-Net and O-Net train for 22 epochs per 30 of P-Net's.
    "mtcnn": Recipe(
        size=48,
        batch_size=384,
        epochs=30,
        photometric=0.3,
        smallest_face=20.0,
        optimizer="adamw",
        rate=2e-3,
        weight_decay=1e-3,
    ),
}


@dataclass(frozen=True)
class Run:
    """The complete configuration of a run; `config.json` in its folder.

    Attributes:
        model: A name from `pyface.list_models()`.
        data: Data folders to train on; a folder given twice is sampled twice as often.
        val: Data folders to measure on; average precision on the first decides which weights are best.
        held_out: Names of images in `data` that are measured on, as one more set, instead of trained on.
        weights: File of initial weights; None: random initialisation.
        backbone: File of initial weights for the backbone alone: torchvision's, or those of a detector with the same
            backbone.
        seed: Random seed; the same seed gives the same sequence of samples.
        max_hours: Length of the run in hours, instead of the recipe's epochs.
        validations: Number of measurements, evenly spread over the run.
        precision: As in Lightning: "32-true", "16-mixed" or "bf16-mixed".
        workers: Number of processes that prepare samples; 0: the training process does.
        devices: Number of training processes, each on its own GPU or all on the CPU. Each takes one batch per step.
        recipe: Hyperparameters.
        settings: Fields of the model's configuration; None: the registry's, or those stored with the weights. A run
            records all of them.
    """

    model: str
    data: tuple[str, ...]
    val: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    weights: str | None = None
    backbone: str | None = None
    seed: int = 0
    max_hours: float | None = None
    validations: int = 20
    precision: Precision = "32-true"
    workers: int = 0
    devices: int = 1
    recipe: Recipe = field(default_factory=Recipe)
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("validations", 1), ("workers", 0), ("devices", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise ValueError(f"the length of a run must be more than 0 hours, got {self.max_hours:g}")
        if not self.data:
            raise ValueError("data must be one folder or more, got none")
