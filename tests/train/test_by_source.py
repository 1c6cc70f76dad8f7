"""Rows that stop at the size of their picture: what a training reads; every picture counts alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdmkit import assemble
from mdmkit.data import Sample
from mdmkit.errors import WrongInput
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.resolutions import BySource, level_factors
from mdmkit.train.draws import stopping
from mdmkit.train.loop import train
from mdmkit.train.parallel import World
from mdmkit.train.plan import Parts, Phase

from . import tiny

CPU = torch.device("cpu")
COUNTS = (5, 3)  # pictures of 8 to 15 pixels, and of 16 and more


def pictures(folder: Path, small: int = COUNTS[0], large: int = COUNTS[1], tiny_ones: int = 2) -> Path:
    """Noise whose name says the highest level that it reaches."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for top, count, low, high in ((0, small, 8, 16), (1, large, 16, 40), (-1, tiny_ones, 2, 8)):
        for number in range(count):
            size = random.integers(low, high, 2)
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"reaches {top}, {number}.png")
    return folder


def recipe_text(folder: Path, levels: str = '{ use = "by_source" }', **changes: str) -> str:
    data = f'use = "folder"\npath = "{folder}"\ncaptions = "none"'
    text = tiny.RECIPE.replace('use = "shapes"\nobjects = [1, 1]', data)
    text = text.replace('{ use = "mixed", shares = [0.5, 0.5] }', levels)
    for old, new in changes.items():
        text = text.replace(f"\n{old} = ", f"\n{old} = {new} #")
    return text


def made(folder: Path, text: str) -> tuple[Parts, Any]:
    recipe = load(tiny.write_recipe(folder, text), [], load_registry())
    return assemble.parts(recipe, load_registry()), assemble.plan(recipe)


def keys_read(folder: Path, parts: Parts, plan: Any) -> list[list[tuple[str, int]]]:
    """By step, the pictures that a training reads and the level at which each row stops."""
    rows: list[tuple[str, int]] = []
    data = parts.by_size
    assert data is not None

    class Noted:
        resolution = data.resolution
        position = staticmethod(data.position)

        def sample(self, position: int) -> Sample:
            found = data.sample(position)
            rows.append((found.key, position % 2))
            return found

    noted = attrs.evolve(parts, by_size=Noted())
    train(noted, plan, device=CPU, world=World(), run_dir=folder)
    return [rows[at : at + plan.batch] for at in range(0, len(rows), plan.batch)]


@pytest.mark.parametrize("batch", [8, 4, 6])
def test_every_picture_is_read_equally_often_up_to_its_own_size(tmp_path: Path, batch: int) -> None:
    folder = pictures(tmp_path / "pictures")
    steps = 24 * 8 // batch // 4
    parts, plan = made(tmp_path, recipe_text(folder, batch=str(batch), steps=str(steps)))
    assert parts.by_size is not None
    assert (parts.by_size.counts, parts.by_size.small) == (COUNTS, 2)
    by_step = keys_read(tmp_path, parts, plan)
    assert len(by_step) == steps
    so_far: Counter[str] = Counter()
    for rows in by_step:
        so_far.update(key for key, _ in rows)
        for level, count in enumerate(COUNTS):
            seen = [so_far[f"reaches {level}, {number}.png"] for number in range(count)]
            assert max(seen) - min(seen) <= 1, "at any time"
        assert [level for _, level in rows] == sorted((level for _, level in rows), reverse=True)
        assert all(f"reaches {level}," in key for key, level in rows)
    read = Counter(key for rows in by_step for key, _ in rows)
    # as many rows as make whole rounds of all pictures: none is seen more often than another
    assert len(read) == sum(COUNTS)
    assert steps * batch % sum(COUNTS) == 0
    assert set(read.values()) == {steps * batch // sum(COUNTS)}


def test_given_shares_take_any_picture_that_is_large_enough(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    shares = '{ use = "by_source", shares = [0.25, 0.75] }'
    parts, plan = made(tmp_path, recipe_text(folder, shares, steps="8"))
    read = [row for rows in keys_read(tmp_path, parts, plan) for row in rows]
    assert Counter(level for _, level in read) == {0: 16, 1: 48}
    low, high = (Counter(key for key, level in read if level == top) for top in (0, 1))
    assert set(low.values()) == {2}
    assert len(low) == sum(COUNTS)
    assert set(high.values()) == {16}
    assert len(high) == COUNTS[1]


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    units=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_each_level_has_the_mean_loss_of_all_pictures_that_reach_it(counts: list[int], units: int, seed: int):
    sampler, total = BySource(levels=len(counts)).over(counts), sum(counts)
    # any loss of a picture at a level, in float64
    shapes = [(count, len(counts)) for count in counts]
    losses = [np.random.default_rng((seed, top)).normal(size=shape) for top, shape in enumerate(shapes)]
    taken, before = np.zeros(len(counts)), [0] * len(counts)
    for step in range(total):
        rows = sampler.rows(step, units)
        read = []
        for top, more in enumerate(stopping(rows)):
            read += [losses[top][(before[top] + i) % counts[top], : top + 1] for i in range(more)]
            before[top] += more
        reached = [count for count in rows if count]
        for level, factor in enumerate(level_factors(sampler, reached)):
            taken[level] += factor * np.mean([loss[level] for loss in read if len(loss) > level])
    whole = [np.concatenate(losses[level:])[:, level].mean() for level in range(len(counts))]
    assert taken / total == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_resumed_and_on_two_ranks_it_reads_the_same(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    text = recipe_text(folder, steps="5", checkpoint_every="3", sample_every="9")
    recipe = tiny.write_recipe(tmp_path, text)
    whole, resumed, two = (tmp_path / name for name in ("whole", "resumed", "two"))
    done = tiny.here("run", recipe, "--out", whole)
    assert done.code == 0, done.err
    assert (
        "by_source: of the pictures 5 stop at level 0 (8 x 8), 3 stop at level 1 (16 x 16); left out: 2 "
        "smaller than level 0\n"
    ) in done.err
    (event,) = tiny.events(whole, "pictures_by_size")
    assert event == {"step": 0, "pictures": list(COUNTS), "too_small": 2, "unreadable": 0}
    assert tiny.here("run", recipe, "--out", resumed, "--set", "train.steps=3").code == 0
    assert tiny.here("run", "--resume", resumed, "--set", "train.steps=5").code == 0
    ours, theirs = tiny.tensors(resumed, 5), tiny.tensors(whole, 5)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # 2 ranks give rows out in pairs: another division in a step, the same for two micro-batches on one rank
    halves = tmp_path / "halves"
    assert tiny.here("run", recipe, "--out", halves, "--set", "train.accumulate=2").code == 0
    done = tiny.mdmkit("run", recipe, "--out", two, ranks=2)
    assert done.code == 0, done.err
    for line, other in zip(tiny.numbers(two), tiny.numbers(halves), strict=True):
        assert line.keys() == other.keys()
        assert line["loss"] == pytest.approx(other["loss"], rel=2e-4)


def test_a_level_that_no_picture_reaches_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", large=0)
    largest = (0, 0)
    for file in folder.glob("*.png"):
        with Image.open(file) as picture:
            largest = max(largest, picture.size[::-1], key=min)
    with pytest.raises(WrongInput) as raised:
        made(tmp_path, recipe_text(folder))
    assert str(raised.value) == (
        "train.levels = by_source: no picture is as large as level 1 (levels 0: 8 x 8, 1: 16 x 16; the "
        f"largest picture is {largest[0]} x {largest[1]}); leave that level out, or take larger pictures"
    )


STAGES = """
[growth]
use = "staged"
stages = [{ levels = 1, steps = 3 }, { levels = 2, steps = 3 }]
"""


def test_in_stages_a_row_stops_at_its_picture_among_the_levels_there_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    text = recipe_text(folder, sample_every="9").replace("steps = 12\n", "", 1) + STAGES
    done = tiny.here("run", tiny.write_recipe(tmp_path, text), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    first, second = tiny.events(tmp_path / "run", "pictures_by_size")
    assert first == {"step": 0, "pictures": [8], "too_small": 2, "unreadable": 0}
    assert second == {"step": 3, "pictures": list(COUNTS), "too_small": 2, "unreadable": 0}


def test_the_next_stage_reads_on(tmp_path: Path) -> None:
    parts, plan = made(tmp_path, recipe_text(pictures(tmp_path / "pictures"), steps="2"))
    asked: list[int] = []
    data = parts.by_size
    assert data is not None

    class Noted:
        resolution = data.resolution

        def position(self, level: int, number: int) -> int:
            asked.append(number)
            return data.position(level, number)

        sample = staticmethod(data.sample)

    later = attrs.evolve(plan, phase=Phase(pictures=1000))
    train(attrs.evolve(parts, by_size=Noted()), later, device=CPU, world=World(), run_dir=tmp_path)
    assert min(asked) >= 1000


def test_a_stage_to_come_without_pictures_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", large=0)
    text = recipe_text(folder).replace("steps = 12\n", "", 1) + STAGES
    done = tiny.here("run", tiny.write_recipe(tmp_path, text), "--out", tmp_path / "run")
    assert done.code == 2
    assert "no picture is as large as level 1" in done.err
    assert not (tmp_path / "run").exists()
