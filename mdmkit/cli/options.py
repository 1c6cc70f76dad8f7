"""The options that several verbs share. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mdmkit.plugins import Registry, load_registry

__all__ = ["AllowPipe", "Json", "Plugins", "RecipeSource", "Sets", "open_registry"]

RecipeSource = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or plugin:name.", show_default=False)
]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a value, written as in TOML; may be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="Take a plugin that is not installed; may be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
AllowPipe = Annotated[bool, typer.Option("--allow-pipe", help="Let data URLs run shell commands (pipe:).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_registry(plugins: Sequence[str] = ()) -> Registry:
    """The registry with the `--plugin` modules, found from the current folder too; names broken plugins."""
    if plugins and "" not in sys.path:
        sys.path.insert(0, "")
    registry = load_registry(plugins)
    report_broken(registry)
    return registry


def report_broken(registry: Registry) -> None:
    """One line on stderr for each plugin that cannot be used."""
    for plugin in registry.broken:
        print(f"plugin '{plugin.name}' ({plugin.owner}) cannot be used: {plugin.error}", file=sys.stderr)
