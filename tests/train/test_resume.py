"""Killed anywhere and resumed, a run goes on as if nothing had happened: bit for bit on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from . import tiny


def write_recipe(folder: Path) -> Path:
    """A line of the log spans checkpoints: its sums travel through them."""
    return tiny.write_recipe(folder, tiny.RECIPE.replace("log_every = 1", "log_every = 4"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, in a process of its own; nobody writes to it."""
    folder = tmp_path_factory.mktemp("whole")
    done = tiny.mdmkit("run", write_recipe(folder), "--out", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"


def same(run: Path, whole: Path) -> None:
    """Assert equal losses, parameters, averages, moments and pictures."""
    assert tiny.numbers(run) == tiny.numbers(whole)
    ours, theirs = tiny.tensors(run, 12), tiny.tensors(whole, 12)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    pictures = sorted(path.name for path in (whole / "samples").glob("*.png"))
    assert len(pictures) == 6, "two levels, in the middle twice and at the end"
    differ = [
        name
        for name in pictures
        if (run / "samples" / name).read_bytes() != (whole / "samples" / name).read_bytes()
    ]
    assert differ == []


def test_killed_and_resumed_equals_never_killed(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    # before the first checkpoint; then, with data workers, between two; then while one is written
    killed = tiny.mdmkit("run", recipe, "--out", run, *tiny.STOP, STOP_AT="2")
    assert (killed.code, len(tiny.numbers(run))) == (-9, 0)
    killed = tiny.mdmkit("run", "--resume", run, "--set", "data.workers=2", STOP_AT="8")
    assert (killed.code, len(tiny.numbers(run))) == (-9, 1)
    killed = tiny.mdmkit("run", "--resume", run, "--set", "data.workers=0", STOP_IN="10")
    assert (killed.code, len(tiny.numbers(run))) == (-9, 2)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "step-0000005",
        ".writing-step-0000010",
    }
    done = tiny.here("run", "--resume", run)
    assert done.code == 0, done.err
    same(run, whole)
    assert [event["checkpoint"] for event in tiny.events(run, "resumed")] == [
        None,
        "step-0000005",
        "step-0000005",
    ]


@pytest.mark.parametrize(("signal", "workers"), [("SIGTERM", 2), ("SIGINT", 0)])
def test_a_signal_saves_and_exits_130(tmp_path: Path, whole: Path, signal: str, workers: int) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    stopped = tiny.here(
        "run",
        recipe,
        "--out",
        run,
        *tiny.STOP,
        "--set",
        f"data.workers={workers}",
        STOP_AT="6",
        STOP_BY=signal,
    )
    assert stopped.code == 130
    # the signal came when step 6 was done: the next one sees it
    assert stopped.err.splitlines()[-1] == f"interrupted at step 7, and saved; go on with --resume {run}"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000005", "step-0000007"]
    assert tiny.here("run", "--resume", run).code == 0
    same(run, whole)


def test_pictures_that_were_due_when_it_was_stopped_are_drawn(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT="3", STOP_BY="SIGINT").code == 130
    assert not (run / "samples").exists()
    assert tiny.here("run", "--resume", run).code == 0
    same(run, whole)


def test_a_damaged_newest_checkpoint_costs_only_itself(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT="9", STOP_BY="SIGINT").code == 130
    newest = run / "checkpoints" / "step-0000010"
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    resumed = tiny.here("run", "--resume", run)
    assert resumed.code == 0
    assert resumed.err.splitlines()[0] == f"{newest} is passed over: model.safetensors missing or cut short"
    same(run, whole)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    recipe = write_recipe(tmp_path)
    few = ("--set", "train.steps=2", "--set", "sample.count=1")
    assert tiny.here("run", recipe, "--out", run, *few).code == 0
    refused = tiny.here("run", "--resume", run, "--set", "model.levels[0].channels=[8, 8]")
    assert refused == (
        2,
        "",
        (
            f"--set changes [model], which the checkpoints in {run} were made with; "
            "start a new run with another --out instead\n"
        ),
    )
    # a checkpoint of another recipe, put into this run
    narrow = ("--set", "model.levels[1].channels=[8, 16]")
    assert tiny.here("run", recipe, "--out", other, *few, *narrow).code == 0
    (other / "checkpoints" / "step-0000002").rename(run / "checkpoints" / "step-0000003")
    refused = tiny.here("run", "--resume", run)
    assert refused == (
        2,
        "",
        (
            f"{run}/checkpoints/step-0000003 was written by another recipe: its [model] is not that of "
            f"{run}/recipe.resolved.toml; move it away to go on from the checkpoint before it\n"
        ),
    )
    assert tiny.here("run", recipe, "--out", run) == (
        2,
        "",
        f"{run} holds a run already; go on with it by --resume {run}, or name another --out\n",
    )


def test_more_steps_may_be_asked_for_on_resume(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert tiny.here("run", recipe, "--out", run, "--set", "train.steps=8").code == 0
    assert tiny.here("run", "--resume", run, "--set", "train.steps=12").code == 0
    assert tiny.numbers(run) == tiny.numbers(whole)


def test_two_ranks_train_on_the_same_draws_as_one(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    done = tiny.mdmkit("run", write_recipe(tmp_path), "--out", run, ranks=2)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    for ours, theirs in zip(tiny.numbers(run), tiny.numbers(whole), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["truncated"] == theirs["truncated"]
        assert ours["loss.0"] == pytest.approx(theirs["loss.0"], rel=2e-4)
        assert ours["loss.1"] == pytest.approx(theirs["loss.1"], rel=2e-4)
    ours, theirs = tiny.tensors(run, 12), tiny.tensors(whole, 12)
    for name in ours:
        if name.startswith("model:"):
            # Adam divides by the root of tiny second moments, which amplifies rounding
            assert (ours[name] - theirs[name]).abs().max() < 2e-3, name


LEARNS = """
[diffusion]
weighting = { use = "learned", channels = 16 }
time_sampler = { use = "loss_aware", bins = 2, floor = 0.3 }
"""
SHOWN = tiny.RECIPE.replace("norm_groups = 4", "norm_groups = 4\nself_conditioning = true")


def test_what_is_learned_beside_the_model_goes_on_too(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, SHOWN + LEARNS)
    assert tiny.here("run", recipe, "--out", tmp_path / "one").code == 0
    stopped = tiny.here("run", recipe, "--out", tmp_path / "two", *tiny.STOP, STOP_AT="7", STOP_BY="SIGINT")
    assert stopped.code == 130
    early = tiny.tensors(tmp_path / "two", 8)
    assert tiny.here("run", "--resume", tmp_path / "two").code == 0
    same(tmp_path / "two", tmp_path / "one")
    end = tiny.tensors(tmp_path / "one", 12)
    assert float(end["parts:time_sampler.draws"].sum()) == 12 * 8
    assert float(early["parts:time_sampler.draws"].min()) >= 10, "losses decide before it is stopped"
    assert all(end[f"model:levels.{r}.conv_self.weight"].abs().max() > 0 for r in range(2))
    assert end["parts:weighting.levels.1.weight"].abs().max() > 0
    assert "optimizer:exp_avg/weighting.levels.0.bias" in end
    # no part of the model, nor averaged: the folder is that of a model without them
    assert not [name for name in end if name.startswith(("model:", "ema:")) and "weighting" in name]
    drawn = tiny.here("sample", tmp_path / "one", "--prompt", "a", "--out", tmp_path / "pictures")
    assert drawn.code == 0, drawn.err
    # the log has the loss before the weights: at the first step they are 1
    first = tiny.numbers(tmp_path / "one")[0]
    # and what is shown of itself counts nothing
    plain = tiny.write_recipe(tmp_path, tiny.RECIPE)
    few = ("--set", "train.steps=1", "--set", "sample.count=1")
    assert tiny.here("run", plain, "--out", tmp_path / "plain", *few).code == 0
    assert tiny.numbers(tmp_path / "plain")[0]["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_a_stage_of_growth_goes_on_with_what_was_learned(tmp_path: Path) -> None:
    one_stage = 'steps = 12\nbatch = 8\nlevels = { use = "mixed", shares = [0.5, 0.5] }\n'
    assert one_stage in SHOWN
    stages = "[{ levels = 1, steps = 6, batch = 8 }, { levels = 2, steps = 6, batch = 8 }]"
    growth = f'\n[growth]\nuse = "staged"\nstages = {stages}\n'
    recipe = tiny.write_recipe(tmp_path, SHOWN.replace(one_stage, "") + LEARNS + growth)
    few = ("--set", "train.sample_every=100", "--set", "sample.count=1")
    assert tiny.here("run", recipe, "--out", tmp_path / "one", *few).code == 0
    stop = {"STOP_AT": "8", "STOP_BY": "SIGINT"}
    assert tiny.here("run", recipe, "--out", tmp_path / "two", *few, *tiny.STOP, **stop).code == 130
    assert tiny.here("run", "--resume", tmp_path / "two").code == 0
    one, two = (tiny.tensors(tmp_path / name, 12) for name in ("one", "two"))
    first = tiny.tensors(tmp_path / "one", 6)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert float(one["parts:time_sampler.draws"].sum()) == 12 * 8, "both stages count"
    assert not [name for name in first if "weighting.levels.1" in name]
    for name in ("parts:weighting.levels.1.bias", "optimizer:exp_avg/weighting.levels.1.bias"):
        assert float(one[name].abs().sum()) > 0
    # the head of the level that was there went on from where it was
    steps = "optimizer:step/weighting.levels.{}.bias"
    assert (float(one[steps.format(0)]), float(one[steps.format(1)])) == (12, 6)


def test_ranks_agree_on_what_they_have_seen(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, SHOWN + LEARNS)
    sets = ("--set", "train.sample_every=12")
    assert tiny.here("run", recipe, "--out", tmp_path / "one", *sets).code == 0
    done = tiny.mdmkit("run", recipe, "--out", tmp_path / "two", *sets, ranks=2)
    assert done.code == 0, done.err
    for ours, theirs in zip(tiny.numbers(tmp_path / "two"), tiny.numbers(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    one, two = (tiny.tensors(tmp_path / name, 12) for name in ("one", "two"))
    for name in one:
        if name.startswith("parts:"):
            assert torch.allclose(one[name], two[name], rtol=1e-2, atol=2e-3), name


def test_the_state_says_where_it_is(whole: Path) -> None:
    facts = json.loads((whole / "checkpoints" / "step-0000012" / "state.json").read_text(encoding="utf-8"))
    assert (facts["step"], facts["pictures"]) == (12, 96)
