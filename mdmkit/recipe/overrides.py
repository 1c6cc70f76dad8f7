"""`--set path=value`: the only override, applied before a recipe is validated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import tomli

from mdmkit.errors import WrongInput

from .problems import Path, format_path, parse_path

__all__ = ["Override", "apply", "parse_override"]


@attrs.frozen
class Override:
    """One `--set`: the path, the value and what was typed."""

    path: Path
    value: Any
    text: str


def parse_override(text: str) -> Override:
    """Read `path=toml-value`; WrongInput where it is not one."""
    left, equals, right = text.partition("=")
    try:
        if not equals:
            raise ValueError("expected path=value")
        path = parse_path(left.strip())
    except ValueError as error:
        raise WrongInput(f"--set {text}: {error}") from None
    try:
        document = tomli.loads(f"value = {right.strip()}")
        if set(document) != {"value"}:
            raise ValueError
    except (ValueError, RecursionError):
        hint = f"""; a string needs quotes: --set '{left}="{right}"'""" if right.strip() else ""
        raise WrongInput(f"--set {text}: expected a TOML value after the equals sign{hint}") from None
    return Override(path, document["value"], text)


def apply(document: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of the document with the overrides written into it; WrongInput where a path leads nowhere."""
    for override in overrides:
        document = put(document, override.path, (), override)
    return document


def put(holder: Any, rest: Sequence[str | int], done: Path, override: Override) -> Any:
    """`holder` with the value at `rest`; tables that are not there yet are made, list entries are not."""
    if not rest:
        return override.value
    step, *rest = rest
    here = format_path((*done, step))
    if isinstance(step, int):
        if not isinstance(holder, list):
            raise WrongInput(f"--set {override.text}: {format_path(done)} is not a list in this recipe")
        if step >= len(holder):
            count = f"{len(holder)} entries" if len(holder) != 1 else "1 entry"
            raise WrongInput(f"--set {override.text}: no {here}, {format_path(done)} has {count}")
        return [*holder[:step], put(holder[step], rest, (*done, step), override), *holder[step + 1 :]]
    if isinstance(holder, str):
        holder = {"use": holder}  # a bare string is short for this, and a string has no keys
    if not isinstance(holder, dict):
        raise WrongInput(f"--set {override.text}: {format_path(done)} is not a table in this recipe")
    return {
        **holder,
        step: put(
            holder.get(step, [] if rest and isinstance(rest[0], int) else {}), rest, (*done, step), override
        ),
    }
