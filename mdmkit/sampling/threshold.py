"""Thresholds: keep predicted pictures in range, each picture and level by itself.

A threshold acts on x0; the eps to go on with is then taken from the thresholded x0 (`thresholded`), as in the
released sampler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel

from .denoise import Denoise, Denoised, with_x0

__all__ = ["Threshold", "clip", "dynamic", "dynamic_if", "none", "thresholded"]


class Threshold(Protocol):
    """x0 of one level `(B, C, ...)` in, x0 in range out; rows do not see each other."""

    def __call__(self, x0: Tensor) -> Tensor: ...


def none(x0: Tensor) -> Tensor:
    """No threshold."""
    return x0


def clip(x0: Tensor, *, limit: float = 1.0) -> Tensor:
    """Static thresholding: cut to [-limit, limit]."""
    return x0.clamp(-limit, limit)


def dynamic(x0: Tensor, *, quantile: float = 0.995, maximum: float = 100.0, limit: float = 1.0) -> Tensor:
    """Dynamic thresholding: divide a picture by the `quantile` of its |x0| over `limit`, then cut.

    The divisor stays in [1, maximum], so that a picture in range is left as it is. *Imagen*, arXiv
    2205.11487, section 2.3. With these defaults it is the released `DYNAMIC`; its scale s is limit = 1 / s.
    """
    size = quantile_rows(x0.abs().flatten(1), quantile) / limit
    size = size.clamp(1.0, maximum).view(-1, *[1] * (x0.ndim - 1))
    return (x0 / size).clamp(-limit, limit)


def dynamic_if(x0: Tensor, *, quantile: float = 0.95, maximum: float = 1.5, limit: float = 1.0) -> Tensor:
    """Dynamic thresholding as in DeepFloyd IF, with a divisor of 1.5 at most; the released `DYNAMIC_IF`."""
    return dynamic(x0, quantile=quantile, maximum=maximum, limit=limit)


def quantile_rows(values: Tensor, quantile: float) -> Tensor:
    """The quantile of each row of `values (B, N)`, linear between neighbours."""
    # torch.quantile refuses more than 2**24 elements, which a few pictures at 1024 have
    place = quantile * (values.shape[1] - 1)
    below = min(math.floor(place), max(values.shape[1] - 2, 0))
    low = torch.kthvalue(values, below + 1, dim=1).values
    high = torch.kthvalue(values, min(below + 2, values.shape[1]), dim=1).values
    return torch.lerp(low, high, place - below)


def thresholded(
    denoise: Denoise, threshold: Threshold | Sequence[Threshold], diffusion: Diffusion
) -> Denoise:
    """A denoiser whose x0 is thresholded, and whose eps is moved along, so that both still lead to `z`.

    `threshold`: one for all levels, or one each, low to high. It sees pictures, whatever they are scaled by
    in the process. The denoiser raises ValueError for more levels than there are thresholds.
    """
    if threshold is none:
        return denoise

    def denoise_in_range(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        said = denoise(z, at)
        each = [threshold] * len(z) if callable(threshold) else threshold
        if len(each) < len(z):
            raise ValueError(
                f"expected a threshold for each of {len(z)} levels, low to high, got {len(each)}; "
                "give one for all, or one each (none for no threshold)"
            )
        pictures = zip(each, diffusion.pictures(said.x0), strict=False)
        return with_x0(said, diffusion.scaled(tuple(limit(picture) for limit, picture in pictures)), at)

    return denoise_in_range
