"""Settings back into TOML: the resolved recipe, or only what differs from the defaults. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import tomli_w

from .options import Use
from .problems import Wrong
from .structure import NONE, Structurer, fields, kind_of

if TYPE_CHECKING:
    from mdmkit.plugins.registry import Registry

    from .schema import Recipe

__all__ = ["dumps", "table", "table_of_differences", "write"]

WIDTH = 110


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML: every value, and every version that is known, so that it runs again as it is."""
    return write(table(recipe))


def write(values: dict[str, Any]) -> str:
    """A table as TOML, with each list that fits on one line (tomli-w gives every entry a line of its own)."""
    lines: list[str] = []
    waiting: list[str] = []
    for line in tomli_w.dumps(values).split("\n"):
        if not waiting and not line.endswith(" = ["):
            lines.append(line)
            continue
        waiting.append(line)
        if line == "]":
            short = on_one_line(waiting)
            lines += [short] if len(short) <= WIDTH else waiting
            waiting = []
    return "\n".join(lines)


def on_one_line(lines: list[str]) -> str:
    """The lines of a list, joined: [1, [2, 3]]."""
    text = ""
    for line in map(str.strip, lines):
        if line[0] == "]":
            text = text.removesuffix(" ").removesuffix(
                ","
            )  # TOML allows a comma at the end, people leave it out
        text += line + (" " if line[-1] == "," else "")
    return text


def table(settings: Any) -> dict[str, Any]:
    """Settings, or a whole recipe, as the table that structures into them."""
    found: dict[str, Any] = {}
    for field in attrs.fields(type(settings)):
        value = getattr(settings, field.name)
        if field.metadata.get("flat"):
            found |= use_table(value)
        else:
            found[field.name] = plain(value)
    return found


def use_table(use: Use) -> dict[str, Any]:
    return {"use": use.pinned, **(table(use.settings) if use.settings is not None else {})}


def plain(value: Any) -> Any:
    """A value as TOML has it."""
    if value is None:
        return NONE
    if isinstance(value, Use):
        written = use_table(value)
        return written if len(written) > 1 else value.pinned
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return table(value) if attrs.has(type(value)) else value


def table_of_differences(recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """The shortest table that structures into this recipe: no defaults, newest versions not pinned."""
    return Differences(registry).of(recipe)


class Differences:
    def __init__(self, registry: Registry) -> None:
        self.structurer = Structurer(registry)
        self.registry = registry

    def of(self, settings: Any, index: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in fields(type(settings)):
            value = getattr(settings, field.name)
            try:
                default = self.structurer.default(field, index)
            except Wrong:
                default = attrs.NOTHING  # a required field, or a default that is not there
            if field.metadata.get("flat"):
                found |= self.use(value, default, kind_of(field, index))
            elif value != default:
                found[field.name] = self.short(value, default)
        return found

    def short(self, value: Any, default: Any) -> Any:
        if isinstance(value, Use):
            written = self.use(value, default, value.kind or "")
            return written["use"] if set(written) == {"use"} else written
        if isinstance(value, tuple):
            return [
                self.of(item, i)
                if attrs.has(type(item)) and not isinstance(item, Use)
                else self.short(item, None)
                for i, item in enumerate(value)
            ]
        if attrs.has(type(value)):
            return self.of(value)
        return plain(value)

    def use(self, use: Use, default: Any, kind: str) -> dict[str, Any]:
        newest = self.registry.find(kind, use.name).component.version == use.version
        name = use.name if newest else use.pinned
        same = isinstance(default, Use) and default.name == name
        return {**({} if same else {"use": name}), **self.of(use.settings)}
