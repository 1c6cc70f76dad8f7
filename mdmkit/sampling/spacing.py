"""Spacings: which times a sampler visits."""

from __future__ import annotations

from typing import Protocol

from mdmkit.diffusion import Diffusion

__all__ = ["Spacing", "released", "uniform_t"]


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
    check_steps(steps)
    if steps > table:
        raise ValueError(f"steps={steps} are too many for a table of {table}; use at most {table}")
    # halves go to the even index, as theirs do
    return [round(k * (table + 1) / (steps + 1)) / table for k in range(steps, -1, -1)]


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
