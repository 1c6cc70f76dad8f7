"""Killed anywhere and resumed, a run goes on as if nothing had happened: bit for bit on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from . import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    done = tiny.mdmkit("run", tiny.write_recipe(folder), "--out", folder / "run", "--plugin", "stop_at")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def same(run: Path, whole: Path) -> None:
    """Assert equal losses, parameters, averages, moments and pictures."""
    assert tiny.numbers(run) == tiny.numbers(whole)
    ours, theirs = tiny.tensors(run, 12), tiny.tensors(whole, 12)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    pictures = sorted(path.name for path in (whole / "samples").glob("*.png"))
    assert pictures
    assert [name for name in pictures if (run / "samples" / name).read_bytes() != (whole / "samples" / name).read_bytes()] == []


@pytest.mark.parametrize(("step", "workers"), [(7, 0), (5, 0), (8, 2)])
def test_killed_and_resumed_equals_never_killed(tmp_path: Path, whole: Path, step: int, workers: int) -> None:
    run = tmp_path / "run"
    recipe = tiny.write_recipe(tmp_path)
    sets = ("--set", f"data.workers={workers}")
    killed = tiny.mdmkit("run", recipe, "--out", run, "--plugin", "stop_at", *sets, STOP_AT=str(step))
    assert killed.returncode == -9
    assert len(tiny.numbers(run)) >= step - 1
    resumed = tiny.mdmkit("run", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    same(run, whole)


def test_killed_before_the_first_checkpoint_starts_again(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    tiny.mdmkit("run", tiny.write_recipe(tmp_path), "--out", run, "--plugin", "stop_at", STOP_AT="2")
    assert tiny.mdmkit("run", "--resume", run).returncode == 0
    same(run, whole)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_exits_130(tmp_path: Path, whole: Path, signal: str) -> None:
    run = tmp_path / "run"
    recipe = tiny.write_recipe(tmp_path)
    stopped = tiny.mdmkit("run", recipe, "--out", run, "--plugin", "stop_at", STOP_AT="7", STOP_BY=signal)
    assert stopped.returncode == 130
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert saved[-1] in ("step-0000007", "step-0000008"), "saved at the step where it was stopped"
    assert stopped.stderr.strip().splitlines()[-1].endswith(f"go on with --resume {run}")
    assert tiny.mdmkit("run", "--resume", run).returncode == 0
    same(run, whole)


def test_a_damaged_newest_checkpoint_costs_only_itself(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    tiny.mdmkit("run", tiny.write_recipe(tmp_path), "--out", run, "--plugin", "stop_at", STOP_AT="11")
    model = run / "checkpoints" / "step-0000010" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    resumed = tiny.mdmkit("run", "--resume", run)
    assert resumed.returncode == 0
    assert "step-0000010" in resumed.stderr
    same(run, whole)


def test_another_model_is_refused_on_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.mdmkit("run", tiny.write_recipe(tmp_path), "--out", run, "--plugin", "stop_at", STOP_AT="6")
    refused = tiny.mdmkit("run", "--resume", run, "--set", "model.levels[0].channels=[8, 8]")
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        f"--set changes [model], which the checkpoints in {run} were made with; start a new run with another --out instead"
    )


def test_more_steps_may_be_asked_for_on_resume(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny.write_recipe(tmp_path)
    assert tiny.mdmkit("run", recipe, "--out", run, "--set", "train.steps=6", "--plugin", "stop_at").returncode == 0
    assert tiny.mdmkit("run", "--resume", run, "--set", "train.steps=12").returncode == 0
    assert tiny.numbers(run) == tiny.numbers(whole)


def test_two_ranks_train_on_the_same_draws_as_one(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    done = tiny.mdmkit("run", tiny.write_recipe(tmp_path), "--out", run, ranks=2)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(tiny.numbers(run), tiny.numbers(whole), strict=True):
        assert ours["loss.0"] == pytest.approx(theirs["loss.0"], rel=2e-4)
        assert ours["loss.1"] == pytest.approx(theirs["loss.1"], rel=2e-4)
    ours, theirs = tiny.tensors(run, 12), tiny.tensors(whole, 12)
    for name in ours:
        if name.startswith("model:"):
            # Adam divides by the root of tiny second moments, which amplifies rounding
            assert (ours[name] - theirs[name]).abs().max() < 2e-3, name


def test_a_run_folder_in_use_or_taken_is_refused(tmp_path: Path, whole: Path) -> None:
    refused = tiny.mdmkit("run", tiny.write_recipe(tmp_path), "--out", whole)
    assert (refused.returncode, refused.stderr.strip()) == (
        2, f"{whole} holds a run already; go on with it by --resume {whole}, or name another --out"
    )
    facts = json.loads((whole / "checkpoints" / "step-0000012" / "state.json").read_text(encoding="utf-8"))
    assert facts["step"] == 12
