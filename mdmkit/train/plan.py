"""What a training is made of: its numbers, its objects, where it stands, what it trains."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn

from mdmkit.data.beside import Beside
from mdmkit.data.by_size import BySize
from mdmkit.errors import WrongInput
from mdmkit.resolutions import rows_per_level, step_rows
from mdmkit.stages import Plateau

from .objective import Objective

__all__ = ["Group", "Parts", "Phase", "Plan", "beside_the_model", "step_groups", "trained_parameters"]


@attrs.frozen
class Phase:
    """Where a training stands among the stages of a growing network; by default it is the only one.

    first, pictures: steps and pictures of the stages before (a plan's `steps` counts them too). new: names of
    parameters that this stage brings, new_levels: levels. warmup, freeze, fade, plateau: as of
    `mdmkit.stages.Stage`. last: no other stage follows.
    """

    index: int = 0
    first: int = 0
    pictures: int = 0
    new: frozenset[str] = frozenset()
    new_levels: range = range(0)
    warmup: int = 0
    freeze: int = 0
    fade: int = 0
    plateau: Plateau | None = None
    last: bool = True


@attrs.frozen
class Plan:
    """The numbers of a training; see the recipe's [train] table for each."""

    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    clip: float | None = 1.0
    ema: float = 0.999
    caption_dropout: float = 0.1
    picture_share: float = 0.0  # of the rows, beside clips
    level_weights: tuple[float, ...] | None = None
    precision: str = "fp32"
    max_bad_steps: int = 5
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 10
    workers: int = 0
    phase: Phase = Phase()


@attrs.frozen
class Group:
    """Rows of a global batch that are read and run together, since they are of one shape.

    first: the place of its first row. per_level: how many of its rows, the first ones, reach each level that
    the step trains, low to high. pictures: they are single pictures beside clips.
    """

    first: int
    per_level: tuple[int, ...]
    pictures: bool = False


@attrs.frozen
class Parts:
    """The objects of a training, as a recipe or a program put them together."""

    nest: nn.Module
    text: nn.Module | None
    objective: Objective
    dataset: Any
    optimizer: torch.optim.Optimizer
    lr_schedule: Any
    resolution_sampler: Any
    time_sampler: Any
    resolutions: tuple[tuple[int, ...], ...]  # (height, width), of clips with frames in front
    frames: tuple[int, ...] | None = None  # of each level's pictures, where these are grids of frames
    pick: bool = False  # the frames of inner levels are picked, and not averages
    by_size: BySize | None = None  # read instead of the dataset where rows stop at their picture's size
    weighting: nn.Module | None = None  # what a learned weighting learns; no part of the model
    beside: Beside | None = None  # read instead of the dataset where a batch has clips and pictures

    def remembering(self) -> dict[str, Any]:
        """The parts that may decide by what they have seen, by their names in a checkpoint."""
        names = ("lr_schedule", "resolution_sampler", "time_sampler", "weighting")
        return {name: getattr(self, name) for name in names}


def trained_parameters(nest: nn.Module, text: nn.Module | None) -> dict[str, nn.Parameter]:
    """What is trained, by its name in a checkpoint: the nest's own, a learning text encoder's `text.*`."""
    named = dict(nest.named_parameters())
    if text is not None and getattr(text, "trainable", False):
        named |= {f"text.{name}": parameter for name, parameter in text.named_parameters()}
    return named


def beside_the_model(weighting: nn.Module | None) -> dict[str, nn.Parameter]:
    """What the optimiser trains that is no part of the model: `weighting.*`, neither averaged nor clipped."""
    if weighting is None:
        return {}
    return {f"weighting.{name}": parameter for name, parameter in weighting.named_parameters()}


def step_groups(plan: Plan, step: int, *, resolution_sampler: Any, ranks: int = 1) -> tuple[Group, ...]:
    """The groups of a step's global batch: all its rows or, beside clips, first its pictures.

    The resolution sampler counts the steps of a stage from the stage's first, and gives out each group's rows
    by itself, so that every level is trained with both.

    Raises:
        WrongInput: the batch does not split over groups, ranks and micro-batches.
    """
    at, multiple = step - plan.phase.first, ranks * plan.accumulate
    try:
        pictures = 0
        if plan.picture_share:
            pictures = rows_per_level((1 - plan.picture_share, plan.picture_share), plan.batch, multiple)[1]
        sizes = {True: pictures, False: plan.batch - pictures}
        counts = {
            kind: step_rows(resolution_sampler, plan.seed, at, rows, multiple)
            for kind, rows in sizes.items()
            if rows
        }
    except ValueError as error:
        beside = f" and data.picture_share={plan.picture_share:g}" if plan.picture_share else ""
        raise WrongInput(
            f"train.levels{beside} on {ranks} ranks, in {plan.accumulate} micro-batches: {error}"
        ) from error
    return tuple(
        Group(
            first=sizes[False] if kind else 0,
            per_level=tuple(count for count in reached if count),
            pictures=kind,
        )
        for kind, reached in counts.items()
    )
