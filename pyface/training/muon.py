"""Muon, an optimiser that makes the steps of weight matrices orthogonal (Jordan et al., 2024,
kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The quintic iteration's coefficients and number of steps, from the source above.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
# An orthogonal matrix has entries of about 1 / sqrt(longer side); times this factor they are as large as AdamW's steps,
# so that learning rate and weight decay can be the same (Liu et al., arXiv 2502.16982).
ADAM_SIZE = 0.2


class Muon(torch.optim.AdamW):
    """Muon for the parameters of groups with `orthogonal`, AdamW for the others.

    A convolution's weight counts as a matrix: one row per output channel. `torch.optim.Muon` takes matrices only.

    Args:
        groups: Parameter groups; those for Muon have the entry `"orthogonal": True`.
        lr: Learning rate.
        momentum: Decay of the gradients' moving average.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, lr=lr)
        self.momentum = momentum
        self.defaults["orthogonal"] = False
        for group in self.param_groups:
            group.setdefault("orthogonal", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._update(weight, weight.grad, group["lr"], group["weight_decay"])
                        weight.grad = None  # so AdamW leaves this weight alone
        super().step()
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.tensor(0.0, dtype=torch.float32)  # AdamW's `load_state_dict` reads it
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(state["momentum"], self.momentum)  # Nesterov's
        matrix = ahead.flatten(1)
        size = ADAM_SIZE * math.sqrt(max(matrix.shape))
        weight.mul_(1 - rate * decay).sub_(orthogonal(matrix).reshape(weight.shape), alpha=rate * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a matrix, roughly: singular values become 0.7 to 1.2.

    Example:
        >>> values = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 1.0, 0.5]))))
        >>> bool(((values > 0.6) & (values < 1.3)).all())
        True
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
