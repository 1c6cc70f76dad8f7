"""Reading, overriding, resolving and checking recipes: what the table of messages does not show."""

# exact messages stand on one line
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.errors import WrongInput
from mdmkit.plugins import Registry, hookimpl, load_registry
from mdmkit.recipe import Problem, Recipe, RecipeError, Use, load, loads, opt, resolve, slot
from mdmkit.recipe import schema as s
from mdmkit.recipe.checks import braces_expanded, uses
from mdmkit.recipe.load import parse, structure
from mdmkit.recipe.overrides import parse_override
from mdmkit.recipe.problems import did_you_mean, format_path, parse_path
from mdmkit.recipe.structure import Structurer
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL, MINIMAL

STEPS = st.one_of(st.integers(0, 99), st.text("ab-_1. \"'\\é[]=", min_size=1, max_size=4))


@given(st.text("ab_", min_size=1, max_size=3), st.lists(STEPS, max_size=4))
def test_paths_are_read_as_they_are_written(first: str, rest: list[str | int]) -> None:
    path = (first, *rest)
    assert parse_path(format_path(path)) == path


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[-1]", "a]b", "a b", "a.[0]", 'a."b']
)
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="expected a path"):
        parse_path(text)


def test_values_come_out_as_settings(registry: Registry) -> None:
    recipe = loads(FULL, registry=registry)
    core, shell = (level.network for level in recipe.model.levels)
    assert (core.kind, shell.kind) == ("core", "shell")
    assert core.settings == stand_ins.Core(
        channels=(32, 64, 128),
        blocks=(2, 2, 2),
        strides=(2, (2, 2)),
        block=Use("resnet", 1, stand_ins.Resnet(norm_groups=16), "block"),
    )
    assert isinstance(shell.settings, stand_ins.Shell)
    assert recipe.diffusion.shift_power == 2.0
    assert type(recipe.diffusion.shift_power) is float
    assert recipe.train.clip is None
    assert recipe.sample.guidance == (Use("cfg", 1, stand_ins.Cfg(scale=5.0), "guidance"),)
    assert recipe.data.source.settings.urls == "/data/train-{000000..001241}.tar"
    assert recipe.data.workers == 2


def test_every_component_of_a_recipe_is_resolved(registry: Registry) -> None:
    for text in (MINIMAL, FULL):
        for path, use in uses(loads(text, registry=registry)):
            assert use.version == 1, path
            assert use.kind is not None
            assert use.settings is not None


def test_a_bare_string_and_a_table_are_the_same(registry: Registry) -> None:
    long = MINIMAL + '[diffusion]\nschedule = { use = "cosine" }\n[text]\nuse = "bytes"\n'
    short = 'text = "bytes"\n' + MINIMAL + '[diffusion]\nschedule = "cosine"\n'
    assert loads(long, registry=registry) == loads(short, registry=registry)
    data = MINIMAL.replace('[data]\nuse = "shapes"', 'data = "shapes"')
    assert loads(data, registry=registry) == loads(MINIMAL, registry=registry)


def test_overrides_come_in_order_and_make_tables(registry: Registry) -> None:
    sets = ["train.steps=5", "train.steps=7", "run.seed=4", 'diffusion.schedule="cosine"',
            "diffusion.schedule.offset=0.1", "model.levels[0].channels[1]=9", "sample.guidance=[]"]  # fmt: skip
    recipe = loads(MINIMAL, [*sets[:5], "model.levels[0].channels=[8, 8]", *sets[5:]], registry)
    assert (recipe.train.steps, recipe.run.seed) == (7, 4)
    assert recipe.diffusion.schedule.settings.offset == 0.1
    assert recipe.model.levels[0].network.settings.channels == (8, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "--set seed: expected path=value"),
        ("=3", "--set =3: expected a path like model.levels[0].channels, got an empty one"),
        ("a b=3", "--set a b=3: expected a path like model.levels[0].channels, got 'a b'"),
        ("a=", "--set a=: expected a TOML value after the equals sign"),
        (
            "a=sgd",
            """--set a=sgd: expected a TOML value after the equals sign; a string needs quotes: --set 'a="sgd"'""",
        ),
        (
            "a=1\nb=2",
            """--set a=1\nb=2: expected a TOML value after the equals sign; a string needs quotes: --set 'a="1\nb=2"'""",
        ),
    ],
)
def test_what_is_no_override(text: str, message: str) -> None:
    with pytest.raises(WrongInput) as caught:
        parse_override(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model.levels[2].resolution=64",
            "--set model.levels[2].resolution=64: no model.levels[2], model.levels has 1 entry",
        ),
        ("train[0]=1", "--set train[0]=1: train is not a list in this recipe"),
        ("train.steps.x=1", "--set train.steps.x=1: train.steps is not a table in this recipe"),
        ("new[0]=1", "--set new[0]=1: no new[0], new has 0 entries"),
    ],
)
def test_overrides_that_lead_nowhere(text: str, message: str) -> None:
    with pytest.raises(WrongInput) as caught:
        parse(MINIMAL, [text])
    assert str(caught.value) == message


def test_files_that_cannot_be_read(tmp_path: Path, registry: Registry) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'summary = "\xe9"')
    bom = tmp_path / "bom.toml"
    bom.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    load(bom, registry=registry)
    for source, message in {
        tmp_path / "no.toml": f"{tmp_path / 'no.toml'}: no such file",
        tmp_path: f"{tmp_path}: is a folder, expected a recipe file",
        latin: f"{latin}: not UTF-8 text (byte 11)",
        "acme:fast": "unknown recipe 'acme:fast' (known: none)",
    }.items():
        with pytest.raises(WrongInput) as caught:
            load(source, registry=registry)
        assert str(caught.value) == message


def test_a_recipe_in_python_is_validated_like_a_file(registry: Registry) -> None:
    levels = (s.Level(16, Use("unet")), s.Level(32, Use("unet")))
    recipe = Recipe(
        format=1, data=s.Data(Use("shapes")), model=s.Model(levels), train=s.Train(steps=3, batch=4)
    )
    resolved = resolve(recipe, registry)
    assert resolved.model.levels[1].network.kind == "shell"
    assert resolve(resolved, registry) == resolved
    wrong = attrs.evolve(
        recipe, train=s.Train(steps=0, batch=4), diffusion=s.Diffusion(schedule=Use("cosin"))
    )
    with pytest.raises(RecipeError) as caught:
        resolve(wrong, registry)
    assert str(caught.value) == (
        "recipe: diffusion.schedule: unknown noise_schedule 'cosin'; did you mean 'cosine'? (known: cosine, sigmoid)"
    )
    with pytest.raises(RecipeError, match=r"recipe: train.steps: expected int >= 1, got 0"):
        resolve(attrs.evolve(recipe, train=s.Train(steps=0, batch=4)), registry)


def test_plugins_check_recipes_that_are_otherwise_right() -> None:
    class Checks:
        @staticmethod
        @hookimpl
        def mdmkit_components():
            return stand_ins.COMPONENTS

        @staticmethod
        @hookimpl
        def mdmkit_check_recipe(recipe: Recipe):
            if recipe.run.seed == 13:
                yield Problem("run.seed", "brings bad luck")

    Checks.__name__ = "checks"
    registry = load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=Checks)
    loads(FULL, registry=registry)
    with pytest.raises(RecipeError) as caught:
        loads(FULL, ["run.seed=13"], registry)
    assert str(caught.value) == "recipe.toml: run.seed: brings bad luck  [from --set run.seed=13]"
    with pytest.raises(RecipeError) as caught:
        loads(FULL.replace("seed = 3", "seed = 13"), registry=registry)
    assert str(caught.value) == "recipe.toml:7: run.seed: brings bad luck"


def test_a_setting_may_not_hide_a_key_of_its_table(registry: Registry) -> None:
    @attrs.frozen
    class Hides:
        workers: int = opt(0)

    class Module:
        @staticmethod
        @hookimpl
        def mdmkit_components():
            return [*stand_ins.COMPONENTS, stand_ins.Component("dataset", "hides", Hides)]

    Module.__name__ = "hides"
    other = load_registry(env={"MDMKIT_PLUGINS": ""}, builtins=Module)
    with pytest.raises(RecipeError, match="has a setting 'workers', which this table keeps for itself"):
        loads(MINIMAL.replace('"shapes"', '"hides"'), registry=other)


def test_settings_with_an_annotation_that_toml_cannot_fill(registry: Registry) -> None:
    @attrs.frozen
    class Odd:
        """A list."""

        paths: list[int] = opt(())

    with pytest.raises(Exception, match=r"cannot have a field annotated list\[int\]"):
        Structurer(registry).table({"paths": [1]}, Odd)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a-{000..012}.tar", {"a-{000..012}.tar"}),
        ("{a,b}-{c,d}", {"a-c", "a-d", "b-c", "b-d"}),
        ("p{i,}pe:{x,{y,z}}", {"pipe:x", "pipe:y", "pipe:z", "ppe:x", "ppe:y", "ppe:z"}),
        ("{", {"{"}),
    ],
)
def test_brace_patterns(pattern: str, texts: set[str]) -> None:
    assert set(braces_expanded(pattern)) == texts


@pytest.mark.parametrize("url", ["x::pipe:cat y", "{pi}pe:x", "PIPE:x", "{a,pi{p}e:x}", "{p,q}{i,j}pe:a"])
def test_shells_behind_patterns(url: str, registry: Registry) -> None:
    text = FULL.replace("/data/train-{000000..001241}.tar", url)
    with pytest.raises(RecipeError, match="runs a shell command"):
        loads(text, registry=registry)
    loads(text, registry=registry, allow_pipe=True)


def test_guesses() -> None:
    assert did_you_mean("cosin", ["cosine", "sigmoid"]) == "; did you mean 'cosine'?"
    assert did_you_mean("zzz", ["cosine"]) == ""


def test_slots_in_settings_resolve_deep(registry: Registry) -> None:
    @attrs.frozen
    class Deep:
        inner: Use = slot("core", "unet")
        many: tuple[Use, ...] = slot("loss", ("mse", "mse"))

    made = Structurer(registry).table({"inner": {"block": {"kernel": [1, 2]}}}, Deep)
    assert made.inner.settings.block.settings == stand_ins.Resnet(kernel=(1, 2))
    assert [use.version for use in made.many] == [1, 1]
    assert Structurer(registry).resolve(Deep()).inner.settings.block.version == 1


def test_documents_keep_their_text(registry: Registry) -> None:
    document = parse(FULL, ["run.seed=5"])
    assert document.text == FULL
    assert structure(document, registry).run.seed == 5
