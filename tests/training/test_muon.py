"""Muon: the size of its steps, and resuming."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyface.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 8), (1, 9)])
def test_singular_values_of_a_step_are_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 1e-4))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))
    weight = nn.Parameter(torch.ones(2, 2, 1, 1))
    Muon([{"params": [weight], "orthogonal": True, "weight_decay": 0.5}], lr=0.1).step()
    assert torch.equal(weight, torch.ones(2, 2, 1, 1))


def test_other_groups_step_as_in_adamw():
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 3), torch.randn(4, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = Muon([{"params": [ours]}], lr=0.01), torch.optim.AdamW([theirs], lr=0.01)
    for _ in range(3):
        for optimizer, weight in zip(optimizers, (ours, theirs), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_step_is_as_large_as_in_adamw():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(32, 16, 3, 3))
    weight.grad = torch.randn_like(weight)
    Muon([{"params": [weight], "orthogonal": True, "weight_decay": 0.0}], lr=0.01).step()
    assert 0.1 * 0.01 < weight.square().mean().sqrt() < 0.3 * 0.01  # AdamW's usual size, 0.2 to 0.4 of the rate


def trained(steps, state=None):
    """A convolution fitted to another one, and the state after half of the steps."""
    torch.manual_seed(0)
    truth, layer = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
    optimizer = Muon([{"params": [layer.weight], "orthogonal": True, "weight_decay": 0.0}], lr=0.05)
    first = 0
    if state is not None:
        first, weights, of_optimizer = state
        layer.load_state_dict(weights)
        optimizer.load_state_dict(of_optimizer)
    for step in range(first, steps):
        if step == steps // 2 and state is None:
            state = step, {k: v.clone() for k, v in layer.state_dict().items()}, _copy(optimizer.state_dict())
        images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)

        def closure(images=images):
            optimizer.zero_grad()
            loss = F.mse_loss(layer(images), truth(images))
            loss.backward()
            return loss

        loss = optimizer.step(closure)
    return layer.weight.detach(), float(loss.detach()), state


def _copy(state):
    entries = {k: {name: v.clone() for name, v in of.items()} for k, of in state["state"].items()}
    return {**state, "state": entries}


def test_the_loss_falls_and_a_resumed_run_is_equal():
    weight, loss, state = trained(200)
    assert loss < 1e-3
    again, *_ = trained(200, state)
    assert torch.equal(again, weight)
