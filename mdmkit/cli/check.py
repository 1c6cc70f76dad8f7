"""`mdmkit check`: is a recipe right, and with --build, what does it take."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mdmkit.errors import MdmkitError
from mdmkit.recipe.load import load

from .options import AllowPipe, Plugins, Sets, open_registry


def command(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files, or plugin:name.")],
    sets: Sets,
    plugins: Plugins,
    build: Annotated[
        bool, typer.Option("--build", help="Build on the meta device: shapes, parameters, FLOPs, memory.")
    ] = False,
    allow_pipe: AllowPipe = False,
) -> None:
    """Validate recipes; every problem at once, with file, line and path."""
    registry = open_registry(plugins)
    code = 0
    for source in recipes:
        try:
            recipe = load(source, sets, registry, allow_pipe=allow_pipe)
            report = f"{source}: ok"
            if build:
                from .build_report import build_report

                report += "\n" + build_report(recipe, registry)
            print(report)
        except MdmkitError as error:
            # the other recipes are still looked at, and the worst exit code wins
            print(error, file=sys.stderr)
            code = max(code, error.exit_code)
    if code:
        raise typer.Exit(code)
