"""Every lite detector learns four photos by heart: loss, gradients, matching and decoding agree with each other."""

import importlib.util
from pathlib import Path

import pytest
import torch

from pyface.models import create_model, list_models

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "faces" / "train"
STEPS, SIZE, RATE = 120, 256, 1e-3


def load_script():
    spec = importlib.util.spec_from_file_location("overfit", ROOT / "scripts" / "overfit.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", [name for name in list_models() if name.endswith("_lite")])
def test_overfit(name):
    if not DATA.is_dir():
        pytest.skip(f"there are no photos to learn in {DATA}: the shared data is not on this machine")
    script = load_script()
    images, boxes = script.read(DATA, script.FILES)
    torch.manual_seed(0)
    model = create_model(name, weights=None)
    losses = [sum(terms.values()) for terms in script.train(model, images, boxes, SIZE, STEPS, RATE)]
    assert losses[-1] < 0.1 * losses[0]
    found, wrong = script.count_found(model, images, boxes, SIZE)
    assert found == sum(map(len, boxes)) == 11
    assert wrong <= 2  # whose IoU is below 0.5, as of a second box of a face
