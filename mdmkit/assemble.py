"""From a recipe to objects: what each table of a recipe becomes, with the context that its kind is given.

Everything heavy is imported where it is used. A recipe comes from `mdmkit.recipe.load` or `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.recipe.checks import side

if TYPE_CHECKING:
    import torch

    from mdmkit.diffusion import Diffusion
    from mdmkit.nn import NestedUNet
    from mdmkit.plugins import Registry
    from mdmkit.recipe import Recipe

__all__ = [
    "cond_dim",
    "dataset",
    "diffusion",
    "growth",
    "guidance",
    "loggers",
    "loss",
    "lr_schedule",
    "metrics",
    "nest",
    "optimizer",
    "resolution_sampler",
    "resolutions",
    "rule",
    "spacing",
    "text_encoder",
    "threshold",
    "time_sampler",
    "weighting",
]


def resolutions(recipe: Recipe, levels: int | None = None) -> tuple[tuple[int, int], ...]:
    """The (height, width) of each level, low to high; of the first `levels` where given."""
    return tuple(side(level.resolution) for level in recipe.model.levels[:levels])


def cond_dim(recipe: Recipe) -> int | None:
    """The width of the text features, as the recipe says it; None where the model is unconditional.

    Raises ValueError where the text encoder's settings have no `width`.
    """
    if recipe.text is None:
        return None
    width = getattr(recipe.text.settings, "width", None)
    if width is None:
        raise ValueError(
            f"text encoder {recipe.text.name!r} has no setting `width`, which the core is built for"
        )
    return width


def nest(
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    levels: int | None = None,
) -> NestedUNet:
    """The network of the recipe, its first `levels` levels where given, with fresh parameters."""
    from mdmkit.nn import NestedUNet

    where: dict[str, Any] = {"device": device, "dtype": dtype}
    picked = recipe.model.levels[:levels]
    core = registry.build(picked[0].network, kind="core", cond_dim=cond_dim(recipe), **where)
    shells = []
    inner = core
    for level in picked[1:]:
        inner = registry.build(level.network, kind="shell", inner_channels=inner.channels[0], **where)
        shells.append(inner)
    return NestedUNet(core, shells, use_checkpoint=recipe.model.use_checkpoint)


def text_encoder(
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.nn.Module | None:
    """The text encoder, or None where the recipe has none."""
    if recipe.text is None:
        return None
    return registry.build(recipe.text, kind="text_encoder", device=device, dtype=dtype)


def diffusion(recipe: Recipe, registry: Registry) -> Diffusion:
    """The diffusion process: the schedule shifted for each level, and what the network predicts."""
    from mdmkit.diffusion import Diffusion
    from mdmkit.schedules import shift_levels

    said = recipe.diffusion
    schedule = registry.build(said.schedule, kind="noise_schedule")
    schedules = shift_levels(schedule, resolutions(recipe), shift_power=said.shift_power)
    return Diffusion(schedules=schedules, prediction=said.prediction)


def dataset(recipe: Recipe, registry: Registry, *, resolution: tuple[int, int] | None = None) -> Any:
    """The dataset at the recipe's highest resolution, or at another one."""
    resolution = resolution or resolutions(recipe)[-1]
    return registry.build(recipe.data.source, kind="dataset", seed=recipe.run.seed, resolution=resolution)


def weighting(recipe: Recipe, registry: Registry) -> Any:
    """The loss weight over logsnr."""
    return registry.build(recipe.diffusion.weighting, kind="weighting")


def time_sampler(recipe: Recipe, registry: Registry) -> Any:
    """The distribution of t in training."""
    return registry.build(recipe.diffusion.time_sampler, kind="time_sampler")


def loss(recipe: Recipe, registry: Registry) -> Any:
    """The pixel-wise distance of prediction and target: a function."""
    return registry.build(recipe.diffusion.loss, kind="loss")


def resolution_sampler(recipe: Recipe, registry: Registry, *, levels: int | None = None) -> Any:
    """Which levels the rows of a batch train, among the first `levels` where given."""
    levels = levels or len(recipe.model.levels)
    return registry.build(recipe.train.levels, kind="resolution_sampler", levels=levels)


def growth(recipe: Recipe, registry: Registry) -> Any:
    """Which levels exist at a step."""
    return registry.build(recipe.growth, kind="growth", levels=len(recipe.model.levels))


def optimizer(recipe: Recipe, registry: Registry, params: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimiser of these parameters (tensors, groups, or (name, tensor) pairs, as torch takes them)."""
    return registry.build(recipe.train.optimizer, kind="optimizer", params=params)


def lr_schedule(recipe: Recipe, registry: Registry) -> Any:
    """The factor on the learning rate over steps."""
    return registry.build(recipe.train.lr_schedule, kind="lr_schedule")


def loggers(recipe: Recipe, registry: Registry, *, run_dir: Path) -> list[Any]:
    """Where numbers and pictures go, beside log.jsonl."""
    return [registry.build(use, kind="logger", run_dir=run_dir) for use in recipe.train.loggers]


def metrics(recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu") -> Mapping[str, Any]:
    """What is measured, by the metrics' names."""
    return {use.name: registry.build(use, kind="metric", device=device) for use in recipe.evaluate.metrics}


def rule(recipe: Recipe, registry: Registry) -> Any:
    """The update rule of sampling: a function."""
    return registry.build(recipe.sample.rule, kind="sampler")


def spacing(recipe: Recipe, registry: Registry) -> Any:
    """Which times the rule visits: a function."""
    return registry.build(recipe.sample.spacing, kind="spacing")


def threshold(recipe: Recipe, registry: Registry) -> Any:
    """What keeps predicted pictures in range: a function."""
    return registry.build(recipe.sample.threshold, kind="threshold")


def guidance(recipe: Recipe, registry: Registry) -> list[Any]:
    """The guidance components, in the order in which they are applied."""
    return [registry.build(use, kind="guidance") for use in recipe.sample.guidance]
