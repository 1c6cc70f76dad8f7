"""Our rules against diffusers' schedulers of the same name, step for step, at one level.

Both are driven by one ideal denoiser that is not linear, over diffusers' own noise levels.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import Denoised, karras, leading, rules, trailing
from mdmkit.sampling.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, lms, unipc
from mdmkit.sampling.rules import Rule
from mdmkit.sampling.singlestep import flow_heun, heun
from mdmkit.sampling.spacing import Spacing
from mdmkit.schedules import DDPM
from mdmkit.targets import to_eps
from mdmkit.torchvision_ops import declare

declare()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs: of what they import
    diffusers = pytest.importorskip("diffusers.schedulers", exc_type=ImportError)

# their schedulers still give tensors to NumPy the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SHAPE = (2, 3, 4, 4)
STEPS = 9
Levels = list[tuple[float, float]]


def ideal(z: Tensor, at: NoiseLevel) -> Denoised:
    """Of data around 0.4, and a ripple, so that no polynomial is exact by chance."""
    alpha, sigma = at.alpha[0], at.sigma[0]
    gain = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2)
    x0 = 0.4 + gain * (z - alpha * 0.4) + 0.2 * torch.sin(3 * z)
    return Denoised((x0,), (to_eps(x0, z, alpha, sigma, "x0"),))


def noises(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def from_edm(sigma: float) -> tuple[float, float]:
    """alpha, sigma of the variance-preserving process at a noise level of EDM."""
    alpha = 1 / math.sqrt(1 + sigma * sigma)
    return alpha, sigma * alpha


def ours(rule: Rule, levels: Levels) -> list[Tensor]:
    """z before every evaluation, and at the end."""
    path = [NoiseLevel(1 - i / len(levels), (a,), (s,)) for i, (a, s) in enumerate(levels)]
    seen: list[Tensor] = []

    def denoise(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        seen.append(z[0])
        return ideal(z[0], at)

    (final,) = rule(denoise, (noises(99),), path, lambda step, level: noises(step))
    return [*seen, final]


def theirs(
    scheduler: Any,
    levels: Levels,
    *,
    variance_exploding: bool = False,
    output: str = "eps",
    level_of: Callable[[int], int] = lambda call: call,
    **given: Any,
) -> list[Tensor]:
    """The same by a scheduler: `x = z / alpha` where it works in EDM's variables."""
    at = [NoiseLevel(0.5, (a,), (s,)) for a, s in levels]
    scale = levels[0][0] if variance_exploding else 1.0
    x = noises(99) / scale
    seen = []
    for call, t in enumerate(scheduler.timesteps):
        now = at[level_of(call)]
        z = x * now.alpha[0] if variance_exploding else x
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # some warn where it was not called
        seen.append(z)
        said = ideal(z, now)
        answer = {"eps": said.eps[0], "flow": said.eps[0] - said.x0[0]}[output]
        more = {"variance_noise": noises(call)} if "variance_noise" in given else {}
        x = scheduler.step(answer, t, x, **{**given, **more}).prev_sample
    return [*seen, x]


def agree(mine: list[Tensor], other: list[Tensor], tolerance: float = 2e-5) -> None:
    assert len(mine) == len(other)
    for step, (a, b) in enumerate(zip(mine, other, strict=True)):
        off = ((a - b.double()).abs().max() / b.abs().max()).item()
        assert off < tolerance, f"state {step} of {len(mine)} is off by {off:.2g}"


def made(name: str, **settings: Any) -> Any:
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


def edm_levels(scheduler: Any) -> Levels:
    return [from_edm(float(sigma)) for sigma in scheduler.sigmas]


BETAS = pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
SETTINGS = {"beta_start": 1e-4, "beta_end": 0.02}


@BETAS
@pytest.mark.parametrize(("name", "rule"), [("Euler", rules.euler), ("LMS", lms)])
def test_in_edm_variables(name: str, rule: Rule, betas: str) -> None:
    scheduler = made(f"{name}DiscreteScheduler", beta_schedule=betas, **SETTINGS)
    levels = edm_levels(scheduler)
    # theirs integrates numerically, to 1e-4 of a coefficient
    tolerance = 1e-3 if name == "LMS" else 2e-5
    agree(ours(rule, levels), theirs(scheduler, levels, variance_exploding=True), tolerance)


@BETAS
def test_heun(betas: str) -> None:
    scheduler = made("HeunDiscreteScheduler", beta_schedule=betas, **SETTINGS)
    # each noise level but the first and the last stands there twice
    levels = [from_edm(float(sigma)) for sigma in [*scheduler.sigmas[:-1:2], 0.0]]
    calls = theirs(scheduler, levels, variance_exploding=True, level_of=lambda call: (call + 1) // 2)
    agree(ours(heun, levels), calls)


@BETAS
def test_euler_ancestral(betas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("EulerAncestralDiscreteScheduler", beta_schedule=betas, **SETTINGS)
    feed(monkeypatch, scheduler)
    levels = edm_levels(scheduler)
    agree(ours(rules.euler_ancestral, levels), theirs(scheduler, levels, variance_exploding=True))


def feed(monkeypatch: pytest.MonkeyPatch, scheduler: Any) -> None:
    """Our noise instead of theirs, call by call."""
    calls = iter(range(1000))
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noises(next(calls)))


SOLVERS = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}, dpmpp_2m),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        dpmpp_2m_sde,
    ),
    "unipc 1": ("UniPCMultistepScheduler", {"solver_order": 1}, partial(unipc, order=1)),
    "unipc 2": ("UniPCMultistepScheduler", {"solver_order": 2}, unipc),
    "unipc 3": ("UniPCMultistepScheduler", {"solver_order": 3}, partial(unipc, order=3)),
}


@BETAS
@pytest.mark.parametrize("case", SOLVERS)
def test_solvers(case: str, betas: str) -> None:
    name, settings, rule = SOLVERS[case]
    scheduler = made(name, beta_schedule=betas, final_sigmas_type="zero", **settings, **SETTINGS)
    levels = edm_levels(scheduler)
    given: dict[str, Any] = {"variance_noise": None} if "sde" in case else {}
    agree(ours(rule, levels), theirs(scheduler, levels, **given))


def test_their_third_order_takes_half_of_the_quadratic_term() -> None:
    """What the docstring of dpmpp_3m_sde says: alike but for that term."""
    settings = {"solver_order": 3, "final_sigmas_type": "zero"}
    scheduler = made("DPMSolverMultistepScheduler", **settings, **SETTINGS)
    levels = edm_levels(scheduler)
    mine, other = ours(partial(dpmpp_3m_sde, eta=0.0), levels), theirs(scheduler, levels)
    agree(mine[:3], other[:3])  # before there are three predictions
    path = [NoiseLevel(0.5, (a,), (s,)) for a, s in levels]
    h = [(path[i + 1].logsnr[0] - path[i].logsnr[0]) / 2 for i in range(3)]
    x0 = [ideal(mine[i], path[i]).x0[0] for i in range(3)]
    slopes = (x0[2] - x0[1]) / h[1], (x0[1] - x0[0]) / h[0]
    curvature = (slopes[0] - slopes[1]) / (h[0] + h[1]) * h[2] ** 2
    # the integral of h e^{-h (1 - s)} s^2
    quadratic = 1 - 2 * (1 + math.expm1(-h[2]) / h[2]) / h[2]
    torch.testing.assert_close(
        mine[3] - other[3].double(),
        path[3].alpha[0] * quadratic / 2 * curvature,
        rtol=1e-3,
        atol=2e-5,
    )


def alphas(scheduler: Any) -> Levels:
    gammas = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    return [*((math.sqrt(gamma), math.sqrt(1 - gamma)) for gamma in gammas), (1.0, 0.0)]


@BETAS
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(betas: str, eta: float) -> None:
    settings = {"clip_sample": False, "set_alpha_to_one": True, "beta_schedule": betas}
    scheduler = made("DDIMScheduler", **settings, **SETTINGS)
    levels = alphas(scheduler)
    agree(ours(partial(rules.ddim, eta=eta), levels), theirs(scheduler, levels, eta=eta, variance_noise=None))


@BETAS
def test_ddpm(betas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("DDPMScheduler", clip_sample=False, beta_schedule=betas, **SETTINGS)
    feed(monkeypatch, scheduler)
    levels = alphas(scheduler)
    agree(ours(rules.ddpm, levels), theirs(scheduler, levels), 1e-4)


@BETAS
def test_lcm_but_for_their_boundary_scalings(betas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to the distilled network: c_skip 0 and c_out 1 here, as they are away from t = 0."""
    settings = {"original_inference_steps": 50, "beta_schedule": betas}
    scheduler = made("LCMScheduler", **settings, **SETTINGS)
    monkeypatch.setattr(scheduler, "get_scalings_for_boundary_condition_discrete", lambda t: (0.0, 1.0))
    feed(monkeypatch, scheduler)
    levels = alphas(scheduler)
    agree(ours(rules.lcm, levels), theirs(scheduler, levels))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float) -> None:
    scheduler = made("FlowMatchEulerDiscreteScheduler", shift=shift)
    levels = [(1 - float(sigma), float(sigma)) for sigma in scheduler.sigmas]
    agree(ours(rules.flow_euler, levels), theirs(scheduler, levels, output="flow"))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_heun(shift: float) -> None:
    scheduler = made("FlowMatchHeunDiscreteScheduler", shift=shift)
    sigmas = [*scheduler.sigmas[:-1:2].tolist(), 0.0]
    levels = [(1 - sigma, sigma) for sigma in sigmas]
    calls = theirs(scheduler, levels, output="flow", level_of=lambda call: (call + 1) // 2)
    agree(ours(flow_heun, levels), calls)


LINEAR = Diffusion((DDPM(),))


@pytest.mark.parametrize(("name", "spacing"), [("leading", leading), ("trailing", trailing)])
@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_spacings_of_a_table(name: str, spacing: Spacing, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(steps)
    # their networks are fed index - 1 of our table
    assert spacing(steps, LINEAR)[:-1] == [(int(t) + 1) / 1000 for t in scheduler.timesteps]


def test_karras_spacing() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **SETTINGS)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()
    times = karras(STEPS, LINEAR, sigma_min=sigmas[-2], sigma_max=sigmas[0])
    mine = [math.exp(-LINEAR.at(t).logsnr[0] / 2) for t in times[:-1]]
    assert mine == pytest.approx(sigmas[:-1], rel=1e-5)
