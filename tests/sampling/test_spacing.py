from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mdmkit.diffusion import Diffusion
from mdmkit.sampling import released, uniform_t
from mdmkit.sampling.spacing import Spacing
from mdmkit.schedules import Cosine
from tests.golden import golden_case

diffusion = Diffusion((Cosine(),))
every = pytest.mark.parametrize("spacing", [uniform_t, released])


@every
@given(steps=st.integers(1, 1000))
def test_times_fall_to_zero(spacing: Spacing, steps: int):
    times = spacing(steps, diffusion)
    assert len(times) == steps + 1
    assert times[0] <= 1
    assert times[-1] == 0
    assert all(now > after for now, after in pairwise(times))
    if spacing is uniform_t:
        assert times[0] == 1
        assert all(now - after == pytest.approx(1 / steps) for now, after in pairwise(times))


@every
def test_too_few_or_too_many_steps_are_refused(spacing: Spacing):
    with pytest.raises(ValueError, match="expected at least one step, got 0"):
        spacing(0, diffusion)
    with pytest.raises(ValueError, match="steps=1001 are too many for a table of 1000; use at most 1000"):
        released(1001, diffusion)


def test_the_released_grid_starts_late():
    assert released(5, diffusion) == [0.834, 0.667, 0.5, 0.334, 0.167, 0.0]
    assert released(1, diffusion) == [0.5, 0.0]
    assert released(1000, diffusion) == uniform_t(1000, diffusion)


@pytest.mark.golden
def test_released_grids():
    recorded = load_file(golden_case("schedules") / "schedules.safetensors")
    for steps in (1, 5, 10, 50, 250):
        indices = recorded[f"timesteps.{steps}"].tolist()
        assert released(steps, diffusion) == [index / 1000 for index in indices]
