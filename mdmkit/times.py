"""Distributions of t in training, each by the inverse of its distribution function.

A draw is a number in (0, 1] that the inverse turns into t, so that spreading the numbers evenly over a batch
spreads t evenly over its distribution, whichever that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.schedules import NoiseSchedule, check_range, time_at
from mdmkit.streams import stream

__all__ = ["ByQuantile", "LogNormalTime", "LogitNormalTime", "TimeSampler", "UniformLogSNR", "UniformTime"]


@runtime_checkable
class TimeSampler(Protocol):
    """The distribution of t in training."""

    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        """t in (0, 1], float64, of the samples at `positions` of this step's global batch of `batch` samples.

        A function of its arguments only: ranks draw their own positions and agree with one rank that draws
        all.
        """
        ...

    def density(self, t: Tensor) -> Tensor:
        """The density of t on [0, 1]."""
        ...


@attrs.frozen
class ByQuantile:
    """A distribution of t by its `quantile` function; a subclass gives that and `density`.

    `stratified`: each step has one draw in each of `batch` equally likely parts of (0, 1], in a random order.
    Stratified draws have the same density and make the loss less noisy: *Variational Diffusion Models*,
    arXiv 2107.00630, appendix I.1; the order is random so that no level of a mixed batch sees a part of the
    times only.

    `schedule`: of level 0, for distributions over its noise levels; others do without.
    """

    stratified: bool = False
    schedule: NoiseSchedule | None = attrs.field(default=None, kw_only=True)

    def quantile(self, share: Tensor) -> Tensor:
        """The t below which this share of all draws lies; `share` in (0, 1]."""
        raise NotImplementedError

    def density(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        """t of these positions, as `TimeSampler` has it. ValueError where one is not in the batch."""
        # t = 0 never comes, where x0 is known and eps cannot be: a quantile may round to it
        smallest = torch.finfo(torch.float64).tiny
        return self.quantile(self.shares(seed, step, positions, batch)).clamp(min=smallest)

    def shares(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        """Uniform numbers in (0, 1], one a position."""
        # 1 - u with u in [0, 1)
        u = torch.tensor(
            [stream(seed, step, int(p), "time").random() for p in positions], dtype=torch.float64
        )
        if not self.stratified:
            return 1 - u
        if positions and not 0 <= min(positions) <= max(positions) < batch:
            raise ValueError(
                f"expected positions in a batch of {batch}, got {min(positions)} .. {max(positions)}"
            )
        order = stream(seed, step, "time", "order").permutation(batch)
        part = torch.tensor([order[p] for p in positions], dtype=torch.float64)
        return (part + (1 - u)) / batch


@attrs.frozen
class UniformTime(ByQuantile):
    """Uniform t."""

    def quantile(self, share: Tensor) -> Tensor:
        return share

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@attrs.frozen
class LogitNormalTime(ByQuantile):
    """logit(t) normal: most draws at middle times, none at the ends; `mean` > 0 is noisier (t = 1 is noise).

    *Stable Diffusion 3*, arXiv 2403.03206, section 3.1.
    """

    stratified: bool = False
    mean: float = 0.0
    std: float = 1.0

    def __attrs_post_init__(self) -> None:
        check_std(self.std)

    def quantile(self, share: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(share)).sigmoid()

    def density(self, t: Tensor) -> Tensor:
        inside = (t > 0) & (t < 1)
        t = torch.where(inside, t, 0.5)
        return torch.where(inside, normal_density(t.logit(), self.mean, self.std) / (t * (1 - t)), 0.0)


@attrs.frozen
class ByLogSNR(ByQuantile):
    """A distribution over noise levels, ln sigma_edm = -logsnr / 2, cut to those that `schedule` has.

    Levels above have the same one, moved by their shift. A subclass gives the distribution. ValueError
    where there is no schedule, or where it has not a millionth of the distribution.
    """

    def __attrs_post_init__(self) -> None:
        if self.schedule is None:
            raise ValueError(f"{type(self).__name__} draws noise levels: expected schedule=, that of level 0")
        low, high = self.ends()
        if not high - low > 1e-6:
            clean, noisy = self.log_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
            raise ValueError(
                f"{type(self).__name__} lies outside the schedule, whose logsnr runs from {-2 * clean:.4g} "
                f"to {-2 * noisy:.4g}; choose it inside"
            )

    def below(self, log_sigma: Tensor) -> Tensor:
        """The part of the distribution below this ln sigma_edm."""
        raise NotImplementedError

    def log_sigma_of(self, share: Tensor) -> Tensor:
        """The inverse of `below`."""
        raise NotImplementedError

    def log_sigma_density(self, log_sigma: Tensor) -> Tensor:
        """The derivative of `below`."""
        raise NotImplementedError

    def log_sigma(self, t: Tensor) -> Tensor:
        """ln sigma_edm of level 0 at t."""
        assert self.schedule is not None
        return -self.schedule.logsnr(t) / 2

    def ends(self) -> tuple[float, float]:
        """How much of the distribution is cleaner than t = 0, and than t = 1."""
        low, high = self.below(self.log_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
        return low, high

    def quantile(self, share: Tensor) -> Tensor:
        assert self.schedule is not None
        low, high = self.ends()
        return time_at(self.schedule, -2 * self.log_sigma_of(low + share * (high - low)))

    def density(self, t: Tensor) -> Tensor:
        low, high = self.ends()
        with torch.enable_grad():
            at = t.detach().clone().requires_grad_()
            log_sigma = self.log_sigma(at)
            (speed,) = torch.autograd.grad(log_sigma.sum(), at)
        # where the schedule is cut off it stands still, and what is cut off may have 0 times infinity
        speed = speed.nan_to_num(nan=0.0, posinf=0.0)
        return self.log_sigma_density(log_sigma.detach()) * speed / (high - low)


@attrs.frozen
class LogNormalTime(ByLogSNR):
    """ln sigma_edm of level 0 normal: logsnr has mean -2 `mean` and standard deviation 2 `std`.

    *EDM*, arXiv 2206.00364, table 1, whose P_mean and P_std are the defaults.
    """

    stratified: bool = False
    mean: float = -1.2
    std: float = 1.2

    def __attrs_post_init__(self) -> None:
        check_std(self.std)
        super().__attrs_post_init__()

    def below(self, log_sigma: Tensor) -> Tensor:
        return torch.special.ndtr((log_sigma - self.mean) / self.std)

    def log_sigma_of(self, share: Tensor) -> Tensor:
        return self.mean + self.std * torch.special.ndtri(share)

    def log_sigma_density(self, log_sigma: Tensor) -> Tensor:
        return normal_density(log_sigma, self.mean, self.std)


@attrs.frozen
class UniformLogSNR(ByLogSNR):
    """Uniform logsnr of level 0, from `logsnr_min` to `logsnr_max`: whatever the schedule, its speed is gone.

    A mean over these draws is the integral over logsnr in which *VDM++*, arXiv 2303.00848, states its
    weights.
    """

    stratified: bool = False
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    def __attrs_post_init__(self) -> None:
        check_range(self.logsnr_min, self.logsnr_max)
        super().__attrs_post_init__()

    def below(self, log_sigma: Tensor) -> Tensor:
        return ((self.logsnr_max + 2 * log_sigma) / (self.logsnr_max - self.logsnr_min)).clamp(0, 1)

    def log_sigma_of(self, share: Tensor) -> Tensor:
        return (share * (self.logsnr_max - self.logsnr_min) - self.logsnr_max) / 2

    def log_sigma_density(self, log_sigma: Tensor) -> Tensor:
        inside = (-2 * log_sigma >= self.logsnr_min) & (-2 * log_sigma <= self.logsnr_max)
        return inside * (2 / (self.logsnr_max - self.logsnr_min))


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def check_std(std: float) -> None:
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"expected std > 0, got {std}")
