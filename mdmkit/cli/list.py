"""`mdmkit list`: components by kind, and recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli
import typer

from mdmkit.errors import WrongInput
from mdmkit.plugins import KINDS, Registry
from mdmkit.recipe.problems import unknown

from .options import Json, Plugins, open_registry

RECIPES = "recipe"


def command(
    plugins: Plugins,
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]...", help="Only these kinds, or `recipe`.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the components that are installed, by kind, and the recipes."""
    every = [*KINDS, RECIPES]
    for kind in kinds or ():
        if kind not in every:
            raise WrongInput(unknown(f"unknown kind {kind!r}", kind, every))
    picked = list(dict.fromkeys(kinds or every))
    registry = open_registry(plugins)
    found = rows(registry, picked)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max((len(label(row)) for row in found), default=0)
    for name in picked:
        of_kind = [row for row in found if row["kind"] == name]
        if of_kind:
            print(f"{name}: {KINDS[name].doc if name in KINDS else 'whole runs, for `run` and `new`'}")
        for row in of_kind:
            print(f"  {label(row):{width}}  {row['doc']}".rstrip())


def label(row: dict[str, Any]) -> str:
    return row["name"] if row.get("version", 1) == 1 else f"{row['name']}@{row['version']}"


def rows(registry: Registry, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """What is installed of these kinds, in their order, as plain values."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        if kind == RECIPES:
            for name, path in registry.recipes.items():
                found.append({"kind": RECIPES, "name": name, "doc": summary(path), "path": str(path)})
            continue
        for entry in registry.entries(kind):
            c = entry.component
            found.append(
                {"kind": c.kind, "name": c.name, "version": c.version, "doc": entry.doc, "owner": entry.owner,
                 "target": c.target}
            )  # fmt: skip
    return found


def summary(path: Path) -> str:
    """The summary line of a recipe; what is wrong where it cannot be read."""
    try:
        return str(tomli.loads(path.read_text(encoding="utf-8")).get("summary", ""))
    except (OSError, ValueError) as error:
        return f"(cannot be read: {error})"
