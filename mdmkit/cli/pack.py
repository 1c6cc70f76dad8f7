"""`mdmkit pack`: a dataset, and its text features, as WebDataset shards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mdmkit.errors import WrongInput

from .options import AllowPipe, Plugins, RecipeSource, Sets, open_registry

__all__ = ["command"]


def command(
    recipe: RecipeSource,
    sets: Sets,
    plugins: Plugins,
    out: Annotated[Path, typer.Option(help="an empty or new folder for the shards")],
    count: Annotated[int | None, typer.Option(help="samples; one epoch where not given")] = None,
    resolution: Annotated[
        list[int] | None, typer.Option(help="a further side to store; may be given often")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="store the text encoder's features too")] = False,
    shard_size: Annotated[int, typer.Option(help="samples a shard")] = 1000,
    allow_pipe: AllowPipe = False,
) -> None:
    """Write the dataset of a recipe as WebDataset shards with an index beside them."""
    from mdmkit import assemble
    from mdmkit.data.pack import pack
    from mdmkit.recipe import dumps, load
    from mdmkit.train.memory import one_line_memory_errors
    from mdmkit.train.parallel import pick_device

    for name, value in (
        ("--count", count),
        ("--shard-size", shard_size),
        ("--resolution", min(resolution or [1])),
    ):
        if value is not None and value < 1:
            raise WrongInput(f"pack {name}: expected a number of at least 1, got {value}")
    if allow_pipe:
        os.environ["MDMKIT_ALLOW_PIPE"] = "1"
    registry = open_registry(plugins)
    parsed = load(recipe, sets, registry, allow_pipe=allow_pipe)
    with one_line_memory_errors("pack with fewer data.workers, or without --text"):
        encoder: Any = None
        if text:
            encoder = assemble.text_encoder(parsed, registry, device=pick_device(parsed.run.device))
            if encoder is None or getattr(encoder, "trainable", False):
                said = "has none" if parsed.text is None else f"'{parsed.text.name}' learns with the model"
                raise WrongInput(
                    f"pack --text: expected a frozen text encoder (t5, hf), but the recipe's {said}"
                )
        packed = pack(
            assemble.dataset(parsed, registry),
            out,
            count=count,
            resolutions=[(side, side) for side in resolution or []],
            encoder=encoder,
            shard_size=shard_size,
            workers=parsed.data.workers,
            source=dumps(parsed),
        )
    print(packed.folder)
    skipped = f", {len(packed.skipped)} unreadable ones left out" if packed.skipped else ""
    print(f"{packed.samples} samples in {packed.shards} shards{skipped}", file=sys.stderr)
    if cut := getattr(encoder, "truncated", 0):
        print(f"{cut} captions were cut to the encoder's length", file=sys.stderr)
