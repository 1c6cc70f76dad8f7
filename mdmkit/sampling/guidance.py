"""Guidance: wraps a denoiser into a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
from torch import Tensor

from mdmkit.diffusion import NoiseLevel

from .denoise import Denoised, PairedDenoise

__all__ = ["CFG", "Guidance"]


@runtime_checkable
class Guidance(Protocol):
    """Wraps a denoiser into one that is guided; several are applied in order."""

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise: ...


@attrs.frozen
class CFG:
    """Classifier-free guidance: `uncond + scale (cond - uncond)` at every level; no second answer at scale 1.

    At a given z all prediction spaces are affine in each other, so that it is one formula for x0 and eps.
    *Classifier-Free Diffusion Guidance*, arXiv 2207.12598, eq. 6, with scale = 1 + w.
    """

    scale: float = 5.0

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser."""
        return denoise if self.scale == 1 else Guided(denoise, self.scale)


@attrs.frozen
class Guided:
    """A denoiser guided by its own unconditional answer."""

    denoise: PairedDenoise
    scale: float

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        cond, uncond = self.denoise.both(z, at)
        x0, eps = (
            tuple(u + self.scale * (c - u) for c, u in zip(conds, unconds, strict=True))
            for conds, unconds in zip(cond, uncond, strict=True)
        )
        return Denoised(x0, eps)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The two answers that guidance starts from."""
        return self.denoise.both(z, at)
