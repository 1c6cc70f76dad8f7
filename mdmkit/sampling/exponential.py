"""Exponential integrators in half logsnr: what DPM-Solver++ and UniPC share.

With lambda = logsnr / 2 and h = lambda(next) - lambda(now), the probability flow and its noisy relatives are
linear in z but for the predicted picture D (x0), so that a step is exact for the polynomial through the D
that are known: `z_next = (sigma_next / sigma) e^{-eta h} z + alpha_next sum_j w_j D_j`. *DPM-Solver++*, arXiv
2211.01095, eq. 9 and, with noise, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from torch import Tensor

from mdmkit.diffusion import NoiseLevel

__all__ = ["exact_weights", "half_step", "moments", "move"]


def half_step(now: NoiseLevel, after: NoiseLevel, level: int) -> float:
    """h = lambda(after) - lambda(now) at one level, lambda = logsnr / 2; infinite where `after` is clean."""
    return (after.logsnr[level] - now.logsnr[level]) / 2


def moments(h: float, count: int) -> list[float]:
    """The integrals over s in [0, 1] of `h e^{-h (1 - s)} s^k`, k = 0 .. count - 1."""
    if h < 1:
        # h sum_n (-h)^n k! / (n + k + 1)!: what the recursion takes the small difference of
        return [
            h * math.fsum((-h) ** n * math.factorial(k) / math.factorial(n + k + 1) for n in range(20))
            for k in range(count)
        ]
    found = [-math.expm1(-h)]
    for k in range(1, count):
        found.append(1 - k * found[-1] / h)
    return found


def exact_weights(nodes: Sequence[float], h: float) -> list[float]:
    """Weights of D at `nodes` (in steps: 0 is now, 1 the next point), exact for polynomials through them."""
    powers = np.vander(nodes, increasing=True).T
    return np.linalg.solve(powers, moments(h, len(nodes))).tolist()


def move(
    z: Tensor,
    now: NoiseLevel,
    after: NoiseLevel,
    level: int,
    terms: Sequence[tuple[float, Tensor]],
    *,
    eta: float = 0.0,
) -> Tensor:
    """`(sigma_after / sigma_now) e^{-eta h} z + alpha_after * sum of weight * D` over `terms`."""
    h = half_step(now, after, level)
    kept = after.sigma[level] / now.sigma[level] * (math.exp(-eta * h) if eta else 1.0)
    return reduce(lambda total, term: total + after.alpha[level] * term[0] * term[1], terms, kept * z)
