from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import Pyramid
from mdmkit.sampling import (
    Denoised,
    Denoiser,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    euler,
    euler_ancestral,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    lms,
    thresholded,
    unipc,
)
from mdmkit.sampling import threshold as thresholds
from mdmkit.sampling.rules import Rule
from mdmkit.schedules import DDPM, Cosine, CosineLogSNR, LinearFlow, Sigmoid, shift_levels
from tests.golden import golden_case
from tests.sampling.ideal import Gaussian, Perfect, with_eps

RULES: dict[str, Rule] = {
    "ddim": ddim,
    "ddim eta 0.3": partial(ddim, eta=0.3),
    "ddim eta 1": partial(ddim, eta=1.0),
    "ddpm": ddpm,
    "lcm": lcm,
    "heun": heun,
    "flow_heun": flow_heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde eta 0.3": partial(dpmpp_2m_sde, eta=0.3),
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral eta 0.3": partial(dpmpp_2s_ancestral, eta=0.3),
    "lms": lms,
    "unipc": unipc,
    "unipc order 3": partial(unipc, order=3),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
ALIKE = {"euler": euler, "flow_euler": flow_euler, "euler_ancestral": partial(euler_ancestral, eta=0.4)}
diffusions = st.builds(
    lambda schedule, power: Diffusion(shift_levels(schedule, [4, 8], shift_power=power)),
    st.sampled_from([Cosine(), Cosine(form="continuous"), DDPM(), CosineLogSNR(), Sigmoid(), LinearFlow()]),
    st.sampled_from([0.0, 1.0, 2.0]),
)


def draws(seed: int, rows: int = 2, levels: int = 2) -> Callable[[int, int], torch.Tensor]:
    def noise(step: int, level: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, step, level)))
        return torch.randn(rows, 3, 4 << level, 4 << level, generator=generator, dtype=torch.float64)

    return noise


def path(diffusion: Diffusion, times: list[float]) -> list[NoiseLevel]:
    return [diffusion.at(t) for t in times]


@rules
@given(diffusion=diffusions, seed=st.integers(0, 99), steps=st.integers(1, 5))
def test_a_perfect_denoiser_gives_x0_at_every_level(rule: Rule, diffusion: Diffusion, seed: int, steps: int):
    noise = draws(seed)
    x0 = (noise(-1, 0), noise(-1, 1))
    z = (noise(-2, 0), noise(-2, 1))
    times = [1 - k / steps for k in range(steps)] + [0.0]
    final = rule(Perfect(x0), z, path(diffusion, times), noise)
    for picture, wanted in zip(final, x0, strict=True):
        torch.testing.assert_close(picture, wanted, rtol=0, atol=1e-12)


@given(diffusion=diffusions, seed=st.integers(0, 99), eta=st.floats(0, 1))
def test_each_step_has_the_law_of_the_forward_process(diffusion: Diffusion, seed: int, eta: float):
    """With x0 known, z stays N(alpha x0, sigma^2) at every time, for every eta."""
    large = torch.Generator().manual_seed(seed)
    x0 = (torch.full((1, 1, 100, 100), 0.7, dtype=torch.float64),) * 2
    start = path(diffusion, [1.0, 0.8, 0.4, 0.1, 0.0])

    def noise(step: int, level: int) -> torch.Tensor:
        return torch.randn(x0[level].shape, generator=large, dtype=torch.float64)

    first = tuple(start[0].alpha[r] * x0[r] + start[0].sigma[r] * noise(0, r) for r in range(2))
    denoise = Perfect(x0)
    ddim(denoise, first, start, noise, eta=eta)
    for at, z in denoise.seen:
        for level in range(2):
            eps = (z[level] - at.alpha[level] * x0[level]) / at.sigma[level]
            # five standard errors of 10,000 draws
            assert abs(eps.mean().item()) < 0.05
            assert abs(eps.square().mean().item() - 1) < 0.075


@given(diffusion=diffusions, seed=st.integers(0, 99))
def test_without_fresh_noise_the_path_is_a_line_in_noise(diffusion: Diffusion, seed: int):
    noise = draws(seed)
    x0, eps = (noise(-1, 0), noise(-1, 1)), (noise(-2, 0), noise(-2, 1))
    start = path(diffusion, [0.9, 0.5, 0.3, 0.0])

    def never(step: int, level: int) -> torch.Tensor:
        raise AssertionError("eta = 0 draws no noise")

    first = tuple(start[0].alpha[r] * x0[r] + start[0].sigma[r] * eps[r] for r in range(2))
    denoise = Perfect(x0)
    ddim(denoise, first, start, never)
    for at, z in denoise.seen:
        for level in range(2):
            expected = at.alpha[level] * x0[level] + at.sigma[level] * eps[level]
            torch.testing.assert_close(z[level], expected, rtol=0, atol=1e-9)


@given(seed=st.integers(0, 99), times=st.tuples(st.floats(0.5, 0.95), st.floats(0.05, 0.4)))
def test_ddpm_is_the_posterior_of_the_paper_and_ddim_at_eta_one(seed: int, times: tuple[float, float]):
    diffusion, noise = Diffusion(shift_levels(Cosine(), [4, 8])), draws(seed)
    x0, z = (noise(-1, 0), noise(-1, 1)), (noise(-2, 0), noise(-2, 1))
    now, after = path(diffusion, list(times))
    ancestral = ddpm(Perfect(x0), z, [now, after], noise)
    for level in range(2):
        # arXiv 2006.11239, eq. 6 and 7, with gamma_t = alpha_bar_t and alpha_t = gamma_t / gamma_s
        gamma_t, gamma_s = now.alpha[level] ** 2, after.alpha[level] ** 2
        beta = 1 - gamma_t / gamma_s
        mean = math.sqrt(gamma_s) * beta / (1 - gamma_t) * x0[level]
        mean = mean + math.sqrt(gamma_t / gamma_s) * (1 - gamma_s) / (1 - gamma_t) * z[level]
        variance = (1 - gamma_s) / (1 - gamma_t) * beta
        expected = mean + math.sqrt(variance) * noise(0, level)
        torch.testing.assert_close(ancestral[level], expected, rtol=0, atol=1e-9)
        # arXiv 2010.02502, eq. 16: eta scales the deviation of the fresh noise
        half = ddim(Perfect(x0), z, [now, after], noise, eta=0.5)[level]
        quiet = ddim(Perfect(x0), z, [now, after], lambda step, level: 0 * noise(step, level), eta=0.5)[level]
        torch.testing.assert_close(
            half - quiet, 0.5 * math.sqrt(variance) * noise(0, level), rtol=0, atol=1e-9
        )
    for same, level in zip(ddim(Perfect(x0), z, [now, after], noise, eta=1.0), ancestral, strict=True):
        assert torch.equal(same, level)


@pytest.mark.parametrize("name", ALIKE)
def test_what_goes_by_several_names_is_one_rule(name: str):
    diffusion, noise = Diffusion(shift_levels(LinearFlow(), [4, 8])), draws(3)
    z, steps = (noise(9, 0), noise(9, 1)), path(diffusion, [1.0, 0.6, 0.3, 0.0])
    eta = 0.4 if "ancestral" in name else 0.0
    gaussian = Gaussian(0.1, 0.5)
    for mine, same in zip(
        ALIKE[name](gaussian, z, steps, noise), ddim(gaussian, z, steps, noise, eta=eta), strict=True
    ):
        assert torch.equal(mine, same)


# lcm takes the mean of the data at each step: not a sampler of what is not distilled
@pytest.mark.parametrize("rule", [RULES[name] for name in RULES if name != "lcm"])
@pytest.mark.parametrize("schedule", [Cosine(), LinearFlow()], ids=["cosine", "flow"])
def test_gaussian_data_come_out_with_their_mean_and_variance(rule: Rule, schedule: Cosine | LinearFlow):
    mean, std, steps = 0.4, 0.3, 300
    diffusion = Diffusion(shift_levels(schedule, [4, 8], shift_power=1))
    generator = torch.Generator().manual_seed(5)

    def noise(step: int, level: int) -> torch.Tensor:
        return torch.randn(1, 1, 100, 100, generator=generator, dtype=torch.float64)

    start = path(diffusion, [1 - k / steps for k in range(steps)] + [0.0])
    final = rule(Gaussian(mean, std), (noise(0, 0), noise(0, 1)), start, noise)
    for level in final:
        # 10,000 pixels: five standard errors are 0.015 of the mean, 3.5 % of the deviation; the rest is
        # step size
        assert level.mean().item() == pytest.approx(mean, abs=0.02)
        assert level.std().item() == pytest.approx(std, rel=0.055)


def test_ddim_follows_the_probability_flow_to_first_order():
    gaussian, diffusion = Gaussian(0.4, 0.3), Diffusion(shift_levels(Cosine(), [4, 8]))
    z = tuple(torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3) for _ in range(2))
    errors = []
    for steps in (50, 100, 200):
        start = path(diffusion, [0.95 * (1 - k / steps) for k in range(steps)] + [0.0])
        final = ddim(gaussian, z, start, draws(0))
        exact = [gaussian.flow_from(z[r], start[0].alpha[r], start[0].sigma[r]) for r in range(2)]
        errors.append(max((a - b).abs().max().item() for a, b in zip(final, exact, strict=True)))
    assert errors[0] < 0.05
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4


def test_eta_outside_its_range_is_refused():
    for rule in (ddim, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_2s_ancestral):
        for eta in (-0.1, 1.1):
            with pytest.raises(ValueError, match=r"expected eta in \[0, 1\], got"):
                rule(Gaussian(0, 1), (), [], draws(0), eta=eta)


def test_orders_that_do_not_exist_are_refused():
    for rule, most in ((lms, 6), (unipc, 4)):
        for order in (0, most + 1):
            with pytest.raises(ValueError, match=f"expected order in 1 .. {most}, got {order}"):
                rule(Gaussian(0, 1), (), [], draws(0), order=order)
    with pytest.raises(ValueError, match="expected sigma_max > 0, got 0"):
        heun(Gaussian(0, 1), (), [], draws(0), sigma_max=0)


def test_a_path_may_know_more_levels_than_run():
    diffusion, noise = Diffusion(shift_levels(Cosine(), [4, 8])), draws(3)
    start = path(diffusion, [1.0, 0.5, 0.0])
    both = ddpm(Gaussian(0.1, 0.5), (noise(9, 0), noise(9, 1)), start, noise)
    inner = ddpm(Gaussian(0.1, 0.5), (noise(9, 0),), start, noise)
    assert len(inner) == 1
    assert torch.equal(inner[0], both[0])


NAMES = {
    "NONE": thresholds.none,
    "CLIP": thresholds.clip,
    "DYNAMIC": thresholds.dynamic,
    "DYNAMIC_IF": thresholds.dynamic_if,
}


@pytest.mark.golden
@pytest.mark.parametrize(("case", "schedule"), [("ddpm", DDPM()), ("deepfloyd", Cosine())])
@pytest.mark.parametrize(("predicted", "space"), [("DDPM", "eps"), ("V_PREDICTION", "v")])
def test_released_steps(case: str, schedule: Cosine | DDPM, predicted: str, space: str):
    """One step from t to t_last: every prediction, threshold, eta and noise that was recorded."""
    recorded = load_file(golden_case(f"arithmetic_{case}") / "arithmetic.safetensors")
    diffusion = Diffusion((schedule,), prediction=space)
    compared = 0
    for key, theirs in recorded.items():
        if not (key.startswith(f"last.{predicted}.") and key.endswith("x_t_last")):
            continue
        _, _, threshold, *eta, noised, _ = key.split(".")
        value = ".".join(eta).removeprefix("eta")
        rule: Rule = ddpm if value == "None" else partial(ddim, eta=float(value))
        for row, (t, t_last) in enumerate(zip(recorded["t"], recorded["t_last"], strict=True)):
            pred = recorded["pred"][row : row + 1].double()
            denoise = Denoiser(lambda z, t, *, pred=pred, **_: (pred,), diffusion)
            (ours,) = rule(
                thresholded(denoise, NAMES[threshold], diffusion),
                (recorded["x_t"][row : row + 1].double(),),
                [diffusion.at(t.item() / 1000), diffusion.at(t_last.item() / 1000)],
                lambda step, level, on=noised == "noise1", row=row: (
                    recorded["noise"][row : row + 1].double() * on
                ),
            )
            # what their 1 - gamma keeps at t = 1 and 2, and their 1 - gamma / gamma_last elsewhere at eta > 0
            loose = 2e-4 if row < 2 or (value not in ("0.0", "None") and row >= 4) else 2e-6
            # and x0 from eps divides by alpha = 2e-3 and less: 1e-4 of x0, where no threshold cuts it
            loose = max(loose, 1e-5) if space == "eps" and row >= 4 else loose
            wanted = theirs[row : row + 1].double()
            assert (ours - wanted).abs().max() <= loose * (1 + wanted.abs().max()), (key, row)
            compared += 1
    assert compared >= 6 * 20


@pytest.mark.golden
@pytest.mark.parametrize(
    ("variant", "power", "rule"),
    [
        ("ddim_none_g1", 1, ddim),
        ("ddim_clip_g1", 1, ddim),
        ("ddim_clip_g1_unshifted", 0, ddim),
        ("ddim_clip_g1_power2", 2, ddim),
        ("ddim_dynamic_if_g7.5", 1, ddim),
        ("eta0.5_clip_g1", 1, partial(ddim, eta=0.5)),
        ("eta1_dynamic_g7.5", 1, ddpm),
        ("ancestral_clip_g1", 1, ddpm),
    ],
)
def test_released_steps_of_a_nest(variant: str, power: float, rule: Rule):
    """First and last step of both levels, given their x0: each level has its own shifted variance."""
    recorded = load_file(golden_case("sample_nested2") / f"{variant}.safetensors")
    grid = recorded["timesteps"].tolist()
    diffusion = Diffusion(shift_levels(Cosine(), [16, 32], shift_power=power))
    steps = len(grid) - 1

    def levels(name: str) -> tuple[torch.Tensor, ...]:
        # recorded high level first
        return tuple(recorded[f"{name}.{index}"].double() for index in (1, 0))

    for step in (0, steps - 1):
        z, x0 = levels("x_T" if step == 0 else f"x_t.{step - 1}"), levels(f"x0.{step}")

        def noise(_: int, level: int, step: int = step) -> torch.Tensor:
            return recorded[f"noise.{2 * step + 1 - level}"].double()

        def denoise(z: Sequence[torch.Tensor], at: NoiseLevel, x0: Pyramid = x0) -> Denoised:
            return with_eps(x0, z, at)

        start = path(diffusion, [t / 1000 for t in grid[step : step + 2]])
        for ours, theirs in zip(rule(denoise, z, start, noise), levels(f"x_t.{step}"), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
