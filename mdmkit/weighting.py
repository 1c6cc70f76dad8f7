"""Loss weights over logsnr, and the distribution of t in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.streams import stream
from mdmkit.targets import SPACES

__all__ = ["TimeSampler", "Uniform", "UniformTime", "Weighting", "weight_in"]


@runtime_checkable
class Weighting(Protocol):
    """A weight over logsnr, on the squared loss in `space`; `space` None: in whichever the loss is taken.

    logsnr is that of the level, after its shift, and all that a weight sees. The released code's VDM weights
    are not of this kind: SNR(i - 1) / SNR(i) - 1 at the row's index i of the table, which tells how fast the
    schedule falls there, before any shift, the same at every level, divided by the sum over the batch.
    """

    @property
    def space(self) -> str | None: ...

    def weight(self, logsnr: Tensor) -> Tensor:
        """The weight, >= 0, of the same shape as `logsnr`."""
        ...


@attrs.frozen
class Uniform:
    """Weight 1 on the loss in `space`; where not given, in the space the loss is taken in."""

    space: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.space is not None and self.space not in SPACES:
            raise ValueError(f"unknown space {self.space!r}; expected one of {', '.join(SPACES)}")

    def weight(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


def weight_in(weighting: Weighting, logsnr: Tensor, alpha: Tensor, sigma: Tensor, loss_space: str) -> Tensor:
    """The weight that gives, on the squared loss in `loss_space`, what `weighting` means in its own space.

    At a given z the errors are proportional: with d that of x0, eps has -(alpha / sigma) d,
    v has -((alpha^2 + sigma^2) / sigma) d and flow has -((alpha + sigma) / sigma) d, so that the factor is
    the squared ratio of these. It follows from the definitions in `mdmkit.targets`. All tensors broadcast;
    infinite where `loss_space` sees nothing of the error (eps at alpha = 0, x0 at sigma = 0).
    """
    weight = weighting.weight(logsnr)
    if weighting.space is None or weighting.space == loss_space:
        return weight
    error = {"x0": sigma, "eps": alpha, "v": alpha**2 + sigma**2, "flow": alpha + sigma}
    return weight * (error[weighting.space] / error[loss_space]) ** 2


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
class UniformTime:
    """Uniform t.

    `stratified`: each step has one draw in each of `batch` equal parts of [0, 1], in a random order.
    Stratified draws have the same density and make the loss less noisy: *Variational Diffusion Models*,
    arXiv 2107.00630, appendix I.1; the order is random so that no level of a mixed batch sees a part of the
    times only.
    """

    stratified: bool = False

    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        # 1 - u with u in [0, 1): t = 0 never comes, where x0 is known and eps cannot be
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

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
