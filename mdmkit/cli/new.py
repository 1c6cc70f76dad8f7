"""`mdmkit new`: a shipped recipe to edit, or a plugin package that already passes its conformance tests."""

from __future__ import annotations

import os
import re
import string
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from mdmkit import __version__
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import Registry
from mdmkit.recipe.problems import unknown

from .options import Plugins, open_registry

__all__ = ["command", "new_plugin", "new_recipe"]

TEMPLATE = Path(__file__).parent / "plugin_template"
SUFFIX = ".template"
WHAT = ("recipe", "plugin")


def command(
    plugins: Plugins,
    what: Annotated[str, typer.Argument(metavar="recipe|plugin", help="What to make.", show_default=False)],
    name: Annotated[
        str,
        typer.Argument(help="A shipped recipe, or the plugin's name, first part of its components' names.",
                       show_default=False),
    ],
    dest: Annotated[
        Path | None, typer.Argument(help="Where to; the current folder where not given.", show_default=False)
    ] = None,
) -> None:  # fmt: skip
    """Make a recipe to edit, or a plugin package that already passes its tests. Nothing is overwritten."""
    if what not in WHAT:
        raise WrongInput(unknown(f"unknown thing to make {what!r}", what, WHAT))
    registry = open_registry(plugins)
    if what == "recipe":
        made = new_recipe(name, dest, registry)
        print(f"edit it, then: python -m mdmkit check {made}", file=sys.stderr)
    else:
        made = new_plugin(name, dest, registry)
        print(f"try it: python -m pytest {made}\ninstall it: pip install -e {made}", file=sys.stderr)
    print(made)


def new_recipe(name: str, dest: Path | None, registry: Registry) -> Path:
    """Copy a shipped recipe, "quickstart" or "plugin:name", to `dest`, a file or an existing folder.

    Returns the file. WrongInput for an unknown name and where there is a file already.
    """
    known = {key.removeprefix("mdmkit:"): path for key, path in registry.recipes.items()}
    source = registry.recipes.get(name) or known.get(name.removesuffix(".toml"))
    if source is None:
        raise WrongInput(unknown(f"unknown recipe {name!r}", name, sorted(known)))
    target = dest or Path()
    if target.is_dir():
        target = target / source.name
    _write([(target, source.read_text(encoding="utf-8"))])
    return target


def new_plugin(name: str, dest: Path | None, registry: Registry) -> Path:
    """Write a plugin package with one noise schedule and its conformance test into the folder `dest`.

    Returns the folder. WrongInput for a name that cannot be one or is taken, and for a folder in use.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise WrongInput(f"expected a plugin name of a-z, 0-9 and _ that starts with a letter, got {name!r}")
    taken = {plugin.name: plugin.owner for plugin in registry.plugins}
    if name in taken:
        raise WrongInput(f"plugin name {name!r} is taken by {taken[name]}; choose another")
    distribution = f"mdmkit-{name.replace('_', '-')}"
    folder = dest or Path(distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongInput(f"{folder}: exists and is not an empty folder; choose another")
    words = {
        "name": name,
        "package": f"mdmkit_{name}",
        "distribution": distribution,
        "version": __version__,
    }
    files = []
    for path in sorted(TEMPLATE.rglob(f"*{SUFFIX}")):
        relative = str(path.relative_to(TEMPLATE)).removesuffix(SUFFIX).replace("package", words["package"])
        text = string.Template(path.read_text(encoding="utf-8")).substitute(words)
        files.append((folder / relative, text))
    _write(files)
    return folder


def _write(files: Iterable[tuple[Path, str]]) -> None:
    for path, text in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise WrongInput(f"{path}: exists already; choose another place") from None
        except OSError as error:
            raise MdmkitError(f"{path}: cannot be written: {os.strerror(error.errno or 0)}") from error
