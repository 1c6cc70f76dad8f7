"""The schedule against what its density says, in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mdmkit_cauchy.schedule import Cauchy

from mdmkit.schedules import LOGSNR_LIMIT

means = st.floats(-3, 3)
scales = st.floats(0.1, 2)


@settings(deadline=None)
@given(mean=means, scale=scales, t=st.floats(0.05, 0.95))
def test_uniform_times_follow_the_cauchy_distribution(mean: float, scale: float, t: float) -> None:
    logsnr = Cauchy(mean=mean, scale=scale).logsnr(torch.tensor(t, dtype=torch.float64))
    where, width = torch.tensor([mean, scale], dtype=torch.float64)
    density = torch.distributions.Cauchy(where, width)
    # times below t are those with a higher logsnr
    assert density.cdf(logsnr).item() == pytest.approx(1 - t, rel=1e-9)


@settings(deadline=None)
@given(mean=means, scale=scales)
def test_ends_are_clean_data_and_noise_within_the_cut_off(mean: float, scale: float) -> None:
    schedule = Cauchy(mean=mean, scale=scale)
    ends = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [LOGSNR_LIMIT, -LOGSNR_LIMIT]
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(3, dtype=torch.float64))
    assert alpha[0] > alpha[1] > alpha[2]


def test_single_precision_keeps_its_digits_near_data() -> None:
    t = torch.tensor([1e-6, 1e-4, 0.5, 0.9])
    schedule = Cauchy(scale=1e-5)  # narrow: the tails are not cut off
    torch.testing.assert_close(schedule.logsnr(t).double(), schedule.logsnr(t.double()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": -1.0}, {"mean": 20.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected scale > 0 and mean between"):
        Cauchy(**wrong)
