"""What levels know, against what can be known of Gaussian pictures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.evaluate.inspection import Inspection, Knowledge
from mdmkit.pyramid import pyramid
from mdmkit.sampling import Denoise
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.targets import mse
from mdmkit.weighting import Uniform
from tests.sampling.ideal import Gaussian, Perfect, Related

SIZES = [(2, 3), (4, 6)]
TIMES = (0.1, 0.5, 0.8)


def related() -> Tensor:
    """Covariance of pictures of 4 x 6 whose neighbours are alike."""
    place = torch.cartesian_prod(torch.arange(4), torch.arange(6)).double()
    near = torch.exp(-torch.cdist(place, place).square() / 4)
    return 0.09 * near + 0.01 * torch.eye(24, dtype=torch.float64)


def looked(
    denoise: Denoise,
    x: Tensor,
    diffusion: Diffusion,
    parts: Sequence[slice] = (slice(None),),
    loss_space: str = "x0",
    **given: bool,
) -> Knowledge:
    inspection = Inspection(
        TIMES, loss_space=loss_space, pixel_loss=mse, weighting=Uniform(), **given
    )  # fmt: skip
    for rows in parts:
        inspection.examine(denoise, diffusion, pyramid(x[rows], SIZES), range(len(x))[rows])
    return inspection.result()


def explained(cov: Tensor, seen: Tensor, noise: Tensor, target: Tensor) -> float:
    """The share of the variance of `target x` that is known from `seen x` in noise of these variances."""
    told = target @ cov @ seen.T
    known = told @ torch.linalg.solve(seen @ cov @ seen.T + torch.diag(noise), told.T)
    return float(known.trace() / (target @ cov @ target.T).trace())


@pytest.mark.parametrize("scales", [None, (1.0, 0.5)])
def test_an_ideal_denoiser_explains_what_can_be_known(scales: tuple[float, ...] | None) -> None:
    cov, diffusion = related(), Diffusion(shift_levels(Cosine(), SIZES, shift_power=1.0), scales=scales)
    white = torch.randn(2000, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (white @ torch.linalg.cholesky(cov).T).view(-1, 1, 4, 6)
    got = looked(Related(cov, SIZES, scales), x, diffusion)
    high = torch.eye(24, dtype=torch.float64)
    low = pyramid(high.view(-1, 1, 4, 6), SIZES)[0].flatten(1).T
    enlarged = torch.nn.functional.interpolate(low.T.view(-1, 1, 2, 3), scale_factor=2.0).flatten(1).T
    for i, t in enumerate(TIMES):
        # noise of the pictures themselves, whatever they are multiplied by
        n_low, n_high = (
            (sigma / (alpha * scale)) ** 2
            for alpha, sigma, scale in zip(
                diffusion.at(t).alpha, diffusion.at(t).sigma, scales or (1, 1), strict=True
            )
        )
        both = torch.cat([torch.full((6,), n_low), torch.full((24,), n_high)]).double()
        alone, seen = both[:6], torch.cat([low, high])
        truth = {
            ("whole", 0): explained(cov, seen, both, low),
            ("whole", 1): explained(cov, seen, both, high),
            ("inner", 0): explained(cov, low, alone, low),
            ("inner", 1): explained(cov, seen, both, high),
            ("pixel", 1): 0.1 / (0.1 + n_high),
        }
        for (name, level), share in truth.items():
            assert float(getattr(got, name)[level, i]) == pytest.approx(share, abs=0.02), (name, level, t)
        # the enlarged average, less what is not known of it, of the whole
        spread = float((enlarged @ cov @ enlarged.T).trace() / cov.trace())
        assert float(got.below[1, i]) == pytest.approx(spread * truth["inner", 0], abs=0.02)
        assert got.below[0].isnan().all()


def test_the_loss_is_what_is_not_explained() -> None:
    x = 0.3 * torch.randn(500, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = looked(Gaussian(0.0, 0.3), x, Diffusion(shift_levels(Cosine(), SIZES)))
    variance = torch.stack([level.var() for level in pyramid(x, SIZES)])[:, None]
    torch.testing.assert_close(got.loss, (1 - got.whole) * variance, rtol=0.01, atol=0)
    # with independent pixels there is no more to know than a pixel tells
    torch.testing.assert_close(got.whole[1], got.pixel[1], rtol=0, atol=0.01)


@pytest.mark.parametrize("space", ["x0", "eps", "v", "flow"])
def test_a_perfect_denoiser_explains_all_and_has_no_loss(space: str) -> None:
    x = torch.rand(6, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    got = looked(Perfect(pyramid(x, SIZES)), x, Diffusion(shift_levels(Cosine(), SIZES)), loss_space=space)
    torch.testing.assert_close(got.whole, torch.ones_like(got.whole))
    assert got.loss.abs().max() < 1e-12


def test_batches_change_nothing() -> None:
    x = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    diffusion = Diffusion(shift_levels(Cosine(), SIZES))
    whole = looked(Gaussian(0.0, 0.5), x, diffusion)
    parts = looked(Gaussian(0.0, 0.5), x, diffusion, [slice(0, 2), slice(2, 5)])
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_grids_of_frames_are_not_enlarged() -> None:
    x = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    x[0] = 1
    got = looked(Gaussian(0.0, 0.5), x, Diffusion(shift_levels(Cosine(), SIZES)), enlarge=False)
    assert got.below.isnan().all()
    assert got.whole.isfinite().all()


def test_without_pictures_nothing_is_said() -> None:
    with pytest.raises(ValueError, match="expected pictures, came none"):
        Inspection(TIMES, loss_space="v", pixel_loss=mse, weighting=Uniform()).result()
