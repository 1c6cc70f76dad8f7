"""Settings and registrations of the built-in components: growth strategies. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import Use, opt, slot

__all__ = ["COMPONENTS"]

Found = Iterator[tuple[str, str]]


@attrs.frozen
class NoGrowth:
    """All levels from the first step on."""


@attrs.frozen
class Plateau:
    """When a stage ends before its steps are over: its loss no longer falls."""

    window: int = opt(100, "steps whose mean loss is compared", ge=1)
    patience: int = opt(3, "windows in a row without a fall", ge=1)
    drop: float = opt(0.01, "share by which the lowest mean must fall to count", gt=0.0, lt=1.0)


@attrs.frozen
class Stage:
    """One stage of growth."""

    levels: int = opt(help="levels that exist, from the lowest resolution", ge=1)
    steps: int | None = opt(None, "optimiser steps; or say images", ge=1)
    images: int | None = opt(None, "pictures, in place of steps", ge=1)
    batch: int | None = opt(None, "global batch; here or in train.batch", ge=1)
    lr: float | None = opt(None, "learning rate in place of the optimizer's", gt=0.0)
    warmup: int = opt(0, "steps over which the learning rate of what is new rises", ge=0)
    shares: tuple[float, ...] | None = opt(
        None,
        "part of the rows that stop at each level, low to high; as train.levels says where not given",
        ge=0.0,
    )
    rows: Use | None = slot(
        "resolution_sampler",
        None,
        "in place of shares: which levels the rows train, steps counted in the stage",
    )
    plateau: Plateau | None = opt(None, "ends the stage early")


@attrs.frozen
class FreezeStage(Stage):
    """One stage of growth, what was there held still at first."""

    freeze: int = opt(0, "first steps in which only what is new learns", ge=0)


@attrs.frozen
class FadeStage(Stage):
    """One stage of growth, new levels faded in."""

    fade: int = opt(0, "steps over which loss weight and inward features of new levels rise from 0", ge=0)


@attrs.frozen
class WideStage(Stage):
    """One stage of growth, with narrower channels."""

    narrower: int | tuple[int, ...] = opt(
        1, "channels are those of the recipe divided by this; one number, or one a level", ge=1
    )


@attrs.frozen
class DeepStage(Stage):
    """One stage of growth, with fewer residual blocks."""

    extra_blocks: int | None = opt(
        None, "at most so many of the recipe's extra_blocks a stage of a U-Net", ge=0
    )


@attrs.frozen
class TimeStage(FreezeStage):
    """One stage of growth, of pictures or of clips."""

    clips: bool = opt(True, "false: levels have one frame, and no layers or strides along time")


def stage_problems(stages: Sequence[Stage]) -> Found:
    """What does not fit among the stages, as (path, message)."""
    if not stages:
        yield "stages", "expected at least one stage, got an empty list"
    before = 0
    last: Stage | None = None
    for i, stage in enumerate(stages):
        here = f"stages[{i}]"
        if stage.levels < before:
            yield f"{here}.levels", f"{stage.levels} levels follow {before}; a stage never lowers them"
        if stage.steps is not None and stage.images is not None:
            yield f"{here}.images", "stands beside steps; leave one out"
        if stage.shares is not None and len(stage.shares) != stage.levels:
            yield (
                f"{here}.shares",
                f"expected one share a level of the stage, {stage.levels}, got {len(stage.shares)}",
            )
        elif stage.shares is not None and abs(sum(stage.shares) - 1) > 1e-3:
            yield f"{here}.shares", f"expected shares whose sum is 1, got {list(stage.shares)}"
        if stage.shares is not None and stage.rows is not None:
            yield f"{here}.rows", "stands beside shares; leave one out"
        for name in ("warmup", "freeze", "fade"):
            yield from ramp_problems(here, name, stage, before, gains_time(last, stage))
        before, last = max(before, stage.levels), stage
    if stages and stages[-1].plateau is not None:
        yield f"stages[{len(stages) - 1}].plateau", "no stage follows that could begin sooner; leave it out"


def gains_time(before: Stage | None, stage: Stage) -> bool:
    """Whether a stage of clips follows one of pictures."""
    return getattr(stage, "clips", False) and not getattr(before, "clips", True)


def ramp_problems(here: str, name: str, stage: Any, before: int, gains_time: bool) -> Found:
    """What does not fit in a part of a stage that is about what it brings."""
    steps = getattr(stage, name, 0)
    if not steps:
        return
    if before == 0:
        yield (
            f"{here}.{name}",
            "is for what a stage adds to the one before, and this is the first; leave it out",
        )
    elif (length := length_of(stage)) is not None and steps > length:
        yield f"{here}.{name}", f"{steps} steps are more than the stage's {length}"
    elif stage.levels == before and not (
        gains_time or (name == "warmup" and hasattr(stage, "extra_blocks"))
    ):
        what = NOTHING_NEW[name]
        yield f"{here}.{name}", f"the stage adds no level to the {before} before it: {what}; leave it out"


NOTHING_NEW = {
    "warmup": "nothing is there to be warmed up",
    "freeze": "no trainable parameter is left",
    "fade": "nothing is there to be faded in",
}


def length_of(stage: Stage) -> int | None:
    """The steps of a stage, where it says them, or pictures and a batch."""
    if stage.images is None or stage.batch is None:
        return stage.steps
    return -(-stage.images // stage.batch)


@attrs.frozen
class Staged:
    """Levels added by stages, joined by zero adapters: nothing that was there changes (the paper's)."""

    stages: tuple[Stage, ...] = opt(help="one after the other, from few levels to many")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        return stage_problems(self.stages)


@attrs.frozen
class FreezeThenThaw(Staged):
    """As staged, but what was there is held still at the start of a stage (greedy growing)."""

    stages: tuple[FreezeStage, ...] = opt(help="one after the other, from few levels to many")


@attrs.frozen
class FadeIn(Staged):
    """As staged, but new levels are faded in: their loss weight and what they hand inwards rise from 0."""

    stages: tuple[FadeStage, ...] = opt(help="one after the other, from few levels to many")


@attrs.frozen
class Net2Wider(Staged):
    """Levels, and the width of levels, by stages: channels are repeated, so that nothing said changes."""

    stages: tuple[WideStage, ...] = opt(
        help="one after the other, from narrow to wide and few levels to many"
    )
    split: float = opt(
        0.5, "how unevenly weights are split among copies; 0: copies stay equal for ever", ge=0.0, lt=1.0
    )

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from Staged.problems(self)
        before: WideStage | None = None
        for i, stage in enumerate(self.stages):
            here = f"stages[{i}].narrower"
            if isinstance(stage.narrower, tuple) and len(stage.narrower) != stage.levels:
                yield (
                    here,
                    f"expected one number a level of the stage, {stage.levels}, got {len(stage.narrower)}",
                )
                return
            for r in range(min(before.levels, stage.levels) if before is not None else 0):
                was, now = (divisor(one, r) for one in (before, stage) if one is not None)
                if was % now:
                    yield here, f"level {r} goes from 1/{was} to 1/{now} of its width, no whole multiple"
            before = stage
        if before is not None and any(divisor(before, r) != 1 for r in range(before.levels)):
            yield (
                f"stages[{len(self.stages) - 1}].narrower",
                "the last stage has the recipe's channels; leave it out",
            )


def divisor(stage: WideStage, level: int) -> int:
    """What the channels of a level are divided by."""
    return stage.narrower if isinstance(stage.narrower, int) else stage.narrower[level]


def depth_problems(stages: Sequence[DeepStage]) -> Found:
    """What does not fit among the extra blocks of stages."""
    before = 0
    for i, stage in enumerate(stages):
        if stage.extra_blocks is not None and stage.extra_blocks < before:
            yield (
                f"stages[{i}].extra_blocks",
                f"{stage.extra_blocks} follow {before}; a stage never lowers them",
            )
        before = max(before, stage.extra_blocks or 0)
    if stages and stages[-1].extra_blocks is not None:
        yield (
            f"stages[{len(stages) - 1}].extra_blocks",
            "the last stage has all of the recipe's; leave it out",
        )


@attrs.frozen
class Deepen(Staged):
    """Levels, and extra residual blocks, by stages: new blocks start as the identity."""

    stages: tuple[DeepStage, ...] = opt(
        help="one after the other, from shallow to deep and few levels to many"
    )

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from Staged.problems(self)
        yield from depth_problems(self.stages)


@attrs.frozen
class Stack(Deepen):
    """As deepen, but new blocks copy those before them: not preserving, what the network says changes."""


@attrs.frozen
class Temporal(Staged):
    """Levels by stages, and time: a model of pictures becomes one of clips, frame by frame what it was."""

    stages: tuple[TimeStage, ...] = opt(help="one after the other, of pictures first, then of clips")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from Staged.problems(self)
        clips = False
        for i, stage in enumerate(self.stages):
            if clips and not stage.clips:
                yield f"stages[{i}].clips", "pictures follow clips; a stage never takes time away"
            clips = stage.clips
        if self.stages and not clips:
            last = f"stages[{len(self.stages) - 1}].clips"
            yield last, "the last stage has the recipe's clips; leave it out"


@attrs.frozen
class Cascade(Staged):
    """Separate models in sequence, each given the levels of those before it: the control; not preserving."""

    stages: tuple[Stage, ...] = opt(help="one after the other, each a model that draws the levels it adds")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from Staged.problems(self)
        for i, (before, stage) in enumerate(pairwise(self.stages), start=1):
            if stage.levels == before.levels:
                yield (
                    f"stages[{i}].levels",
                    f"adds no level to the {before.levels} before it, and a model of a cascade draws what it "
                    "adds; leave the stage out",
                )


COMPONENTS: list[Component] = [
    Component("growth", "none", NoGrowth, "mdmkit.growth:NoGrowth"),
    Component("growth", "staged", Staged, "mdmkit.growth:Staged"),
    Component("growth", "freeze_then_thaw", FreezeThenThaw, "mdmkit.growth:FreezeThenThaw"),
    Component("growth", "fade_in", FadeIn, "mdmkit.growth:FadeIn"),
    Component("growth", "net2wider", Net2Wider, "mdmkit.growth:Net2Wider"),
    Component("growth", "deepen", Deepen, "mdmkit.growth:Deepen"),
    Component("growth", "stack", Stack, "mdmkit.growth:Stack"),
    Component("growth", "temporal", Temporal, "mdmkit.growth:Temporal"),
    Component("growth", "cascade", Cascade, "mdmkit.growth:Cascade"),
]
