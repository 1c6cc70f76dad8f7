from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.sampling.brownian import CELL, BrownianPath

SHAPE = (40, 50)
logsnrs = st.floats(-30, 30)


def path(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> BrownianPath:
    return BrownianPath(shape, seed, 1, "path", dtype=torch.float64)


def raw(now: float, after: float, unit: torch.Tensor) -> torch.Tensor:
    """W(u_after) - W(u_now) of a scaled increment, the ends where the grid has them."""
    low, high = (math.exp(round(x / CELL) * CELL) for x in (now, after))
    return unit * math.sqrt(high - low)


@given(seed=st.integers(0, 2**40), points=st.lists(logsnrs, min_size=3, max_size=6, unique=True))
def test_parts_add_up_to_the_whole(seed: int, points: list[float]):
    points = sorted(round(point / CELL) * CELL for point in points)
    if any(after - now < CELL for now, after in pairwise(points)):
        return
    walk = path(seed, (2, 3))
    parts = sum(raw(now, after, walk.increment(now, after)) for now, after in pairwise(points))
    whole = path(seed, (2, 3)).increment(points[0], points[-1])
    torch.testing.assert_close(parts, raw(points[0], points[-1], whole), rtol=1e-6, atol=0)


@given(seed=st.integers(0, 99), now=st.floats(-20, 19), step=st.floats(0.001, 20))
def test_increments_are_standard_normal(seed: int, now: float, step: float):
    draws = path(seed).increment(now, now + step)
    # five standard errors of 2000 draws
    assert abs(draws.mean().item()) < 0.112
    assert abs(draws.var().item() - 1) < 0.158


@given(
    seed=st.integers(0, 99),
    now=st.floats(-20, 10),
    steps=st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
)
def test_increments_of_different_steps_are_independent(seed: int, now: float, steps: tuple[float, float]):
    walk = path(seed)
    first, second = walk.increment(now, now + steps[0]), walk.increment(now + steps[0], now + sum(steps))
    assert abs((first * second).mean().item()) < 0.112


def test_what_was_asked_before_changes_nothing():
    walk = path(3)
    walk.increment(-5, 1)
    walk.increment(1, 2)
    assert torch.equal(walk.increment(2, 7), path(3).increment(2, 7))
    assert not torch.equal(path(4).increment(2, 7), path(3).increment(2, 7))


def test_a_step_too_small_for_the_grid_still_has_noise():
    tiny = path().increment(0.0, CELL / 8)
    assert abs(tiny.var().item() - 1) < 0.158


def test_the_way_to_a_clean_picture_has_noise_too():
    assert abs(path().increment(5.0, math.inf).var().item() - 1) < 0.158


def test_what_is_no_step_forward_is_refused():
    for now, after in ((2, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"expected a step to a higher logsnr, got {now} to {after}"):
            path().increment(now, after)
