"""Spacings: which times a sampler visits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol

import torch

from mdmkit.diffusion import Diffusion
from mdmkit.schedules import time_at
from mdmkit.tables import karras_sigma

__all__ = [
    "Spacing",
    "karras",
    "leading",
    "poly_exponential",
    "released",
    "trailing",
    "uniform_logsnr",
    "uniform_t",
]


class Spacing(Protocol):
    """The times of a sampler with `steps` steps: `steps` + 1 of them, falling, the last 0."""

    def __call__(self, steps: int, diffusion: Diffusion) -> list[float]: ...


def uniform_t(steps: int, diffusion: Diffusion) -> list[float]:
    """Equal steps in t from 1 to 0. Raises ValueError where steps < 1."""
    check_steps(steps)
    return [k / steps for k in range(steps, -1, -1)]


def released(steps: int, diffusion: Diffusion, *, table: int = 1000) -> list[float]:
    """The released sampler's grid: index round(k (table + 1) / (steps + 1)) of its table, k = steps .. 0.

    It starts late (10 steps begin at t = 0.91 although z is pure noise); for equal numbers with the released
    sampler. Raises ValueError where steps is not in 1 .. table.
    """
    check_steps(steps, table)
    # halves go to the even index, as theirs do
    return [round(k * (table + 1) / (steps + 1)) / table for k in range(steps, -1, -1)]


def trailing(steps: int, diffusion: Diffusion, *, table: int = 1000) -> list[float]:
    """Indices table, table - table / steps, ..., 0 of a table, rounded: `uniform_t` for tables.

    *Common Diffusion Noise Schedules and Sample Steps are Flawed*, arXiv 2305.08891, table 2. Raises
    ValueError where steps is not in 1 .. table.
    """
    check_steps(steps, table)
    return [round(table * k / steps) / table for k in range(steps, -1, -1)]


def leading(steps: int, diffusion: Diffusion, *, table: int = 1000) -> list[float]:
    """Index 1 of a table and every `table // steps`-th after it, falling, then 0; starts late.

    The grid of DDIM's code, arXiv 2010.02502; with few steps it starts far from pure noise although z is
    that, as *Common Diffusion Noise Schedules and Sample Steps are Flawed*, arXiv 2305.08891, shows. Raises
    ValueError where steps is not in 1 .. table.
    """
    check_steps(steps, table)
    return [(1 + k * (table // steps)) / table for k in range(steps - 1, -1, -1)] + [0.0]


def uniform_logsnr(steps: int, diffusion: Diffusion, *, logsnr_max: float = 10.0) -> list[float]:
    """Equal steps in logsnr from t = 1 to `logsnr_max` of level 0, then to 0: *DPM-Solver*, arXiv 2206.00927.

    Raises ValueError where steps < 1, or where the schedule does not reach `logsnr_max`.
    """
    check_steps(steps)
    start = diffusion.at(1.0).logsnr[0]
    return times_of([start + (logsnr_max - start) * k / max(steps - 1, 1) for k in range(steps)], diffusion)


def karras(
    steps: int,
    diffusion: Diffusion,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> list[float]:
    """Equal steps in sigma_edm^(1 / rho) of level 0, from `sigma_max` to `sigma_min`, then to 0.

    *EDM*, arXiv 2206.00364, eq. 5. Raises ValueError where steps < 1, or not 0 < sigma_min < sigma_max.
    """
    check_steps(steps)
    check_sigmas(sigma_min, sigma_max)
    share = 1 - torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    sigmas = karras_sigma(share, sigma_min, sigma_max, rho)
    return times_of((-2 * sigmas.log()).tolist(), diffusion)


def poly_exponential(
    steps: int,
    diffusion: Diffusion,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 1.0,
) -> list[float]:
    """ln sigma from `sigma_max` to `sigma_min` as a power `rho` of equal steps, then 0; sigma_edm of level 0.

    rho = 1 has equal steps in logsnr; above it they are denser at low noise. *k-diffusion*, its
    `get_sigmas_polyexponential`. Raises ValueError where steps < 1, or not 0 < sigma_min < sigma_max.
    """
    check_steps(steps)
    check_sigmas(sigma_min, sigma_max)
    whole = math.log(sigma_max / sigma_min)
    logs = [math.log(sigma_min) + whole * (1 - k / max(steps - 1, 1)) ** rho for k in range(steps)]
    return times_of([-2 * log for log in logs], diffusion)


def times_of(logsnr: list[float], diffusion: Diffusion) -> list[float]:
    """The times at which level 0 has these logsnr, rising, and 0 after them.

    What is noisier than the schedule becomes t = 1; ValueError where two steps become one by that, or where
    the schedule does not reach so clean.
    """
    schedule = diffusion.schedules[0]
    times = time_at(schedule, torch.tensor(logsnr, dtype=torch.float64)).tolist()
    if not all(now > after for now, after in pairwise([*times, 0.0])):
        ends = diffusion.at(1.0).logsnr[0], float(diffusion.logsnr(torch.tensor(0.0), 0))
        raise ValueError(
            f"steps from logsnr {logsnr[0]:.3g} to {logsnr[-1]:.3g} do not lie in the schedule, which has "
            f"{ends[0]:.3g} to {ends[1]:.3g}; choose sigma_min and sigma_max, or logsnr_max, inside it"
        )
    return [*times, 0.0]


def check_sigmas(low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, got {low} and {high}")


def check_steps(steps: int, table: int | None = None) -> None:
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
    if table is not None and steps > table:
        raise ValueError(f"steps={steps} are too many for a table of {table}; use at most {table}")
