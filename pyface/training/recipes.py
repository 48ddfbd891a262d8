"""How each model is trained: a frozen set of numbers, written into every run and repeatable from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

CropRule = Literal["octaves", "s3fd", "srn", "ssh", "densebox"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


class TrainingError(ValueError):
    """A run cannot be begun as it was asked for, or cannot go on."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run.

    Attributes:
        size: Side of the square that the network sees, in pixels.
        batch_size: Samples a step and device.
        epochs: Passes over the pictures, unless a time is given instead.
        crops: How a sample is cut from a picture: one of `crops.RULES`.
        large: Share of the steps whose samples have twice the side and are a quarter as many, for faces that fill more
            than a sample.
        mosaic: Share of the samples that are four crops of half the side, so that faces come small and many.
        rotation: Share of the other samples that are rotated, by up to `most_rotated` degrees either way.
        most_rotated: See there.
        cut_out: Probability that a face loses a part to a rectangle of one colour.
        photometric: Probability of each change of brightness, contrast, saturation and hue.
        smallest_face: Faces that are smaller in the sample (square root of the area, in pixels) are neither faces nor
            background. In the cascade: faces whose longer side in the picture is shorter.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        rate: Highest learning rate.
        bias_rate: What biases' rate is multiplied by; they never decay.
        schedule: "cosine", or the ends of the stretches, as shares of the run, after each of which the rate falls to a
            tenth.
        warm_up: Share of the run over which the rate rises from 0.
        weight_decay: Of weights with two or more dimensions.
        clip: Largest norm of all gradients together.
        average: Largest decay of the moving average of the weights, which is what is measured and kept. After n steps
            it is (1 + n) / (10 + n) at most, so that shorter runs average over their last tenth.
        frozen: Layers of the trunk that keep ImageNet's weights, where a run starts from these.
    """

    size: int = 640
    batch_size: int = 32
    epochs: int = 100
    crops: CropRule = "octaves"
    large: float = 0.0
    mosaic: float = 0.0
    rotation: float = 0.0
    most_rotated: float = 90.0
    cut_out: float = 0.0
    photometric: float = 0.5
    smallest_face: float = 6.0
    optimizer: Literal["adamw", "sgd"] = "sgd"
    rate: float = 1e-3
    bias_rate: float = 1.0
    schedule: Literal["cosine"] | tuple[float, ...] = "cosine"
    warm_up: float = 0.02
    weight_decay: float = 5e-4
    clip: float = 10.0
    average: float = 0.999
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("large", "mosaic", "rotation", "cut_out", "photometric", "warm_up", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} should be from 0 to 1, got {getattr(self, name)}")
        for name in ("size", "batch_size", "epochs", "rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} should be more than 0, got {getattr(self, name)}")
        for name in ("smallest_face", "bias_rate", "weight_decay", "most_rotated"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} should be 0 or more, got {getattr(self, name)}")
        if self.mosaic > 0 and self.size % 2:
            raise ValueError(f"size should be even, as mosaics are four samples of half of it, got {self.size}")


# Small data: sizes of faces spread over octaves, small faces by mosaic. Cut-out and strong changes of colour cost
# accuracy (docs/training.md).
_LITE = Recipe(
    size=384,
    batch_size=32,
    epochs=120,
    mosaic=0.25,
    photometric=0.2,
    optimizer="adamw",
    rate=2e-3,
    weight_decay=0.02,
    average=0.9995,
)

RECIPES: dict[str, Recipe] = {
    "s3fd_lite": _LITE,
    "ssh_lite": _LITE,
    "srn_lite": _LITE,
    "densebox_lite": replace(_LITE, crops="densebox", mosaic=0.0),
    # The papers' (docs/detectors.md 2.5, 4.4, 5.3, 1.4). Epochs are their iterations over WIDER FACE's 12,880 pictures.
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
    # The cascade (3.3): its crops are mined, not cut by a rule. Epochs are P-Net's, over its positive crops; R-Net and
    # O-Net take 22 for every 30 of them.
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
    """Everything that a run is made of; `config.json` in its folder.

    Attributes:
        model: A name from `pyface.list_models()`.
        data: Data folders to learn from; one that is named twice is seen twice as often.
        val: Data folders to measure on; average precision on the first decides which weights are the best.
        held_out: Names of pictures in `data` that are measured on, as one more set, and not learned from.
        weights: File of weights to start from; None: a random start.
        backbone: File of torchvision's ImageNet weights of the trunk to start from, for the papers' networks.
        seed: Of all that is random: the same seed gives the same stream of samples.
        max_hours: Train for so long, in place of the recipe's epochs.
        validations: How often the run is measured, evenly spread.
        precision: As in Lightning: "32-true", "16-mixed" or "bf16-mixed".
        workers: Processes that prepare samples; 0: the one that trains.
        devices: Processes that train, each on a GPU of its own or all on the CPU; a batch of each makes a step.
        recipe: The numbers.
        settings: The model's own numbers, fields of its configuration; None: the registry's, or those that came with
            the weights. A run writes down all of them.
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
                raise ValueError(f"{name} should be {least} or more, got {getattr(self, name)}")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise ValueError(f"a run should take more than no time, got {self.max_hours:g} hours")
        if not self.data:
            raise ValueError("data should be one folder or more, got none")
