"""What a settings class, or one value of a recipe, is: for people to read. No torch."""

from __future__ import annotations

from typing import Any

import attrs

from mdmkit.errors import WrongInput

from .emit import plain
from .options import Use
from .problems import Path, format_path, unknown
from .scalars import bounds
from .schema import Recipe
from .structure import default_of, fields, kind_of, split_optional, type_name

__all__ = ["Found", "default_text", "field_type", "locate", "value_text"]


def field_type(field: attrs.Attribute[Any], index: int = 0) -> str:
    """The type of a field with its bounds or choices: "float >= 0.0 and < 1.0", "noise_schedule"."""
    if "kind" in field.metadata:
        kind = kind_of(field, index)
        members, optional = split_optional(field.type)
        return ("" if members == [Use] else "list of ") + kind + (" or 'none'" if optional else "")
    choices = field.metadata.get("choices")
    limits = " | ".join(map(str, choices)) if choices else bounds(field.metadata)
    return f"{type_name(field.type)}{': ' if choices else ' '}{limits}".rstrip()


def default_text(field: attrs.Attribute[Any]) -> str:
    """The default of a field as TOML has it, or "required"."""
    if field.default is attrs.NOTHING:
        return "required"
    return value_text(default_of(field))


def value_text(value: Any) -> str:
    """A value as TOML has it, on one line."""
    return inline(plain(value))


def inline(value: Any) -> str:
    from .problems import BARE_KEY, toml_string

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        pairs = (f"{k if BARE_KEY.fullmatch(k) else toml_string(k)} = {inline(v)}" for k, v in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    return str(value)


@attrs.frozen
class Found:
    """A value of a recipe, the field that holds it (None for a `use`), and the slot's component."""

    value: Any
    field: attrs.Attribute[Any] | None = None
    index: int = 0
    use: Use | None = None


def locate(recipe: Recipe, path: Path) -> Found:
    """The value at a path of a structured recipe; WrongInput says what is there where the path ends."""
    found = Found(recipe)
    for n, step in enumerate(path):
        found = next_step(found, step, path[:n])
    return found


def next_step(found: Found, step: str | int, done: Path) -> Found:
    here, value = format_path(done) or "the recipe", found.value
    if isinstance(step, int):
        if not isinstance(value, tuple):
            raise WrongInput(f"{here} is not a list")
        if step >= len(value):
            raise WrongInput(f"{here} has {len(value)} {'entry' if len(value) == 1 else 'entries'}")
        item = value[step]
        return Found(item, found.field, step, item if isinstance(item, Use) else None)
    if isinstance(value, Use):
        return in_component(value, step, here, ())
    if isinstance(value, dict):
        if step not in value:
            raise WrongInput(unknown(f"{here} has no key {step!r}", step, value))
        return Found(value[step])
    if not attrs.has(type(value)):
        raise WrongInput(f"{here} is not a table")
    table = {field.name: field for field in fields(type(value))}
    flat = next((field for field in table.values() if field.metadata.get("flat")), None)
    field = table.get(step)
    if field is None or field is flat:
        names = [name for name in table if flat is None or name != flat.name]
        if flat is None:
            raise WrongInput(unknown(f"{here} has no key {step!r}", step, names))
        return in_component(getattr(value, flat.name), step, here, names)
    inner = getattr(value, step)
    return Found(inner, field, found.index, inner if isinstance(inner, Use) else None)


def in_component(use: Use, step: str, here: str, own: Any) -> Found:
    """One step into the table of a component: `use`, or one of its settings."""
    if step == "use":
        return Found(use.pinned, use=use)
    table = {field.name: field for field in fields(type(use.settings))}
    if step not in table:
        raise WrongInput(unknown(f"{here} has no key {step!r}", step, [*own, "use", *table]))
    value = getattr(use.settings, step)
    return Found(value, table[step], 0, value if isinstance(value, Use) else None)
