from __future__ import annotations

import importlib
import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mdmkit import schedules
from mdmkit.schedules import (
    DDPM,
    EDM,
    LOGSNR_LIMIT,
    Cosine,
    CosineLogSNR,
    Interpolated,
    Laplace,
    LinearFlow,
    NoiseSchedule,
    Shifted,
    Sigmoid,
    ZeroTerminal,
    level_shift,
    shift_levels,
    time_at,
)
from mdmkit.torchvision_ops import declare
from tests.golden import golden_case

ALL = {
    "cosine": Cosine(),
    "cosine continuous": Cosine(form="continuous"),
    "cosine short": Cosine(steps=20),
    "ddpm": DDPM(),
    "cosine_logsnr": CosineLogSNR(),
    "cosine_logsnr continuous": CosineLogSNR(form="continuous"),
    "sigmoid": Sigmoid(),
    "sigmoid steep": Sigmoid(start=0.0, end=3.0, tau=0.3),
    "edm": EDM(),
    "edm narrow": EDM(sigma_min=0.01, sigma_max=10.0, rho=1.0),
    "interpolated": Interpolated(),
    "interpolated wide": Interpolated(low=0.1, high=2.0),
    "laplace": Laplace(),
    "laplace wide": Laplace(mean=-2.0, scale=2.0),
    "zero_terminal": ZeroTerminal(),
    "zero_terminal cosine_logsnr": ZeroTerminal(CosineLogSNR(form="continuous")),
    "linear_flow": LinearFlow(),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
inside = grid[1:-1]
shifts = st.floats(-12, 4)


@every
def test_logsnr_is_finite_and_falls(schedule: NoiseSchedule):
    logsnr = schedule.logsnr(grid)
    assert logsnr.isfinite().all()
    assert (logsnr.diff() < 0).all()
    assert logsnr.abs().max() <= LOGSNR_LIMIT
    assert isinstance(schedule, NoiseSchedule)


@every
@given(shift=shifts)
def test_t_zero_is_data_and_t_one_is_not_only_noise(schedule: NoiseSchedule, shift: float):
    moved = Shifted(schedule, shift)
    for each in (schedule, moved):
        alpha, sigma = each.alpha_sigma(torch.tensor([0.0, 1.0]))
        assert (alpha[0], sigma[0]) == (1, 0)
        assert alpha[1] > 0


@every
@given(shift=shifts)
def test_scales_have_the_logsnr_that_they_are_said_to_have(schedule: NoiseSchedule, shift: float):
    moved = Shifted(schedule, shift)
    alpha, sigma = moved.alpha_sigma(inside)
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), moved.logsnr(inside), rtol=1e-12, atol=1e-12)
    norm = alpha + sigma if schedule == LinearFlow() else alpha**2 + sigma**2
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-14, atol=0)


@every
@given(shift=shifts)
def test_a_shift_is_a_constant(schedule: NoiseSchedule, shift: float):
    difference = Shifted(schedule, shift).logsnr(grid) - schedule.logsnr(grid)
    torch.testing.assert_close(difference, torch.full_like(grid, shift), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        Shifted(schedule, 0.0).alpha_sigma(grid), schedule.alpha_sigma(grid), rtol=0, atol=0
    )


@every
def test_float32_keeps_its_digits_at_both_ends(schedule: NoiseSchedule):
    t = torch.cat([torch.logspace(-4, -1, 50), 1 - torch.logspace(-4, -1, 50)])
    narrow = torch.stack(schedule.alpha_sigma(t))
    wide = torch.stack(schedule.alpha_sigma(t.double()))
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-4, atol=0)
    assert narrow.dtype == torch.float32


def test_table_and_formula_of_the_squared_cosine_agree_but_for_the_cap():
    table, formula = Cosine().logsnr(grid), Cosine(form="continuous").logsnr(grid)
    torch.testing.assert_close(table[:-1], formula[:-1], rtol=1e-9, atol=1e-9)
    assert table[-1].item() == pytest.approx(-19.8359, abs=1e-4)
    assert formula[-1] == -LOGSNR_LIMIT


def test_continuous_formulas_are_the_papers():
    cosine = (
        torch.cos((inside + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    torch.testing.assert_close(Cosine(form="continuous").alpha_sigma(inside)[0] ** 2, cosine)
    x = torch.sigmoid(-3 + 6 * inside)
    bounds = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(
        Sigmoid().alpha_sigma(inside)[0] ** 2, (bounds[1] - x) / (bounds[1] - bounds[0])
    )
    torch.testing.assert_close(LinearFlow().alpha_sigma(grid)[1], grid, rtol=1e-12, atol=5e-5)
    torch.testing.assert_close(LinearFlow().alpha_sigma(inside)[1], inside, rtol=1e-14, atol=0)
    ends = CosineLogSNR(logsnr_max=7, logsnr_min=-3, form="continuous").logsnr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([7.0, -3.0]), rtol=1e-5, atol=0)


def test_a_shifted_flow_is_the_time_shift_of_stable_diffusion_3():
    ratio = 4.0
    sigma = shift_levels(LinearFlow(), [16, 64], shift_power=2)[1].alpha_sigma(inside)[1]
    torch.testing.assert_close(sigma, ratio * inside / (1 + (ratio - 1) * inside), rtol=1e-12, atol=0)


def test_tables_interpolate_between_their_entries():
    middle = Cosine().logsnr((grid[1:-1] + grid[2:]) / 2)
    entries = Cosine().logsnr(grid[1:])
    torch.testing.assert_close(middle, (entries[1:] + entries[:-1]) / 2, rtol=1e-10, atol=1e-10)


@given(
    base=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    ratios=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    power=st.floats(0, 3),
)
def test_levels_are_anchored_at_the_lowest(
    base: tuple[int, int], ratios: list[tuple[int, int]], power: float
):
    sizes = [base]
    for h, w in ratios:
        sizes.append((sizes[-1][0] * h, sizes[-1][1] * w))
    levels = shift_levels(Cosine(), sizes, shift_power=power)
    assert levels[0].shift == 0
    assert shift_levels(Cosine(), sizes[:-1], shift_power=power) == levels[:-1]
    steps = [level_shift(high, low, shift_power=power) for low, high in pairwise(sizes)]
    assert levels[-1].shift == pytest.approx(math.fsum(steps), abs=1e-12)


def test_the_shift_in_numbers():
    assert level_shift(256, 64, shift_power=1) == pytest.approx(-1.386, abs=1e-3)
    assert level_shift(256, 64, shift_power=2) == pytest.approx(-2.773, abs=1e-3)
    assert level_shift((1024, 1024), 64, shift_power=2) == pytest.approx(-5.545, abs=1e-3)
    assert level_shift((16, 64, 64), (1, 64, 64)) == pytest.approx(-math.log(16))
    assert level_shift((16, 64, 64), (1, 64, 64), shift_power_frames=0) == 0
    with pytest.raises(ValueError, match="only one of them has frames"):
        level_shift((16, 64, 64), 64)


@pytest.fixture(scope="module")
def diffusers() -> Any:
    """The schedulers of diffusers."""
    declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs: of what they import
        return pytest.importorskip("diffusers.schedulers", exc_type=ImportError)


def test_karras_levels_are_those_of_diffusers(diffusers: Any):
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0, rho=5.0)
    theirs.set_timesteps(101)
    alpha, sigma = EDM(sigma_min=0.01, sigma_max=20.0, rho=5.0).alpha_sigma(grid[10::10].flip(0))
    # the 101st is t = 0, clean here
    torch.testing.assert_close(sigma / alpha, theirs.sigmas[:100].double(), rtol=1e-5, atol=0)
    assert EDM().logsnr(grid[[0, -1]]).exp().rsqrt().tolist() == pytest.approx([0.002, 80.0])


def test_interpolated_runs_from_the_shift_of_one_side_to_that_of_another():
    def shifted(noise_d: float, image_d: float) -> torch.Tensor:
        b = math.atan(math.exp(-7.5))
        a = math.atan(math.exp(7.5)) - b
        return -2 * torch.tan(a * grid + b).log() + 2 * math.log(noise_d / image_d)

    at_noise, at_data = shifted(32, 128), shifted(256, 128)
    expected = (grid * at_noise + (1 - grid) * at_data).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)
    torch.testing.assert_close(Interpolated(low=0.25, high=2.0).logsnr(grid), expected)
    plain = CosineLogSNR(logsnr_max=15, logsnr_min=-15, form="continuous")
    same = Interpolated(low=0.5, high=0.5).logsnr(grid), Shifted(plain, 2 * math.log(0.5)).logsnr(grid)
    torch.testing.assert_close(*same)


def test_a_zero_terminal_table_is_that_of_diffusers(diffusers: Any):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    rescale = importlib.import_module(diffusers.DDIMScheduler.__module__).rescale_zero_terminal_snr
    theirs = torch.cumprod(1 - rescale(betas), 0).sqrt()
    alpha, sigma = ZeroTerminal(DDPM()).alpha_sigma(grid[1:])
    # theirs keeps index 1 and ours index 0, which are (1 - alpha_1) alpha_T apart
    torch.testing.assert_close(alpha[:-1], theirs[:-1], rtol=0, atol=4e-7)
    assert theirs[-1] == 0
    assert 2 * float(alpha[-1].log() - sigma[-1].log()) == pytest.approx(-LOGSNR_LIMIT)
    for schedule in (DDPM(), CosineLogSNR(form="continuous")):
        kept, before = (each.logsnr(grid[:1]) for each in (ZeroTerminal(schedule), schedule))
        torch.testing.assert_close(kept, before, rtol=0, atol=1e-6)


def test_what_ends_at_the_cut_off_is_hardly_changed_by_zero_terminal():
    schedule = Cosine(form="continuous")
    before, after = (each.alpha_sigma(grid)[0] for each in (schedule, ZeroTerminal(schedule)))
    torch.testing.assert_close(after, before, rtol=0, atol=5e-5)


def test_wrong_settings_say_what_was_expected():
    with pytest.raises(ValueError, match="expected form 'table' or 'continuous', got 'tabel'"):
        Cosine(form="tabel")
    with pytest.raises(ValueError, match="expected logsnr_min < logsnr_max"):
        CosineLogSNR(logsnr_max=-6.0)
    with pytest.raises(ValueError, match="expected start < end"):
        Sigmoid(start=4.0)
    with pytest.raises(ValueError, match=r"expected 0 < sigma_min < sigma_max, got 2.0 and 1.0"):
        EDM(sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"expected rho > 0, got 0.0"):
        EDM(rho=0.0)
    with pytest.raises(ValueError, match=r"expected 0 < low <= high, got 2.0 and 1.0"):
        Interpolated(low=2.0)
    with pytest.raises(ValueError, match=r"expected logsnr_min < logsnr_max, got -15.0 and -16.0"):
        Interpolated(logsnr_max=-16.0)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "schedule"), [("COSINE", CosineLogSNR()), ("DDPM", DDPM()), ("DEEPFLOYD", Cosine())]
)
def test_released_tables(name: str, schedule: NoiseSchedule):
    recorded = load_file(golden_case("schedules") / "schedules.safetensors")
    alpha, sigma = schedule.alpha_sigma(grid)
    torch.testing.assert_close(alpha**2, recorded[f"{name}.gammas_f64"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma**2, 1 - recorded[f"{name}.gammas_f64"], rtol=0, atol=1e-12)
    assert (alpha[0], sigma[0]) == (1, 0)
    for power in (1, 2):
        for scale in (4, 16):
            # recorded in float32 only, and computed there from 1 - gamma: good to 1e-5 near t = 0
            shifted = shift_levels(schedule, [8, 8 * scale], shift_power=power)[1].alpha_sigma(grid)[0] ** 2
            floor = recorded[f"{name}.shifted.power{power}.scale{scale}"].double()
            torch.testing.assert_close(shifted, floor, rtol=0, atol=1e-5)
            # where 1 - gamma has its digits, to float32's own precision
            torch.testing.assert_close(shifted[300:], floor[300:], rtol=0, atol=2e-7)
    # what a VDM weight is made of: how fast logsnr falls from one entry to the next (float32 there)
    weights = torch.expm1(-schedule.logsnr(grid).diff())[1:]
    recorded_weights = recorded[f"{name}.vdm_loss_weights"][2:].double()
    torch.testing.assert_close(weights[300:], recorded_weights[300:], rtol=1e-4, atol=1e-6)


def test_only_numbers_are_cached():
    assert schedules.cosine_table(1000) is schedules.cosine_table(1000)
    assert schedules.cosine_table(10).shape == (11,)


@every
@given(t=st.floats(0.001, 0.999))
def test_the_time_of_a_logsnr_is_found_again(schedule: NoiseSchedule, t: float):
    asked = schedule.logsnr(torch.tensor([t], dtype=torch.float64))
    found = time_at(schedule, asked)
    torch.testing.assert_close(schedule.logsnr(found), asked, rtol=1e-9, atol=1e-9)
    ends = time_at(schedule, torch.tensor([LOGSNR_LIMIT + 1, -LOGSNR_LIMIT - 1], dtype=torch.float64))
    assert ends.tolist() == [0, 1]


@given(mean=st.floats(-3, 3), scale=st.floats(0.1, 2), t=st.floats(1e-4, 1 - 1e-4))
def test_uniform_times_have_the_laplace_density_over_logsnr(mean: float, scale: float, t: float):
    logsnr = Laplace(mean=mean, scale=scale).logsnr(torch.tensor(t, dtype=torch.float64))
    where, width = torch.tensor([mean, scale], dtype=torch.float64)
    density = torch.distributions.Laplace(where, width)
    assert density.cdf(logsnr).item() == pytest.approx(1 - t, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": math.nan}, {"mean": 20.0}, {"mean": math.nan}])
def test_a_density_that_is_none_or_out_of_reach_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"expected scale > 0 and mean between -20 and 20, got scale="):
        Laplace(**wrong)
