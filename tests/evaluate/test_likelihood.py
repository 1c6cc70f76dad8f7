"""The bound against the likelihood of Gaussian data, which the ideal denoiser reaches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.evaluate.likelihood import Likelihood, bound, midpoints, prior_nats, reading_nats, terms
from mdmkit.pyramid import pyramid
from mdmkit.schedules import (
    EDM,
    Cosine,
    CosineLogSNR,
    Laplace,
    LinearFlow,
    NoiseSchedule,
    shift_levels,
    time_at,
)
from tests.sampling.ideal import Gaussian, Perfect, Related

STEP = 2 / 255
SIZES = [(2, 3), (4, 6)]


def eight_bit(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def gaussian_pictures(mean: float, std: float, count: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)
    return eight_bit(mean + std * noise.clamp(-3, 3))


def nats_of(x: Tensor, mean: float, std: float) -> Tensor:
    """-ln P of 8-bit pixels that round independent Gaussian ones, (B,)."""
    density = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(std).double())
    return -(density.log_prob(x) + math.log(STEP)).flatten(1).sum(1)


def per_pixel(nats: Tensor, x: Tensor) -> float:
    return nats.sum().item() / x.numel()


@pytest.mark.parametrize(
    "schedule",
    [Cosine(), EDM(), LinearFlow(), Laplace(scale=2.0)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_with_the_ideal_denoiser_the_bound_is_the_likelihood(schedule: NoiseSchedule) -> None:
    mean, std = 0.1, 0.2
    x = gaussian_pictures(mean, std, 64, (4, 6))
    ideal, diffusion = Gaussian(mean, std), Diffusion([schedule])
    got = bound(terms(ideal, diffusion, [x], positions=range(64), draws=200, logsnr_max=11.0))
    assert per_pixel(got, x) == pytest.approx(per_pixel(nats_of(x, mean, std), x), abs=0.03)


def test_sixteen_draws_are_right_whatever_their_noise() -> None:
    x = gaussian_pictures(0.0, 0.3, 8, (4, 6))
    ideal, diffusion = Gaussian(0.0, 0.3), Diffusion([Cosine()])
    off = []
    for seed in range(40):
        nats = bound(terms(ideal, diffusion, [x], positions=range(8), draws=16, seed=seed, logsnr_max=10.0))
        off.append(per_pixel(nats, x) - per_pixel(nats_of(x, 0.0, 0.3), x))
    found = torch.tensor(off)
    assert found.mean().abs() < 3 * found.std() / 40**0.5 < 0.1


@pytest.mark.parametrize("std", [0.02, 0.2])
def test_middles_of_parts_integrate_what_a_pixel_gives(std: float) -> None:
    """Of N(0, std^2) the mean of |eps - eps(z)|^2 is SNR std^2 / (1 + SNR std^2), with a closed integral."""
    diffusion = Diffusion(shift_levels(Cosine(), [16, 32]))
    last = time_at(diffusion.schedules[1], torch.tensor(12.0)).item()
    times, widths = midpoints(diffusion, last, levels=2, draws=16)
    for level in range(2):
        told = diffusion.logsnr(times, level).exp() * std**2
        got = (told / (1 + told) * widths[level]).sum() / 2
        ends = diffusion.logsnr(torch.tensor([last, 1.0], dtype=torch.float64), level).exp() * std**2
        truth = -torch.log1p(ends).diff().item() / 2
        assert got.item() / math.log(2) == pytest.approx(truth / math.log(2), abs=0.003)


def test_a_denoiser_that_knows_less_pays_what_its_belief_says() -> None:
    x = gaussian_pictures(0.0, 0.2, 64, (4, 6))
    wider, diffusion = Gaussian(0.0, 0.4), Diffusion([Cosine()])
    got = bound(terms(wider, diffusion, [x], positions=range(64), draws=200, logsnr_max=11.0))
    assert per_pixel(got, x) == pytest.approx(per_pixel(nats_of(x, 0.0, 0.4), x), abs=0.03)


def related() -> tuple[Tensor, Tensor, Tensor]:
    """Covariance of pictures of one channel whose neighbours are alike, some of them, and their -ln P."""
    height, width = SIZES[-1]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    near = torch.exp(-torch.cdist(place, place).square() / 4)
    cov = 0.09 * near + 0.004 * torch.eye(len(near), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(96, len(cov), generator=generator, dtype=torch.float64)
    flat = eight_bit(white @ torch.linalg.cholesky(cov).T)
    density = torch.distributions.MultivariateNormal(torch.zeros(len(cov), dtype=torch.float64), cov)
    nats = -(density.log_prob(flat) + len(cov) * math.log(STEP))
    return cov, flat.view(-1, 1, height, width), nats


def unread(diffusion: Diffusion, logsnr_max: float) -> float:
    """What it costs, a pixel of the top level, that reading it looks at its own noisy picture alone."""
    end = diffusion.at(time_at(diffusion.schedules[1], torch.tensor(logsnr_max)).item())
    ratio = math.prod(SIZES[1]) / math.prod(SIZES[0])
    snr = zip(diffusion.scales or (1, 1), end.logsnr, strict=True)
    low, high = (scale**2 * math.exp(logsnr) for scale, logsnr in snr)
    return math.log1p(low / (ratio * high)) / 2 / ratio


@pytest.mark.parametrize(
    ("shift_power", "scales", "logsnr_max"), [(2.0, None, 10.0), (0.0, (1.0, 0.5), 11.4)]
)
def test_a_nests_bound_is_the_likelihood_of_its_top_level(
    shift_power: float, scales: tuple[float, ...] | None, logsnr_max: float
) -> None:
    """Noisy pictures of the levels below are paid for, and what they tell comes back."""
    cov, x, nats = related()
    ideal = Related(cov, SIZES, scales)
    diffusion = Diffusion(shift_levels(Cosine(), SIZES, shift_power=shift_power), scales=scales)
    got = terms(
        ideal, diffusion, pyramid(x, SIZES), positions=range(len(x)), draws=250, logsnr_max=logsnr_max
    )
    expected = per_pixel(nats, x) + unread(diffusion, logsnr_max)
    assert per_pixel(bound(got), x) == pytest.approx(expected, abs=0.045)
    # a level by itself is told by the others: the docstring's warning is real
    own = (got.prior + got.diffusion + got.reading).mean(1)
    assert own[0] < 0.8 * nats_below(ideal, x)
    assert own[1] < 0.95 * nats.mean()


def nats_below(ideal: Related, x: Tensor) -> Tensor:
    """-ln P of level 0, as far as its pictures were rounded to 8 bits."""
    low = pyramid(x, SIZES)[0].flatten(1)
    cov = ideal.covariance(1) / (ideal.scales or (1.0,))[0] ** 2
    density = torch.distributions.MultivariateNormal(torch.zeros(len(cov), dtype=torch.float64), cov)
    return -(density.log_prob(low) + len(cov) * math.log(STEP)).mean()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    cov, x, _ = related()
    ideal, diffusion = Related(cov, SIZES), Diffusion(shift_levels(Cosine(), SIZES))
    whole = terms(ideal, diffusion, pyramid(x[:6], SIZES), positions=range(6), draws=3)
    part = terms(ideal, diffusion, pyramid(x[2:4], SIZES), positions=[2, 3], draws=3)
    other = terms(ideal, diffusion, pyramid(x[:6], SIZES), positions=range(6), draws=3, seed=1)
    for all_rows, rows in zip(whole, part, strict=True):
        torch.testing.assert_close(all_rows[:, 2:4], rows)
    assert not torch.equal(whole.diffusion, other.diffusion)


def test_parts_are_as_wide_as_the_levels_whole_range() -> None:
    diffusion = Diffusion(shift_levels(Laplace(), [16, 64], shift_power=2.0))
    times, widths = midpoints(diffusion, 0.001, levels=2, draws=7)
    ends = torch.tensor([0.001, 1.0], dtype=torch.float64)
    for level in range(2):
        logsnr = diffusion.logsnr(ends, level)
        assert widths[level].sum().item() == pytest.approx((logsnr[0] - logsnr[1]).item())
        torch.testing.assert_close(widths[level], widths[level].mean().expand(7), rtol=0.2, atol=0)
    assert (times.diff() > 0).all()
    assert times[0] >= 0.001
    assert times[-1] <= 1


def test_the_prior_is_the_divergence_from_standard_noise() -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 3, 2, 2)
    alpha, sigma = Cosine().alpha_sigma_at(torch.tensor(-1.5, dtype=torch.float64))
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(alpha * x, sigma), normal(0 * x, 1.0))
    torch.testing.assert_close(prior_nats(x, -1.5), truth.flatten(1).sum(1))


def test_pixels_are_read_with_the_probability_of_256_values() -> None:
    x = eight_bit(torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1)
    clear = reading_nats(x, 0.9 * x, 0.9, 1e-4)
    torch.testing.assert_close(clear, torch.zeros_like(clear), rtol=0, atol=1e-9)
    blind = reading_nats(x, torch.zeros_like(x), 1e-9, 1.0)
    torch.testing.assert_close(blind, torch.full_like(blind, 12 * math.log(256)))


def test_a_schedule_that_ends_before_logsnr_max_is_read_where_it_ends() -> None:
    x = gaussian_pictures(0.0, 0.2, 128, (4, 6))
    diffusion = Diffusion([CosineLogSNR(form="continuous")])  # up to 5: a noise of ten steps
    got = terms(Gaussian(0.0, 0.2), diffusion, [x], positions=range(128), draws=200)
    # what the model knows of pixels is not used in reading them: ln(1 + noise^2 / std^2) / 2
    expected = per_pixel(nats_of(x, 0.0, 0.2), x) + math.log1p(math.exp(-5) / 0.2**2) / 2
    assert per_pixel(bound(got), x) == pytest.approx(expected, abs=0.03)
    assert per_pixel(got.reading, x) > 1


def test_a_perfect_denoiser_pays_nothing_for_the_way() -> None:
    _, x, _ = related()
    levels = pyramid(x[:4], SIZES)
    got = terms(Perfect(levels), Diffusion(shift_levels(Cosine(), SIZES)), levels, positions=range(4))
    assert got.diffusion.abs().max() < 1e-9


def test_the_metric_gives_bits_by_level_whatever_the_batches() -> None:
    cov, x, nats = related()
    ideal, diffusion = Related(cov, SIZES), Diffusion(shift_levels(Cosine(), SIZES))
    levels = pyramid(x, SIZES)
    metrics = [Likelihood(draws=24), Likelihood(draws=24)]
    for metric, parts in zip(metrics, ([slice(0, 96)], [slice(0, 5), slice(5, 96)]), strict=True):
        for rows in parts:
            metric.examine(ideal, diffusion, [level[rows] for level in levels], range(96)[rows])
    whole, parts = (metric.result() for metric in metrics)
    assert whole == pytest.approx(parts)
    expected = per_pixel(nats, x) + unread(diffusion, 12.0)
    assert whole["bits.1"] == pytest.approx(expected / math.log(2), abs=0.25)
    assert whole["bits.0"] > whole["given.0"], "level 1 tells level 0 what it is"
    assert whole["pictures"] == 96


@pytest.mark.parametrize(
    ("wrong", "line"),
    [({"draws": 0}, "expected draws >= 1, got 0"),
     ({"positions": [0]}, "expected a position for each of 2 pictures, got 1")],
)  # fmt: skip
def test_wrong_input_is_said(wrong: dict[str, object], line: str) -> None:
    x = torch.zeros(2, 1, *SIZES[-1], dtype=torch.float64)
    given = {"positions": range(2), **wrong}
    with pytest.raises(ValueError, match=line):
        terms(Gaussian(0, 1), Diffusion([Cosine()]), [x], **given)  # type: ignore[arg-type]


def test_no_pictures_have_no_likelihood() -> None:
    with pytest.raises(ValueError, match="expected pictures, came none"):
        Likelihood().result()
    with pytest.raises(ValueError, match="expected draws >= 1, got 0"):
        Likelihood(draws=0)
