"""Emit then parse is the identity, and the resolved recipe is a fixed point."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.plugins import Registry
from mdmkit.recipe import Recipe, Use, dumps, loads, resolve
from mdmkit.recipe import schema as s
from mdmkit.recipe.emit import table, table_of_differences, write
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL, MINIMAL
from tests.recipe.test_lines import documents

REGISTRY = stand_ins.registry()
FLOATS = st.floats(0.01, 0.99)
TEXTS = st.text("ab \"'\\\n[]=,#{}é", max_size=8).filter(lambda text: text != "none")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A valid recipe written in Python, with components in every form of slot."""
    levels = [16 * 2**r for r in range(draw(st.integers(1, 3)))]
    schedule = draw(
        st.sampled_from(
            [Use("cosine"), Use("sigmoid", settings=stand_ins.Sigmoid(start=-2.0)), Use("cosine", version=1)]
        )
    )
    text = draw(
        st.none() | st.builds(lambda w: Use("bytes", settings=stand_ins.Width(width=w)), st.integers(1, 9))
    )
    block = Use("resnet", settings=stand_ins.Resnet(kernel=draw(st.sampled_from([3, (3, 5)]))))
    return Recipe(
        format=1,
        summary=draw(TEXTS),
        run=s.Run(seed=draw(st.integers(0, 2**62)), threads=draw(st.none() | st.integers(1, 8))),
        data=s.Data(
            Use("shapes", settings=stand_ins.Shapes(colours=draw(st.dictionaries(TEXTS, FLOATS, max_size=3)),
                                                    augment=(Use("mse"),) * draw(st.integers(0, 2))))
        ),
        text=text,
        diffusion=s.Diffusion(
            schedule=schedule,
            shift_power=draw(FLOATS),
            level_weights=draw(st.none() | st.tuples(*[FLOATS] * len(levels))),
        ),
        model=s.Model(
            levels=tuple(
                s.Level(side if r % 2 else (side, side), Use("unet", settings=stand_ins.Core(block=block))
                        if r == 0 and draw(st.booleans()) else Use("unet"))
                for r, side in enumerate(levels)
            )
        ),
        train=s.Train(steps=draw(st.integers(1, 99)), batch=8, clip=draw(st.none() | FLOATS), loggers=()),
        sample=s.Sample(
            prompts=tuple(draw(st.lists(TEXTS, max_size=3))) if text else (),
            guidance=(Use("cfg", settings=stand_ins.Cfg(scale=draw(FLOATS))),) if text else (),
        ),
    )  # fmt: skip


@given(recipes())
def test_emit_then_parse_is_the_identity(recipe: Recipe) -> None:
    resolved = resolve(recipe, REGISTRY)
    text = dumps(resolved)
    assert loads(text, registry=REGISTRY) == resolved
    assert dumps(loads(text, registry=REGISTRY)) == text
    assert tomli.loads(text) == table(resolved)


@given(recipes())
def test_the_differences_alone_give_the_same_recipe(recipe: Recipe) -> None:
    resolved = resolve(recipe, REGISTRY)
    short = table_of_differences(resolved, REGISTRY)
    assert loads(write(short), registry=REGISTRY) == resolved
    assert table_of_differences(loads(write(short), registry=REGISTRY), REGISTRY) == short


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_every_default_and_every_version_is_written(text: str, registry: Registry) -> None:
    recipe = loads(text, registry=registry)
    written = tomli.loads(dumps(recipe))

    def check(value: Any, said: Any) -> None:
        if isinstance(value, Use):
            assert (said if isinstance(said, str) else said["use"]) == f"{value.name}@1"
            if not isinstance(said, str):
                check(value.settings, said)
        elif isinstance(value, tuple):
            for item, entry in zip(value, said, strict=True):
                check(item, entry)
        elif attrs.has(type(value)):
            for field in attrs.fields(type(value)):
                flat = field.metadata.get("flat")
                check(getattr(value, field.name), said if flat else said[field.name])

    check(recipe, written)


def test_differences_of_a_recipe_of_defaults_are_what_it_must_say(registry: Registry) -> None:
    assert table_of_differences(loads(MINIMAL, registry=registry), registry) == tomli.loads(MINIMAL)


def test_an_old_version_stays_pinned() -> None:
    class Plugin:
        @staticmethod
        @stand_ins.hookimpl
        def mdmkit_components():
            newer = stand_ins.Component("noise_schedule", "cosine", stand_ins.CosineTwo, None, 2)
            return [*stand_ins.COMPONENTS, newer]

    Plugin.__name__ = "stand_ins"
    registry = stand_ins.load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=Plugin)
    text = MINIMAL + '[diffusion]\nschedule = "cosine@1"\n'
    old, new = loads(text, registry=registry), loads(MINIMAL, registry=registry)
    assert (old.diffusion.schedule.version, new.diffusion.schedule.version) == (1, 2)
    assert isinstance(new.diffusion.schedule.settings, stand_ins.CosineTwo)
    assert table_of_differences(old, registry)["diffusion"] == {"schedule": "cosine@1"}
    assert loads(dumps(old), registry=registry) == old
    assert loads(dumps(new), registry=registry) == new


@given(documents)
def test_writing_changes_no_value(values: dict[str, Any]) -> None:
    assert tomli.loads(write(values)) == values


def test_lists_stand_on_one_line_where_they_fit() -> None:
    values = {"a": [1, [2, 3], "x, ]"], "b": ["y" * 60, "z" * 60], "c": [], "t": {"d": [{"e": [4]}]}}
    text = write(values)
    assert tomli.loads(text) == values
    assert 'a = [1, [2, 3], "x, ]"]' in text.splitlines()
    assert max(map(len, text.splitlines())) <= 110
