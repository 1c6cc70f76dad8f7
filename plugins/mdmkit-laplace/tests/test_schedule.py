"""The schedule against what its density says, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mdmkit_laplace.schedule import Laplace

means = st.floats(-3, 3)
scales = st.floats(0.1, 2)


@settings(deadline=None)
@given(mean=means, scale=scales, t=st.floats(0.001, 0.999))
def test_uniform_times_follow_the_laplace_distribution(mean: float, scale: float, t: float) -> None:
    logsnr = float(Laplace(mean=mean, scale=scale, limit=50).logsnr(torch.tensor(t, dtype=torch.float64)))
    above = 0.5 * math.exp(-abs(logsnr - mean) / scale)
    # times below t are those with a higher logsnr
    assert math.isclose(above if logsnr > mean else 1 - above, t, rel_tol=1e-9)


@settings(deadline=None)
@given(mean=means, scale=scales, limit=st.floats(4, 30))
def test_ends_are_clean_data_and_pure_noise_within_the_limit(mean: float, scale: float, limit: float) -> None:
    schedule = Laplace(mean=mean, scale=scale, limit=limit)
    ends = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [limit, -limit]
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(3, dtype=torch.float64))
    assert alpha[0] > alpha[1] > alpha[2]


def test_single_precision_keeps_its_digits_near_data() -> None:
    t = torch.tensor([1e-6, 1e-4, 0.5, 0.9])
    schedule = Laplace()
    torch.testing.assert_close(schedule.logsnr(t).double(), schedule.logsnr(t.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"limit": -1.0}, {"mean": 20.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"scale|limit"):
        Laplace(**wrong)
