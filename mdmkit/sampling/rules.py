"""Update rules: each a whole trajectory, from noise to data, over explicit noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.pyramid import Pyramid

from .denoise import Denoise

__all__ = [
    "Noise",
    "Rule",
    "ancestral_share",
    "check_eta",
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "fresh_noise",
    "lcm",
    "steps_of",
]

Noise = Callable[[int, int], Tensor]


class Rule(Protocol):
    """A whole trajectory: `z` at `path[0]` in, `z` at `path[-1]` out.

    `denoise(z, at)` gives x0 and eps. `noise(step, level)` gives fresh standard normal noise like `z[level]`
    for the step from `path[step]` to `path[step + 1]`; equal arguments give equal noise, and steps are
    independent. Levels do not mix here: what ties them is the denoiser. `path` may know more levels than `z`
    has; the innermost count.
    """

    def __call__(self, denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid: ...


def steps_of(path: Sequence[NoiseLevel]) -> Iterator[tuple[NoiseLevel, NoiseLevel]]:
    """Each step of a path: from a noise level to the next. ValueError where there is none."""
    if len(path) < 2:
        raise ValueError(
            f"expected a path of at least 2 noise levels, a step between them, got {len(path)}; "
            "[diffusion.at(t) for t in uniform_t(steps, diffusion)] makes one"
        )
    return pairwise(path)


def ddim(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 0.0
) -> Pyramid:
    """DDIM: deterministic at eta = 0; at eta = 1 the ancestral DDPM step.

    *DDIM*, arXiv 2010.02502, eq. 12 and 16. Written in logsnr, it holds for any alpha and sigma: with d =
    logsnr(now) - logsnr(next) <= 0 the fresh noise has variance `eta^2 sigma_next^2 (1 - e^d)`, which for
    variance-preserving schedules is eq. 16, on every level the level's own shifted one. The released sampler
    agrees, and takes eps from x0 after the threshold. Raises ValueError where eta is outside [0, 1].
    """
    check_eta(eta)
    for step, (now, after) in enumerate(steps_of(path)):
        x0, eps = denoise(z, now)
        moved = []
        for level in range(len(z)):
            fresh = ancestral_share(now, after, level, eta)
            along = after.sigma[level] * math.sqrt(max(1 - fresh, 0.0))
            mean = after.alpha[level] * x0[level] + along * eps[level]
            moved.append(mean + fresh_noise(after, step, level, noise, fresh))
        z = tuple(moved)
    return z


def ddpm(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """DDPM's ancestral sampling, with the posterior's variance. *DDPM*, arXiv 2006.11239, eq. 6 and 7.

    The posterior `q(z_next | z_now, x0)` is what DDIM draws from at eta = 1; the released sampler's ancestral
    step (no eta) is this one too, with the variance `beta_tilde`, not `beta`.
    """
    return ddim(denoise, z, path, noise, eta=1.0)


def euler(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """Euler's method in sigma_edm = sigma / alpha, which is DDIM at eta = 0.

    There the slope is eps, and `z / alpha + (sigma_edm_next - sigma_edm) eps` is `x0 + sigma_edm_next eps`.
    *DDIM*, arXiv 2010.02502, section 4.3; *EDM*, arXiv 2206.00364, algorithm 1 without its correction.
    """
    return ddim(denoise, z, path, noise)


def flow_euler(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """Euler's method along the flow `dz = x0 d(alpha) + eps d(sigma)`, which is DDIM at eta = 0 again.

    For `linear_flow` it is a step of t along the velocity eps - x0: *Flow Matching*, arXiv 2210.02747.
    """
    return ddim(denoise, z, path, noise)


def euler_ancestral(
    denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise, *, eta: float = 1.0
) -> Pyramid:
    """Euler to below the next sigma_edm, and fresh noise up to it, which is DDIM at the same eta.

    With d = logsnr(now) - logsnr(next), `sigma_up^2 = eta^2 sigma_next^2 (1 - e^d)`. *k-diffusion*'s sampler
    of this name; its `sigma_down` is what DDIM keeps along eps. Raises ValueError where eta is outside
    [0, 1].
    """
    return ddim(denoise, z, path, noise, eta=eta)


def lcm(denoise: Denoise, z: Pyramid, path: Sequence[NoiseLevel], noise: Noise) -> Pyramid:
    """Multistep consistency sampling: take the prediction for the picture, noise it anew, again and again.

    For denoisers distilled to jump to the data, in 1 to 8 steps; others come out blurred. *Consistency
    Models*, arXiv 2303.01469, algorithm 1; *Latent Consistency Models*, arXiv 2310.04378. The boundary
    scalings of either belong to the denoiser.
    """
    for step, (now, after) in enumerate(steps_of(path)):
        x0 = denoise(z, now).x0
        z = tuple(
            after.alpha[level] * x0[level] + fresh_noise(after, step, level, noise, 1.0)
            for level in range(len(z))
        )
    return z


def check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1], got {eta}")


def ancestral_share(now: NoiseLevel, after: NoiseLevel, level: int, eta: float) -> float:
    """The part of the next noise variance that is drawn anew, `eta^2 (1 - e^d)`: DDIM's eq. 16."""
    return -eta * eta * math.expm1(now.logsnr[level] - after.logsnr[level])


def fresh_noise(after: NoiseLevel, step: int, level: int, noise: Noise, share: float) -> Tensor | float:
    """Noise whose variance is that share of `sigma_after^2`; none is drawn where that is 0."""
    scale = after.sigma[level] * math.sqrt(max(share, 0.0))
    return scale * noise(step, level) if scale > 0 else 0.0
