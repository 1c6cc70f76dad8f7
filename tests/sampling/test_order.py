"""How fast each rule comes to the exact answer, for Gaussian data whose probability flow is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import (
    Denoised,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    flow_heun,
    heun,
    lms,
    none,
    sample_pyramid,
    unipc,
)
from mdmkit.sampling.exponential import exact_weights, moments
from mdmkit.sampling.rules import Rule
from mdmkit.schedules import Cosine, CosineLogSNR, shift_levels
from tests.sampling.ideal import Gaussian

DATA = Gaussian(0.4, 0.3)
# the order of the rule once it has as many points behind it as it looks at
ORDERS: dict[str, tuple[Rule, float]] = {
    "ddim": (ddim, 1),
    "heun": (heun, 2),
    "flow_heun": (flow_heun, 2),
    "dpmpp_2s": (partial(dpmpp_2s_ancestral, eta=0.0), 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "dpmpp_3m": (partial(dpmpp_3m_sde, eta=0.0), 3),
    "lms 1": (partial(lms, order=1), 1),
    "lms 2": (partial(lms, order=2), 2),
    "lms 3": (partial(lms, order=3), 3),
    "lms 4": (lms, 4),
    # with its corrector
    "unipc 1": (partial(unipc, order=1), 2),
    "unipc 2": (unipc, 3),
    "unipc 3": (partial(unipc, order=3), 4),
}


def error(rule: Rule, steps: int) -> float:
    """How far z is from the probability flow after `steps` equal steps of t from 0.7 to 0.3.

    Tiny steps in front give a multistep rule its past, steps behind spare it its last ones of low order.
    """
    diffusion = Diffusion(shift_levels(CosineLogSNR(form="continuous"), [4, 8]))
    h = 0.4 / steps
    start, goal = 0.7, 0.3
    times = [start - k * 1e-3 * h for k in range(5)]
    times += [start - k * h for k in range(1, steps)] + [goal - k * h for k in range(5)]
    path = [diffusion.at(t) for t in times]
    z = tuple(torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3) for _ in range(2))
    there: list[Sequence[Tensor]] = []

    def denoise(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        if at.t == goal:
            there.append(z)
        return DATA(z, at)

    def never(step: int, level: int) -> Tensor:
        raise AssertionError("a deterministic rule draws no noise")

    rule(denoise, z, path, never)
    # of two evaluations at the goal the last is where the step has come to
    first, last = path[0], path[times.index(goal)]
    off = []
    for level in range(2):
        deviation = [math.hypot(x.alpha[level] * DATA.std, x.sigma[level]) for x in (first, last)]
        unit = (z[level] - first.alpha[level] * DATA.mean) / deviation[0]
        exact = last.alpha[level] * DATA.mean + deviation[1] * unit
        off.append((there[-1][level] - exact).abs().max().item())
    return max(off)


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_as_stated(name: str) -> None:
    rule, order = ORDERS[name]
    errors = [error(rule, steps) for steps in (24, 48, 96)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.35), (errors, measured)


@pytest.mark.parametrize("rule", [ddpm, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_2s_ancestral])
def test_finer_steps_refine_the_same_picture(rule: Rule) -> None:
    """The noise of a picture is one Brownian path: twice the steps come nearer to where four times do."""
    diffusion = Diffusion(shift_levels(Cosine(), [16, 32], shift_power=1))
    shapes = [(3, 16, 16), (3, 32, 32)]

    def drawn(steps: int, seed: int = 3) -> tuple[Tensor, ...]:
        return sample_pyramid(DATA, diffusion, shapes, [seed], rule=rule, steps=steps, threshold=none)

    fine, other = drawn(160), drawn(160, seed=4)
    for level in range(2):
        off = [(drawn(steps)[level] - fine[level]).std().item() for steps in (20, 80)]
        assert off[1] < 0.7 * off[0]
        assert off[0] < 0.5 * (other[level] - fine[level]).std().item()


@pytest.mark.parametrize("h", [1e-6, 0.1, 0.999, 1.0, 3.0, 30.0])
def test_moments_are_the_integrals(h: float) -> None:
    s = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for k, moment in enumerate(moments(h, 4)):
        exact = (h * torch.exp(-h * (1 - s)) * s**k).mean().item()
        assert moment == pytest.approx(exact, rel=1e-6)


def test_weights_are_exact_for_polynomials() -> None:
    nodes, h = [0.0, -0.7, -1.9, 1.0], 0.8
    for k, moment in enumerate(moments(h, 4)):
        weights = exact_weights(nodes, h)
        assert sum(w * node**k for w, node in zip(weights, nodes, strict=True)) == pytest.approx(moment)
