"""`mdmkit list`: components by kind, and recipes."""

from __future__ import annotations

import json
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
    kind: Annotated[
        str | None, typer.Argument(help="One kind only, or `recipe`.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the components that are installed, by kind, and the recipes."""
    if kind is not None and kind not in (*KINDS, RECIPES):
        raise WrongInput(unknown(f"unknown kind {kind!r}", kind, [*KINDS, RECIPES]))
    registry = open_registry(plugins)
    found = rows(registry, kind)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max((len(label(row)) for row in found), default=0)
    for name in [*KINDS, RECIPES] if kind is None else [kind]:
        of_kind = [row for row in found if row["kind"] == name]
        if of_kind:
            print(f"{name}: {KINDS[name].doc if name in KINDS else 'whole runs, for `run` and `new`'}")
        for row in of_kind:
            print(f"  {label(row):{width}}  {row['doc']}".rstrip())


def label(row: dict[str, Any]) -> str:
    return row["name"] if row.get("version", 1) == 1 else f"{row['name']}@{row['version']}"


def rows(registry: Registry, kind: str | None) -> list[dict[str, Any]]:
    """What is installed, as plain values."""
    found: list[dict[str, Any]] = []
    if kind != RECIPES:
        for entry in registry.entries(kind):
            c = entry.component
            found.append(
                {"kind": c.kind, "name": c.name, "version": c.version, "doc": entry.doc, "owner": entry.owner,
                 "target": c.target}
            )  # fmt: skip
    if kind in (None, RECIPES):
        for name, path in registry.recipes.items():
            found.append({"kind": RECIPES, "name": name, "doc": summary(path), "path": str(path)})
    return found


def summary(path: Path) -> str:
    """The summary line of a recipe; what is wrong where it cannot be read."""
    try:
        return str(tomli.loads(path.read_text(encoding="utf-8")).get("summary", ""))
    except (OSError, ValueError) as error:
        return f"(cannot be read: {error})"
