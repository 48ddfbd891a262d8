"""Predictions in a form that other tools write, and what pyface says about them."""

import numpy as np
import pytest

from pyface.evaluation.hints import explain_low

RNG = np.random.default_rng(0)
CORNERS = np.concatenate([start := RNG.uniform(0, 400, (30, 2)), start + RNG.uniform(20, 90, (30, 2))], axis=1)
X1, Y1, X2, Y2 = CORNERS.T
W, H, SCORE = X2 - X1, Y2 - Y1, RNG.uniform(0, 1, 30)


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ((X1, Y1, W, H, SCORE), None),
        ((X1 + 200, Y1, W, H, SCORE), None),  # wrong, but of the right form
        ((X1, Y1, X2, Y2, SCORE), "look like x1 y1 x2 y2 score"),
        ((X1 + W / 2, Y1 + H / 2, W, H, SCORE), "look like cx cy w h score"),
        ((Y1, X1, H, W, SCORE), "look like y x h w score"),
        ((Y1, X1, Y2, X2, SCORE), "look like y1 x1 y2 x2 score"),
        ((SCORE, X1, Y1, W, H), "look like score x y w h"),
        ((SCORE, X1, Y1, X2, Y2), "look like score x1 y1 x2 y2"),
        ((X1 / 640, Y1 / 480, W / 640, H / 480, SCORE), "look like fractions"),
    ],
)
def test_other_forms_of_rows(columns, hint):
    rows = np.stack(columns, axis=1)
    found = explain_low((rows[k : k + 3], CORNERS[k : k + 3]) for k in range(0, 30, 3))
    assert found is None if hint is None else found.startswith(hint)


def test_nothing_to_compare():
    assert explain_low([]) is None
    assert explain_low([(np.zeros((0, 5)), CORNERS), (np.zeros((3, 5)), np.zeros((0, 4)))]) is None
