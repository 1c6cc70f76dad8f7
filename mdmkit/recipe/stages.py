"""A stage of growth as a recipe of its own: what the whole recipe says while a stage lasts. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from .options import Use
from .problems import Problem, RecipeError, format_path

if TYPE_CHECKING:
    from mdmkit.growth import Growth
    from mdmkit.plugins.registry import Registry
    from mdmkit.stages import Stage

    from .schema import Recipe, Sample

__all__ = ["growth_of", "sample_of", "stage_problems", "stage_recipe", "stage_recipes"]


def growth_of(recipe: Recipe, registry: Registry) -> Growth:
    """The growth strategy of a recipe."""
    return registry.build(recipe.growth, kind="growth", levels=len(recipe.model.levels))


def stage_recipe(recipe: Recipe, registry: Registry, index: int) -> Recipe:
    """The recipe of stage `index` alone: its levels, its batch, its steps; it grows no further.

    A network that is trained by it is that of the stage, so it is what the stage's checkpoints carry.
    """
    growth = growth_of(recipe, registry)
    stage = growth.stages[index]
    levels = tuple(
        attrs.evolve(
            level,
            network=attrs.evolve(level.network, settings=growth.network(level.network.settings, index, r)),
        )
        for r, level in enumerate(recipe.model.levels[: stage.levels])
    )
    diffusion = recipe.diffusion
    if diffusion.level_weights is not None:
        diffusion = attrs.evolve(diffusion, level_weights=diffusion.level_weights[: stage.levels])
    if index and getattr(growth, "apart", False):
        diffusion = attrs.evolve(diffusion, given=growth.stages[index - 1].levels)
    data = recipe.data
    if data.pictures is None and all(getattr(level.network.settings, "frames", 1) == 1 for level in levels):
        data = attrs.evolve(data, picture_share=0.0)  # its rows are all pictures
    batch = stage.batch or recipe.train.batch
    assert batch is not None, "steps_stand_once has seen to it"
    steps = stage.length(batch)
    return attrs.evolve(
        recipe,
        data=data,
        model=attrs.evolve(recipe.model, levels=levels),
        diffusion=diffusion,
        train=attrs.evolve(
            recipe.train,
            steps=recipe.train.steps if steps is None else steps,
            batch=batch,
            levels=rows_of(recipe.train.levels, stage, registry),
            optimizer=with_lr(recipe.train.optimizer, stage.lr),
        ),
        sample=sample_of(recipe.sample, len(recipe.model.levels), stage.levels),
        growth=picked(registry, "growth", "none"),
    )


def stage_recipes(recipe: Recipe, registry: Registry) -> list[Recipe]:
    """The recipe of each stage, in order."""
    return [stage_recipe(recipe, registry, i) for i in range(len(growth_of(recipe, registry).stages))]


def rows_of(levels: Use, stage: Stage, registry: Registry) -> Use:
    """The resolution sampler of a stage: its own, that of its shares, or the recipe's."""
    if stage.shares is not None:
        return picked(registry, "resolution_sampler", "mixed", shares=tuple(stage.shares))
    return stage.rows or levels


def with_lr(optimizer: Use, lr: float | None) -> Use:
    if lr is None:
        return optimizer
    return attrs.evolve(optimizer, settings=attrs.evolve(optimizer.settings, lr=lr))


def sample_of(sample: Sample, levels: int, count: int) -> Sample:
    """How the first `count` of so many levels are drawn."""
    threshold = sample.threshold
    if isinstance(threshold, tuple) and len(threshold) == levels:
        threshold = threshold[:count]
    guidance = tuple(first_levels(use, levels, count) for use in sample.guidance)
    return attrs.evolve(sample, guidance=guidance, threshold=threshold)


def first_levels(use: Use, levels: int, count: int) -> Use:
    """A component whose `scale` has one number a level, for the first `count` of them."""
    scale = getattr(use.settings, "scale", None)
    if not isinstance(scale, tuple) or len(scale) != levels:
        return use
    return attrs.evolve(use, settings=attrs.evolve(use.settings, scale=scale[:count]))


def picked(registry: Registry, kind: str, name: str, **settings: Any) -> Use:
    """A component of the registry, its version pinned."""
    component = registry.find(kind, name).component
    return Use(name, version=component.version, settings=component.settings(**settings), kind=kind)


def stage_problems(recipe: Recipe, registry: Registry) -> Iterator[Problem]:
    """What does not hold in the stages of a recipe that holds as a whole, at the stage that it belongs to."""
    from mdmkit.errors import MdmkitError

    from .load import resolve

    stages: Sequence[Any] = getattr(recipe.growth.settings, "stages", ())
    if not stages:
        return
    try:
        growth = growth_of(recipe, registry)
    except MdmkitError as error:
        yield Problem(("growth",), str(error))
        return
    for i, stage in enumerate(getattr(growth, "stages", ())):
        path = ("growth", "stages", i)
        if stage.lr is not None and not hasattr(recipe.train.optimizer.settings, "lr"):
            yield Problem((*path, "lr"), f"optimizer '{recipe.train.optimizer.name}' has no setting 'lr'")
            continue
        try:
            resolve(stage_recipe(recipe, registry, i), registry)
        except ValueError as error:  # the strategy's own: a network that it cannot make smaller
            yield Problem(path, str(error))
        except RecipeError as error:
            for located in error.problems:
                where = format_path(located.problem.path)
                yield Problem(path, f"in this stage {where}: {located.problem.message}")
