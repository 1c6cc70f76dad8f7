"""The stages of a training that grows, and when one ends before its time.

Nothing here needs torch before a watch is saved, so that a recipe can be checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Plateau", "Stage", "Watch", "new_levels", "ramp", "stages_of"]


@attrs.frozen
class Plateau:
    """When a stage ends before its steps are over: its loss no longer falls.

    The mean loss over each `window` steps is compared with the lowest so far; where it has not fallen below
    it by the share `drop` in `patience` windows in a row, the stage ends.
    """

    window: int = 100
    patience: int = 3
    drop: float = 0.01


@attrs.define
class Watch:
    """Says when a plateau is reached; what it has seen is checkpointed with the run.

    means: of the full windows so far that count, the lowest first, and how many since have not fallen below.
    """

    plateau: Plateau
    total: float = 0.0
    steps: int = 0
    lowest: float = math.inf
    flat: int = 0

    def reached(self, loss: float) -> bool:
        """Take in the loss of a step, where it is a number; whether the stage ends with it."""
        if not math.isfinite(loss):
            return False
        self.total, self.steps = self.total + loss, self.steps + 1
        if self.steps < self.plateau.window:
            return False
        mean, self.total, self.steps = self.total / self.steps, 0.0, 0
        if mean < self.lowest * (1 - self.plateau.drop):
            self.lowest, self.flat = mean, 0
        else:
            self.flat += 1
        return self.flat >= self.plateau.patience

    def state_dict(self) -> dict[str, Tensor]:
        """What it has seen."""
        import torch

        seen = (self.total, self.steps, self.lowest, self.flat)
        return {"seen": torch.tensor(seen, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what it had seen. ValueError for another's state."""
        if set(state) != {"seen"} or tuple(state["seen"].shape) != (4,):
            raise ValueError(f"expected the four numbers of a plateau's watch, got {sorted(state)}")
        self.total, steps, self.lowest, flat = state["seen"].tolist()
        self.steps, self.flat = int(steps), int(flat)


@attrs.frozen
class Stage:
    """A stretch of training with a fixed network.

    levels: that exist, from the lowest resolution. steps, images: how long, in optimiser steps or pictures;
    batch, lr, rows, shares: as the recipe's [train] says where None. warmup: steps over which the learning
    rate of what is new rises. freeze: first steps in which only what is new learns. fade: steps over which
    the loss weight of new levels, and what they hand inwards, rise from 0. clips: levels have their frames
    and layers along time, not a frame alone. narrower: channels are those of
    the recipe divided by this (one number, or one a level). extra_blocks: at most so many.
    """

    levels: int
    steps: int | None = None
    images: int | None = None
    batch: int | None = None
    lr: float | None = None
    warmup: int = 0
    shares: tuple[float, ...] | None = None
    rows: Any = None
    plateau: Plateau | None = None
    freeze: int = 0
    fade: int = 0
    clips: bool = True
    narrower: int | tuple[int, ...] = 1
    extra_blocks: int | None = None

    def length(self, batch: int) -> int | None:
        """Its steps at a batch, at most; None where the recipe says them elsewhere."""
        return self.steps if self.images is None else -(-self.images // batch)

    def divisor(self, level: int) -> int:
        """What the channels of a level are divided by."""
        return self.narrower if isinstance(self.narrower, int) else self.narrower[level]


def stage_of(said: Any) -> Stage:
    """A stage from anything with some of its fields, as settings have them."""
    names = [field.name for field in attrs.fields(Stage)]
    given = {name: getattr(said, name) for name in names if hasattr(said, name)}
    plateau = given.get("plateau")
    if plateau is not None:
        given["plateau"] = Plateau(**{f.name: getattr(plateau, f.name) for f in attrs.fields(Plateau)})
    return Stage(**given)


def stages_of(said: Sequence[Any]) -> tuple[Stage, ...]:
    return tuple(stage_of(stage) for stage in said)


def new_levels(stages: Sequence[Stage], index: int) -> range:
    """The levels that a stage adds to those of the stage before; none in the first, where all are new."""
    return range(stages[index - 1].levels, stages[index].levels) if index else range(0)


def ramp(step: int, steps: int) -> float:
    """How far something new is faded in at a step of its stage: 0 at the first, 1 from `steps` on."""
    return min(1.0, step / steps) if steps else 1.0
