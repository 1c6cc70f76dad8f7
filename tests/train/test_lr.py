"""Learning-rate schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.train.lr import Constant, Cosine, Warmup


@given(st.integers(0, 10**7))
def test_constant_is_one(step: int) -> None:
    assert Constant().factor(step) == 1.0


@given(steps=st.integers(1, 10_000), step=st.integers(0, 20_000))
def test_warmup_rises_evenly_from_above_zero_to_one_and_stays(steps: int, step: int) -> None:
    schedule = Warmup(steps=steps)
    assert schedule.factor(0) == 1 / steps
    assert 0 < schedule.factor(step) <= schedule.factor(step + 1) <= 1
    if step >= steps - 1:
        assert schedule.factor(step) == 1.0
    else:
        assert schedule.factor(step + 1) - schedule.factor(step) == pytest.approx(1 / steps, abs=1e-12)


def test_a_warmup_of_no_steps_is_constant() -> None:
    assert Warmup(steps=0).factor(0) == 1.0


@given(steps=st.integers(2, 5000), part=st.floats(0, 0.99), final=st.floats(0, 1), step=st.integers(0, 6000))
def test_cosine_rises_then_falls_to_its_final_factor(
    steps: int, part: float, final: float, step: int
) -> None:
    warmup = int(part * steps)
    schedule = Cosine(steps=steps, warmup=warmup, final=final)
    now, then = schedule.factor(step), schedule.factor(step + 1)
    assert schedule.factor(0) > 0
    assert 0 <= now <= 1
    if step < warmup - 1:
        assert now < then
    else:
        assert now >= then - 1e-12
    assert schedule.factor(warmup) == 1.0
    assert schedule.factor(steps) == schedule.factor(steps + 100) == pytest.approx(final, abs=1e-12)


def test_half_way_down_the_cosine_is_the_mean() -> None:
    assert Cosine(steps=110, warmup=10, final=0.2).factor(60) == pytest.approx(0.6)


def test_cosine_refuses_a_warmup_as_long_as_the_whole() -> None:
    with pytest.raises(ValueError, match="expected 0 <= warmup < steps, got warmup=5 and steps=5"):
        Cosine(steps=5, warmup=5)
