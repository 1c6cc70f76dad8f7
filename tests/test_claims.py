"""The arms of `benches/claims`: equal compute, a cascade that is one, a table that says what results say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mdmkit import assemble
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe import loads
from tests.train import tiny

CLAIMS = Path(__file__).parents[1] / "benches" / "claims"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Its modules by name, as its scripts see each other."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(CLAIMS))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before
        for name in ("about", *(path.stem for path in CLAIMS.glob("*.py"))):  # they have everyday names
            if name not in known:
                sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(env={"MDMKIT_PLUGINS": ""})


def test_every_arm_has_the_same_compute(bench: Any, registry: Registry) -> None:
    run, compute = bench("run"), bench("compute")
    found = {
        arm: sum(compute.training_flops(recipe, registry) for recipe in run.recipes_of(arm, 0, registry))
        for arm in run.ARMS
    }
    assert all(flops == pytest.approx(found["nest2"], rel=0.01) for flops in found.values()), found
    named = {path.name for arm in run.ARMS for path in run.paths(arm)}
    assert {path.name for path in CLAIMS.glob("*.toml")} == named


def test_compute_is_counted_row_by_row(bench: Any, registry: Registry) -> None:
    compute = bench("compute")
    recipe = loads(tiny.RECIPE, registry=registry)
    core, shell = compute.picture_flops(recipe, registry)
    assert compute.training_flops(recipe, registry) == 3 * 12 * (8 * core + 4 * shell)
    first = "{ levels = 1, steps = 5, batch = 8 }"
    last = "{ levels = 2, steps = 2, batch = 4, shares = [0.75, 0.25] }"
    stages = f"stages = [{first}, {last}]"
    elsewhere = ("steps = 12", "batch = 8", "levels =")
    lines = [line for line in tiny.RECIPE.splitlines() if not line.startswith(elsewhere)]
    grown = loads("\n".join([*lines, "[growth]", 'use = "staged"', stages]), registry=registry)
    assert compute.training_flops(grown, registry) == 3 * (5 * 8 * core + 2 * (4 * core + shell))


def test_the_second_model_of_a_cascade_is_shown_a_clear_picture_and_learns_the_large_one(
    bench: Any, registry: Registry, tmp_path: Path
) -> None:
    cascade = bench("cascade")
    recipe = loads(tiny.RECIPE, ["train.levels='all'", "diffusion.level_weights=[0.0, 1.0]", "train.steps=2"],
                   registry=registry)  # fmt: skip
    shown: list[tuple[torch.Tensor, ...]] = []
    parts, ema = cascade.train_high(recipe, registry, tmp_path)
    parts.nest.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    x = torch.ones(2, 3, 8, 8), torch.ones(2, 3, 16, 16)
    noise = torch.zeros_like(x[0]), torch.zeros_like(x[1])
    for t in (0.1, 0.9):
        losses = parts.objective(x, noise, torch.full((2,), t), captions=["a red circle"] * 2)
    assert torch.equal(shown[0][0], shown[1][0]), "the low picture is as clear at every time"
    assert shown[0][0].mean() == pytest.approx(torch.tensor(cascade.LOGSNR).sigmoid().sqrt().item())
    assert not torch.equal(shown[0][1], shown[1][1])
    assert losses.trained.shape == (2,)
    # what it draws depends on the low picture and on nothing of the level inside
    told = {"seed": 0, "batch": 2}
    drawing, diffusion = assemble.drawing(recipe, registry), assemble.diffusion(recipe, registry)
    with ema.swap():
        low = [torch.full((3, 8, 8), value) for value in (-1.0, 1.0, 1.0)]
        one = cascade.draw_large(parts, diffusion, drawing, low, ["a red circle"] * 3, **told)
        alone = cascade.draw_large(parts, diffusion, drawing, low[:1], ["a red circle"], seed=0, batch=1)
    assert one.shape == (3, 3, 16, 16)
    torch.testing.assert_close(one[:1], alone)
    assert shown[-1][0].shape == (1, 3, 8, 8)


def line(arm: str, seed: int, digest: str, frechet: float) -> dict[str, Any]:
    metrics = {"fidelity.frechet": frechet, "fidelity.kernel": 1.0, "prompt_accuracy.all": 0.5}
    metrics["prompt_accuracy.colour"] = 0.5
    costs = {"training_tflop": 1.0, "cpu_seconds": 2.0, "drawing_gflop": 3.0}
    return {"arm": arm, "seed": seed, "recipe": digest, **costs, "metrics": metrics}


def test_the_table_says_what_every_seed_says(
    bench: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, run = bench("table"), bench("run")
    nest2, plain = (run.digest(arm, registry) for arm in ("nest2", "plain"))
    lines = [line("nest2", seed, nest2, 1.0) for seed in (0, 1, 2)]
    lines += [line("plain", 0, plain, 3.0), line("plain", 1, plain, 2.0), line("plain", 2, "old", 0.0)]
    own = run.digest("nest2", registry, "emoji")
    assert own != nest2, "other captions, other measures"
    emoji = line("nest2", 0, own, 7.0) | {"data": "emoji", "metrics": {"fidelity.frechet": 7.0}}
    lines += [emoji, emoji | {"recipe": nest2}]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in lines))
    monkeypatch.setattr(table, "RESULTS", results)
    read = table.read("shapes")
    assert sorted(read["plain"]) == [0, 1], "of a recipe that is no more"
    arms, claims = table.arms(read), table.claims(read)
    assert "| `plain` | plain U-Net at 32 | 2 | 2.5 (2.0 to 3.0) | 1.00 (1.00 to 1.00) |" in arms[2]
    assert "2 of 2 seeds; -1.5 (-2.0 to -1.0) | 0 of 2 seeds; 0.00 (0.00 to 0.00)" in claims[2]
    assert claims[2].endswith("| mixed: holds, does not, does not (by 2 of 3 seeds) |")
    assert claims[4].endswith("| not run |")
    assert not any("grow75" in claim for claim in claims), "neither arm was run"
    other = table.read("emoji")
    assert [arm for arm, seeds in other.items() if seeds] == ["nest2"]
    assert table.arms(other)[0].startswith("| arm | what | seeds | Fréchet | training, TFLOP |")
    assert "| `nest2` | nest 16 -> 32, mixed batches | 1 | 7.0 (7.0 to 7.0) |" in table.arms(other)[2]
    assert [table.verdict(good, 3) for good in (3, 2, 0)] == ["holds", "undecided", "does not"]
