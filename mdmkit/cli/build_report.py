"""What `mdmkit check --build` prints: a recipe's network, built on the meta device, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdmkit import assemble
from mdmkit.plugins import Registry
from mdmkit.recipe import Recipe

__all__ = ["build_report"]


def build_report(recipe: Recipe, registry: Registry) -> str:
    """A table of shapes, parameters, FLOPs of one forward of one picture, and memory of training."""
    from mdmkit.nn.cost import level_costs

    nest = assemble.nest(recipe, registry, device="meta")
    sides = assemble.resolutions(recipe)
    width = assemble.cond_dim(recipe)
    tokens = getattr(recipe.text.settings, "max_tokens", 1) if recipe.text else 0
    reached = micro_batch(recipe, registry)
    costs = level_costs(nest, sides, reached, tokens, width)
    rows = [["level", "network", "picture", "channels", "parameters", "GFLOP a picture", "training memory"]]
    for r, (level, (h, w), cost) in enumerate(zip(recipe.model.levels, sides, costs, strict=True)):
        channels = getattr(level.network.settings, "channels", ())
        rows.append(
            [
                str(r),
                f"{'shell' if r else 'core'} {level.network.name}",
                f"3 x {h} x {w}",
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
    return f"{aligned(rows)}\n  training memory: one device, {reached[0]} pictures at a time{split}"


def micro_batch(recipe: Recipe, registry: Registry) -> tuple[int, ...]:
    """Rows that reach each level in one pass on one device; of growth's largest stage."""
    from mdmkit.resolutions import rows_per_level

    stages: Sequence[Any] = getattr(recipe.growth.settings, "stages", ())
    batches = [recipe.train.batch, *(getattr(stage, "batch", None) for stage in stages)]
    batch = max(batch for batch in batches if batch is not None)
    shares = assemble.resolution_sampler(recipe, registry).shares(recipe.run.seed, 0)
    parts = recipe.train.accumulate
    return tuple(rows // parts for rows in rows_per_level(shares, batch, multiple=parts))


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
