"""`mdmkit pack`: a dataset, and its text features, as WebDataset shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdmkit.errors import WrongInput

__all__ = ["command"]


def command(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or plugin:name")],
    out: Annotated[Path, typer.Option(help="an empty or new folder for the shards")],
    count: Annotated[int | None, typer.Option(help="samples; one epoch where not given")] = None,
    resolution: Annotated[list[int] | None, typer.Option(help="a further side to store; may be given often")] = None,
    features: Annotated[bool, typer.Option(help="store the text encoder's features too")] = False,
    shard_size: Annotated[int, typer.Option(help="samples a shard")] = 1000,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="override a key")] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="a plugin module that is not installed")] = None,
    allow_pipe: Annotated[bool, typer.Option(help="let pipe: URLs run a shell")] = False,
) -> None:
    """Write the dataset of a recipe as WebDataset shards with an index beside them."""
    from mdmkit import assemble
    from mdmkit.data.pack import pack
    from mdmkit.recipe import load
    from mdmkit.recipe.find import find_recipe
    from mdmkit.train.parallel import pick_device

    from .options import registry_for

    registry = registry_for(plugin or [], allow_pipe=allow_pipe)
    parsed = load(find_recipe(recipe, registry), sets=list(set_ or []), registry=registry)
    encoder = None
    if features:
        encoder = assemble.text_encoder(parsed, registry, device=pick_device(parsed.run.device))
        if encoder is None or getattr(encoder, "trainable", False):
            raise WrongInput("pack --features: the recipe's text encoder must be a frozen one (t5, hf); this one learns")
    sides = [(side, side) for side in resolution or []]
    for path in pack(
        assemble.dataset(parsed, registry), out, count=count, resolutions=sides, encoder=encoder, shard_size=shard_size
    ):
        print(path)
