"""Time joins a model of pictures: every frame of a clip is what the pictures' model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmkit import assemble, model_folder, start
from mdmkit.errors import WrongInput
from mdmkit.recipe import Recipe, RecipeError, load, loads
from mdmkit.recipe.stages import stage_recipe
from tests.growing import REGISTRY, fresh, grown, says, stirred
from tests.interop import released
from tests.train import tiny

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}

CLIPS = """format = 1
[run]
seed = 3
device = "cpu"
threads = 1
[data]
use = "moving_shapes"
[text]
use = "bytes"
width = 16
layers = 1
heads = 2
max_tokens = 24
[diffusion]
prediction = "v"
[[model.levels]]
resolution = 8
frames = {frames[0]}
channels = [8, 16]
blocks = 1
heads = 2
norm_groups = 4
{temporal[0]}
[[model.levels]]
resolution = 16
frames = {frames[1]}
channels = [8, 8]
blocks = 1
norm_groups = 4
strides = [[{step}, 2, 2]]
micro_conditioning = {{ scale = 16, fps = 8, frames = 4 }}
{temporal[1]}
[train]
optimizer = {{ use = "adamw", lr = 1e-3 }}
lr_schedule = {{ use = "warmup", steps = 0 }}
batch = 4
log_every = 1
caption_dropout = 0.1
loggers = []
[growth]
use = "temporal"
stages = [
  {{ levels = 2, steps = 2, clips = false }},
  {{ levels = 2, steps = 3, warmup = 2, freeze = 1 }},
]
[sample]
steps = 2
count = 2
"""
LAYERS = [
    'temporal = { use = "attention", head_dim = 4 }',
    'temporal = { use = "attention", head_dim = 4, positions = "relative", causal = true }',
    'temporal = { use = "attention_pooled", head_dim = 4 }\ntemporal_layers = [1, 0]',
    'temporal = "conv"\ntemporal_layers = [0, 2]',
    'temporal = "shift"',
]


def recipe_of(frames: tuple[int, int], temporal: str, *sets: str) -> Recipe:
    layers = [temporal if count > 1 else "" for count in frames]
    text = CLIPS.format(frames=frames, temporal=layers, step=frames[1] // frames[0])
    return loads(text, sets, REGISTRY)


def noisy(sizes: Any, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) for size in sizes)


@settings(max_examples=8, deadline=None)
@given(
    layer=st.sampled_from(LAYERS),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
    averaged=st.booleans(),
)
def test_every_frame_is_what_the_picture_model_says_of_it(layer: str, count: int, seed: int, averaged: bool):
    recipe = recipe_of((count, count), layer)
    before = stirred(fresh(recipe, 0), seed)
    assert all(p.ndim < 5 for p in before.nest.parameters())
    after = grown(recipe, before, 1)
    assert after.parameters.keys() > before.parameters.keys()
    z, t = noisy(assemble.resolutions(recipe), seed), torch.rand(2, dtype=torch.float64)
    said = says(after, z, t, averaged=averaged)
    for f in range(count):
        pictures = says(before, tuple(x[:, :, f] for x in z), t, averaged=averaged)
        for a, b in zip(said, pictures, strict=True):
            torch.testing.assert_close(a[:, :, f], b, **EXACT)


@settings(max_examples=5, deadline=None)
@given(layer=st.sampled_from(LAYERS), count=st.integers(2, 5), seed=st.integers(0, 99))
def test_around_one_frame_a_clip_that_stands_still_is_its_picture(layer: str, count: int, seed: int):
    recipe = recipe_of((1, count), layer)
    before = stirred(fresh(recipe, 0), seed)
    after = grown(recipe, before, 1)
    z, t = noisy([(8, 8), (16, 16)], seed), torch.rand(2, dtype=torch.float64)
    low, high = says(before, z, t)
    said = says(after, (z[0][:, :, None], z[1][:, :, None].expand(-1, -1, count, -1, -1)), t)
    torch.testing.assert_close(said[0][:, :, 0], low, **EXACT)
    torch.testing.assert_close(said[1], high[:, :, None].expand_as(said[1]), **EXACT)


def test_a_stage_of_pictures_is_a_recipe_of_pictures():
    recipe = recipe_of((1, 4), LAYERS[0])
    here = stage_recipe(recipe, REGISTRY, 0)
    assert assemble.resolutions(here) == ((8, 8), (16, 16))
    assert here.model.levels[1].network.settings.micro_conditioning == {"scale": 16.0}
    assert stage_recipe(recipe, REGISTRY, 1).model == recipe.model


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "clips = false",
            "clips = false, freeze = 1",
            "x:43: growth.stages[0].freeze: is for what a stage adds to the one before, and this is the "
            "first; leave it out",
        ),
        (
            "steps = 3, warmup = 2, freeze = 1",
            "steps = 3, clips = false",
            "x:44: growth.stages[1].clips: the last stage has the recipe's clips; leave it out",
        ),
        (
            "resolution = 16",
            "resolution = 8",
            "x:43: growth.stages[0]: in this stage model.levels[1].resolution: levels run from low "
            "resolution to high, but 8 follows 8 of levels[0]",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(old: str, new: str, said: str):
    text = CLIPS.format(frames=(1, 4), temporal=("", LAYERS[0]), step=4).replace(old, new)
    if "resolution" in old:
        text = text.replace("[[4, 2, 2]]", "[[4, 1, 1]]")
    with pytest.raises(RecipeError) as error:
        loads(text, registry=REGISTRY, name="x")
    assert str(error.value) == said


def test_a_run_trains_pictures_then_clips_and_draws_both(tmp_path: Path):
    text = CLIPS.format(frames=(1, 4), temporal=("", LAYERS[0]), step=4)
    out = tmp_path / "run"
    answer = tiny.here("run", tiny.write_recipe(tmp_path, text), "--out", out)
    assert answer.code == 0, answer.err
    assert len([line["loss"] for line in tiny.numbers(out)]) == 5
    assert {path.suffix for path in (out / "samples").rglob("*") if path.is_file()} == {".png"}
    state = tiny.tensors(out, 5)
    layers = {name: x for name, x in state.items() if "levels.1.down.0.temporal" in name}
    assert any(x.any() for name, x in layers.items() if name.endswith(".out.weight")), "they have learned"
    answer = tiny.here("sample", out, "--prompt", "a red ball", "--out", tmp_path / "drawn")
    assert answer.code == 0, answer.err
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert names == {"sheet-level-0-1x8x8.png", "sheet-level-1-4x16x16.png", "clip-00000.gif"}


def picture_model(folder: Path, recipe: Recipe, seed: int = 3) -> Recipe:
    """A folder with the picture stage of a recipe, its parameters random."""
    here = stage_recipe(recipe, REGISTRY, 0)
    state = stirred(fresh(here, 0, dtype=torch.float32), seed)
    weights = {name: p.detach() for name, p in state.parameters.items()}
    model_folder.write(folder, here, weights, {})
    return here


def started(recipe: Recipe, folder: Path) -> Any:
    """The network of a recipe with what it starts from, float64."""
    torch.manual_seed(0)
    nest = assemble.nest(recipe, REGISTRY).double()
    found = start.find(recipe, REGISTRY, str(folder))
    found.copy_into(dict(nest.named_parameters()))
    return nest


def test_a_run_starts_from_a_picture_checkpoint(tmp_path: Path):
    recipe = recipe_of((3, 3), LAYERS[0])
    here = picture_model(tmp_path / "model", recipe)
    pictures, text = model_folder.load(tmp_path / "model", here, REGISTRY)
    assert text is not None
    pictures, clips = pictures.double(), started(recipe, tmp_path / "model")
    z, t = noisy(assemble.resolutions(recipe), 1), torch.rand(2, dtype=torch.float64)
    with torch.no_grad():
        cond, mask = text(["a red ball", ""])
        said = clips(z, t, cond.double(), mask)
        for f in range(3):
            one = pictures([x[:, :, f] for x in z], t, cond.double(), mask)
            for a, b in zip(said, one, strict=True):
                torch.testing.assert_close(a[:, :, f], b, **EXACT)
    text = CLIPS.format(frames=(3, 3), temporal=(LAYERS[0],) * 2, step=1)
    wider = loads(text.replace("channels = [8, 8]", "channels = [16, 8]"), registry=REGISTRY)
    with pytest.raises(WrongInput, match=r"model\.levels\[1\]\.channels"):
        start.find(wider, REGISTRY, str(tmp_path / "model"))


def test_a_run_starts_from_an_imported_model(tmp_path: Path):
    """A released network of 8 and 16 pixels, its parameters random; layers along time in both levels."""
    table = released.tiny_config()
    released.checkpoint(tmp_path / "a.pth", table, None)
    config = released.write_yaml(tmp_path / "c.yaml", table)
    folder = tmp_path / "mine"
    assert tiny.here("import", "apple", tmp_path / "a.pth", "--config", config, "--out", folder).code == 0
    theirs = load(folder / "recipe.resolved.toml", [], REGISTRY)
    pictures, _ = model_folder.load(folder, theirs, REGISTRY)
    text = (folder / "recipe.resolved.toml").read_text()
    text = text.replace('temporal = "none"', 'temporal = "attention"').replace("frames = 1\n", "frames = 3\n")
    recipe = loads(text, registry=REGISTRY)
    clips = started(recipe, folder)
    z, t = noisy(assemble.resolutions(recipe), 1), torch.rand(2, dtype=torch.float64)
    assert z[0].shape[2] == 3
    with torch.no_grad():
        said = clips(z, t)
        for f in range(3):
            one = pictures.double()([x[:, :, f] for x in z], t)
            for a, b in zip(said, one, strict=True):
                torch.testing.assert_close(a[:, :, f], b, **EXACT)
