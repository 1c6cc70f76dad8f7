"""What `mdmkit check --build` prints: a recipe's network, built on the meta device, level by level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mdmkit import assemble
from mdmkit.errors import WrongInput
from mdmkit.plugins import Registry
from mdmkit.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from mdmkit.nn.cost import LevelCost

__all__ = ["build_report"]


def build_report(recipe: Recipe, registry: Registry) -> str:
    """A table of shapes, parameters, FLOPs, memory of each stage of a recipe; and how long it takes here."""
    from mdmkit.recipe.stages import stage_recipes

    stages = stage_recipes(recipe, registry)
    parts = []
    for index, here in enumerate(stages):
        if len(stages) > 1:
            what = "clips" if assemble.draws_clips(here) else "pictures"
            what = "clips and pictures" if here.data.picture_share and what == "clips" else what
            of = f"{here.train.steps:,} steps of {here.train.batch:,} {what}"
            parts.append(f"  stage {index}: {of}")
        parts.append(stage_report(here, registry))
    return "\n".join(parts)


def stage_report(recipe: Recipe, registry: Registry) -> str:
    """A table of shapes, parameters, FLOPs of a picture's forward, memory of training; and its time here."""
    from mdmkit.nn.cost import level_costs

    nest = assemble.nest(recipe, registry, device="meta")
    sides = assemble.resolutions(recipe)
    width = assemble.cond_dim(recipe)
    tokens = (getattr(recipe.text.settings, "max_tokens", None) or 1) if recipe.text else 0
    by_step = micro_batches(recipe, registry)
    reached = tuple(map(max, zip(*by_step, strict=True)))
    costs = level_costs(nest, sides, reached, tokens, width)
    what = "clip" if assemble.draws_clips(recipe) else "picture"
    rows = [["level", "network", what, "channels", "parameters", f"GFLOP a {what}", "training memory"]]
    for r, (level, side, cost) in enumerate(zip(recipe.model.levels, sides, costs, strict=True)):
        channels = getattr(level.network.settings, "channels", ())
        rows.append(
            [
                str(r),
                f"{'shell' if r else 'core'} {level.network.name}",
                " x ".join(map(str, (3, *side))),
                " ".join(map(str, channels)),
                f"{cost.parameters:,}",
                f"{cost.flops / 1e9:,.2f}",
                size(cost.memory),
            ]
        )
    if len(costs) > 1:
        totals = [sum(getattr(cost, name) for cost in costs) for name in ("parameters", "flops", "memory")]
        rows.append(["all", "", "", "", f"{totals[0]:,}", f"{totals[1] / 1e9:,.2f}", size(totals[2])])
    split = "" if len(set(reached)) == 1 else f" ({', '.join(map(str, reached))} reach levels 0, 1, ...)"
    memory = f"  training memory: one device, {reached[0]} {what}s at a time{split}"
    start = []
    if recipe.run.start is not None:
        from mdmkit import start as starts

        start = [f"  {starts.find(recipe, registry)}"]
    flops = mean_flops(costs, by_step)
    if recipe.data.picture_share and what == "clip":
        from mdmkit.pyramid import of_one_frame

        still = of_one_frame(sides)
        beside = micro_batches(recipe, registry, pictures=True)
        flops += mean_flops(level_costs(nest, still, (1,) * len(still), tokens, width), beside)
        memory += f"; {max(rows[0] for rows in beside)} pictures at another"
    time = f"  {training_time(recipe, flops * recipe.train.accumulate)}"
    return "\n".join([aligned(rows), memory, time, *start])


def mean_flops(costs: Sequence[LevelCost], by_step: Sequence[Sequence[int]]) -> float:
    """FLOPs of the forward passes of a micro-batch, in the mean over steps, by its rows at each level."""
    steps = [sum(cost.flops * count for cost, count in zip(costs, rows, strict=True)) for rows in by_step]
    return sum(steps) / len(steps)


def training_time(recipe: Recipe, forward_flops: float) -> str:
    """How long training would take on this machine, for the FLOPs of a step's forward passes."""
    import torch

    from mdmkit.train.parallel import pick_device

    try:
        device = pick_device(recipe.run.device)
    except WrongInput as error:  # the recipe may be for another machine
        return f"training time: not estimated here ({error})"
    # the backward pass takes two; use_checkpoint a second forward
    passes = 4 if recipe.model.use_checkpoint else 3
    rate = rate_here(device, recipe.run.precision)
    seconds = passes * forward_flops / rate
    threads = f"{torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    said = f"training time: about {duration(seconds)} a step on this {device.type.upper()} alone ({where}"
    said += f", {rate / 1e9:,.0f} GFLOP/s now)"
    steps = recipe.train.steps
    return said + (f", {duration(seconds * steps)} for {steps:,} steps" if steps else "")


@functools.cache
def rate_here(device: torch.device, precision: str) -> float:
    """FLOP/s of training on a device, measured once a process."""
    from mdmkit.nn.cost import training_rate
    from mdmkit.train.parallel import autocast

    return training_rate(device, lambda: autocast(precision, device))


def duration(seconds: float) -> str:
    """A time, in the unit that reads best."""
    minute, hour, day = 60, 3600, 86400
    for unit, size_of_it, most in (("s", 1, 2 * minute), ("min", minute, 2 * hour), ("h", hour, 2 * day)):
        if seconds < most:
            return f"{seconds / size_of_it:.3g} {unit}"
    return f"{seconds / day:,.0f} days" if seconds < 730 * day else f"{seconds / day / 365.25:,.0f} years"


def micro_batches(recipe: Recipe, registry: Registry, *, pictures: bool = False) -> list[tuple[int, ...]]:
    """Rows that reach each level in one pass on one device, in several steps; or pictures beside clips."""
    from mdmkit.resolutions import some_steps
    from mdmkit.train.plan import step_groups

    plan, sampler = assemble.plan(recipe), assemble.resolution_sampler(recipe, registry)
    found = []
    for step in some_steps(recipe.train.steps):
        groups = step_groups(plan, step, resolution_sampler=sampler)
        (rows,) = (group.per_level for group in groups if group.pictures == pictures)
        unreached = (0,) * (len(recipe.model.levels) - len(rows))
        found.append((*(count // plan.accumulate for count in rows), *unreached))
    return found


def size(count: float) -> str:
    """Bytes, in the unit that reads best."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (4, 5, 6)
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells)))
    return "\n".join(f"  {line}".rstrip() for line in lines)
