"""Whatever is done to a recipe, it structures or says what is wrong and where; never a traceback."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mdmkit.errors import WrongInput
from mdmkit.recipe import RecipeError, dumps, loads
from mdmkit.recipe.problems import format_path, parse_path
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL, MINIMAL

REGISTRY = stand_ins.registry()
NAMES = ["use", "seed", "levels", "steps", "stages", "channels", "none", "cosine", "unet@1", "", "a.b"]
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-2, 2**70),
        st.floats(),
        st.sampled_from([*NAMES, "cosine@99999999999999999999", "@", "x@y@z", "7", "\n"]),
        st.sampled_from(["pipe:x", "{a,{b}", "attrs>1"]),
        st.just(datetime.date(2024, 1, 2)),
        st.just(datetime.time(1, 2)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in [(*path, key), *places(item, (*path, key))]]


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    document = copy.deepcopy(tomli.loads(draw(st.sampled_from([MINIMAL, FULL]))))
    for _ in range(draw(st.integers(1, 3))):
        spots = places(document)
        if not spots:
            break
        *way, last = draw(st.sampled_from(spots))
        holder = document
        for step in way:
            holder = holder[step]
        match draw(st.sampled_from(["delete", "replace", "rename", "wrap", "nest", "repeat"])):
            case "delete":
                del holder[last]
            case "replace":
                holder[last] = draw(VALUES)
            case "rename":
                if isinstance(holder, dict):
                    holder[draw(st.sampled_from(NAMES))] = holder.pop(last)
            case "wrap":
                holder[last] = [holder[last]]
            case "nest":
                holder[last] = {draw(st.sampled_from(NAMES)): holder[last]}
            case "repeat":
                holder[last] = [copy.deepcopy(holder[last])] * 3
    return document


def says_where(error: RecipeError, text: str) -> None:
    assert error.problems
    assert len(str(error).splitlines()) == len(error.problems)
    for found in error.problems:
        assert found.problem.path or found.problem.message.startswith("not TOML: ")
        assert found.line is None or 1 <= found.line <= text.count("\n") + 1
        if found.problem.path:
            assert parse_path(format_path(found.problem.path)) == found.problem.path
    numbers = [found.line or 0 for found in error.problems]
    assert numbers == sorted(numbers)


def structures_or_says_where(text: str, sets: list[str] | None = None) -> None:
    try:
        recipe = loads(text, sets or [], REGISTRY)
    except RecipeError as error:
        says_where(error, text)
    else:
        assert loads(dumps(recipe), registry=REGISTRY) == recipe


@given(mutants())
@settings(max_examples=150)
def test_mutated_values(document: dict[str, Any]) -> None:
    structures_or_says_where(tomli_w.dumps(document))


@given(st.data())
@settings(max_examples=100)
def test_mutated_text(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([MINIMAL, FULL]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        cut = data.draw(st.integers(0, 6))
        text = text[:at] + data.draw(st.text("[]{}=,.\"'#\n \\x01eé\0", max_size=3)) + text[at + cut :]
    structures_or_says_where(text)


@given(st.sampled_from(places(tomli.loads(FULL))), VALUES)
@example(("model", "levels", 0), {})
@example(("format",), 10**400)
def test_overrides_of_any_place(path: tuple[Any, ...], value: Any) -> None:
    from mdmkit.recipe.describe import inline

    if isinstance(value, (datetime.date, datetime.time)):
        value = "text"
    try:
        structures_or_says_where(FULL, [f"{format_path(path)}={inline(value)}"])
    except WrongInput as error:
        if not str(error).startswith("--set "):
            raise


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = " + "[" * 5000 + "]" * 5000, id="deep"),
        pytest.param("a = " + "[" * 200 + "]" * 200, id="less-deep"),
        pytest.param("a = " + "9" * 5000, id="long-int"),
        pytest.param("\0", id="nul"),
        pytest.param("\ufeffa = 1", id="bom"),
        pytest.param("a = 1e999", id="overflow"),
        pytest.param("[a" * 50, id="keys"),
    ],
)
def test_texts_that_try_the_reader(text: str) -> None:
    structures_or_says_where(MINIMAL + text)
    structures_or_says_where(text)
