from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.diffusion import Diffusion, NoiseLevel, signal_scales
from mdmkit.pyramid import pyramid
from mdmkit.schedules import Cosine, LinearFlow, shift_levels

SIZES = [4, 8, 16]
diffusion = Diffusion(shift_levels(Cosine(), SIZES, shift_power=2), prediction="v")
times = st.floats(0, 1)


@given(t=times)
def test_the_noise_level_is_the_schedules_in_float64(t: float):
    at = diffusion.at(t)
    assert at.t == t
    for level, schedule in enumerate(diffusion.schedules):
        alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        assert (at.alpha[level], at.sigma[level]) == (alpha.item(), sigma.item())
        if t > 0:
            logsnr = schedule.logsnr(torch.tensor(t, dtype=torch.float64)).item()
            assert at.logsnr[level] == pytest.approx(logsnr, abs=1e-9)


def test_ends():
    assert diffusion.at(0.0) == NoiseLevel(t=0.0, alpha=(1, 1, 1), sigma=(0, 0, 0))
    assert diffusion.at(0.0).logsnr == (math.inf,) * 3
    assert NoiseLevel(t=1.0, alpha=(0.0,), sigma=(1.0,)).logsnr == (-math.inf,)
    assert diffusion.levels == 3


@given(seed=st.integers(0, 99), rows=st.tuples(st.integers(1, 3), st.integers(0, 3)), narrow=st.booleans())
def test_noisy_mixes_each_row_by_its_own_time(seed: int, rows: tuple[int, int], narrow: bool):
    generator = torch.Generator().manual_seed(seed)
    counts = (3, rows[0], min(rows))
    dtype = torch.float32 if narrow else torch.float64
    x0 = pyramid(torch.randn(3, 3, 16, 16, generator=generator, dtype=dtype), SIZES, rows=counts)
    eps = tuple(torch.randn(level.shape, generator=generator, dtype=dtype) for level in x0)
    t = torch.rand(3, generator=generator, dtype=torch.float64)
    noisy = diffusion.noisy(x0, eps, t)
    for level, z in enumerate(noisy):
        assert z.dtype == dtype
        assert z.shape == x0[level].shape
        for row in range(counts[level]):
            at = diffusion.at(t[row].item())
            expected = at.alpha[level] * x0[level][row] + at.sigma[level] * eps[level][row]
            torch.testing.assert_close(z[row], expected, rtol=1e-6, atol=1e-6)
    # a level more disturbs no level below
    for inner, same in zip(diffusion.noisy(x0[:2], eps[:2], t), noisy[:2], strict=True):
        assert torch.equal(inner, same)


def test_clips_have_a_frame_axis_and_power_two_pools_noise_with_picture():
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    assert diffusion.alpha_sigma(t, 1, like=torch.zeros(2, 3, 4, 8, 8))[0].shape == (2, 1, 1, 1, 1)
    assert diffusion.alpha_sigma(t, 1)[0].shape == (2,)
    # pooling divides the deviation of the noise by the ratio: the pooled high level has the low one's SNR
    torch.testing.assert_close(diffusion.logsnr(t, 2) + 2 * math.log(4), diffusion.logsnr(t, 0))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown prediction 'noise'; expected one of x0, eps, v, flow"):
        Diffusion(diffusion.schedules, prediction="noise")
    with pytest.raises(ValueError, match="expected one schedule a level, got none"):
        Diffusion(())
    with pytest.raises(ValueError, match="longer"):
        diffusion.noisy((torch.zeros(1, 3, 4, 4),) * 2, (torch.zeros(1, 3, 4, 4),) * 3, torch.rand(1))
    assert Diffusion([LinearFlow()]).schedules == (LinearFlow(),)  # pyright: ignore


@given(
    scale=st.floats(0.1, 2),
    power=st.floats(0, 2),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_scales_go_there_and_back(scale: float, power: float, sides: tuple[int, int], seed: int):
    sizes = [(2, 3), (2 * sides[0], 3 * sides[1])]
    scales = signal_scales(sizes, scale=scale, power=power) or (1.0, 1.0)
    assert scales[0] == scale
    assert scales[1] == pytest.approx(scale / (sides[0] * sides[1]) ** (power / 2))
    process = Diffusion(shift_levels(Cosine(), sizes), scales=scales)
    x = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed)) for size in sizes]
    scaled = process.scaled(x)
    for level in range(2):
        assert torch.equal(scaled[level], x[level] * scales[level])
        torch.testing.assert_close(process.pictures(scaled)[level], x[level])
    # a level more scales none below, and the inner levels alone are scaled alike
    assert torch.equal(process.scaled(x[:1])[0], scaled[0])


def test_without_scales_pictures_stay_themselves():
    assert signal_scales([16, 64], power=0.0) is None
    assert signal_scales([16, 64], power=1.0) == (1.0, 0.25)
    x = [torch.ones(1, 3, 4, 4)]
    assert diffusion.scaled(x)[0] is x[0]
    assert diffusion.pictures(x)[0] is x[0]
    for wrong in ((1.0, 0.5), (1.0, 0.5, 0.0)):
        with pytest.raises(ValueError, match="expected a scale > 0 for each of 3 levels, got"):
            Diffusion(diffusion.schedules, scales=wrong)
