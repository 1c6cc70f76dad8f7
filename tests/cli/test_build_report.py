"""`check --build`: the table, whatever the costs are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from mdmkit import assemble
from mdmkit.cli import build_report
from mdmkit.plugins import load_registry
from mdmkit.recipe import load, loads
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL

ROOT = Path(__file__).parents[2]


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
    monkeypatch.setattr(build_report, "rate_here", lambda device, precision: 288e9)
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
        # 2 x 32 pictures, 3 GFLOP each, three passes, at 288 GFLOP/s; 1000 steps
        f"training time: about 2 s a step on this CPU alone ({torch.get_num_threads()} threads, "
        "288 GFLOP/s now), 33.3 min for 1,000 steps",
    ]
    assert asked == [("a nest on meta", ((64, 64), (128, 128)), (32, 32), 1, 512)]


def test_time_of_what_this_machine_cannot_run_or_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_report, "rate_here", lambda device, precision: 1e9)
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = load("mdmkit:quickstart", ["model.use_checkpoint=true"], registry)
    assert "about 4 s a step" in build_report.training_time(recipe, 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere = load("mdmkit:quickstart", ["run.device='cuda'"], registry)
    assert build_report.training_time(elsewhere, 1e9).startswith("training time: not estimated here (run.dev")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0314, "0.0314 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (48 * 3600, "2 days"),
        (1e9, "32 years"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert build_report.duration(seconds) == said


def test_each_stage_of_growth_has_its_table() -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    stages = "[{levels = 1, steps = 3, batch = 8}, {levels = 2, steps = 5, batch = 4, shares = [0.5, 0.5]}]"
    text = (ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8")
    text = re.sub(r"\n(steps = 850|batch = 32|levels = [^\n]*)(?=\n)", "", text)
    recipe = loads(f"{text}[growth]\nuse = 'staged'\nstages = {stages}\n", registry=registry)
    said = build_report.build_report(recipe, registry)
    first, second = said.split("stage 1: 5 steps of 4 pictures")
    assert "stage 0: 3 steps of 8 pictures" in first
    assert "8 pictures at a time" in first
    assert "32 x 32" not in first
    assert "4 pictures at a time (4, 2 reach levels 0, 1, ...)" in second
    assert "32 x 32" in second


def test_rows_that_stop_inside_do_not_count_outside() -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    sets = ["train.batch=24", "train.accumulate=2", "train.levels={ use = 'mixed', shares = [0.25, 0.75] }"]
    recipe = load("mdmkit:quickstart", sets, registry)
    assert set(build_report.micro_batches(recipe, registry)) == {(12, 9)}


def test_memory_is_that_of_the_largest_step_and_time_that_of_the_mean(asked: list[Any]) -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    sets = [
        "train.batch=12",
        "train.levels={ use = 'stochastic', probabilities = [0.5, 0.5] }",
        "run.device='cpu'",
    ]
    recipe = load("mdmkit:quickstart", sets, registry)
    rows = build_report.micro_batches(recipe, registry)
    assert set(rows) == {(12, 0), (12, 12)}
    report = build_report.build_report(recipe, registry)
    assert asked[0][2] == (12, 12)
    outer = sum(reached for _, reached in rows) / len(rows)
    seconds = 3 * (2.5e9 * 12 + 0.5e9 * outer) / 288e9
    assert f"about {seconds:.3g} s a step" in report
