"""What `mdmkit sample` has beside its prompts: weights of their words, prompts for parts of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmkit.errors import WrongInput

from .sample_edit import opened, refuse_frames

if TYPE_CHECKING:
    from mdmkit.recipe.schema import Recipe
    from mdmkit.sampling.regions import Regions

    from .sample_edit import Sources

__all__ = ["Region", "WeightedPrompts", "check_prompts", "regions_of"]

Region = Annotated[
    list[str] | None,
    typer.Option(help="MASK=PROMPT: a prompt for where a picture is white, of the model's size; often"),
]
WeightedPrompts = Annotated[
    bool, typer.Option("--weighted-prompts", help="(words:1.4) in prompts makes words count more or less")
]


def check_prompts(prompts: Sequence[str]) -> None:
    """WrongInput for the first prompt whose weights cannot be read."""
    from mdmkit.text.weighted import parse

    for prompt in prompts:
        try:
            parse(prompt)
        except ValueError as error:
            raise WrongInput(f"sample --weighted-prompts: {error}") from error


def regions_of(given: Sequence[str], recipe: Recipe, sources: Sources) -> Regions | None:
    """The prompts for parts of every picture, and their masks.

    Raises:
        WrongInput: a mask is none or of another size, or other options do not go with them.
    """
    import numpy as np
    import torch

    from mdmkit import assemble
    from mdmkit.sampling.regions import Regions

    if not given:
        return None
    for name, value in (("--canvas", sources.canvas), ("--to-prompt", sources.to_prompt)):
        if value is not None:
            raise WrongInput(f"sample --region: does not go with {name}; leave one out")
    refuse_frames(recipe, "--region")
    sizes = assemble.resolutions(recipe)
    prompts, masks = [], []
    for one in given:
        file, found, prompt = one.partition("=")
        if not (file and found):
            raise WrongInput(f"sample --region: expected MASK=PROMPT, as left.png='a red ring', got '{one}'")
        mask = opened(Path(file), "--region").convert("L")
        if mask.size[::-1] != sizes[-1]:
            (height, width), (h, w) = sizes[-1], mask.size[::-1]
            raise WrongInput(
                f"sample --region: {file}: expected a mask of the model's size, {height}x{width}, got "
                f"{h}x{w}; resize it"
            )
        prompts.append(prompt)
        masks.append(torch.tensor(np.asarray(mask), dtype=torch.float32)[None] / 255)
    return Regions(tuple(prompts), torch.stack(masks), sizes)
