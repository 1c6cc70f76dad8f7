"""A run whose highest level is a grid of frames, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdmkit import assemble
from mdmkit.data.loader import batches
from mdmkit.grid import unpack
from mdmkit.plugins import load_registry
from mdmkit.recipe import loads
from mdmkit.train.draws import Rows
from mdmkit.train.loop import forward

from .tiny import RECIPE, here, write_recipe

GRID = """layout = "grid"
frames = 4
strides = [[2, 1, 1], [2, 1, 1]]
temporal_attention = 1
rotary = true
"""
OUTER = "channels = [8, 8]\nblocks = [1, 1]\n"
FRAMES = RECIPE.replace(OUTER, f"channels = [32, 32, 32]\nblocks = 1\n{GRID}")


class Seen(nn.Module):
    """Keeps the pictures that it is to be trained on."""

    def forward(self, x: Any, *_: Any, **__: Any) -> torch.Tensor:
        self.x = x
        return torch.zeros(len(x))


def test_the_level_inside_trains_on_the_first_frame():
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = loads(FRAMES, registry=registry)
    parts, plan, seen = assemble.parts(recipe, registry), assemble.plan(recipe), Seen()
    assert parts.frames == assemble.frames(recipe) == (1, 4)
    assert assemble.frames(loads(RECIPE, registry=registry)) is None
    batch = next(iter(batches(parts.dataset, iter([[0, 1]]), workers=0)))
    forward(seen, parts, plan, batch, Rows((0, 1), (2, 1)), 0, torch.device("cpu"))
    low, high = seen.x
    assert (low.shape, high.shape) == ((2, 3, 8, 8), (1, 3, 16, 16))
    assert torch.equal(low[:1], unpack(high, 4)[:1])
    # while levels are being grown, the picture is a grid all the same
    forward(seen, parts, plan, batch, Rows((0, 1), (2,)), 0, torch.device("cpu"))
    assert torch.equal(seen.x[0], low)


def test_it_trains_and_draws(tmp_path: Path):
    recipe = write_recipe(tmp_path, FRAMES)
    done = here("run", recipe, "--out", tmp_path / "run", "--set", "train.steps=2")
    assert done.code == 0, done.err
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    done = here("check", "--build", recipe)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("frames = 4 => frames = 9", "frames: expected frames that the strides divide, at least 2, got 9"),
        (
            "resolution = 16 => resolution = 32",
            "resolution: 3 stages take 32 down to 16, but levels[0] works at 8",
        ),
        ("layout = \"grid\" => layout = \"rows\"", "layout: expected grid, got str 'rows'"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, change: str, message: str):
    old, _, new = change.partition(" => ")
    done = here("check", write_recipe(tmp_path, FRAMES.replace(old, new)))
    assert done.code == 2
    assert f"model.levels[1].{message}" in done.err + done.out
