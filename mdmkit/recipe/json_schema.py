"""JSON Schema (draft 7, which editors of TOML read) of a recipe with what is installed. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs

from .emit import plain
from .options import Use
from .schema import Recipe
from .structure import NONE, fields, has_factory, kind_of, split_optional

if TYPE_CHECKING:
    from mdmkit.plugins.registry import Registry

__all__ = ["json_schema"]

SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def json_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a recipe: what structures is valid; rules between tables are left to `mdmkit check`."""
    writer = Writer(registry)
    root = writer.table(Recipe)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mdmkit recipe",
        **root,
        "definitions": dict(sorted(writer.definitions.items())),
    }


class Writer:
    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.definitions: dict[str, Any] = {}

    def table(self, cls: type, *, index: int = 0) -> dict[str, Any]:
        flat = next((field for field in fields(cls) if field.metadata.get("flat")), None)
        own = [field for field in fields(cls) if field is not flat]
        if flat is not None:
            default = flat.default.name if isinstance(flat.default, Use) else None
            return {"anyOf": self.choices(kind_of(flat, index), default, own)}
        return self.object(own)

    def object(
        self, own: Any, more: dict[str, Any] | None = None, required: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """An object with these fields (and ready-made properties), nothing else."""
        needed = [*required, *(field.name for field in own if field.default is attrs.NOTHING)]
        made = {
            "type": "object",
            "properties": {**(more or {}), **{field.name: self.field(field) for field in own}},
            "additionalProperties": False,
        }
        return {**made, "required": needed} if needed else made

    def field(self, field: attrs.Attribute[Any]) -> dict[str, Any]:
        made = self.slot(field) if "kind" in field.metadata else self.value(field.type, field.metadata)
        about: dict[str, Any] = {}
        if field.metadata.get("help"):
            about["description"] = field.metadata["help"]
        if field.default is not attrs.NOTHING and not has_factory(field):
            about["default"] = plain(field.default)
        return {**about, **made} if "$ref" not in made else {**about, "allOf": [made]}

    def slot(self, field: attrs.Attribute[Any]) -> dict[str, Any]:
        kind = kind_of(field)
        members, optional = split_optional(field.type)
        default = field.default.name if isinstance(field.default, Use) else None
        name = f"{kind}, {default} by default" if default else kind
        if name not in self.definitions:
            self.definitions[name] = {}  # a kind may hold itself
            names = [{"enum": self.spellings(kind)}]
            self.definitions[name] = {"anyOf": [*names, *self.choices(kind, default, [])]}
        made: dict[str, Any] = {"$ref": f"#/definitions/{name}"}
        if members != [Use]:
            several = {"type": "array", "items": made}
            return {"anyOf": [made, several]} if Use in members else several
        return {"anyOf": [{"const": NONE}, made]} if optional else made

    def spellings(self, kind: str, name: str | None = None) -> list[str]:
        """What `use` may say: every name, bare and with each version."""
        components = [entry.component for entry in self.registry.entries(kind)]
        picked = [c for c in components if name is None or c.name == name]
        return [*dict.fromkeys(c.name for c in picked), *(f"{c.name}@{c.version}" for c in picked)]

    def choices(self, kind: str, default: str | None, own: Any) -> list[dict[str, Any]]:
        """One object for each component and version of a kind, beside the table's own fields."""
        found = []
        for entry in self.registry.entries(kind):
            c = entry.component
            newest = self.registry.find(kind, c.name).component is c
            said = [*([c.name] if newest else []), f"{c.name}@{c.version}"]
            use = {"enum": said, "description": entry.doc}
            required = () if c.name == default and newest else ("use",)
            settings = list(fields(c.settings))
            found.append(self.object([*settings, *own], {"use": use}, required))
        return found

    def value(self, annotation: Any, metadata: Any) -> dict[str, Any]:
        members, optional = split_optional(annotation)
        options = [self.member(member, metadata) for member in members]
        if optional:
            options.append({"const": NONE})
        return options[0] if len(options) == 1 else {"anyOf": options}

    def member(self, member: Any, metadata: Any) -> dict[str, Any]:
        if member in SCALARS:
            limits = {
                LIMITS[name]: metadata[name] for name in LIMITS if name in metadata and member in (int, float)
            }
            choices = {"enum": list(metadata["choices"])} if "choices" in metadata else {}
            return {"type": SCALARS[member], **limits, **choices}
        arguments = get_args(member)
        if get_origin(member) is tuple:
            if arguments[-1] is not Ellipsis:
                items = [self.value(argument, metadata) for argument in arguments]
                return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
            if attrs.has(arguments[0]) and any(f.metadata.get("flat") for f in fields(arguments[0])):
                first, later = (self.table(arguments[0], index=i) for i in (0, 1))
                return {"type": "array", "items": [first], "additionalItems": later}
            return {"type": "array", "items": self.value(arguments[0], metadata)}
        if get_origin(member) is dict:
            return {"type": "object", "additionalProperties": self.value(arguments[1], metadata)}
        return self.table(member)
