"""Noise schedules: t in [0, 1] (0 is data) to logsnr, alpha and sigma; the shift per level.

Every schedule keeps two promises. `logsnr(t)` is finite and falls over [0, 1]: it is cut off at
+-`LOGSNR_LIMIT`, a little outside the released tables (their last entry is -19.84). `alpha_sigma(0)` is
exactly (1, 0), whatever the shift, as the released tables have gamma[0] = 1: what a sampler ends with is the
picture, without a rest of noise.

The curves and the released tables that they are made of are in `mdmkit.tables`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.pyramid import normalize_resolution
from mdmkit.tables import (
    LOGSNR_LIMIT,
    cosine_logsnr,
    cosine_logsnr_table,
    cosine_table,
    interpolate,
    karras_sigma,
    linear_table,
    squared_cosine_logsnr,
)

__all__ = ["DDPM", "EDM", "LOGSNR_LIMIT", "ByDensity", "Cosine", "CosineLogSNR", "Interpolated", "Laplace"]
__all__ += ["LinearFlow", "NoiseSchedule", "Shifted", "Sigmoid", "VariancePreserving", "ZeroTerminal"]
__all__ += ["clean_at_zero", "level_shift", "shift_levels", "time_at"]


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
        check_range(self.logsnr_min, self.logsnr_max)

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
class EDM(VariancePreserving):
    """Karras noise levels: sigma_edm from `sigma_min` to `sigma_max`, even in its root `rho`.

    EDM adds noise of sigma_edm to pictures of scale 1 and divides by sqrt(sigma_edm^2 + sigma_data^2) at the
    network's door. Here the process is divided itself, by sqrt(sigma_edm^2 + 1), so that every network sees
    unit scale: logsnr = -2 ln sigma_edm is the same and variance preserving. At t = 0 the picture is clean,
    where sigma_edm would be `sigma_min`. *EDM*, arXiv 2206.00364, eq. 5; its training draws are
    `mdmkit.times.LogNormalTime`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )
        if not self.rho > 0:
            raise ValueError(f"expected rho > 0, got {self.rho}")

    def logsnr(self, t: Tensor) -> Tensor:
        sigma_edm = karras_sigma(t, self.sigma_min, self.sigma_max, self.rho)
        return (-2 * sigma_edm.log()).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class Interpolated(VariancePreserving):
    """A cosine of logsnr whose shift goes from that of `high` at t = 0 to that of `low` at t = 1.

    `low` and `high` are the sides, in sides of level 0, that the cosine is made for: the shift of a ratio is
    2 ln ratio, and a level above adds its own to both ends. Noise then hides layout late, as in a small
    picture, and details early, as in a large one. *simple diffusion*, arXiv 2301.11093, its interpolated
    schedule: `noise_d_low` and `noise_d_high`, divided by the side of the picture.
    """

    low: float = 0.5
    high: float = 1.0
    logsnr_max: float = 15.0
    logsnr_min: float = -15.0

    def __attrs_post_init__(self) -> None:
        check_range(self.logsnr_min, self.logsnr_max)
        if not 0 < self.low <= self.high:
            raise ValueError(f"expected 0 < low <= high, got {self.low} and {self.high}")

    def logsnr(self, t: Tensor) -> Tensor:
        shift = 2 * ((1 - t) * math.log(self.high) + t * math.log(self.low))
        curve = cosine_logsnr(t, self.logsnr_max, self.logsnr_min) + shift
        return curve.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class ByDensity(VariancePreserving):
    """A schedule whose uniform times have a density over logsnr that is symmetric about `mean`.

    A subclass gives the density's `tail`, at mean 0 and width 1; `scale` is its width. ValueError where that
    is not above 0, or `mean` lies outside the cut-off. *Improved Noise Schedule for Diffusion Training*,
    arXiv 2407.03297, section 2: t is the share of the density above logsnr(t).
    """

    mean: float = 0.0
    scale: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not (self.scale > 0 and abs(self.mean) < LOGSNR_LIMIT):
            expected = f"scale > 0 and mean between -{LOGSNR_LIMIT:g} and {LOGSNR_LIMIT:g}"
            raise ValueError(f"expected {expected}, got scale={self.scale} and mean={self.mean}")

    def tail(self, share: Tensor) -> Tensor:
        """The value >= 0 above which this share of the density lies, at most half of it; infinite at 0."""
        raise NotImplementedError

    def logsnr(self, t: Tensor) -> Tensor:
        # the share beyond, from the nearer end: 1 - t would lose the digits of a small t
        beyond = self.tail(torch.minimum(t, 1 - t))
        logsnr = self.mean + self.scale * torch.where(t <= 0.5, beyond, -beyond)
        return logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)


@attrs.frozen
class Laplace(ByDensity):
    """Laplace's density over logsnr, exp(-|logsnr - mean| / scale) / (2 scale).

    Most times are near one noise level: logsnr(t) = mean - scale sgn(1/2 - t) ln(1 - 2 |t - 1/2|).
    *Improved Noise Schedule for Diffusion Training*, arXiv 2407.03297, table 1.
    """

    mean: float = 0.0
    scale: float = 0.5

    def tail(self, share: Tensor) -> Tensor:
        return -torch.log(2 * share)


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
class ZeroTerminal(VariancePreserving):
    """A schedule whose alpha is moved and stretched such that no signal is left at t = 1.

    alpha' = (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)). What the cut-off leaves at t = 1 is logsnr
    -`LOGSNR_LIMIT`, an alpha of 4.5e-5 (and a level's shift moves it), so that eps can still be turned into
    x0. It changes schedules that end early: linear betas (-10.1), a cosine cut to a range; `Cosine` ends at
    -19.84 by itself. *Common Diffusion Noise Schedules and Sample Steps are Flawed*, arXiv 2305.08891,
    algorithm 1, which keeps the first entry of a table where this keeps t = 0.
    """

    schedule: NoiseSchedule = attrs.field(factory=DDPM)

    def logsnr(self, t: Tensor) -> Tensor:
        # in float64: alpha - alpha(1) and 1 - alpha are differences of near equals at the ends
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device)
        logsnr = self.schedule.logsnr(torch.cat([ends, t.double().flatten()]))
        alpha, _ = self.alpha_sigma_at(logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT))
        first, last, alpha = alpha[0], alpha[1], alpha[2:].view(t.shape)
        kept = (alpha - last) * (first / (first - last))
        logsnr = 2 * kept.log() - torch.log1p(-kept) - torch.log1p(kept)
        return logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT).to(t.dtype)


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


def check_form(form: str) -> None:
    if form not in ("table", "continuous"):
        raise ValueError(f"expected form 'table' or 'continuous', got {form!r}")


def check_range(logsnr_min: float, logsnr_max: float) -> None:
    if not logsnr_min < logsnr_max:
        raise ValueError(f"expected logsnr_min < logsnr_max, got {logsnr_min} and {logsnr_max}")
