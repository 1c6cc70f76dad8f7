"""Noise schedules: t in [0, 1] (0 is data) to logsnr, alpha and sigma; the shift per level.

Every schedule keeps two promises. `logsnr(t)` is finite and falls over [0, 1]: it is cut off at
+-`LOGSNR_LIMIT`, a little outside the released tables (their last entry is -19.84). `alpha_sigma(0)` is
exactly (1, 0), whatever the shift, as the released tables have gamma[0] = 1: what a sampler ends with is the
picture, without a rest of noise.

The released tables have an entry for each of `steps` + 1 indices; index i is t = i / steps, and between
entries logsnr is interpolated. Their first cell, where gamma goes from 1 to gamma[1], runs from
`LOGSNR_LIMIT` to logsnr[1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.pyramid import normalize_resolution

__all__ = ["DDPM", "LOGSNR_LIMIT", "Cosine", "CosineLogSNR", "LinearFlow", "NoiseSchedule", "Shifted"]
__all__ += ["Sigmoid", "VariancePreserving", "clean_at_zero", "level_shift", "shift_levels", "time_at"]

LOGSNR_LIMIT = 20.0


@runtime_checkable
class NoiseSchedule(Protocol):
    """How signal and noise mix over t; tensors of any shape, results of the same shape, dtype and device."""

    def logsnr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) at `t`, finite, falling."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at `t`; exactly (1, 0) at t = 0."""
        ...

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at a logsnr: what tells one family of schedules from another."""
        ...


def clean_at_zero(t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`alpha, sigma`, but exactly (1, 0) where t is 0: the cut-off logsnr there would leave 5e-5 of noise."""
    return torch.where(t <= 0, 1.0, alpha), torch.where(t <= 0, 0.0, sigma)


class VariancePreserving:
    """The family with alpha^2 + sigma^2 = 1; a subclass gives `logsnr`."""

    def logsnr(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale at t."""
        return clean_at_zero(t, *self.alpha_sigma_at(self.logsnr(t)))

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale of a variance-preserving process."""
        # sigmoid both ways: sqrt(1 - alpha**2) loses every digit near t = 0
        return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


@attrs.frozen
class Cosine(VariancePreserving):
    """Squared cosine: alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), as the released models have it.

    `form="table"`: the released table of `steps` betas, capped at 0.999; "continuous": the formula itself.
    They agree at t = i / steps but for the last entry, where the cap acts (logsnr -19.84 instead of the
    cut-off -20). *Improved DDPM*, arXiv 2102.09672, eq. 17.
    """

    form: str = "table"
    steps: int = 1000

    def __attrs_post_init__(self) -> None:
        check_form(self.form)

    def logsnr(self, t: Tensor) -> Tensor:
        if self.form == "table":
            return interpolate(cosine_table(self.steps), t)
        return squared_cosine_logsnr(t).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class DDPM(VariancePreserving):
    """Linear betas, `beta_start` to `beta_end` over `steps`. *DDPM*, arXiv 2006.11239, section 4."""

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000

    def logsnr(self, t: Tensor) -> Tensor:
        return interpolate(linear_table(self.beta_start, self.beta_end, self.steps), t)


@attrs.frozen
class CosineLogSNR(VariancePreserving):
    """Cosine cut to a range of logsnr: -2 ln tan(a u + b), `logsnr_max` at u = 0, `logsnr_min` at u = 1.

    `form="continuous"`: u = t. "table": the released table, whose index 0 is clean and whose indices 1 ..
    steps have u = (index - 1) / (steps - 1). *simple diffusion*, arXiv 2301.11093, from its
    code listing.
    """

    logsnr_max: float = 5.0
    logsnr_min: float = -5.0
    form: str = "table"
    steps: int = 1000

    def __attrs_post_init__(self) -> None:
        check_form(self.form)
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"expected logsnr_min < logsnr_max, got {self.logsnr_min} and {self.logsnr_max}")

    def logsnr(self, t: Tensor) -> Tensor:
        if self.form == "table":
            return interpolate(cosine_logsnr_table(self.logsnr_max, self.logsnr_min, self.steps), t)
        return cosine_logsnr(t, self.logsnr_max, self.logsnr_min).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class Sigmoid(VariancePreserving):
    """A piece of a sigmoid, `start` to `end` at temperature `tau`, stretched to alpha_bar from 1 to 0.

    *On the Importance of Noise Scheduling for Diffusion Models*, arXiv 2301.10972, section 2.1, without its
    clip.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not (self.start < self.end and self.tau > 0):
            raise ValueError(f"expected start < end and tau > 0, got {self.start}, {self.end} and {self.tau}")

    def logsnr(self, t: Tensor) -> Tensor:
        # with S the sigmoid, x = start + t (end - start), all over tau: alpha_bar / (1 - alpha_bar) is
        # (S(end) - S(x)) / (S(x) - S(start)), and S(a) - S(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b /
        # 2)); the differences themselves lose their digits at both ends
        half = (self.end - self.start) / (2 * self.tau)
        ends = math.log(math.cosh(self.start / (2 * self.tau)) / math.cosh(self.end / (2 * self.tau)))
        logsnr = torch.sinh(half * (1 - t)).log() - torch.sinh(half * t).log() + ends
        return logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class LinearFlow:
    """A straight line from data to noise: alpha = 1 - t, sigma = t; alpha + sigma = 1, also after a shift.

    At t = 1 alpha is 4.5e-5, not 0 (logsnr is cut off), so that every prediction space can be turned into x0.
    *Flow Matching*, arXiv 2210.02747, section 4.1; the shift is that of *Stable Diffusion 3*, arXiv
    2403.03206, eq. 23.
    """

    def logsnr(self, t: Tensor) -> Tensor:
        return (2 * (torch.log1p(-t) - t.log())).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale at t."""
        return clean_at_zero(t, *self.alpha_sigma_at(self.logsnr(t)))

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale whose sum is 1: alpha / sigma = exp(logsnr / 2)."""
        return (logsnr / 2).sigmoid(), (-logsnr / 2).sigmoid()


@attrs.frozen
class Shifted:
    """A schedule whose logsnr is moved by a constant `shift`; the family stays."""

    schedule: NoiseSchedule
    shift: float = 0.0

    def logsnr(self, t: Tensor) -> Tensor:
        """The schedule's logsnr, cut off at +-`LOGSNR_LIMIT` (a plugin's may be infinite), plus the shift."""
        return self.schedule.logsnr(t).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT) + self.shift

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale at t."""
        return clean_at_zero(t, *self.schedule.alpha_sigma_at(self.logsnr(t)))

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """The schedule's own family."""
        return self.schedule.alpha_sigma_at(logsnr)


def level_shift(
    resolution: int | Sequence[int],
    base: int | Sequence[int],
    *,
    shift_power: float = 1.0,
    shift_power_frames: float = 1.0,
) -> float:
    """What is added to logsnr at `resolution` when `base` has no shift.

    `-(p / 2) ln(h_ratio w_ratio) - p_f ln(f_ratio)`, ratios to `base`.
    For squares `-p ln(side / side_base)`: SNR / s^p, as released with *Matryoshka Diffusion Models*,
    arXiv 2310.15111. p = 2 is the shift of *simple diffusion*, arXiv 2301.11093, section 3.1, at which
    pooling the noisy picture gives the SNR of the low one. Resolutions are `(height, width)` or `(frames,
    height, width)`; ValueError where only one of them has frames.
    """
    high, low = normalize_resolution(resolution), normalize_resolution(base)
    if len(high) != len(low):
        raise ValueError(f"cannot compare resolutions {high} and {low}: only one of them has frames")
    area = math.prod(high[-2:]) / math.prod(low[-2:])
    frames = high[0] / low[0] if len(high) == 3 else 1.0
    # + 0.0 turns -0.0 of the base into 0.0
    return -(shift_power / 2) * math.log(area) - shift_power_frames * math.log(frames) + 0.0


def shift_levels(
    schedule: NoiseSchedule,
    resolutions: Sequence[int | Sequence[int]],
    *,
    shift_power: float = 1.0,
    shift_power_frames: float = 1.0,
) -> tuple[Shifted, ...]:
    """The schedule of each level, low to high: level 0 unshifted, so that a new level moves no old one."""
    shifts = [
        level_shift(size, resolutions[0], shift_power=shift_power, shift_power_frames=shift_power_frames)
        for size in resolutions
    ]
    return tuple(Shifted(schedule, shift) for shift in shifts)


def time_at(schedule: NoiseSchedule, logsnr: Tensor) -> Tensor:
    """The t in [0, 1] at which a schedule has these logsnr, to float64; the nearer end where it has not."""
    low = torch.zeros_like(logsnr, dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(60):
        middle = (low + high) / 2
        cleaner = schedule.logsnr(middle) > logsnr
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return torch.where(low == 0, 0.0, high)


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


def check_form(form: str) -> None:
    if form not in ("table", "continuous"):
        raise ValueError(f"expected form 'table' or 'continuous', got {form!r}")


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
