"""A detector made and used under whatever a program has set in torch gives the usual faces."""

import contextlib

import pytest
import torch

from pyface import ops
from pyface.detector import FaceDetector
from pyface.models import create_model

MODELS = ["s3fd_lite", "ssh_lite", "srn_lite", "densebox_lite", "mtcnn"]


@contextlib.contextmanager
def changed(set_state, value, usual):
    set_state(value)
    try:
        yield
    finally:
        set_state(usual)


STATES = {
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: changed(torch.set_default_dtype, torch.float16, torch.float32),
    "bfloat16": lambda: changed(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "device": lambda: changed(torch.set_default_device, "meta", None),
    "inference mode": torch.inference_mode,
    "gradients": lambda: torch.set_grad_enabled(True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "threads": lambda: changed(torch.set_num_threads, 3, torch.get_num_threads()),
}


@pytest.fixture(scope="module")
def usual(astronaut):
    return {name: FaceDetector(name, device="cpu")(astronaut) for name in MODELS}


@pytest.mark.parametrize(
    "model",
    [
        "s3fd_lite",
        "mtcnn",
        *(pytest.param(f"{name}_lite", marks=pytest.mark.slow) for name in ("ssh", "srn", "densebox")),
    ],
)
@pytest.mark.parametrize("state", STATES)
def test_faces(usual, astronaut, model, state):
    made_before = FaceDetector(model, device="cpu")
    with STATES[state]():
        made = FaceDetector(model, device="cpu")
        inside = made(astronaut)
        chips = inside.crop(astronaut)
        inside_made_before = made_before(astronaut)
    for found in (inside, inside_made_before, made(astronaut)):
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert not found.boxes.is_inference()
        torch.testing.assert_close(found.boxes, usual[model].boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found.scores, usual[model].scores, rtol=1e-4, atol=1e-4)
    assert len(chips) == len(inside) > 0


@pytest.mark.parametrize("state", ["float64", "bfloat16", "device"])
def test_tiles_and_anchors(astronaut, state):
    level = ops.AnchorLevel(stride=4, anchors=((-6.3, -6.0, 10.1, 10.0),))
    usual = FaceDetector(device="cpu", tile=256)(astronaut), ops.anchor_boxes([level], [(3, 5)])
    with STATES[state]():
        found, anchors = FaceDetector(device="cpu", tile=256)(astronaut), ops.anchor_boxes([level], [(3, 5)])
    torch.testing.assert_close(found.boxes, usual[0].boxes)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, usual[1])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("state", ["float16", "bfloat16", "device", "inference mode"])
def test_weights(model, state):
    exact = create_model(model).state_dict()
    with STATES[state]():
        made = create_model(model)
    for key, value in made.state_dict().items():
        assert value.dtype == exact[key].dtype
        assert not value.is_inference()
        assert torch.equal(value, exact[key])
    made.train().requires_grad_(True)  # nothing that was made in inference mode could be trained
