from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmkit import assemble
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.schedules import DDPM, Cosine, CosineLogSNR, LinearFlow, NoiseSchedule, Shifted, Sigmoid
from mdmkit.times import (
    ByQuantile,
    LogitNormalTime,
    LogNormalTime,
    LossAwareTime,
    TimeSampler,
    UniformLogSNR,
    UniformTime,
)

wide = torch.float64
SCHEDULES: dict[str, NoiseSchedule] = {
    "cosine": Cosine(),
    "cosine continuous": Cosine(form="continuous"),
    "cosine_logsnr": CosineLogSNR(form="continuous"),
    "sigmoid": Sigmoid(),
    "ddpm": DDPM(),
    "linear_flow": LinearFlow(),
}


def taught(**how: Any) -> LossAwareTime:
    """A sampler that has seen losses that rise steeply with t, in bins that are no power of two."""
    sampler = LossAwareTime(bins=12, **how)
    t = (torch.arange(12 * 10, dtype=wide) + 0.5) / 120
    sampler.observe(sampler.tally(t, t**3))
    return sampler


SAMPLERS: dict[str, Any] = {
    "loss_aware": taught,
    "uniform": UniformTime,
    "logit_normal": lambda **how: LogitNormalTime(mean=0.4, std=0.8, **how),
    "lognormal": lambda **how: LogNormalTime(**{"schedule": Cosine(), **how}),
    "uniform_logsnr": lambda **how: UniformLogSNR(**{"schedule": Cosine(), **how}),
}
every = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def distance(t: torch.Tensor, sampler: TimeSampler, cells: int = 100_000) -> float:
    """Kolmogorov's distance of draws from the integral of the density (1.95 / sqrt(n): one in a thousand)."""
    edges = torch.linspace(0, 1, cells + 1, dtype=wide)
    below = torch.cat([torch.zeros(1, dtype=wide), sampler.density((edges[1:] + edges[:-1]) / 2).cumsum(0)])
    assert float(below[-1]) / cells == pytest.approx(1, abs=2e-3)
    ordered, n = t.sort().values, len(t)
    at = (ordered * cells).long().clamp(max=cells - 1)
    share = ordered * cells - at
    expected = (below[at] * (1 - share) + below[at + 1] * share) / cells
    ranks = torch.arange(n, dtype=wide) / n
    return float(torch.maximum((expected - ranks).abs(), (expected - ranks - 1 / n).abs()).max())


@every
@pytest.mark.parametrize("stratified", [False, True])
def test_draws_follow_the_density(make: Any, stratified: bool):
    n = 4000
    sampler = make(stratified=stratified)
    off = distance(sampler.draw(5, 1, range(n), n), sampler)
    assert off < (2 / n if stratified else 1.95 / n**0.5)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("kind", [LogNormalTime, UniformLogSNR])
def test_noise_levels_have_their_distribution_whatever_the_schedule(kind: Any, schedule: NoiseSchedule):
    sampler = kind(schedule=schedule, stratified=True)
    n = 2000
    t = sampler.draw(0, 0, range(n), n)
    assert distance(t, sampler) < 3e-3
    logsnr = schedule.logsnr(t).sort().values.flip(0)
    clean, noisy = (float(schedule.logsnr(torch.tensor(end, dtype=wide))) for end in (0.0, 1.0))
    if kind is LogNormalTime:
        # of -logsnr / 2: normal, cut at both ends
        low, high = (0.5 * (1 + math.erf((-end / 2 + 1.2) / (1.2 * 2**0.5))) for end in (clean, noisy))
        share = 0.5 * (1 + torch.erf((-logsnr / 2 + 1.2) / (1.2 * 2**0.5)))
        share = (share - low) / (high - low)
    else:
        clean, noisy = min(clean, 10.0), max(noisy, -10.0)
        share = (clean - logsnr) / (clean - noisy)
    middles = (torch.arange(n, dtype=wide) + 0.5) / n
    # one draw in each of n equally likely parts
    assert ((share - middles).abs() <= 0.5 / n + 1e-9).all()


def test_edms_noise_levels_are_normal_where_the_schedule_does_not_cut():
    sampler = LogNormalTime(schedule=LinearFlow(), stratified=True)
    log_sigma = -LinearFlow().logsnr(sampler.draw(0, 0, range(4000), 4000)) / 2
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.005)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.005)


@given(shift=st.floats(-4, 4))
@settings(max_examples=10)
def test_a_uniform_logsnr_is_uniform_at_every_level(shift: float):
    t = UniformLogSNR(schedule=Cosine(), stratified=True).draw(0, 0, range(200), 200)
    logsnr = Shifted(Cosine(), shift).logsnr(t).sort().values
    even = shift - 10 + 20 * (torch.arange(200, dtype=wide) + 0.5) / 200
    assert ((logsnr - even).abs() <= 0.05 + 1e-6).all()


def test_the_mean_over_uniform_logsnr_is_the_integral_over_it():
    # the continuous loss of VDM, of a stand-in for the error: int f(logsnr) dlogsnr, by either schedule
    def mean(schedule: NoiseSchedule) -> float:
        t = UniformLogSNR(schedule=schedule, stratified=True).draw(0, 0, range(1000), 1000)
        return float(torch.exp(-((schedule.logsnr(t) - 1) ** 2) / 4).mean()) * 20

    for schedule in (Cosine(), LinearFlow(), Sigmoid()):
        assert mean(schedule) == pytest.approx((4 * math.pi) ** 0.5, rel=1e-3)


def test_logit_normal_is_normal_under_logit():
    t = LogitNormalTime(mean=0.7, std=0.5, stratified=True).draw(1, 2, range(4000), 4000)
    assert float(t.logit().mean()) == pytest.approx(0.7, abs=0.003)
    assert float(t.logit().std()) == pytest.approx(0.5, abs=0.003)
    ends = LogitNormalTime().density(torch.tensor([0.0, 1e-300, 1.0], dtype=wide))
    assert ends.tolist() == [0, 0, 0]


def test_extreme_settings_stay_in_range_and_finite():
    grid = torch.linspace(0, 1, 101, dtype=wide)
    for sampler in (
        LogitNormalTime(std=500.0),
        LogitNormalTime(mean=-800.0),
        LogNormalTime(schedule=Cosine(form="continuous"), std=50.0),
        UniformLogSNR(schedule=Cosine(form="continuous"), logsnr_min=-60.0, logsnr_max=60.0),
    ):
        t = sampler.draw(0, 0, range(300), 300)
        assert ((t > 0) & (t <= 1)).all()
        density = sampler.density(grid)
        assert (density.isfinite() & (density >= 0)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormalTime(), r"LogNormalTime draws noise levels: expected schedule="),
        (
            lambda: LogNormalTime(mean=30.0, schedule=CosineLogSNR(form="continuous")),
            r"LogNormalTime lies outside the schedule, whose logsnr runs from 5 to -5; choose it inside",
        ),
        (
            lambda: UniformLogSNR(logsnr_min=6.0, schedule=CosineLogSNR(form="continuous")),
            r"UniformLogSNR lies outside the schedule",
        ),
        (
            lambda: UniformLogSNR(logsnr_min=10.0, schedule=Cosine()),
            r"expected logsnr_min < logsnr_max, got 10.0 and 10.0",
        ),
        (lambda: LogitNormalTime(std=0.0), r"expected std > 0, got 0.0"),
        (lambda: LogNormalTime(std=-1.0, schedule=Cosine()), r"expected std > 0, got -1.0"),
    ],
)
def test_wrong_settings_say_what_was_expected(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_gives_the_schedule_of_level_0():
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = load(
        "mdmkit:quickstart",
        registry=registry,
        sets=['diffusion.time_sampler="lognormal"', 'diffusion.schedule="sigmoid"'],
    )
    sampler = assemble.time_sampler(recipe, registry)
    assert sampler == LogNormalTime(schedule=Shifted(Sigmoid()))


stratified = pytest.mark.parametrize("sampler", [UniformTime(), UniformTime(stratified=True)])


@every
@pytest.mark.parametrize("stratified", [False, True])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40), batch=st.integers(1, 33), data=st.data())
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(
    make: Any, stratified: bool, seed: int, step: int, batch: int, data: st.DataObject
):
    sampler = make(stratified=stratified)
    everything = sampler.draw(seed, step, list(range(batch)), batch)
    part = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
    torch.testing.assert_close(sampler.draw(seed, step, part, batch), everything[part], rtol=0, atol=0)
    assert everything.dtype == wide
    assert ((everything > 0) & (everything <= 1)).all()
    assert isinstance(sampler, TimeSampler)


@stratified
def test_times_are_uniform_and_differ_by_seed_step_and_position(sampler: UniformTime):
    t = torch.stack([sampler.draw(0, step, range(40), 40) for step in range(60)]).numpy()
    assert len(np.unique(t)) == t.size
    # the density is 1: the quantiles of 2400 draws are the numbers themselves, to five standard errors
    assert np.abs(np.quantile(t, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.05
    # also at one place of the batch, so that a level that trains the first rows only misses no times
    assert abs(t[:, 0].mean() - 0.5) < 5 * 0.29 / 60**0.5
    assert (sampler.density(torch.rand(3)) == 1).all()


@every
@settings(max_examples=10)
@given(seed=st.integers(0, 99), batch=st.integers(1, 50))
def test_stratified_draws_have_one_in_each_part(make: Any, seed: int, batch: int):
    sampler: ByQuantile = make(stratified=True)
    t = sampler.draw(seed, 3, range(batch), batch).sort().values
    borders = sampler.quantile(torch.arange(1, batch + 1, dtype=wide) / batch)
    assert (t <= borders * (1 + 1e-9)).all()
    assert (t[1:] >= borders[:-1] * (1 - 1e-9)).all()


def test_stratified_positions_must_be_in_the_batch():
    with pytest.raises(ValueError, match=r"expected positions in a batch of 4, got 0 \.\. 4"):
        UniformTime(stratified=True).draw(0, 0, [0, 4], 4)


def test_times_follow_the_root_of_the_mean_squared_loss_above_a_floor():
    sampler = LossAwareTime(bins=4, floor=0.2, decay=0.5)
    middle = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=wide)
    assert (sampler.density(middle) == 1).all(), "uniform before anything is seen"
    t = middle.repeat(10)
    losses = torch.tensor([1.0, 2.0, 2.0, 3.0]).repeat(10)
    sampler.observe(sampler.tally(t[:-1], losses[:-1]))
    assert (sampler.density(middle) == 1).all(), "one bin has had 9 draws"
    sampler.observe(sampler.tally(t[-1:], losses[-1:]))
    torch.testing.assert_close(sampler.masses(), 0.8 * torch.tensor([1, 2, 2, 3.0], dtype=wide) / 8 + 0.05)
    torch.testing.assert_close(sampler.importance(middle), 0.25 / sampler.masses())
    assert float(sampler.importance(middle).max()) <= 1 / 0.2
    # squares are averaged, and ten draws at weight 2 ** -2 meet 5 new ones; the other bins stay
    before = sampler.masses()
    sampler.observe(sampler.tally(middle[:1].repeat(5), torch.full((5,), 4.0)))
    size = ((10 / 4 * 1 + 5 * 16) / (10 / 4 + 5)) ** 0.5
    expected = torch.tensor([size, 2, 2, 3], dtype=wide)
    torch.testing.assert_close(sampler.masses(), 0.8 * expected / expected.sum() + 0.05)
    assert not torch.equal(before, sampler.masses())


def test_weighted_back_the_loss_is_that_of_uniform_times_with_less_noise():
    def loss(t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-8 * t)

    sampler, n = LossAwareTime(bins=32), 512
    for step in range(40):
        t = sampler.draw(0, step, range(n), n)
        sampler.observe(sampler.tally(t, loss(t)))
    aware, uniform = [], []
    for step in range(40, 140):
        t = sampler.draw(0, step, range(n), n)
        aware.append(float((loss(t) * sampler.importance(t)).mean()))
        uniform.append(float(loss(UniformTime().draw(0, step, range(n), n)).mean()))
    true = (1 - math.exp(-8)) / 8
    assert np.mean(aware) == pytest.approx(true, abs=float(4 * np.std(uniform) / 10))
    assert np.std(aware) < np.std(uniform) / 3


def test_what_was_seen_comes_back_and_only_of_the_same_bins():
    first, second = taught(), LossAwareTime(bins=12)
    second.load_state_dict({name: x.clone() for name, x in first.state_dict().items()})
    torch.testing.assert_close(second.draw(0, 1, range(9), 9), first.draw(0, 1, range(9), 9), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^expected mean, weight, draws of 4 bins, got mean \(12,\)"):
        LossAwareTime(bins=4).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="expected bins >= 1, 0 < floor <= 1 and 0 <= decay < 1, got bins=4"):
        LossAwareTime(bins=4, floor=0.0)
