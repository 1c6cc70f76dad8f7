"""Update rules that look ahead: two evaluations a step, none of the steps before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mdmkit.diffusion import NoiseLevel, mixed
from mdmkit.pyramid import Pyramid

from .denoise import Denoise, Denoised
from .exponential import half_step, move
from .rules import Noise, ancestral_share, check_eta, fresh_noise, steps_of

__all__ = ["dpmpp_2s_ancestral", "flow_heun", "heun"]


def heun(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, sigma_max: float = 1000.0
) -> Pyramid:
    """Heun's second order in sigma_edm = sigma / alpha, deterministic. *EDM*, arXiv 2206.00364, algorithm 1.

    The last step, to the clean picture, is Euler's, and so are steps from beyond `sigma_max`: at the end of a
    cosine schedule sigma_edm is 20,000, and an average of slopes over a step from there to 20 is nothing.
    Raises ValueError where sigma_max is not above 0.
    """
    if not sigma_max > 0:
        raise ValueError(f"expected sigma_max > 0, got {sigma_max}")
    for now, after in steps_of(path):
        said = denoise(z, now)
        ahead = euler_step(said, after)
        moved = list(ahead)
        bounded = [r for r in range(len(z)) if now.sigma[r] <= sigma_max * now.alpha[r]]
        if bounded and after.sigma[0] > 0:
            eps_ahead = denoise(ahead, after).eps
            for r in bounded:
                across = after.sigma[r] - after.alpha[r] * now.sigma[r] / now.alpha[r]
                moved[r] = ahead[r] + across / 2 * (eps_ahead[r] - said.eps[r])
        z = tuple(moved)
    return z


def flow_heun(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """Heun's second order along the flow `dz = x0 d(alpha) + eps d(sigma)`, deterministic.

    For `linear_flow` this is Heun's method on the velocity eps - x0 in t; it holds for every schedule, and
    its coordinates are bounded, so that it starts at any noise. The last step is Euler's.
    """
    for now, after in steps_of(path):
        x0, eps = said = denoise(z, now)
        ahead = euler_step(said, after)
        if after.sigma[0] > 0:
            x0_ahead, eps_ahead = denoise(ahead, after)
            ahead = tuple(
                ahead[r]
                + (after.alpha[r] - now.alpha[r]) / 2 * (x0_ahead[r] - x0[r])
                + (after.sigma[r] - now.sigma[r]) / 2 * (eps_ahead[r] - eps[r])
                for r in range(len(z))
            )
        z = ahead
    return z


def euler_step(said: Denoised, after: NoiseLevel) -> Pyramid:
    """Where what is said leads to at the next noise level, if it stays said on the way."""
    levels = zip(said.x0, said.eps, after.alpha, after.sigma, strict=False)
    return tuple(mixed(x0, eps, alpha, sigma) for x0, eps, alpha, sigma in levels)


def dpmpp_2s_ancestral(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 1.0
) -> Pyramid:
    """DPM-Solver++(2S) to below the next noise level, and fresh noise up to it: second order in the drift.

    *DPM-Solver++*, arXiv 2211.01095, algorithm 1, with the ancestral step of *k-diffusion*'s sampler of this
    name: the deterministic part goes to sigma_edm `sigma_down`, and its second evaluation is at the next
    point of the path, which for eta = 1 is the middle (r = 1/2). At eta = 0 it is the two-stage method with
    r = 1. The last step is of first order. Raises ValueError where eta is outside [0, 1].
    """
    check_eta(eta)
    for step, (now, after) in enumerate(steps_of(path)):
        x0 = denoise(z, now).x0
        steps = [half_step(now, after, level) for level in range(len(z))]
        ahead = tuple(
            move(z[r], now, after, r, [(-math.expm1(-steps[r]), x0[r])]) for r in range(len(z))
        )
        if all(map(math.isfinite, steps)):
            x0_ahead = denoise(ahead, after).x0
            moved = []
            for r, h in enumerate(steps):
                # lambda goes on beyond the next point, from where the noise brings it back
                fresh = ancestral_share(now, after, r, eta)
                beyond = h - math.log1p(-fresh) / 2
                m0 = -math.expm1(-beyond)
                second = m0 * beyond / (2 * h)
                there = move(
                    z[r], now, after, r, [(m0 - second, x0[r]), (second, x0_ahead[r])], eta=beyond / h - 1
                )
                moved.append(there + fresh_noise(after, step, r, noise, fresh))
            ahead = tuple(moved)
        z = ahead
    return z
