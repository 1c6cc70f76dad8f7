"""Multistep update rules: one evaluation a step, and what the steps before said.

All of them start with a first-order step and end with one, at which the picture is what the network says.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mdmkit.diffusion import NoiseLevel, mixed
from mdmkit.pyramid import Pyramid

from .denoise import Denoise
from .exponential import exact_weights, half_step, move
from .rules import Noise, check_eta, fresh_noise, steps_of

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lms", "unipc"]

Seen = deque[tuple[NoiseLevel, Pyramid]]  # noise levels and predictions there, the newest first
Terms = list[tuple[float, Tensor]]  # weights and predictions


def dpmpp_2m(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """DPM-Solver++(2M): second order, deterministic. *DPM-Solver++*, arXiv 2211.01095, algorithm 2."""
    return dpmpp_2m_sde(denoise, z, path, noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 1.0
) -> Pyramid:
    """SDE-DPM-Solver++(2M) in its midpoint form: second order in the drift, with fresh noise.

    *DPM-Solver++*, arXiv 2211.01095, appendix A. `eta` scales the noise as in *k-diffusion*'s sampler of this
    name; at eta = 0 nothing is drawn and it is DPM-Solver++(2M). Raises ValueError where eta is outside
    [0, 1].
    """
    return dpmpp_sde(denoise, z, path, noise, eta=eta, past=2, midpoint=True)


def dpmpp_3m_sde(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 1.0
) -> Pyramid:
    """DPM-Solver++(3M) with fresh noise: third order in the drift.

    The polynomial through the last three predictions, integrated exactly: *DPM-Solver++*, arXiv 2211.01095,
    section 4, for any order. *k-diffusion*'s sampler of this name and diffusers' third order take half of
    its quadratic term and are of second order, so that this is not what they compute. Raises ValueError where
    eta is outside [0, 1].
    """
    return dpmpp_sde(denoise, z, path, noise, eta=eta, past=3, midpoint=False)


def dpmpp_sde(
    denoise: Denoise,
    z: Pyramid,
    path: Sequence[NoiseLevel],
    noise: Noise,
    *,
    eta: float,
    past: int,
    midpoint: bool,
) -> Pyramid:
    """Multistep DPM-Solver++ that looks at `past` predictions; see `predicted`."""
    check_eta(eta)
    seen: Seen = deque(maxlen=past)
    for step, (now, after) in enumerate(steps_of(path)):
        seen.appendleft((now, denoise(z, now).x0))
        moved = []
        for level in range(len(z)):
            terms = predicted(list(seen), after, level, eta=eta, midpoint=midpoint)
            fresh = -math.expm1(-2 * eta * half_step(now, after, level)) if eta else 0.0
            there = move(z[level], now, after, level, terms, eta=eta)
            moved.append(there + fresh_noise(after, step, level, noise, fresh))
        z = tuple(moved)
    return z


def lms(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, order: int = 4
) -> Pyramid:
    """Linear multistep (Adams-Bashforth) in sigma_edm = sigma / alpha, whose slope there is eps.

    The slope is the polynomial through the last `order` ones, integrated exactly; its order is `order`, 1 is
    DDIM. Source: *k-diffusion*, its `sample_lms`. Raises ValueError where order is not in 1 .. 6.
    """
    if not 1 <= order <= 6:
        raise ValueError(f"expected order in 1 .. 6, got {order}; 4 is usual")
    seen: Seen = deque(maxlen=order)
    for now, after in steps_of(path):
        x0, eps = denoise(z, now)
        seen.appendleft((now, eps))
        moved = []
        for level in range(len(z)):
            weights = adams_weights([sigma_edm(at, level) for at, _ in seen], sigma_edm(after, level))
            # the weights' sum is the step; written as DDIM and what the older slopes differ by, as sigma_edm
            # itself is huge at the start
            there = mixed(x0[level], eps[level], after.alpha[level], after.sigma[level])
            for weight, (_, older) in zip(weights[1:], list(seen)[1:], strict=True):
                there = there + after.alpha[level] * weight * (older[level] - eps[level])
            moved.append(there)
        z = tuple(moved)
    return z


def unipc(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, order: int = 2
) -> Pyramid:
    """UniPC: a multistep predictor of order `order`, and a corrector that costs no evaluation.

    The prediction at a new point first corrects how z came there, then takes z on; with the corrector the
    order is `order` + 1. B(h) = e^h - 1 ("bh2"), data prediction. *UniPC*, arXiv 2302.04867, algorithms 1 and
    2. Raises ValueError where order is not in 1 .. 4.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"expected order in 1 .. 4, got {order}; 2 is usual with guidance, 3 without")
    seen: Seen = deque(maxlen=order)
    before: Pyramid | None = None
    steps = len(path) - 1
    used = 0
    for step, (now, after) in enumerate(steps_of(path)):
        x0 = denoise(z, now).x0
        if before is not None:
            earlier = seen[0][0]
            nodes = list(seen)[:used]
            z = tuple(
                move(before[level], earlier, now, level, corrected(nodes, now, x0, level))
                for level in range(len(z))
            )
        seen.appendleft((now, x0))
        used = min(order, len(seen), steps - step)
        before = z
        z = tuple(
            move(z[level], now, after, level, predicted(list(seen)[:used], after, level))
            for level in range(len(z))
        )
    return z


def predicted(
    seen: Sequence[tuple[NoiseLevel, Pyramid]],
    after: NoiseLevel,
    level: int,
    *,
    eta: float = 0.0,
    midpoint: bool = True,
) -> Terms:
    """Weights and predictions of a step to `after`: of the polynomial through all that were seen.

    `midpoint`: two are taken as DPM-Solver++(2M) and UniPC take them, the line between them read off in the
    middle of the step and not integrated. To the clean picture it goes by the newest alone.
    """
    now = seen[0][0]
    h = half_step(now, after, level)
    if not math.isfinite(h):
        return [(1.0, seen[0][1][level])]
    nodes = [half_step(now, at, level) / h for at, _ in seen]
    if midpoint and len(seen) == 2:
        m0 = -math.expm1(-(1 + eta) * h)
        weights = [m0 - m0 / 2 / nodes[1], m0 / 2 / nodes[1]]
    else:
        weights = exact_weights(nodes, (1 + eta) * h)
    return [(weight, x0[level]) for weight, (_, x0) in zip(weights, seen, strict=True)]


def corrected(
    seen: Sequence[tuple[NoiseLevel, Pyramid]], now: NoiseLevel, x0: Pyramid, level: int
) -> Terms:
    """The terms of UniPC's corrector, for the step that came to `now`: with the prediction made there."""
    start = seen[0][0]
    h = half_step(start, now, level)
    if len(seen) == 1:
        m0 = -math.expm1(-h)
        return [(m0 / 2, seen[0][1][level]), (m0 / 2, x0[level])]
    nodes = [*(half_step(start, at, level) / h for at, _ in seen), 1.0]
    weights = exact_weights(nodes, h)
    return [(w, d[level]) for w, d in zip(weights, [*(said for _, said in seen), x0], strict=True)]


def sigma_edm(at: NoiseLevel, level: int) -> float:
    """sigma / alpha: the noise level of EDM."""
    return at.sigma[level] / at.alpha[level]


def adams_weights(nodes: Sequence[float], after: float) -> list[float]:
    """Integrals, from the first node to `after`, of the Lagrange polynomials of `nodes`."""
    size = abs(after - nodes[0])
    # in steps: powers of sigma_edm itself would overflow the digits
    points = [(node - nodes[0]) / size for node in nodes]
    end = (after - nodes[0]) / size
    moments = [end ** (k + 1) / (k + 1) for k in range(len(nodes))]
    return (size * np.linalg.solve(np.vander(points, increasing=True).T, moments)).tolist()
