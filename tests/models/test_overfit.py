"""Every lite detector can be overfitted to four composed photos: loss, gradients, matching and decoding agree."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pyface.io.images import read_image
from pyface.models import DenseBoxLite, DenseBoxLiteConfig, create_model, list_models
from pyface.models.single_shot import SingleShot

ROOT = Path(__file__).parents[2]
FACE = (178, 68, 272, 196)  # of the astronaut
STEPS, SIZE, RATE = 120, 256, 1e-3


def load_script():
    spec = importlib.util.spec_from_file_location("overfit", ROOT / "scripts" / "overfit.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def composed(photo):
    """Four photos of 256 x 256 with eleven faces in cells of a grid, and their boxes: the astronaut's head in many
    sizes, mirrored or not, before her blurred suit."""
    rng = np.random.default_rng(0)
    left, top, right, bottom = FACE
    head = photo[top - 30 : bottom + 30, left - 30 : right + 30]
    suit = cv2.GaussianBlur(cv2.resize(photo[300:, 100:400], (SIZE, SIZE)), (0, 0), 9)
    images, boxes = [], []
    for count in (3, 3, 3, 2):
        image, rows = suit[:, :: rng.choice([1, -1])].copy(), []
        for cell in rng.permutation(4)[:count]:
            scale = rng.uniform(0.35, 0.68)
            small = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            small = small[:, :: rng.choice([1, -1])]  # the face is in its middle
            height, width = small.shape[:2]
            x, y = (128 * (cell % 2) + (128 - width) // 2, 128 * (cell // 2) + (128 - height) // 2)
            image[y : y + height, x : x + width] = small
            margin = 30 * scale
            rows.append((x + margin, y + margin, x + width - margin, y + height - margin))
        images.append(torch.from_numpy(image))
        boxes.append(torch.tensor(rows))
    return images, boxes


def untrained(name: str) -> SingleShot:
    if name != "densebox_lite":
        return create_model(name, weights=None)
    # Eleven faces are too few to train an octave of sizes in one view: with its own bands, DenseBox finds eight of
    # them.
    bands = {"positive_band": (0.8, 1.25), "ignore_band": (0.6, 1.67), "pyramid_step": 2**0.5}  # the paper's
    return DenseBoxLite(DenseBoxLiteConfig(face=25.0, **bands))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name.endswith("_lite")])
def test_overfit(name, astronaut):
    script = load_script()
    images, boxes = composed(read_image(astronaut))
    torch.manual_seed(0)
    model = untrained(name)
    losses = [sum(terms.values()) for terms in script.train(model, images, boxes, SIZE, STEPS, RATE)]
    assert losses[-1] < 0.1 * losses[0]
    found, wrong = script.count_found(model, images, boxes, SIZE)
    assert found == sum(map(len, boxes)) == 11
    assert wrong <= 2  # whose IoU is below 0.5, as of a second box of a face
