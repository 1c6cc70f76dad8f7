"""Denoisers that are known exactly: of one picture, and of Gaussian data."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.pyramid import pyramid
from mdmkit.sampling import Denoise, Denoised
from mdmkit.targets import to_eps

__all__ = ["Counting", "Gaussian", "Perfect", "Related"]


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


@attrs.frozen
class Related:
    """E[x0 | z] of zero-mean Gaussian pictures whose pixels are related, at all levels that z has together.

    `cov`: of the pixels of the highest level, `sizes` (height, width) of each; `scales` as in `Diffusion`.
    """

    cov: Tensor
    sizes: Sequence[tuple[int, int]]
    scales: Sequence[float] | None = None

    def covariance(self, levels: int) -> Tensor:
        """Of the pixels of the innermost levels, one after another."""
        basis = torch.eye(len(self.cov), dtype=self.cov.dtype).view(-1, 1, *self.sizes[-1])
        pooled = pyramid(basis, self.sizes[:levels])
        scales = self.scales or [1.0] * levels
        rows = torch.cat([x.flatten(1) * scales[r] for r, x in enumerate(pooled)], 1).T
        return rows @ self.cov @ rows.T

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        counts = torch.tensor([level[0].numel() for level in z])
        alpha, sigma = (
            torch.tensor(values[: len(z)], dtype=torch.float64).repeat_interleave(counts)
            for values in (at.alpha, at.sigma)
        )
        cov = self.covariance(len(z))
        noisy = alpha[:, None] * cov * alpha + torch.diag(sigma**2)
        flat = torch.cat([level.flatten(1) for level in z], 1)
        said = torch.linalg.solve(noisy, flat.T).T @ (alpha[:, None] * cov)
        split = said.split(counts.tolist(), 1)
        return with_eps([x.view_as(level) for x, level in zip(split, z, strict=True)], z, at)


@attrs.frozen
class Counting:
    """A denoiser that counts how often each level ran."""

    denoise: Denoise
    ran: list[int] = attrs.field(factory=list)

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        self.ran.append(len(z))
        return self.denoise(z, at)

    def of_level(self, level: int) -> int:
        """How many evaluations a level had a part in."""
        return sum(levels > level for levels in self.ran)
