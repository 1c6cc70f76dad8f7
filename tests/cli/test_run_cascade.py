"""`mdmkit run` of separate models in sequence: each a model of its own, together one that draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
import torch

from mdmkit.evaluate import report
from mdmkit.train import memory
from tests.cli.test_run_grow import names, same
from tests.train import tiny

STAGES = """
[growth]
use = "cascade"
stages = [
  { levels = 1, steps = 4, batch = 8 },
  { levels = 2, steps = 5, batch = 4, warmup = 2, shares = [0.0, 1.0] },
]

[evaluate]
metrics = ["prompt_accuracy"]
count = 3
"""
CASCADE = (
    tiny.RECIPE.replace("steps = 12\nbatch = 8\n", "")
    .replace('levels = { use = "mixed", shares = [0.5, 0.5] }\n', "")
    .replace("checkpoint_every = 5", "checkpoint_every = 3\nkeep = 1")
    + STAGES
)
PROMPT = ("--prompt", "a red star", "--steps", "2")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What costs most of such a run, and is tested elsewhere: the check of memory, and the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "training_memory", lambda *_, **__: (0, 0))
        patch.setattr(report, "write_report", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped; nobody writes to it."""
    folder = tmp_path_factory.mktemp("whole")
    done = tiny.here("run", tiny.write_recipe(folder, CASCADE), "--out", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"


def end(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:07d}"


def test_each_stage_is_a_model_of_its_own(whole: Path) -> None:
    assert [event["levels"] for event in tiny.events(whole, "grown")] == [2]
    lines = tiny.numbers(whole)
    assert ["loss.0" in line for line in lines] == [True] * 4 + [False] * 5
    assert ["loss.1" in line for line in lines] == [False] * 4 + [True] * 5
    assert all(line["loss"] == line["loss.1"] for line in lines[4:]), "what is given has no loss"
    assert names(whole / "checkpoints") == ["step-0000004", "step-0000009"]
    said = [tomli.loads((end(whole, step) / "recipe.resolved.toml").read_text()) for step in (4, 9)]
    assert [recipe["diffusion"]["given"] for recipe in said] == [0, 1]
    # all of the second is new: warmed up, averaged from its own start, with moments of its own alone
    assert [line["lr"] for line in lines[4:7]] == [5e-4, 1e-3, 1e-3]
    counts = json.loads((end(whole, 9) / "state.json").read_text())["ema"]
    assert set(counts.values()) == {5}
    assert any(name.startswith("text.") for name in counts), "the encoder learns, and is another one too"
    steps = {float(x) for name, x in tiny.tensors(whole, 9).items() if "step/" in name}
    assert steps == {5.0}
    assert names(whole / "samples") == sorted(
        f"step-{step:07d}-level-{level}.png"
        for step, levels in ((4, 1), (8, 2), (9, 2))
        for level in range(levels)
    )


def test_killed_at_growth_and_within_the_next_stage_equals_never_killed(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", tiny.write_recipe(tmp_path, CASCADE)
    resumed = ("run", "--resume", run)
    for start, told in (
        (("run", recipe, "--out", run, *tiny.STOP), {"STOP_SAVED": "4"}),
        (resumed, {"STOP_AT": "5"}),
        (resumed, {"STOP_IN": "9"}),
    ):
        killed = tiny.mdmkit(*start, ranks=1, **told)
        assert killed.code == -9, (told, killed.err)
    done = tiny.here("run", "--resume", run)
    assert done.code == 0, done.err
    same(run, whole, (4, 9))
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_the_second_stage_owes_the_first_nothing_but_pictures(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    other = ("--set", "growth.stages[0].lr=9e-3")
    assert tiny.here("run", tiny.write_recipe(tmp_path, CASCADE), "--out", run, *other).code == 0
    ours, theirs = ([tiny.tensors(one, step) for step in (4, 9)] for one in (run, whole))
    assert any(not torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in theirs[1])


def test_the_run_draws_in_sequence_and_a_low_picture_takes_the_first_ones_place(
    tmp_path: Path, whole: Path
) -> None:
    def drawn(name: str, model: Path, *more: str | Path) -> Path:
        done = tiny.here("sample", model, *PROMPT, "--out", tmp_path / name, *more)
        assert done.code == 0, done.err
        return tmp_path / name

    run, low = drawn("run", whole), drawn("low", end(whole, 4))
    grid = "grid-level-0-8x8.png"
    assert (run / grid).read_bytes() == (low / grid).read_bytes()
    inner = drawn("inner", whole, "--levels", "1")
    assert names(inner) == names(low)
    assert (inner / "picture-00000.png").read_bytes() == (low / "picture-00000.png").read_bytes()
    # the last checkpoint alone: nothing draws for it
    model = tmp_path / "model"
    assert tiny.here("export", whole, "--format", "safetensors", "--out", model).code == 0
    drawn("from-low", model, "--low", low / "picture-00000.png")
    refused = tiny.here("sample", model, *PROMPT, "--out", tmp_path / "none")
    assert refused.code == 2
    assert refused.err == (
        "this model is given level 0 (diffusion.given), and no model that draws this is there: it stands "
        "alone; draw for a picture of that size: mdmkit sample --low PICTURE\n"
    )
    lost = tmp_path / "lost"
    shutil.copytree(whole, lost)
    shutil.rmtree(end(lost, 4))
    for verb in (("sample", lost, *PROMPT, "--out", tmp_path / "none"), ("evaluate", lost)):
        refused = tiny.here(*verb)
        assert (refused.code, refused.out) == (2, "")
        assert f"{lost.absolute()}/checkpoints has no checkpoint that ends stage 0;" in refused.err


def test_what_is_measured_is_drawn_in_sequence(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    assert tiny.here("evaluate", whole, "--out", out).code == 0
    assert json.loads(out.read_text()) == json.loads((whole / "metrics.json").read_text())
    refused = tiny.here("evaluate", whole, "--metric", "likelihood")
    assert refused.code == 2
    assert "'likelihood' is for models that draw all their levels" in refused.err


def test_what_cannot_hold_a_given_level_is_one_line(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    joint = tiny.write_recipe(tmp_path, tiny.RECIPE)
    for arguments, line in (
        (("export", whole, "--format", "diffusers", "--out", out), "a pipeline draws all its levels, and"),
        (
            ("export", whole, "--format", "safetensors", "--levels", "1", "--out", out),
            "export --levels: expected 2 to 2, got 1",
        ),
        (
            ("run", joint, "--out", out, "--set", f"run.start='{whole}'"),
            "does not fit: diffusion.given: it has 1, the recipe asks for 0",
        ),
    ):
        refused = tiny.here(*arguments)
        assert (refused.code, refused.out) == (2, ""), arguments
        assert line in refused.err, arguments
        assert not out.exists()
    # the model of the first stage is given nothing
    assert tiny.here("run", joint, "--out", out, "--set", f"run.start='{end(whole, 4)}'").code == 0


def test_a_fork_has_the_models_that_draw_for_it(whole: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    done = tiny.here(
        "run", "--resume", whole, "--from-stage", "0", "--out", fork, "--set", "growth.stages[1].steps=2"
    )
    assert done.code == 0, done.err
    assert names(fork / "checkpoints") == ["step-0000004", "step-0000006"]
    assert tiny.here("sample", fork, *PROMPT, "--out", tmp_path / "out").code == 0


def test_a_model_that_is_given_levels_can_be_trained_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    alone = tiny.RECIPE.replace("shares = [0.5, 0.5]", "shares = [0.0, 1.0]")
    recipe = tiny.write_recipe(tmp_path, alone + STAGES[STAGES.index("\n[evaluate]") :])
    done = tiny.here("run", recipe, "--out", run, "--set", "diffusion.given=1", "--set", "train.steps=4")
    assert done.code == 0, done.err
    assert "no pictures are drawn: levels are given (diffusion.given), by no model here" in done.err
    assert not (run / "metrics.json").exists()
    assert [event["step"] for event in tiny.events(run, "not_sampled")] == [4]
