"""`check --build`: the table, whatever the costs are."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from mdmkit import assemble
from mdmkit.cli import build_report
from mdmkit.plugins import load_registry
from mdmkit.recipe import load, loads
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL


class Cost(NamedTuple):
    parameters: int
    flops: float
    memory: float


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the cost model was asked; it answers with round numbers."""
    seen: list[Any] = []

    def level_costs(*arguments: Any) -> list[Cost]:
        seen.append(arguments)
        return [Cost(1_234_567, 2.5e9, 3 * 2**20), Cost(1000, 0.5e9, 1.5 * 2**30)]

    module = ModuleType("mdmkit.nn.cost")
    module.level_costs = level_costs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mdmkit.nn", ModuleType("mdmkit.nn"))
    monkeypatch.setitem(sys.modules, "mdmkit.nn.cost", module)
    monkeypatch.setattr(assemble, "nest", lambda recipe, registry, device: f"a nest on {device}")
    return seen


def test_the_table(asked: list[Any]) -> None:
    registry = stand_ins.registry()
    recipe = loads(FULL, ["train.accumulate=2"], registry)
    lines = build_report.build_report(recipe, registry).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "level network picture channels parameters GFLOP a picture training memory",
        "0 core unet 3 x 64 x 64 32 64 128 1,234,567 2.50 3.0 MiB",
        "1 shell unet 3 x 128 x 128 32 64 1,000 0.50 1.5 GiB",
        "all 1,235,567 3.00 1.5 GiB",
        "training memory: one device, 32 pictures at a time",
    ]
    assert asked == [("a nest on meta", ((64, 64), (128, 128)), (32, 32), 1, 512)]


def test_the_largest_stage_of_growth_counts() -> None:
    stages = "[{ levels = 1, batch = 64 }, { levels = 2, batch = 16 }]"
    text = FULL.replace("\nbatch = 64\n", "\n") + f"[growth]\nuse = 'staged'\nstages = {stages}\n"
    text = text.replace("\nsteps = 1_000\n", "\n").replace("batch = ", "steps = 1, batch = ")
    registry = stand_ins.registry()
    assert build_report.micro_batch(loads(text, registry=registry), registry) == (64, 64)


def test_rows_that_stop_inside_do_not_count_outside() -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    sets = ["train.batch=24", "train.accumulate=2", "train.levels={ use = 'mixed', shares = [0.25, 0.75] }"]
    recipe = load("mdmkit:quickstart", sets, registry)
    assert build_report.micro_batch(recipe, registry) == (12, 9)
