from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mdmkit.diffusion import Diffusion
from mdmkit.sampling import (
    karras,
    leading,
    poly_exponential,
    released,
    trailing,
    uniform_logsnr,
    uniform_t,
)
from mdmkit.sampling.spacing import Spacing
from mdmkit.schedules import Cosine, CosineLogSNR
from tests.golden import golden_case

diffusion = Diffusion((Cosine(),))
TABLES = [released, trailing, leading]
every = pytest.mark.parametrize(
    "spacing", [uniform_t, uniform_logsnr, karras, poly_exponential, *TABLES]
)


@every
@given(steps=st.integers(1, 1000))
def test_times_fall_to_zero(spacing: Spacing, steps: int):
    times = spacing(steps, diffusion)
    assert len(times) == steps + 1
    assert times[0] <= 1
    assert times[-1] == 0
    assert all(now > after for now, after in pairwise(times))
    if spacing in (uniform_t, trailing, uniform_logsnr):
        assert times[0] == pytest.approx(1)
    if spacing is uniform_t:
        assert all(now - after == pytest.approx(1 / steps) for now, after in pairwise(times))


@every
def test_too_few_or_too_many_steps_are_refused(spacing: Spacing):
    with pytest.raises(ValueError, match="expected at least one step, got 0"):
        spacing(0, diffusion)
    if spacing in TABLES:
        with pytest.raises(ValueError, match="steps=1001 are too many for a table of 1000; use at most 1000"):
            spacing(1001, diffusion)


def test_steps_are_equal_in_what_they_are_named_after():
    def logsnr(times: list[float]) -> list[float]:
        return [diffusion.at(t).logsnr[0] for t in times[:-1]]

    equal = logsnr(uniform_logsnr(9, diffusion, logsnr_max=6.0))
    assert equal[-1] == pytest.approx(6)
    assert all(b - a == pytest.approx(equal[1] - equal[0]) for a, b in pairwise(equal))
    sigmas = [math.exp(-value / 2) ** (1 / 7) for value in logsnr(karras(9, diffusion))]
    assert (sigmas[0] ** 7, sigmas[-1] ** 7) == pytest.approx((80, 0.002))
    assert all(b - a == pytest.approx(sigmas[1] - sigmas[0]) for a, b in pairwise(sigmas))
    even = logsnr(poly_exponential(9, diffusion))
    assert all(b - a == pytest.approx(even[1] - even[0]) for a, b in pairwise(even))
    # denser at low noise, where logsnr is high
    bent = logsnr(poly_exponential(9, diffusion, rho=2.0))
    assert bent[1] - bent[0] > even[1] - even[0]
    assert bent[-1] - bent[-2] < even[-1] - even[-2]


def test_one_step_goes_from_the_start_to_the_picture():
    assert uniform_t(1, diffusion) == trailing(1, diffusion) == [1.0, 0.0]
    assert diffusion.at(karras(1, diffusion)[0]).logsnr[0] == pytest.approx(-2 * math.log(80))


def test_steps_outside_of_the_schedule_are_refused():
    narrow = Diffusion((CosineLogSNR(form="continuous"),))  # logsnr within +-5: sigma 0.08 to 12
    with pytest.raises(ValueError, match=r"steps from logsnr -8.76 to 12.4 do not lie in the schedule"):
        karras(10, narrow)
    assert len(karras(10, narrow, sigma_min=0.1, sigma_max=10)) == 11
    for spacing in (karras, poly_exponential):
        with pytest.raises(ValueError, match="expected 0 < sigma_min < sigma_max, got 2 and 1"):
            spacing(10, diffusion, sigma_min=2, sigma_max=1)


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
