"""Curves of logsnr, and the tables of the released models.

A table has an entry for each of `steps` + 1 indices, 0 is clean; index i is t = i / steps, and between
entries logsnr is interpolated. The first cell, where gamma goes from 1 to gamma[1], runs from `LOGSNR_LIMIT`
to logsnr[1].
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["LOGSNR_LIMIT", "cosine_logsnr", "cosine_logsnr_table", "cosine_table", "interpolate"]
__all__ += ["karras_sigma", "linear_table", "squared_cosine_logsnr"]

LOGSNR_LIMIT = 20.0


def squared_cosine_logsnr(t: Tensor) -> Tensor:
    """logsnr of alpha_bar = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) * pi / 2); eq. 17."""
    s = 0.008
    quarter = math.pi / 2 / (1 + s)
    # with theta = quarter (t + s): cos theta = sin(quarter (1 - t)), and
    # 1 - alpha_bar = sin(theta - theta_0) sin(theta + theta_0) / f(0); no difference of near equals at either
    # end
    signal = torch.sin(quarter * (1 - t)).clamp(min=0)
    noise = torch.sin(quarter * t) * torch.sin(quarter * (t + 2 * s))
    return 2 * signal.log() - noise.log()


def cosine_logsnr(u: Tensor, logsnr_max: float, logsnr_min: float) -> Tensor:
    """-2 ln tan(a u + b), a and b such that it runs from `logsnr_max` to `logsnr_min`."""
    b = math.atan(math.exp(-logsnr_max / 2))
    a = math.atan(math.exp(-logsnr_min / 2)) - b
    return -2 * torch.tan(a * u + b).log()


def karras_sigma(share: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """sigma_edm from `sigma_min` at share 0 to `sigma_max` at 1, even in its root `rho`. *EDM*, eq. 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + share * (high - low)) ** rho


def interpolate(table: Tensor, t: Tensor) -> Tensor:
    """Entries of `table` at `t * (len(table) - 1)`, linear between neighbours, in t's dtype and device."""
    last = len(table) - 1
    position = t * last
    below = position.detach().floor().long().clamp(0, last - 1)
    table = table.to(device=t.device, dtype=t.dtype)
    # the form that gives the entry itself at both ends of a cell
    share = position - below
    return table[below] * (1 - share) + table[below + 1] * share


def logsnr_of_betas(betas: Tensor) -> Tensor:
    """logsnr at index 0 .. steps; gamma = cumulative products of 1 - beta, and gamma[0] = 1 (cut off)."""
    log_gamma = torch.log1p(-betas).cumsum(0)
    return with_clean(log_gamma - torch.log(-torch.expm1(log_gamma)))


def with_clean(logsnr: Tensor) -> Tensor:
    return torch.cat([torch.tensor([LOGSNR_LIMIT], dtype=logsnr.dtype), logsnr])


@lru_cache(maxsize=16)
def cosine_table(steps: int) -> Tensor:
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    return logsnr_of_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))


@lru_cache(maxsize=16)
def linear_table(beta_start: float, beta_end: float, steps: int) -> Tensor:
    return logsnr_of_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


@lru_cache(maxsize=16)
def cosine_logsnr_table(logsnr_max: float, logsnr_min: float, steps: int) -> Tensor:
    u = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    return with_clean(cosine_logsnr(u, logsnr_max, logsnr_min))
