"""Growth strategies: which levels exist at which step."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs

__all__ = ["Growth", "NoGrowth", "Stage"]


@attrs.frozen
class Stage:
    """A stretch of training with a fixed number of levels; `step` counts from the stage's first step."""

    index: int
    levels: int
    step: int


@runtime_checkable
class Growth(Protocol):
    """Which levels exist at a step."""

    def stage(self, step: int) -> Stage: ...


@attrs.frozen
class NoGrowth:
    """All levels from the first step on: one stage."""

    levels: int

    def stage(self, step: int) -> Stage:
        return Stage(index=0, levels=self.levels, step=step)
