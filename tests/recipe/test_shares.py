"""Which levels the rows of a batch train: what `check` says of it, to the letter."""

from __future__ import annotations

import pytest

from mdmkit.plugins import load_registry
from mdmkit.recipe import RecipeError, loads
from tests.train.test_frames import FRAMES

RECIPE = """\
format = 1

[data]
use = "shapes"

[diffusion]
level_weights = [1.0, 1.0, 0.5]

[[model.levels]]
resolution = 8
channels = [8]
norm_groups = 4

[[model.levels]]
resolution = 16
channels = [8, 8]
norm_groups = 4

[[model.levels]]
resolution = 32
channels = [8, 8]
norm_groups = 4

[train]
steps = 10
batch = 6
levels = {levels}
"""

HERE = "recipe.toml:27: train.levels"
NEVER = (
    "would never be trained; give it rows, leave it out of model.levels, or say 0 for it in "
    "diffusion.level_weights"
)
WRONG = {
    '{ use = "mixed", shares = [0.5, 0.5] }': [f"{HERE}.shares: expected one number a level, 3, got 2"],
    '{ use = "mixed", shares = [0.5, 0.25, 0.5] }': [
        f"{HERE}.shares: expected numbers whose sum is 1, got [0.5, 0.25, 0.5], whose sum is 1.25"
    ],
    '{ use = "mixed", shares = [1.5, 0.0, -0.5] }': [f"{HERE}.shares[2]: expected float >= 0.0, got -0.5"],
    '{ use = "mixed", shares = [0.5, 0.5, 0.0] }': [f"{HERE}.shares: no row reaches level 2, which {NEVER}"],
    '{ use = "fixed", level = 1 }': [f"{HERE}.level: no row reaches level 2, which {NEVER}"],
    '{ use = "fixed", level = 0 }': [
        f"{HERE}.level: no row reaches levels 1 and 2, which would never be trained; give them rows, leave "
        "them out of model.levels, or say 0 for them in diffusion.level_weights"
    ],
    '{ use = "fixed", level = 3 }': [f"{HERE}.level: there is no level 3; the highest is 2"],
    '{ use = "fixed" }': [f"{HERE}.level: missing; expected int: the top level of every row; 0 is the core"],
    '{ use = "stochastic", probabilities = [0.5, 0.6, 0.1] }': [
        f"{HERE}.probabilities: expected numbers whose sum is 1, got [0.5, 0.6, 0.1], whose sum is 1.2"
    ],
    '{ use = "stochastic", probabilities = [0.5, 0.5, 0.0] }': [
        f"{HERE}.probabilities: no row reaches level 2, which {NEVER}"
    ],
    '{ use = "curriculum", start = [1.0], end = [0.0, 1.0, 0.0], steps = 5 }': [
        f"{HERE}.start: expected one number a level, 3, got 1"
    ],
    '{ use = "curriculum", start = [1.0, 0.0, 0.0], end = [0.0, 1.0, 0.0], steps = 5 }': [
        f"{HERE}.end: no row reaches level 2, which {NEVER}"
    ],
    '{ use = "curriculum", start = [1.0, 0.0, 0.0], end = [0.0, 0.0, 2.0], steps = 5 }': [
        f"{HERE}.end: expected numbers whose sum is 1, got [0.0, 0.0, 2.0], whose sum is 2"
    ],
    '{ use = "curriculum", start = [0.5, 0.5, 0.0], end = [0.0, 0.0, 1.0], steps = 5 }\naccumulate = 3': [
        "recipe.toml:26: train.batch: 6 rows in 3 micro-batches cannot give each of the 3 levels of "
        "train.levels a row; use >= 9"
    ],
    '{ use = "by_source", shares = [0.5, 0.5] }': [f"{HERE}.shares: expected one number a level, 3, got 2"],
    '{ use = "by_source", shares = [0.5, 0.5, 0.0] }': [
        f"{HERE}.shares: no row reaches level 2, which {NEVER}"
    ],
}


def said(text: str) -> list[str]:
    try:
        loads(text, [], load_registry())
    except RecipeError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("levels", WRONG)
def test_wrong_shares(levels: str) -> None:
    assert said(RECIPE.replace("{levels}", levels)) == WRONG[levels]


@pytest.mark.parametrize(
    "levels",
    [
        '"all"',
        '{ use = "fixed", level = 2 }',
        '{ use = "mixed", shares = [0.0, 0.5, 0.5] }',
        '{ use = "stochastic", probabilities = [0.3333, 0.3333, 0.3333] }',
        '{ use = "curriculum", start = [1.0, 0.0, 0.0], end = [0.0, 0.0, 1.0], steps = 5 }',
        '"by_source"',
        '{ use = "by_source", shares = [0.5, 0.0, 0.5] }',
    ],
)
def test_right_shares(levels: str) -> None:
    assert said(RECIPE.replace("{levels}", levels)) == []


def test_a_level_of_no_weight_may_do_without_rows() -> None:
    text = RECIPE.replace("{levels}", '{ use = "fixed", level = 1 }').replace("1.0, 0.5]", "1.0, 0.0]")
    assert said(text) == []


def test_rows_stop_at_the_size_of_pictures_not_of_grids_of_frames() -> None:
    text = FRAMES.replace('{ use = "mixed", shares = [0.5, 0.5] }', '"by_source"')
    (line,) = said(text)
    assert line.endswith(": train.levels: 'by_source' is for pictures, not for frames; take 'mixed'")
