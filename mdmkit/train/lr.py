"""Learning-rate schedules: the factor on the learning rate at a step."""

from __future__ import annotations

import math
from typing import Protocol

import attrs

__all__ = ["Constant", "Cosine", "LRSchedule", "Warmup"]


class LRSchedule(Protocol):
    """A value: the factor on the learning rate of the update that goes from `step` to `step + 1`.

    Steps count from 0, and the factor at step 0 is above 0, so that the first update moves something.
    """

    def factor(self, step: int) -> float: ...


@attrs.frozen
class Constant:
    """The learning rate as it is, at every step."""

    def factor(self, step: int) -> float:
        return 1.0


@attrs.frozen(kw_only=True)
class Warmup:
    """Linear from 1 / steps at the first step to 1, then constant."""

    steps: int = 1000

    def factor(self, step: int) -> float:
        return _rise(step, self.steps)


@attrs.frozen(kw_only=True)
class Cosine:
    """Linear warmup, then half a cosine from 1 down to `final`, reached at `steps` and kept after it.

    Source: SGDR, Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """

    steps: int
    warmup: int = 0
    final: float = 0.0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"expected 0 <= warmup < steps, got warmup={self.warmup} and steps={self.steps}; "
                "the warmup is a part of the steps"
            )

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return _rise(step, self.warmup)
        progress = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _rise(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, steps))
