"""`mdmkit run` of a network that grows: one run, stopped anywhere, as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
import torch

from mdmkit.evaluate import report
from mdmkit.train import memory
from mdmkit.train.logs import read_log
from tests.train import tiny

STAGES = """
[growth]
use = "freeze_then_thaw"
stages = [
  { levels = 1, steps = 4, batch = 8 },
  { levels = 2, steps = 5, batch = 4, warmup = 2, freeze = 3, shares = [0.5, 0.5] },
  { levels = 2, steps = 3, batch = 4, lr = 5e-4 },
]
"""
GROWING = (
    tiny.RECIPE.replace("steps = 12\nbatch = 8\n", "")
    .replace('levels = { use = "mixed", shares = [0.5, 0.5] }\n', "")
    .replace("checkpoint_every = 5", "checkpoint_every = 3\nkeep = 1")
    .replace("log_every = 1", "log_every = 4")
    + STAGES
)
LAST = 12


def write(folder: Path, text: str = GROWING) -> Path:
    return tiny.write_recipe(folder, text)


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
    done = tiny.here("run", write(folder), "--out", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"


def same(run: Path, whole: Path, steps: tuple[int, ...] = (4, 9, LAST)) -> None:
    """Equal numbers in the log; parameters, averages, moments and what is remembered; and pictures."""
    assert tiny.numbers(run) == tiny.numbers(whole)
    assert tiny.events(run, "grown") == tiny.events(whole, "grown")
    for step in steps:
        ours, theirs = tiny.tensors(run, step), tiny.tensors(whole, step)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        told = []
        for at in (run, whole):
            path = at / "checkpoints" / f"step-{step:07d}" / "state.json"
            told.append(json.loads(path.read_text(encoding="utf-8")))
            del told[-1]["files"]  # run.toml says when it was begun, and how
        assert told[0] == told[1]
    for picture in (whole / "samples").glob("*.png"):
        assert (run / "samples" / picture.name).read_bytes() == picture.read_bytes(), picture.name
    assert names(run / "samples") == names(whole / "samples")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_stages_follow_each_other_in_one_run(whole: Path) -> None:
    grown = tiny.events(whole, "grown")
    assert [(event["step"], event["stage"], event["levels"]) for event in grown] == [(4, 1, 2), (9, 2, 2)]
    assert grown[0]["new_parameters"] > 0
    assert grown[1]["new_parameters"] == 0
    steps = [line["step"] for line in tiny.numbers(whole)]
    assert steps == [4, 8, 9, 12], "a stage's last step has a line of its own"
    assert ["loss.1" in line for line in tiny.numbers(whole)] == [False, True, True, True]
    assert [line["pictures"] for line in tiny.numbers(whole)] == [32, 48, 52, 64]
    assert tiny.numbers(whole)[-1]["lr"] == pytest.approx(5e-4)
    # the last one of each stage, though one is to be kept
    assert names(whole / "checkpoints") == ["step-0000004", "step-0000009", "step-0000012"]
    # a stage's pictures when it ends, those in the middle, and of a level only once it is there
    assert names(whole / "samples") == sorted(
        f"step-{step:07d}-level-{level}.png"
        for step, levels in ((4, 1), (8, 2), (9, 2), (12, 2))
        for level in range(levels)
    )


@pytest.mark.parametrize(("step", "levels"), [(4, 1), (9, 2)])
def test_the_last_checkpoint_of_a_stage_is_a_model_of_its_own(
    whole: Path, tmp_path: Path, step: int, levels: int
) -> None:
    model, out = whole / "checkpoints" / f"step-{step:07d}", tmp_path / "out"
    done = tiny.here("sample", model, "--prompt", "a red star", "--out", out, "--steps", "2")
    assert done.code == 0, done.err
    assert len([line for line in done.out.splitlines() if "grid-level" in line]) == levels
    own = tomli.loads((model / "recipe.resolved.toml").read_text())
    assert len(own["model"]["levels"]) == levels
    # and trains by itself: it has no growth any more
    done = tiny.here("check", "--build", model / "recipe.resolved.toml")
    assert done.code == 0, done.err


def test_killed_at_every_turn_and_resumed_equals_never_killed(tmp_path: Path, whole: Path) -> None:
    run, recipe = tmp_path / "run", write(tmp_path)
    resumed = ("run", "--resume", run)
    for start, told, newest in (
        # between the last checkpoint of a stage and growth
        (("run", recipe, "--out", run, *tiny.STOP), {"STOP_SAVED": "4"}, 4),
        # grown, and nothing of it is saved
        (resumed, {"STOP_AT": "5"}, 4),
        # while the last checkpoint of a stage is written; the one before was saved while the core was frozen
        (resumed, {"STOP_IN": "9"}, 6),
    ):
        killed = tiny.mdmkit(*start, ranks=1, **told)
        assert killed.code == -9, (told, killed.err)
        assert names(run / "checkpoints")[-1] == f"step-{newest:07d}"
    done = tiny.here("run", "--resume", run)
    assert done.code == 0, done.err
    same(run, whole)
    assert [event["checkpoint"] for event in tiny.events(run, "resumed")] == [
        "step-0000004", "step-0000004", "step-0000006"
    ]  # fmt: skip


@pytest.mark.parametrize(("at", "saved"), [(3, 4), (5, 6)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, whole: Path, at: int, saved: int) -> None:
    """At the last step of a stage, and inside the freeze of the next."""
    run, recipe = tmp_path / "run", write(tmp_path)
    stopped = tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT=str(at), STOP_BY="SIGTERM")
    assert stopped.code == 130, stopped.err
    last = stopped.err.splitlines()[-1]
    assert last == f"interrupted at step {saved}, and saved; go on with --resume {run}"
    assert tiny.here("run", "--resume", run).code == 0
    same(run, whole)


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first stage is only three steps long."""
    folder = tmp_path_factory.mktemp("early")
    few = ("--set", "growth.stages[0].steps=3")
    done = tiny.here("run", write(folder), "--out", folder / "run", *few)
    assert done.code == 0, done.err
    return folder / "run"


def test_asked_by_resume_a_stage_ends_at_its_next_step(tmp_path: Path, early: Path) -> None:
    run, recipe = tmp_path / "run", write(tmp_path)
    assert tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT="1", STOP_BY="SIGTERM").code == 130
    done = tiny.here("run", "--resume", run, "--grow-now")
    assert done.code == 0, done.err
    same(run, early, (3, 8, 11))
    assert tiny.events(run, "stage_ends") == [{"step": 3, "stage": 0, "cause": "asked"}]
    assert not (run / "grow-now").exists()


def test_asked_while_it_runs_a_stage_ends_too(tmp_path: Path, early: Path) -> None:
    run, recipe = tmp_path / "run", write(tmp_path)
    done = tiny.here("run", recipe, "--out", run, *tiny.STOP, GROW_AT="2", GROW_RUN=str(run))
    assert done.code == 0, done.err
    same(run, early, (3, 8, 11))


def test_a_decision_to_grow_outlives_the_process(tmp_path: Path, early: Path) -> None:
    run, recipe = tmp_path / "run", write(tmp_path)
    assert tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT="1", STOP_BY="SIGTERM").code == 130
    # decided at step 3, and killed before that is saved
    killed = tiny.mdmkit("run", "--resume", run, "--grow-now", STOP_IN="3")
    assert killed.code == -9, killed.err
    assert (run / "grow-now").read_text() == "3"
    assert names(run / "checkpoints") == ["step-0000002"]
    done = tiny.here("run", "--resume", run)
    assert done.code == 0, done.err
    same(run, early, (3, 8, 11))


def test_a_plateau_ends_a_stage_also_across_a_resume(tmp_path: Path, early: Path) -> None:
    """No loss falls to a hundredth of the one before."""
    text = GROWING.replace(
        "steps = 4, batch = 8", "steps = 4, batch = 8, plateau = { window = 1, patience = 2, drop = 0.99 }"
    )
    run, recipe = tmp_path / "run", write(tmp_path, text)
    assert tiny.here("run", recipe, "--out", run, *tiny.STOP, STOP_AT="1", STOP_BY="SIGTERM").code == 130
    done = tiny.here("run", "--resume", run)
    assert done.code == 0, done.err
    assert tiny.events(run, "stage_ends") == [{"step": 3, "stage": 0, "cause": "plateau"}]
    assert tiny.numbers(run) == tiny.numbers(early)
    ours, theirs = tiny.tensors(run, 11), tiny.tensors(early, 11)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_in_its_last_stage_does_not_grow(whole: Path) -> None:
    before = names(whole)
    refused = tiny.here("run", "--resume", whole, "--grow-now")
    assert refused == (
        2,
        "",
        f"{whole} is in the last of its 3 stages, and does not grow any more; leave out --grow-now\n",
    )
    assert names(whole) == before


def test_a_fork_is_the_run_that_had_grown_that_way_from_the_start(tmp_path: Path, whole: Path) -> None:
    other = (
        "--set", "growth.stages[1].steps=3", "--set", "model.levels[1].channels=[8, 16]",
        "--set", "growth.stages[2].lr=2e-3",
    )  # fmt: skip
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    fork, direct = tmp_path / "fork", tmp_path / "direct"
    done = tiny.here("run", "--resume", whole, "--from-stage", "0", "--out", fork, *other)
    assert done.code == 0, done.err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    done = tiny.here("run", write(tmp_path), "--out", direct, *other)
    assert done.code == 0, done.err
    same(fork, direct, (4, 7, 10))
    # and it can be gone on with like any other
    done = tiny.here("run", "--resume", fork, "--set", "growth.stages[2].steps=4")
    assert done.code == 0, done.err
    assert [line["step"] for line in tiny.numbers(fork)][-1] == 11


def test_forks_that_cannot_be_are_refused_and_leave_nothing(tmp_path: Path, whole: Path) -> None:
    fork, taken = tmp_path / "fork", tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").touch()
    young = tmp_path / "young"
    stop = (*tiny.STOP, "--out", young)
    assert tiny.here("run", write(tmp_path), *stop, STOP_AT="1", STOP_BY="SIGTERM").code == 130
    start = ("run", "--resume", whole, "--from-stage")
    to = ("--out", fork)
    for arguments, line in (
        ((*start, "0"), "run: --from-stage makes a run of its own; name its folder by --out"),
        (
            ("run", "--resume", whole, *to),
            "run: --out and --resume exclude each other; a resumed run goes on in its own folder, or with "
            "--from-stage in another",
        ),
        (
            ("run", tmp_path / "tiny.toml", "--from-stage", "0"),
            "run: --grow-now and --from-stage are for a run that is there; name it by --resume",
        ),
        (
            (*start, "2", *to),
            "--from-stage 2: expected a stage that another follows, of the 3 there are, counted from 0",
        ),
        (
            ("run", "--resume", young, "--from-stage", "0", *to),
            f"--from-stage 0: that stage of {young} has not ended (none has); let it train on",
        ),
        (
            (*start, "0", "--out", taken),
            f"{taken} exists and is not an empty folder; name another --out",
        ),
        (
            (*start, "0", *to, "--set", "model.levels[0].channels=[16, 16]"),
            f"--from-stage 0: --set changes [model] of that stage, which {whole} has trained; "
            "start a new run instead",
        ),
        (
            (*start, "1", *to, "--set", "model.levels[1].channels=[8, 16]"),
            f"--from-stage 1: --set changes [model] of that stage, which {whole} has trained; "
            "start a new run instead",
        ),
        (
            (*start, "0", *to, "--set", "data.objects=[1, 2]"),
            f"--set changes [data], which the checkpoints in {whole} were made with; start a new run with "
            "another --out instead",
        ),
    ):
        refused = tiny.here(*arguments)
        assert refused == (2, "", f"{line}\n")
        assert not fork.exists()
    assert names(tmp_path) == ["taken", "tiny.toml", "young"]
    assert names(taken) == ["mine.txt"]


def test_two_ranks_grow_alike(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    done = tiny.mdmkit(
        "run", write(tmp_path), "--out", run, "--plugin", "tests.train.digests",
        ranks=2, DIGESTS=str(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    first, second = ((tmp_path / f"rank-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert len(first) == len(set(first)) == LAST
    assert first == second
    assert tiny.events(run, "grown") == tiny.events(whole, "grown")
    for ours, theirs in zip(tiny.numbers(run), tiny.numbers(whole), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert names(run / "checkpoints") == names(whole / "checkpoints")


def test_nothing_is_logged_twice(whole: Path) -> None:
    lines = [line for line in read_log(whole / "log.jsonl") if "event" not in line]
    assert len({line["step"] for line in lines}) == len(lines)
