"""Pictures of a recipe's data with what a trained network is told of them, for measures that draw nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mdmkit.errors import MdmkitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mdmkit.diffusion import NoiseLevel
    from mdmkit.plugins import Registry
    from mdmkit.pyramid import Pyramid
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.denoise import Denoise, Denoised, Denoiser

__all__ = ["data_pictures", "first_unseen"]


def first_unseen(recipe: Recipe, registry: Registry) -> int:
    """The position of the data's first sample that a whole training has not come to; files begin again."""
    from mdmkit.recipe.stages import growth_of, stage_recipe

    stages = range(len(growth_of(recipe, registry).stages))
    trained = [stage_recipe(recipe, registry, index).train for index in stages]
    return sum((train.steps or 0) * (train.batch or 0) for train in trained)


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
    first = first_unseen(recipe, registry)
    places = range(first, first + count)
    for part in batches(dataset, [places[i : i + batch] for i in range(0, count, batch)]):
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
        yield partial(forgetful, denoiser), x, list(part.positions)


def forgetful(denoiser: Denoiser, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
    """What a denoiser says of a noisy pyramid, without its estimates of those before (self-conditioning)."""
    return denoiser.fresh()(z, at)
