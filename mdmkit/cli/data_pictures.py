"""Pictures of a recipe's data with what a trained network is told of them, for measures that draw nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mdmkit.errors import MdmkitError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mdmkit.plugins import Registry
    from mdmkit.pyramid import Pyramid
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.denoise import Denoise

__all__ = ["data_pictures", "first_unseen", "plain_pictures"]


def first_unseen(recipe: Recipe, registry: Registry) -> int:
    """The position of the data's first sample that a whole training has not come to; files begin again."""
    from mdmkit.recipe.stages import stage_recipes

    stages = stage_recipes(recipe, registry)
    return sum((stage.train.steps or 0) * (stage.train.batch or 0) for stage in stages)


def places(recipe: Recipe, registry: Registry, count: int, batch: int) -> list[range]:
    """The positions of `count` samples from `first_unseen` on, `batch` at a time."""
    first = first_unseen(recipe, registry)
    return [range(i, min(i + batch, first + count)) for i in range(first, first + count, batch)]


def plain_pictures(
    recipe: Recipe, registry: Registry, dataset: Any, device: torch.device, *, count: int, batch: int
) -> Iterator[torch.Tensor]:
    """`count` pictures from `first_unseen` on, (B, 3, H, W) in [-1, 1]; MdmkitError for a sample that cannot
    be read."""
    from mdmkit.data.loader import batches

    for part in batches(dataset, places(recipe, registry, count, batch)):
        yield part.images.to(device).float() / 127.5 - 1


def data_pictures(
    recipe: Recipe,
    registry: Registry,
    nest: nn.Module,
    text: Any,
    dataset: Any,
    device: torch.device,
    *,
    count: int,
    batch: int,
) -> Iterator[tuple[Denoise, Pyramid, list[int]]]:
    """`count` pictures from `first_unseen` on, `batch` at a time: pyramids in [-1, 1] and their positions,
    each with the network as a denoiser that knows their captions.

    Raises:
        MdmkitError: a sample cannot be read, or the text encoder refuses a caption.
    """
    from mdmkit import assemble
    from mdmkit.data.loader import batches
    from mdmkit.pyramid import pyramid
    from mdmkit.sampling.denoise import Denoiser
    from mdmkit.train.conditions import micro_conditions, text_conditions

    diffusion, frames = assemble.diffusion(recipe, registry), assemble.frames(recipe)
    sizes = assemble.resolutions(recipe)
    for part in batches(dataset, places(recipe, registry, count, batch)):
        pictures = part.images.to(device).float() / 127.5 - 1
        x = pyramid(pictures, sizes, frames=frames, pick=assemble.picks_frames(recipe))
        try:
            told = text_conditions(text, part, [False] * len(part), device)
            if "captions" in told:  # an encoder that learns is run with the network
                told["cond"], told["cond_mask"] = text(told.pop("captions"))
        except ValueError as error:
            raise MdmkitError(f"text: {error}") from error
        micros = micro_conditions(nest, part, device)
        denoiser = Denoiser(nest, diffusion, micros=micros or None, **told)
        yield denoiser, x, list(part.positions)
