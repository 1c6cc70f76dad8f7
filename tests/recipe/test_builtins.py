"""mdmkit's own components and recipes: every setting structures, round-trips and is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from mdmkit.plugins import KINDS, Entry, load_registry
from mdmkit.recipe import Use, dumps, load, loads
from mdmkit.recipe.checks import uses
from mdmkit.recipe.describe import default_text, field_type
from mdmkit.recipe.emit import table, write
from mdmkit.recipe.json_schema import json_schema
from mdmkit.recipe.structure import Structurer, fields, shape, split_optional

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})
ENTRIES = REGISTRY.entries()
RECIPES = [pytest.param(path, id=name) for name, path in sorted(REGISTRY.recipes.items())]


def some(field: attrs.Attribute[Any]) -> Any:
    """A TOML value for a required setting."""
    if "kind" in field.metadata:
        name = REGISTRY.names(field.metadata["kind"])[0]
        return name if split_optional(field.type)[0] == [Use] else [name]
    if "choices" in field.metadata:
        value: Any = field.metadata["choices"][0]
    else:
        (member, *_), _ = split_optional(field.type)
        (scalar, *_), _ = split_optional(member.__args__[0] if shape(member) is list else member)
        bound = max(field.metadata.get("ge", 0), field.metadata.get("gt", -1) + 1)
        value = "x" if scalar is str else scalar(bound)
        if shape(member) is not list:
            return value
    fixed = [a for a in getattr(field.type, "__args__", ()) if a is not Ellipsis]
    return [value] * max(1, len(fixed) if shape(field.type) is list else 1)


def required(entry: Entry) -> dict[str, Any]:
    needed = [field for field in fields(entry.component.settings) if field.default is attrs.NOTHING]
    return {field.name: some(field) for field in needed}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.component.kind}/{e.component.name}")
class TestEach:
    def test_defaults_structure_and_come_back(self, entry: Entry) -> None:
        c = entry.component
        given = required(entry)
        if any("stages" in f.name for f in fields(c.settings) if f.name in given):
            pytest.skip("required tables")
        use = Structurer(REGISTRY).use({"use": f"{c.name}@{c.version}", **given}, c.kind)
        assert (use.name, use.version, use.kind) == (c.name, c.version, c.kind)
        again = Structurer(REGISTRY).use({"use": use.pinned, **table(use.settings)}, c.kind)
        assert again == use
        write(table(use.settings))

    def test_defaults_obey_their_own_types_and_bounds(self, entry: Entry) -> None:
        structurer = Structurer(REGISTRY)
        for field in fields(entry.component.settings):
            if field.default is not attrs.NOTHING:
                value = structurer.default(field)
                assert structurer.field(table_value(value), field) == value, field.name

    def test_docs_are_there(self, entry: Entry) -> None:
        assert entry.doc.endswith("."), "the docstring's first line is what `mdmkit list` shows"
        for field in fields(entry.component.settings):
            assert field.metadata.get("help"), field.name
            assert field_type(field)
            assert default_text(field)

    def test_no_setting_is_named_like_the_context(self, entry: Entry) -> None:
        names = {field.name for field in fields(entry.component.settings)}
        assert not names & set(KINDS[entry.component.kind].context)


def table_value(value: Any) -> Any:
    from mdmkit.recipe.emit import plain

    return plain(value)


@pytest.mark.parametrize("path", RECIPES)
def test_shipped_recipes_check_and_resolve(path: Path) -> None:
    recipe = load(path, registry=REGISTRY)
    assert loads(dumps(recipe), registry=REGISTRY) == recipe
    assert recipe.summary
    assert all(use.version for _, use in uses(recipe))


def test_the_schema_of_what_is_built_in() -> None:
    assert json_schema(REGISTRY)["properties"]
