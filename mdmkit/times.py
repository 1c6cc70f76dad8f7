"""Distributions of t in training, each by the inverse of its distribution function.

A draw is a number in (0, 1] that the inverse turns into t, so that spreading the numbers evenly over a batch
spreads t evenly over its distribution, whichever that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.schedules import NoiseSchedule, check_range, time_at
from mdmkit.streams import stream

__all__ = [
    "ByQuantile",
    "LearnsFromLosses",
    "LogNormalTime",
    "LogitNormalTime",
    "LossAwareTime",
    "TimeSampler",
    "UniformLogSNR",
    "UniformTime",
]


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


@runtime_checkable
class LearnsFromLosses(TimeSampler, Protocol):
    """A distribution of t that follows the losses of a training.

    Its draws depend on what it has seen too. Every rank sees the same, and it is a checkpoint's.
    """

    def importance(self, t: Tensor) -> Tensor:
        """What the loss at each t is multiplied by, so that its mean over draws is another distribution's."""
        ...

    def tally(self, t: Tensor, losses: Tensor) -> Tensor:
        """What these rows (B,) tell, as a tensor that is added up over micro-batches and ranks."""
        ...

    def observe(self, tally: Tensor) -> None:
        """Take in the tally of a step."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


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


# draws that each bin has before losses decide
LEAST = 10
NOTHING_SEEN: Any = attrs.Factory(
    lambda self: torch.zeros(max(self.bins, 0), dtype=torch.float64), takes_self=True
)


@attrs.frozen(eq=False)
class LossAwareTime(ByQuantile):
    """t in proportion to the loss there, importance-weighted back: the loss stays that of uniform t.

    [0, 1] is cut into `bins`; each keeps a running mean of the squared losses of its rows, which forgets by
    `decay` a step. A bin is drawn in proportion to the root of its mean, and a share `floor` of all draws is
    uniform; while a bin has had fewer than 10 draws, all are. Rows are weighted by 1 / `density(t)`, which is
    1 / floor at most, so that losses, in the log and for the gradient, have the mean that they have with
    `UniformTime`, and less noise. *Improved DDPM*, arXiv 2102.09672, section 3.3, with bins and a floor.

    The loss of a row is the weighted sum of its levels', as it is trained.
    """

    stratified: bool = False
    bins: int = 64
    floor: float = 0.1
    decay: float = 0.99
    mean: Tensor = attrs.field(init=False, repr=False, default=NOTHING_SEEN)
    weight: Tensor = attrs.field(init=False, repr=False, default=NOTHING_SEEN)
    draws: Tensor = attrs.field(init=False, repr=False, default=NOTHING_SEEN)

    def __attrs_post_init__(self) -> None:
        if not (self.bins >= 1 and 0 < self.floor <= 1 and 0 <= self.decay < 1):
            raise ValueError(
                "expected bins >= 1, 0 < floor <= 1 and 0 <= decay < 1, got "
                f"bins={self.bins}, floor={self.floor}, decay={self.decay}"
            )

    def masses(self) -> Tensor:
        """The share of draws that each bin has, (bins,)."""
        size = self.mean.sqrt()
        even = torch.full_like(size, 1 / self.bins)
        if self.draws.min() < LEAST or not size.sum() > 0:
            return even
        return (1 - self.floor) * size / size.sum() + self.floor * even

    def bin_of(self, t: Tensor) -> Tensor:
        return (t * self.bins).long().clamp(0, self.bins - 1)

    def quantile(self, share: Tensor) -> Tensor:
        masses = self.masses()
        above = masses.cumsum(0)
        found = torch.searchsorted(above, share).clamp(max=self.bins - 1)
        inside = 1 - (above[found] - share) / masses[found]
        return ((found + inside) / self.bins).clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        return (self.bins * self.masses())[self.bin_of(t)]

    def importance(self, t: Tensor) -> Tensor:
        return 1 / self.density(t)

    def tally(self, t: Tensor, losses: Tensor) -> Tensor:
        """Sums of squared losses and numbers of draws, (2, bins); on the device of `losses`."""
        told = torch.stack([losses.double() ** 2, torch.ones_like(losses, dtype=torch.float64)])
        return told.new_zeros(2, self.bins).index_add_(1, self.bin_of(t), told)

    def observe(self, tally: Tensor) -> None:
        squares, draws = tally.cpu()
        self.draws.add_(draws)
        self.weight.mul_(self.decay).add_(draws)
        # a bin without draws keeps its mean
        share = draws / self.weight.clamp(min=1e-300)
        self.mean.lerp_(squares / draws.clamp(min=1), share)

    def state_dict(self) -> dict[str, Tensor]:
        """What was seen; the tensors themselves."""
        return {"mean": self.mean, "weight": self.weight, "draws": self.draws}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was seen. ValueError where it is of other bins."""
        mine = self.state_dict()
        if state.keys() != mine.keys() or any(x.shape != (self.bins,) for x in state.values()):
            came = ", ".join(f"{name} {tuple(x.shape)}" for name, x in state.items())
            raise ValueError(f"expected {', '.join(mine)} of {self.bins} bins, got {came}")
        for name, value in mine.items():
            value.copy_(state[name])


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def check_std(std: float) -> None:
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"expected std > 0, got {std}")
