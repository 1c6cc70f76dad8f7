"""`mdmkit explain`: a component's settings, or one key of a recipe."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_args

import attrs
import typer

from mdmkit.errors import WrongInput
from mdmkit.plugins import KINDS, Registry
from mdmkit.recipe.describe import default_text, field_type, locate, value_text
from mdmkit.recipe.load import Document, read, structure
from mdmkit.recipe.options import Use
from mdmkit.recipe.problems import Path as KeyPath
from mdmkit.recipe.problems import format_path, parse_path, unknown
from mdmkit.recipe.structure import fields

from .open_model import Weights
from .options import AllowPipe, Plugins, Sets, open_registry


def command(
    what: Annotated[str, typer.Argument(metavar="KIND/NAME|RECIPE:PATH", help="E.g. noise_schedule/cosine, "
                                        "or recipe.toml:train.clip. With --plot a recipe, a run or a model.",
                                        show_default=False)],
    sets: Sets,
    plugins: Plugins,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a recipe's noise by level, of a run "
                                              "or model also its loss and what it knows when.")] = None,
    count: Annotated[int, typer.Option(help="Pictures of the data for --plot of a model.")] = 32,
    weights: Weights = None,
    allow_pipe: AllowPipe = False,
) -> None:  # fmt: skip
    """Explain a component, or a key of a recipe and where its value comes from; or plot."""
    if plot is not None:
        from .explain_plot import plot as draw

        return draw(what, plot, sets, plugins, count=count, weights=weights, allow_pipe=allow_pipe)
    registry = open_registry(plugins)
    kind, slash, name = what.partition("/")
    source, colon, path = what.rpartition(":")
    if slash and kind in KINDS:
        print(component_text(registry, kind, name))
    elif colon:
        document = read(source, sets, registry)
        try:
            steps = parse_path(path)
        except ValueError as error:
            raise WrongInput(str(error)) from None
        print(value_report(document, steps, registry, allow_pipe=allow_pipe))
    elif slash and "." not in what:
        raise WrongInput(unknown(f"unknown kind {kind!r}", kind, KINDS))
    else:
        raise WrongInput(f"expected KIND/NAME or RECIPE:PATH, got {what!r}, e.g. noise_schedule/cosine")


def component_text(registry: Registry, kind: str, name: str) -> str:
    """Everything that is known about a component without importing it."""
    entry = registry.find(kind, name)
    component = entry.component
    doc = inspect.cleandoc(component.settings.__doc__ or "")
    lines = [f"{kind}/{component.name}@{component.version}", *doc.splitlines(), ""]
    lines += [
        f"kind    {KINDS[kind].doc}",
        f"owner   {entry.owner}",
        f"target  {component.target or 'the settings'}",
    ]
    context = KINDS[kind].context
    if context:
        lines.append(f"given   {', '.join(context)} (by the program)")
    rows = settings_rows(component.settings)
    return "\n".join([*lines, *(["", "settings", *rows] if rows else [])])


def settings_rows(cls: type) -> list[str]:
    """One line a field: name, default, type with bounds, help; keys of tables inside under theirs."""
    cells = settings_cells(cls)
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(3)]
    return ["  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in cells]  # fmt: skip


def settings_cells(cls: type, indent: str = "") -> list[tuple[str, str, str, str]]:
    """The parts of each line."""
    cells = []
    for field in fields(cls):
        help = field.metadata.get("help", "")
        cells.append((indent + field.name, default_text(field), field_type(field), help))
        inside = table_inside(field.type)
        if inside is not None and "kind" not in field.metadata:
            cells += settings_cells(inside, indent + "  ")
    return cells


def table_inside(annotation: Any) -> type | None:
    """The class of the tables that a key holds, one or a list of them; None where it holds none."""
    for member in (annotation, *get_args(annotation)):
        if isinstance(member, type) and attrs.has(member):
            return member
    return None


def value_report(document: Document, path: KeyPath, registry: Registry, *, allow_pipe: bool = False) -> str:
    """A key of a recipe: its value, where that comes from, and what the key means."""
    recipe = structure(document, registry, allow_pipe=allow_pipe)
    found = locate(recipe, path)
    lines = [f"{format_path(path)} = {value_text(found.value)}", f"from    {origin(document, path)}"]
    if found.field is not None:
        field = found.field
        lines.append(f"type    {field_type(field, found.index)}")
        lines.append(f"default {default_text(field)}")
        if field.metadata.get("help"):
            lines.append(f"means   {field.metadata['help']}")
    if found.use is not None:
        entry = registry.find(found.use.kind or "", found.use.pinned)
        lines += [f"{entry.component.kind} {found.use.pinned} of {entry.owner}: {entry.doc}"]
        lines += settings_rows(entry.component.settings)
    elif attrs.has(type(found.value)) and not isinstance(found.value, Use):
        lines += settings_rows(type(found.value))
    return "\n".join(lines)


def origin(document: Document, path: KeyPath) -> str:
    """Where a value was said: an override, a line of the file, or nowhere."""
    for override in reversed(document.overrides):
        shared = min(len(override.path), len(path))
        if override.path[:shared] == path[:shared]:
            return f"--set {override.text}"
    written = path
    if path[-1] == "use" and path not in document.lines:
        written = path[:-1]  # a bare string is short for a table with `use`
    return f"{document.source}:{document.lines[written]}" if written in document.lines else "the default"
