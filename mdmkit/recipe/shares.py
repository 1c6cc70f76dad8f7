"""Rules across the tables of a recipe: which levels the rows of a batch train. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .options import Use
from .problems import Problem
from .schema import Data, Diffusion, Model, Train

__all__ = [
    "batch_feeds_levels",
    "by_source_reads_pictures",
    "levels_are_shared_out",
    "levels_are_trained",
    "pictures_stand_beside_clips",
    "rows_pass_given_levels",
]

# the settings of the built-in samplers with one number a level
SHARES = {
    "mixed": ("shares",),
    "stochastic": ("probabilities",),
    "curriculum": ("start", "end"),
    "by_source": ("shares",),
}


def shares_of(train: Train) -> dict[str, tuple[float, ...]]:
    """The settings of the resolution sampler with one number a level, as far as they are given."""
    said = {name: getattr(train.levels.settings, name) for name in SHARES.get(train.levels.name, ())}
    return {name: shares for name, shares in said.items() if shares is not None}


def levels_are_shared_out(model: Model, train: Train) -> Iterator[Problem]:
    """Settings with one number a level have one for each, whose sum is 1; a level that is picked is there."""
    levels = len(model.levels)
    for name, shares in shares_of(train).items():
        if len(shares) != levels:
            yield Problem(
                ("train", "levels", name), f"expected one number a level, {levels}, got {len(shares)}"
            )
        elif abs(sum(shares) - 1) > 1e-3:
            yield Problem(
                ("train", "levels", name),
                f"expected numbers whose sum is 1, got {list(shares)}, whose sum is {sum(shares):g}",
            )
    if train.levels.name == "fixed" and (level := train.levels.settings.level) >= levels > 0:
        yield Problem("train.levels.level", f"there is no level {level}; the highest is {levels - 1}")


def levels_are_trained(model: Model, train: Train, diffusion: Diffusion, growth: Use) -> Iterator[Problem]:
    """A level counts in the loss only if rows reach it; else it would stay as it was made, unnoticed."""
    levels, given = len(model.levels), shares_of(train)
    if growth.name != "none" or any(len(shares) != levels for shares in given.values()):
        return  # stages have levels of their own
    if train.levels.name == "fixed":
        name, reached = "level", train.levels.settings.level
    elif given:
        name = next(reversed(given))
        reached = max((r for parts in given.values() for r, part in enumerate(parts) if part > 0), default=0)
    else:
        return
    weights = diffusion.level_weights or (1.0,) * levels
    idle = [r for r in range(reached + 1, levels) if r < len(weights) and weights[r] > 0]
    if idle:
        what, said = ("level", "it") if len(idle) == 1 else ("levels", "them")
        yield Problem(
            ("train", "levels", name),
            f"no row reaches {what} {' and '.join(map(str, idle))}, which would never be trained; give "
            f"{said} rows, leave {said} out of model.levels, or say 0 for {said} in diffusion.level_weights",
        )


def batch_feeds_levels(train: Train, data: Data) -> Iterator[Problem]:
    """Each micro-batch, also one of pictures beside clips, has a row of each level with a share."""
    if train.batch is None or train.batch % train.accumulate or train.levels.name == "stochastic":
        return
    # a curriculum on its way has all that it has at one of its ends
    levels = sum(any(part > 0 for part in parts) for parts in zip(*shares_of(train).values(), strict=False))
    micro = f" in {train.accumulate} micro-batches" if train.accumulate > 1 else ""
    if train.batch < levels * train.accumulate:
        yield Problem(
            "train.batch",
            f"{train.batch} rows{micro} cannot give each of the {levels} levels of train.levels a row; "
            f"use >= {levels * train.accumulate}",
        )
    elif data.picture_share:
        units = train.batch // train.accumulate
        # as step_groups has it: the nearest, but never none of a kind
        pictures = max(1, min(units - 1, math.ceil(data.picture_share * units - 0.5)))
        few, need = min(pictures, units - pictures), max(levels, 1)
        if few < need:
            what = "pictures" if few == pictures else "clips"
            yield Problem(
                "data.picture_share",
                f"{data.picture_share:g} of {train.batch} rows{micro} leaves {few} for {what}, expected >= "
                f"{need}, a row for each level that train.levels gives one; change train.batch or the share",
            )


def pictures_stand_beside_clips(data: Data, model: Model, train: Train) -> Iterator[Problem]:
    """Pictures have a share of the rows where they are asked for, and the other rows are clips."""
    if data.pictures is not None and not data.picture_share:
        yield Problem(
            "data.pictures", "no row of a batch is for them; say data.picture_share, or leave it out"
        )
    if not data.picture_share:
        return
    if train.levels.name == "by_source":
        yield Problem("data.picture_share", "'by_source' reads one source of pictures; leave it out")
    frames = (getattr(level.network.settings, "frames", 1) for level in model.levels)
    if data.pictures is None and all(count == 1 for count in frames):
        yield Problem(
            "data.picture_share",
            "the model draws pictures, and all rows are; leave it out, or say data.pictures",
        )


def by_source_reads_pictures(model: Model, train: Train) -> Iterator[Problem]:
    """Rows stop at the size of a picture, not of a grid of frames."""
    frames = (getattr(level.network.settings, "frames", 1) for level in model.levels)
    if train.levels.name == "by_source" and any(count > 1 for count in frames):
        yield Problem("train.levels", "'by_source' is for pictures, not for frames; take 'mixed'")


def rows_pass_given_levels(train: Train, diffusion: Diffusion) -> Iterator[Problem]:
    """No row stops at a level that is given: it has no loss there, and would train nothing."""
    given, path = diffusion.given, ("train", "levels")
    idle = f"stop below level {given}, where levels are given and have no loss, and would train nothing"
    for name, shares in shares_of(train).items():
        if any(part > 0 for part in shares[:given]):
            yield Problem((*path, name), f"rows {idle}; say 0 for those levels")
    if given and train.levels.name == "fixed" and train.levels.settings.level < given:
        yield Problem((*path, "level"), f"rows {idle}; say a higher one")
    if given and train.levels.name == "by_source" and train.levels.settings.shares is None:
        yield Problem((*path, "shares"), f"rows of small pictures {idle}; say shares, 0 for those levels")
