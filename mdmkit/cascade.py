"""The models of a cascade, opened from the run folder that they were trained in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    import torch

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.sequence import Link

__all__ = ["before", "beside"]


def beside(
    folder: Path, recipe: Recipe, registry: Registry, *, device: torch.device | str = "cpu", **how: Any
) -> list[Link]:
    """As `before`, for a model folder: it stands among the checkpoints of its run, or alone."""
    from mdmkit.train.state import read_facts

    stage = read_facts(folder).get("stage", 0) if recipe.diffusion.given else 0
    return before(folder.absolute().parent, stage, recipe, registry, device=device, **how)


def before(
    checkpoints: Path,
    stage: int,
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    text: Any = None,
    weights: str | None = None,
    encoder: bool = True,
) -> list[Link]:
    """The models that draw what is given to the one of a stage, innermost first; none where nothing is.

    They draw as [sample] of `recipe`, that stage's, says. `text`: its encoder, which is not loaded again
    where theirs is the same. `weights`, `encoder` as for `mdmkit.model_folder.load`.

    Raises:
        WrongInput: one of them is not among the checkpoints.
        MdmkitError: it is not whole.
    """
    if not recipe.diffusion.given:
        return []
    from mdmkit import assemble, model_folder
    from mdmkit.recipe import load
    from mdmkit.recipe.stages import sample_of
    from mdmkit.sampling.sequence import Link
    from mdmkit.train.folder import RESOLVED
    from mdmkit.train.state import stage_ends

    ends = stage_ends(checkpoints)
    missing = next((of for of in range(stage) if of not in ends), None)
    if stage == 0 or missing is not None:
        inner = recipe.diffusion.given - 1
        what = f"level{'s 0 to' if inner else ''} {inner}"
        lacks = f"{checkpoints} has no checkpoint that ends stage {missing}" if stage else "it stands alone"
        raise WrongInput(
            f"this model is given {what} (diffusion.given), and no model that draws this is there: {lacks}; "
            "draw for a picture of that size: mdmkit sample --low PICTURE"
        )
    found = []
    for index in range(stage):
        folder = ends[index]
        theirs = load(folder / RESOLVED, [], registry, allow_pipe=True)  # no data is read
        sample = sample_of(recipe.sample, len(recipe.model.levels), len(theirs.model.levels))
        theirs = attrs.evolve(theirs, run=recipe.run, sample=sample)
        same = theirs.text == recipe.text and not getattr(text, "trainable", False)
        nest, own = model_folder.load(
            folder, theirs, registry, device=device, weights=weights, encoder=encoder and not same
        )
        diffusion = assemble.diffusion(theirs, registry)
        drawing = assemble.drawing(theirs, registry, device=device)
        read: Any = text if same else own
        found.append(Link(nest=nest, text=read, diffusion=diffusion, drawing=drawing))
    return found
