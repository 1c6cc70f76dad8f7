"""The shipped recipes say what they are meant to say."""

from __future__ import annotations

import math
import re
from pathlib import Path

import attrs
import pytest

from mdmkit import assemble
from mdmkit.nn.cost import level_costs
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe import Recipe, RecipeError, load
from mdmkit.resolutions import rows_per_level

FOLDER = Path(__file__).parents[1] / "recipes"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.toml"))
RELEASED = {"cc12m_64": 461_359_107, "cc12m_256": 476_613_958, "cc12m_1024": 480_970_057}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(env={"MDMKIT_PLUGINS": ""})


def shipped(name: str, registry: Registry) -> Recipe:
    return load(FOLDER / f"{name}.toml", registry=registry)


def rows(recipe: Recipe, parts: int = 1) -> tuple[int, ...]:
    """Rows of a batch that reach each level, split over `parts` ranks and micro-batches."""
    shares = assemble.resolution_sampler(recipe, load_registry(env={"MDMKIT_PLUGINS": ""})).shares(0, 0)
    assert recipe.train.batch is not None
    return rows_per_level(shares, recipe.train.batch, multiple=parts)


def test_what_ships() -> None:
    assert SHIPPED == [
        "cc12m_1024",
        "cc12m_256",
        "cc12m_64",
        "cc12m_grow_1024",
        "emoji_grow",
        "imagenet_256",
        "quickstart",
        "tiny_emoji",
        "tiny_grow",
        "tiny_video",
        "webvid_256",
    ]


@pytest.mark.parametrize(("name", "parameters"), RELEASED.items())
def test_released_networks_have_their_exact_size(name: str, parameters: int, registry: Registry) -> None:
    nest = assemble.nest(shipped(name, registry), registry, device="meta")
    assert sum(p.numel() for p in nest.parameters()) == parameters


def test_the_other_shift_reaches_the_process(registry: Registry) -> None:
    recipe = shipped("cc12m_256", registry)
    assert assemble.diffusion(recipe, registry).scales is None
    said = attrs.evolve(recipe.diffusion, shift_power=0.0, signal_scale=0.5, signal_scale_power=1.0)
    other = assemble.diffusion(attrs.evolve(recipe, diffusion=said), registry)
    assert other.scales == (0.5, 0.125)


@pytest.mark.parametrize("name", RELEASED)
def test_released_training(name: str, registry: Registry) -> None:
    recipe = shipped(name, registry)
    said = recipe.train
    assert (said.optimizer.settings.lr, said.optimizer.settings.weight_decay) == (5e-5, 0.0)
    assert (said.lr_schedule.name, said.lr_schedule.settings.steps) == ("warmup", 10_000)
    assert (said.clip, said.ema, said.caption_dropout) == (2.0, 0.9999, 0.1)
    assert (recipe.diffusion.prediction, recipe.diffusion.loss_space) == ("v", "eps")
    assert (recipe.diffusion.schedule.name, recipe.diffusion.schedule.settings.form) == ("cosine", "table")
    assert recipe.text is not None
    text = recipe.text.settings
    assert (text.model, text.max_tokens, text.width) == ("google/flan-t5-xl", 128, 2048)
    for level in recipe.model.levels:
        assert level.network.settings.micro_conditioning == {"scale": level.resolution}
    assert not recipe.model.levels[0].network.settings.masked_cross_attention


def test_a_core_that_looks_at_padding_sees_the_same_padding_in_every_batch(registry: Registry) -> None:
    """Always max_tokens in training; as the released sampler pads, or not at all, is allowed too."""
    for name in RELEASED:
        text = shipped(name, registry).text
        assert text is not None
        assert text.settings.pad == "max"
    load(FOLDER / "cc12m_64.toml", ['text.pad="exact"'], registry)
    load(FOLDER / "cc12m_64.toml", ['text={use="cached", width=2048, max_tokens=128}'], registry)
    masked = "model.levels[0].masked_cross_attention=true"
    load(FOLDER / "cc12m_64.toml", [masked, 'text.pad="batch"'], registry)
    for text, line in (
        ('text.pad="batch"', "'batch' makes a caption's padding depend on the captions beside it, and"),
        ('text={use="cached", width=2048}', "without it padding depends on the batch, and the core looks at"),
    ):
        with pytest.raises(RecipeError, match=line):
            load(FOLDER / "cc12m_64.toml", [text], registry)


def test_released_shifts(registry: Registry) -> None:
    """logsnr falls by 1.386 at 256 in the 256 recipe, by 2.773 and 5.545 at 256 and 1024 in the 1024 one."""

    def shifts(name: str) -> list[float]:
        said = assemble.diffusion(shipped(name, registry), registry)
        return [schedule.shift for schedule in said.schedules]  # pyright: ignore[reportAttributeAccessIssue]

    assert shifts("cc12m_64") == [0.0]
    assert shifts("cc12m_256") == pytest.approx([0.0, -math.log(4)])
    assert shifts("cc12m_1024") == pytest.approx([0.0, -2 * math.log(4), -2 * math.log(16)])


def test_what_only_one_released_recipe_has(registry: Registry) -> None:
    levels = {
        name: [level.network.settings for level in shipped(name, registry).model.levels] for name in RELEASED
    }
    assert [shell.normalize_input for shell in levels["cc12m_256"][1:]] == [False]
    assert [shell.normalize_input for shell in levels["cc12m_1024"][1:]] == [True, False]
    weights = {name: shipped(name, registry).diffusion.level_weights for name in RELEASED}
    assert weights == {"cc12m_64": None, "cc12m_256": None, "cc12m_1024": (1.0, 4.0, 16.0)}
    assert shipped("cc12m_1024", registry).train.levels.name == "all"
    whole, high = rows(shipped("cc12m_256", registry))
    assert 3 * high == 2 * whole


@pytest.mark.parametrize("name", ["cc12m_64", "cc12m_256", "cc12m_1024", "imagenet_256"])
def test_batches_split_over_eight_ranks(name: str, registry: Registry) -> None:
    recipe = shipped(name, registry)
    parts = 8 * recipe.train.accumulate
    counts = rows(recipe, parts)
    assert all(count and count % parts == 0 for count in counts)
    assert counts == rows(recipe)  # the split costs no level a row


def test_imagenet_is_class_conditional(registry: Registry) -> None:
    recipe = shipped("imagenet_256", registry)
    assert recipe.text is not None
    assert (recipe.text.name, recipe.text.settings.count) == ("classes", 1000)
    assert recipe.data.source.settings.caption == "cls"
    assert assemble.resolutions(recipe) == ((64, 64), (256, 256))
    assert all(0 <= int(prompt) < 1000 for prompt in recipe.sample.prompts)


def test_tiny_emoji_stays_tiny(registry: Registry) -> None:
    recipe = shipped("tiny_emoji", registry)
    nest = assemble.nest(recipe, registry, device="meta")
    assert recipe.text is not None
    tokens = recipe.text.settings.max_tokens
    costs = level_costs(nest, assemble.resolutions(recipe), 1, tokens, assemble.cond_dim(recipe))
    flops = sum(count * cost.flops for count, cost in zip(rows(recipe), costs, strict=True))
    assert flops < 60e9  # one forward pass of a whole batch
    assert assemble.resolutions(recipe) == ((16, 16), (64, 64))
    assert rows(recipe)[1] < rows(recipe)[0]  # part of each batch stops at the inner level
    assert not recipe.data.source.settings.flip  # letters and flags have a right way round
    assert max(len(prompt.encode()) for prompt in recipe.sample.prompts) < tokens


@pytest.mark.parametrize("name", SHIPPED)
def test_says_what_it_is_and_names_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.search(r'^summary = ".+"$', text, re.MULTILINE)
    assert not re.search(r'"(/|~|\.\.|[a-z]+://)', text)
