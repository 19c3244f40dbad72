"""Schedules against their closed forms, computed with Python floats."""

import math

import pytest
import torch

from qwen3llada.diffusion.schedules import SCHEDULES

GRID = torch.linspace(0, 1, 101, dtype=torch.float64)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# As dLLM-RL writes them: of t' = 1 - t, the share that stays unmasked at t' being the schedule's own curve.
CLOSED_FORMS = [
    ("uniform", {}, lambda r: 1 - r),
    ("cosine", {}, lambda r: math.cos(math.pi / 2 * r)),
    ("power", {}, lambda r: 1 - r**2),
    ("power", {"power": 0.5}, lambda r: 1 - r**0.5),
    ("power", {"power": 3.0}, lambda r: 1 - r**3),
    ("sigmoid", {}, lambda r: (logistic(3) - logistic(6 * r - 3)) / (logistic(3) - logistic(-3))),
    (
        "sigmoid",
        {"start": -1.0, "end": 4.0, "tau": 0.5},
        lambda r: (logistic(8) - logistic((5 * r - 1) / 0.5)) / (logistic(8) - logistic(-2)),
    ),
]


@pytest.mark.parametrize(("name", "options", "closed_form"), CLOSED_FORMS)
def test_closed_form(name, options, closed_form):
    expected = [closed_form(1 - t) for t in GRID.tolist()]
    assert SCHEDULES[name](GRID, **options).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rises_from_zero_to_one(name):
    p = SCHEDULES[name](GRID)
    assert p[0].item() == pytest.approx(0, abs=1e-15)
    assert p[-1].item() == pytest.approx(1, abs=1e-15)
    assert (p.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_shape_and_the_input_stays(name):
    t = GRID[:100].reshape(4, 25).float()
    kept = t.clone()
    p = SCHEDULES[name](t)
    assert p.shape == t.shape
    assert p.dtype == t.dtype
    p.zero_()
    assert torch.equal(t, kept)


def test_every_schedule_has_a_closed_form_here():
    assert {name for name, _, _ in CLOSED_FORMS} == set(SCHEDULES)
