"""Distributions of t in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.streams import stream

__all__ = ["TimeSampler", "UniformTime"]


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
