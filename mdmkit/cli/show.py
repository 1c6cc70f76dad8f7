"""`mdmkit show`: the resolved recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from mdmkit.recipe.emit import table, table_of_differences, write
from mdmkit.recipe.load import load

from .options import AllowPipe, Plugins, RecipeSource, Sets, open_registry


def command(
    recipe: RecipeSource,
    sets: Sets,
    plugins: Plugins,
    diff: Annotated[bool, typer.Option("--diff", help="Only what differs from the defaults.")] = False,
    allow_pipe: AllowPipe = False,
) -> None:
    """Print the resolved recipe: every default and every version; it is itself a recipe."""
    registry = open_registry(plugins)
    loaded = load(recipe, sets, registry, allow_pipe=allow_pipe)
    print(write(table_of_differences(loaded, registry) if diff else table(loaded)), end="")
