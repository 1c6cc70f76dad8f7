"""What is wrong with a recipe: a path, a message, a line; all of them at once. No torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import attrs

from mdmkit.errors import WrongInput

__all__ = ["Path", "Problem", "RecipeError", "Wrong", "did_you_mean", "format_path", "parse_path", "unknown"]

Path = tuple[str | int, ...]

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
STEP = re.compile(r"""\.?(?:([A-Za-z0-9_-]+)|"((?:[^"\\]|\\.)*)"|'([^']*)')|\[(\d+)\]""")


def format_path(path: Path) -> str:
    """The path as people write it: model.levels[1].channels[0]."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if BARE_KEY.fullmatch(step) else toml_string(step))
    return text


def parse_path(text: str) -> Path:
    """The inverse of `format_path`; ValueError where the text is no path."""
    path: list[str | int] = []
    at = 0
    while at < len(text):
        match = STEP.match(text, at)
        # a key is preceded by a dot everywhere but in front, an index stands behind a key
        if match is None or (match[4] is None and (text[at] == ".") != bool(path)) or (match[4] and not path):
            raise ValueError(f"expected a path like model.levels[0].channels, got {text!r}")
        if match[4] is not None:
            path.append(int(match[4]))
        elif match[2] is not None:
            path.append(json.loads(f'"{match[2]}"'))
        else:
            path.append(match[1] if match[1] is not None else match[3])
        at = match.end()
    if not path:
        raise ValueError("expected a path like model.levels[0].channels, got an empty one")
    return tuple(path)


def toml_string(text: str) -> str:
    """The text as a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False)


def as_path(path: str | Iterable[str | int]) -> Path:
    if isinstance(path, str):
        return parse_path(path) if path else ()
    return tuple(path)


@attrs.frozen
class Problem:
    """One thing that is wrong: where (a path, written or as a tuple) and what (lower case, no full stop)."""

    path: Path = attrs.field(converter=as_path)
    message: str

    def under(self, parent: Path) -> Problem:
        """The same problem, seen from the table that `parent` leads to."""
        return attrs.evolve(self, path=parent + self.path)


class Wrong(Exception):
    """Problems found while structuring, with paths relative to the value that was being structured."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)


def wrong(message: str, *path: str | int) -> Wrong:
    return Wrong([Problem(path, message)])


class Located(NamedTuple):
    """A problem with its file and line, or with the override that it comes from."""

    source: str
    line: int | None
    problem: Problem
    override: str | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        path = format_path(self.problem.path)
        tail = f"  [from --set {self.override}]" if self.override is not None else ""
        return f"{where}: {path + ': ' if path else ''}{self.problem.message}{tail}"


class RecipeError(WrongInput):
    """A recipe that cannot be used; `problems` holds all that is wrong, its text is one line each."""

    def __init__(self, problems: Sequence[Located]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: a guess, and all that are."""
    names = sorted(known)
    return f"{what}{did_you_mean(name, names)} (known: {', '.join(names) or 'none'})"


def describe(value: Any) -> str:
    """A TOML value in a message: its type, and itself where it is short."""
    if isinstance(value, bool):
        return f"bool {str(value).lower()}"
    if isinstance(value, str):
        return f"str {value!r}" if len(value) <= 40 else f"str {value[:37] + '...'!r}"
    if isinstance(value, (int, float)):
        huge = isinstance(value, int) and value.bit_length() > 128
        return f"{type(value).__name__} {'of many digits' if huge else value}"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, dict):
        return "a table"
    return f"{type(value).__name__} {value}"
