"""Recipes of clip models: what does not fit in time is said at its line, and what fits can be built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdmkit import assemble
from mdmkit.plugins import load_registry
from mdmkit.recipe import RecipeError, dumps, loads

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})

CLIPS = """format = 1
[data]
use = "shapes"
[diffusion]
prediction = "x0"
[[model.levels]]
resolution = 16
channels = [8, 16]
blocks = 1
heads = 2
norm_groups = 4
[[model.levels]]
resolution = 16
frames = 4
channels = [8, 8, 8]
blocks = 1
norm_groups = 4
strides = [[2, 1, 1], [2, 1, 1]]
temporal = { use = "attention", head_dim = 4 }
temporal_layers = [1, 0, 2]
[[model.levels]]
resolution = [32, 64]
frames = 8
channels = [8, 8]
blocks = 1
norm_groups = 4
strides = [[2, 2, 4]]
temporal = "conv"
micro_conditioning = { fps = 8, frames = 8 }
[train]
steps = 1
batch = 2
caption_dropout = 0.0
"""


def test_a_recipe_of_clips_is_built_and_comes_back() -> None:
    recipe = loads(CLIPS, registry=REGISTRY)
    assert loads(dumps(recipe), registry=REGISTRY) == recipe
    sizes = assemble.resolutions(recipe)
    assert sizes == ((1, 16, 16), (4, 16, 16), (8, 32, 64))
    assert assemble.frames(recipe) is None  # grids
    nest = assemble.nest(recipe, REGISTRY)
    z = [torch.randn(2, 3, *size) for size in sizes]
    assert [x.shape for x in nest(z, torch.rand(2))] == [x.shape for x in z]
    layers = [[len(layers[0]) for layers in (stage.temporal for stage in nest.levels[1].down)]]  # type: ignore
    assert layers == [[1, 0, 2]]


def test_the_shift_counts_averaged_frames_and_not_picked_ones() -> None:
    shifts = []
    for more in ("", 'frame_pooling = "pick"\n', 'frame_pooling = "pick"\nshift_power_frames = 0.5\n'):
        recipe = loads(CLIPS.replace('prediction = "x0"\n', 'prediction = "x0"\n' + more), registry=REGISTRY)
        shifts.append([s.shift for s in assemble.diffusion(recipe, REGISTRY).schedules])  # type: ignore
    log2 = torch.tensor(2.0).log().item()
    area = 1.5 * log2  # sqrt(2 * 4) sides
    assert shifts[0] == pytest.approx([0, -2 * log2, -3 * log2 - area])
    assert shifts[1] == pytest.approx([0, 0, -area])
    assert shifts[2] == pytest.approx([0, -log2, -1.5 * log2 - area])


WRONG: dict[str, tuple[str, str, list[str]]] = {
    "no whole multiple": (
        "\nframes = 8",
        "\nframes = 6",
        ["x:23: model.levels[2].frames: 6 is no whole multiple of the 4 of levels[1]"],
    ),
    "strides": (
        "strides = [[2, 2, 4]]",
        "strides = [[1, 2, 4]]",
        [
            "x:23: model.levels[2].frames: the strides take 8 down to 8, but levels[1] has 4; "
            "say strides = [[frames, height, width], ...]"
        ],
    ),
    "strides beyond the frames": (
        "strides = [[2, 2, 4]]",
        "strides = [[3, 2, 4]]",
        ["x:23: model.levels[2].frames: the strides divide by 3, which does not divide 8"],
    ),
    "falling": (
        "resolution = 16\nframes = 4",
        "resolution = 16\nframes = 16",
        [
            "x:14: model.levels[1].frames: the strides take 16 down to 4, but levels[0] has 1; "
            "say strides = [[frames, height, width], ...]",
            "x:23: model.levels[2].frames: 8 is no whole multiple of the 16 of levels[1]",
        ],
    ),
    "neither in time nor in space": (
        "frames = 4",
        "frames = 1",
        [
            "x:14: model.levels[1].frames: the strides divide by 4, which does not divide 1",
            "x:19: model.levels[1].temporal: layers along time are for clips; say frames, or leave temporal "
            "out",
        ],
    ),
    "width": (
        "head_dim = 4",
        "head_dim = 16",
        [
            f"x:15: model.levels[1].channels[{i}]: head_dim=16 does not divide channels=8; try head_dim=8"
            for i in (0, 2)
        ],
    ),
    "layers": (
        "temporal_layers = [1, 0, 2]",
        "temporal_layers = [1, 0]",
        ["x:20: model.levels[1].temporal_layers: expected one entry a stage, 3, got 2"],
    ),
    "temporal layer": (
        'temporal = "conv"',
        'temporal = "convolution"',
        [
            "x:28: model.levels[2].temporal: unknown temporal_layer 'convolution' (known: attention, "
            "attention_pooled, conv, shift)"
        ],
    ),
    "joins": (
        "[train]",
        "[sample]\nouter_from = -2.0\n[train]",
        [],
    ),
    "joins with picked frames": (
        'prediction = "x0"',
        'frame_pooling = "pick"\n[sample]\nouter_from = -2.0',
        [
            "x:7: sample.outer_from: needs frames of inner levels that are averages, and "
            "diffusion.frame_pooling picks; leave it out"
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_in_time_is_said(name: str) -> None:
    old, new, lines = WRONG[name]
    assert CLIPS.count(old) == 1
    said: list[Any] = []
    try:
        loads(CLIPS.replace(old, new), registry=REGISTRY, name="x")
    except RecipeError as error:
        said = str(error).splitlines()
    assert said == lines
