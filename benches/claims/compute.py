"""The compute of a training by its recipe, counted."""

from __future__ import annotations

from mdmkit import assemble
from mdmkit.nn.cost import level_costs
from mdmkit.plugins import Registry
from mdmkit.recipe import Recipe
from mdmkit.recipe.stages import growth_of, stage_recipe
from mdmkit.train.plan import step_groups

__all__ = ["picture_flops", "training_flops"]


def picture_flops(recipe: Recipe, registry: Registry) -> list[int]:
    """FLOPs of one picture's forward pass that each level adds, low to high, without the text encoder."""
    tokens = getattr(recipe.text.settings, "max_tokens", 1) if recipe.text else 0
    nest = assemble.nest(recipe, registry, device="meta")
    costs = level_costs(nest, assemble.resolutions(recipe), 1, tokens, assemble.cond_dim(recipe))
    return [cost.flops for cost in costs]


def training_flops(recipe: Recipe, registry: Registry) -> int:
    """FLOPs of all stages: what a row costs at each level that it reaches, times three for the backward pass.

    For resolution samplers whose shares do not change within a stage.
    """
    total = 0
    for index in range(len(growth_of(recipe, registry).stages)):
        here = stage_recipe(recipe, registry, index)
        plan = assemble.plan(here)
        (rows,) = step_groups(plan, 0, resolution_sampler=assemble.resolution_sampler(here, registry))
        costs = picture_flops(here, registry)
        step = sum(count * flops for count, flops in zip(rows.per_level, costs, strict=True))
        total += 3 * plan.steps * step
    return total
