"""Reading a recipe: from a file, overrides and a registry to a `Recipe` or every problem. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import attrs
import tomli

from mdmkit.errors import WrongInput

from .checks import cross_problems, uses
from .lines import scan
from .overrides import Override, apply, parse_override
from .problems import Located, Path, Problem, RecipeError, Wrong, unknown
from .schema import Recipe
from .stages import stage_problems
from .structure import Structurer

if TYPE_CHECKING:
    from mdmkit.plugins.registry import Registry

__all__ = ["Document", "find", "load", "loads", "parse", "read", "resolve", "structure"]


@attrs.frozen
class Document:
    """A recipe as it was written: its name, text, values (overrides applied) and the line of each path."""

    source: str
    text: str
    values: dict[str, Any]
    lines: dict[Path, int]
    overrides: tuple[Override, ...] = ()

    def locate(self, problem: Problem) -> Located:
        """The problem with the line, or the override, that says what is wrong."""
        for override in reversed(self.overrides):
            if problem.path[: len(override.path)] == override.path:
                return Located(self.source, None, problem, override.text)
        line = self.line(problem.path)
        if line is None:  # a table that only an override made
            around = problem.path[:-1] or problem.path
            made = [override.text for override in self.overrides if override.path[: len(around)] == around]
            return Located(self.source, None, problem, made[-1] if made else None)
        return Located(self.source, line, problem)

    def line(self, path: Path) -> int | None:
        """The line of a path, or of the nearest table around it that is written down."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)


def load(
    source: str | FilePath,
    sets: Iterable[str] = (),
    registry: Registry | None = None,
    *,
    allow_pipe: bool = False,
) -> Recipe:
    """The recipe of a file or of "plugin:name", with `--set` overrides, every default and version filled in.

    Raises RecipeError (all problems, each with file, line and path), or WrongInput where there is no file.
    """
    registry = registry or default_registry()
    return structure(read(source, sets, registry), registry, allow_pipe=allow_pipe)


def loads(
    text: str,
    sets: Iterable[str] = (),
    registry: Registry | None = None,
    *,
    name: str = "recipe.toml",
    allow_pipe: bool = False,
) -> Recipe:
    """The recipe of a text; otherwise as `load`."""
    return structure(parse(text, sets, name=name), registry or default_registry(), allow_pipe=allow_pipe)


def default_registry() -> Registry:
    from mdmkit.plugins import load_registry

    return load_registry()


def find(source: str | FilePath, registry: Registry) -> FilePath:
    """The file of a recipe: a path, or "plugin:name" for one that a plugin or mdmkit itself ships."""
    path = FilePath(source)
    if path.is_file():
        return path
    text = str(source)
    if text in registry.recipes:
        return registry.recipes[text]
    if path.is_dir():
        raise WrongInput(f"{text}: is a folder, expected a recipe file")
    if re.fullmatch(r"[\w.-]+:[\w.-]+", text):
        raise WrongInput(unknown(f"unknown recipe {text!r}", text, registry.recipes))
    stems = {name.partition(":")[2]: name for name in registry.recipes}
    close = difflib.get_close_matches(path.stem, stems, n=1)
    raise WrongInput(f"{text}: no such file" + (f"; did you mean {stems[close[0]]}?" if close else ""))


def read(source: str | FilePath, sets: Iterable[str] = (), registry: Registry | None = None) -> Document:
    """The document of a recipe file, overrides applied, not yet validated."""
    path = find(source, registry or default_registry())
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongInput(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise WrongInput(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse(text, sets, name=str(path))


def parse(text: str, sets: Iterable[str] = (), *, name: str = "recipe.toml") -> Document:
    """The document of a TOML text, overrides applied; RecipeError with the line where it is no TOML."""
    overrides = tuple(parse_override(item) for item in sets)
    try:
        values = tomli.loads(text)
        lines = scan(text)
    except RecursionError:
        raise RecipeError([Located(name, None, Problem((), "not TOML: nested too deeply"))]) from None
    except ValueError as error:  # TOMLDecodeError, and an int of more digits than Python reads
        match = re.fullmatch(
            r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL
        )
        message, line, column = match.groups() if match else (str(error), None, None)
        count = text.count("\n") + (not text.endswith("\n"))
        end = f" (column {column})" if column else " (end of file)" if match else ""
        message = message[:1].lower() + message[1:] + end
        located = Located(
            name, int(line) if line else count if match else None, Problem((), f"not TOML: {message}")
        )
        raise RecipeError([located]) from None
    return Document(name, text, apply(values, overrides), lines, overrides)


def structure(document: Document, registry: Registry, *, allow_pipe: bool = False) -> Recipe:
    """The recipe that a document says; RecipeError with all problems, sorted by line."""
    tables: dict[str, Any] = {}
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = Structurer(registry).table(document.values, Recipe, partial=tables)
    except Wrong as error:
        problems += error.problems
    problems += cross_problems(tables, allow_pipe=allow_pipe)
    if recipe is not None and not problems:
        problems += plugin_problems(recipe, registry)
    if recipe is not None and not problems:
        problems += stage_problems(recipe, registry)
    if problems:
        raise RecipeError(in_order(document.locate(problem) for problem in problems))
    assert recipe is not None
    return recipe


def in_order(located: Iterable[Located]) -> Sequence[Located]:
    """Sorted by line, what has no line first; each once."""
    return sorted(dict.fromkeys(located), key=lambda item: item.line or 0)


def plugin_problems(recipe: Recipe, registry: Registry) -> Iterable[Problem]:
    """What the plugins' own checks find; a plugin whose check fails is a problem where the recipe uses it."""
    used = {use.name.partition(".")[0]: path for path, use in reversed(list(uses(recipe)))}
    for plugin, answer in registry.check_recipe(recipe):
        if isinstance(answer, Problem):
            yield answer
        elif plugin.name in used:
            yield Problem(used[plugin.name], f"plugin '{plugin.name}' ({plugin.owner}) {answer}")


def resolve(recipe: Recipe, registry: Registry | None = None) -> Recipe:
    """A recipe written in Python with every kind, version and default filled in, validated like a file.

    Raises RecipeError with all problems (without lines).
    """
    from .emit import dumps

    registry = registry or default_registry()
    try:
        filled = Structurer(registry).resolve(recipe)
    except Wrong as error:
        raise RecipeError([Located("recipe", None, problem) for problem in error.problems]) from None
    try:
        return loads(dumps(filled), registry=registry, name="recipe", allow_pipe=True)
    except RecipeError as error:
        raise RecipeError([item._replace(line=None) for item in error.problems]) from None
