"""Update rules: each a whole trajectory, from noise to data, over explicit noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.pyramid import Pyramid

from .denoise import Denoise

__all__ = ["Noise", "Rule", "ddim", "ddpm"]

Noise = Callable[[int, int], Tensor]


class Rule(Protocol):
    """A whole trajectory: `z` at `path[0]` in, `z` at `path[-1]` out.

    `denoise(z, at)` gives x0 and eps. `noise(step, level)` gives fresh standard normal noise like `z[level]`
    for the step from `path[step]` to `path[step + 1]`; equal arguments give equal noise. Levels do not mix
    here: what ties them is the denoiser. `path` may know more levels than `z` has; the innermost count.
    """

    def __call__(self, denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid: ...


def ddim(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 0.0
) -> Pyramid:
    """DDIM: deterministic at eta = 0; at eta = 1 the ancestral DDPM step.

    *DDIM*, arXiv 2010.02502, eq. 12 and 16. Written in logsnr, it holds for any alpha and sigma: with d =
    logsnr(now) - logsnr(next) <= 0 the fresh noise has variance `eta^2 sigma_next^2 (1 - e^d)`, which for
    variance-preserving schedules is eq. 16, on every level the level's own shifted one. The released sampler
    agrees, and takes eps from x0 after the threshold. Raises ValueError where eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")
    for step, (now, after) in enumerate(pairwise(path)):
        x0, eps = denoise(z, now)
        moved = []
        for level in range(len(z)):
            fresh = -eta * eta * math.expm1(now.logsnr[level] - after.logsnr[level])
            along = after.sigma[level] * math.sqrt(max(1 - fresh, 0.0))
            across = after.sigma[level] * math.sqrt(max(fresh, 0.0))
            mean = after.alpha[level] * x0[level] + along * eps[level]
            moved.append(mean + across * noise(step, level) if across > 0 else mean)
        z = tuple(moved)
    return z


def ddpm(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """DDPM's ancestral sampling, with the posterior's variance. *DDPM*, arXiv 2006.11239, eq. 6 and 7.

    The posterior `q(z_next | z_now, x0)` is what DDIM draws from at eta = 1; the released sampler's ancestral
    step (no eta) is this one too, with the variance `beta_tilde`, not `beta`.
    """
    return ddim(denoise, z, path, noise, eta=1.0)
