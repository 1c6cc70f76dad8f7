"""Denoisers that are known exactly: of one picture, and of Gaussian data."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.sampling import Denoised
from mdmkit.targets import to_eps

__all__ = ["Gaussian", "Perfect"]


def with_eps(x0: Sequence[Tensor], z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
    levels = enumerate(zip(x0, z, strict=True))
    eps = tuple(to_eps(clean, noisy, at.alpha[r], at.sigma[r], "x0") for r, (clean, noisy) in levels)
    return Denoised(tuple(x0), eps)


@attrs.frozen
class Perfect:
    """Knows the picture."""

    x0: tuple[Tensor, ...]
    seen: list[tuple[NoiseLevel, tuple[Tensor, ...]]] = attrs.field(factory=list)

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        self.seen.append((at, tuple(z)))
        return with_eps(self.x0[: len(z)], z, at)


@attrs.frozen
class Gaussian:
    """E[x0 | z] where every pixel is N(mean, std^2), independent: linear in z, by Bayes' rule."""

    mean: float
    std: float

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        x0 = []
        for alpha, sigma, noisy in zip(at.alpha, at.sigma, z, strict=False):
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            x0.append(self.mean + gain * (noisy - alpha * self.mean))
        return with_eps(x0, z, at)

    def flow_from(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """Where the probability flow takes `z`: it keeps (z - mean of z) / std of z."""
        deviation = (alpha**2 * self.std**2 + sigma**2) ** 0.5
        return self.mean + self.std * (z - alpha * self.mean) / torch.tensor(deviation)
