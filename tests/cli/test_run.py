"""`mdmkit run`: how it ends, what it says, and that nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdmkit.cli import run_pictures
from mdmkit.train import memory, state
from mdmkit.train.folder import Lock
from mdmkit.train.logs import JSONLines
from tests.train import tiny

FEW = ("--set", "train.steps=3", "--set", "sample.count=1")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny.write_recipe(tmp_path)


def test_a_run_folder_holds_what_a_person_looks_for(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    done = tiny.here("run", recipe, "--out", run, *FEW, "--set", 'train.loggers=["tensorboard"]')
    assert (done.code, done.out) == (0, f"{run}/report.html\n")
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "recipe.toml",
        "recipe.resolved.toml",
        "run.toml",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "samples",
        "report.html",
    }
    assert (run / "recipe.toml").read_text() == tiny.RECIPE
    assert sorted(path.name for path in (run / "checkpoints" / "step-0000003").iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "recipe.resolved.toml",
        "run.toml",
        "state.json",
    ]
    # the resolved recipe runs by itself, to the same numbers
    again = tiny.here("run", run / "recipe.resolved.toml", "--out", tmp_path / "again")
    assert again.code == 0
    assert tiny.numbers(tmp_path / "again") == tiny.numbers(run)


def write_pictures(folder: Path, *, good: int, bad: int) -> None:
    folder.mkdir()
    for i in range(good):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(bad):
        (folder / f"bad-{i}.png").write_bytes(b"\x89PNG torn")


def on_folder(tmp_path: Path, *, max_bad: int = 100) -> Path:
    data = f'[data]\nuse = "folder"\npath = "{tmp_path}/pictures"\ncaptions = "none"\nmax_bad = {max_bad}\n'
    return tiny.write_recipe(
        tmp_path, tiny.RECIPE.replace('[data]\nuse = "shapes"\nobjects = [1, 1]\n', data)
    )


def test_unreadable_pictures_are_counted_in_log_and_report(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", good=8, bad=2)
    run = tmp_path / "run"
    done = tiny.here("run", on_folder(tmp_path), "--out", run, *FEW)
    assert done.code == 0, done.err
    skipped = tiny.events(run, "skipped_sample")
    assert {event["key"] for event in skipped} == {"bad-0.png", "bad-1.png"}
    assert tiny.numbers(run)[-1]["skipped"] == len(skipped) > 2
    assert done.err.count(" is skipped: ") == 1, "once on the terminal"
    assert "skipped samples" in (run / "report.html").read_text()


def test_too_many_unreadable_pictures_in_a_row_stop_the_run(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", good=1, bad=12)
    run = tmp_path / "run"
    done = tiny.here("run", on_folder(tmp_path, max_bad=3), "--out", run, *FEW)
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith("3 samples in a row could not be read, the last bad-")
    assert line.endswith("; mend or remove them, or raise max_bad")
    assert tiny.events(run, "failed") == [{"step": len(tiny.numbers(run)), "cause": line}]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ((), 2, "run: expected a recipe, or --resume with a run folder (one of the two)"),
        (("{recipe}", "--resume", "{tmp}"), 2,
         "run: expected a recipe, or --resume with a run folder (one of the two)"),
        (("--resume", "{tmp}", "--out", "{tmp}"), 2,
         "run: --out and --resume exclude each other; a resumed run goes on in its own folder, "
         "or with --from-stage in another"),
        (("--resume", "{tmp}"), 2,
         "{tmp} holds no run (recipe.resolved.toml is missing); "
         "start one with: mdmkit run RECIPE --out {tmp}"),
        (("{recipe}", "--out", "{tmp}"), 2, "{tmp} exists and is not an empty folder; name another --out"),
        (("{recipe}", "--out", "{recipe}/run"), 2,
         "the run folder {recipe}/run cannot be written: [Errno 20] Not a directory: '{recipe}/run'"),
        (("{recipe}", "--out", "{tmp}/run", "--set", "train.accumulate=4", "--set", "train.batch=4"), 2,
         "{recipe}: train.batch: 4 rows in 4 micro-batches cannot give each of the 2 levels of "
         "train.levels a row; use >= 8  [from --set train.batch=4]"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, recipe: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    def filled(text: str) -> str:
        return text.replace("{tmp}", str(tmp_path)).replace("{recipe}", str(recipe))

    done = tiny.here("run", *map(filled, arguments))
    assert done == (code, "", filled(line) + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_device_that_is_not_there(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = tiny.here("run", recipe, "--out", tmp_path / "run", "--set", 'run.device="cuda"')
    assert done.code == 2
    assert (
        done.err == "run.device: 'cuda' is asked for, but torch sees no CUDA device; say run.device=\"cpu\"\n"
    )
    assert not (tmp_path / "run").exists()


def test_too_little_memory(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    done = tiny.here("run", recipe, "--out", tmp_path / "run")
    assert done.code == 2
    assert done.err.startswith(
        "too little memory: training takes at least 0.0 GiB (model 0.0 GiB, activations of 8 "
    )
    assert not (tmp_path / "run").exists()


def test_missing_shards(tmp_path: Path) -> None:
    data = f'[data]\nuse = "webdataset"\nurls = "{tmp_path}/train-{{000000..000003}}.tar"\n'
    recipe = tiny.write_recipe(
        tmp_path, tiny.RECIPE.replace('[data]\nuse = "shapes"\nobjects = [1, 1]\n', data)
    )
    done = tiny.here("run", recipe, "--out", tmp_path / "run")
    assert done.code == 2
    assert str(tmp_path / "train-000000.tar") in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_extra(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = tiny.here("run", recipe, "--out", tmp_path / "run", "--set", 'train.loggers=["tensorboard"]')
    assert (done.code, done.err) == (
        1,
        (
            "logger tensorboard: the package tensorboard is not installed; "
            "pip install 'mdmkit[report]', or leave it out with train.loggers = []\n"
        ),
    )
    assert tiny.here("run", "--resume", tmp_path / "run", "--set", "train.loggers=[]", *FEW).code == 0


def test_a_folder_in_use_is_left_alone(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    assert tiny.here("run", recipe, "--out", run, *FEW).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lock = Lock(run)
    refused = tiny.here("run", "--resume", run, "--set", "train.steps=9")
    lock.release()
    assert refused == (
        2,
        "",
        f"{run} is in use by another process (pid {os.getpid()}); wait for it, or stop it first\n",
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert tiny.here("run", "--resume", run, "--set", "train.steps=4").code == 0


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["checkpoint", "log", "picture"])
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = tmp_path / "run"
    assert tiny.here("run", recipe, "--out", run, *FEW).code == 0
    kept = run / "checkpoints" / "step-0000003"
    with monkeypatch.context() as patch:
        match where:
            case "checkpoint":
                patch.setattr(state, "save_file", full)
            case "log":
                patch.setattr(JSONLines, "log", full)
            case _:
                patch.setattr(Image.Image, "save", full)
        done = tiny.here("run", "--resume", run, "--set", "train.steps=5")
    assert done.code == 1
    line = done.err.splitlines()[-1]
    if where == "checkpoint":
        folder = run / "checkpoints"
        assert line == (
            f"checkpoint at step 5 could not be written to {folder}: [Errno 28] No space left on device; "
            f"the checkpoint before it is whole: {kept}"
        )
        assert tiny.events(run, "failed") == [{"step": 5, "cause": line}]
    else:
        assert line == (
            f"{run} cannot be written: No space left on device; make room and go on with --resume {run}"
        )
    assert kept.is_dir()
    assert tiny.here("run", "--resume", run).code == 0
    assert [line["step"] for line in tiny.numbers(run)] == [1, 2, 3, 4, 5]


def test_a_signal_while_pictures_are_drawn_ends_it_and_resume_finishes(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_pictures, "drawn", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert tiny.here("run", recipe, "--out", run, *FEW).code == 130
    assert tiny.events(run, "interrupted") == [{"step": 3, "saved": False}]
    assert (run / "checkpoints" / "step-0000003").is_dir()
    assert not (run / "report.html").exists()
    assert tiny.here("run", "--resume", run) == (0, f"{run}/report.html\n", "")


def test_a_bug_keeps_its_traceback_and_the_log_says_where(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        tiny.here("run", recipe, "--out", run, *FEW, "--plugin", "tests.cli.breaks_at_step_2")
    assert tiny.events(run, "failed") == [{"step": 2, "cause": "ZeroDivisionError: division by zero"}]
    lock = Lock(run)  # it was let go of
    lock.release()


def test_padding_that_depends_on_the_batch_is_said(tmp_path: Path, recipe: Path) -> None:
    looks = ("--set", "model.levels[0].masked_cross_attention=false")
    said = {}
    for pad in ("exact", "max", "batch"):
        done = tiny.here("run", recipe, "--out", tmp_path / pad, *FEW, *looks, "--set", f'text.pad="{pad}"')
        said[pad] = (done.code, done.err)
    line = (
        'text.pad = "exact" pads to the longest caption of a micro-batch, and the network looks at padding: '
        'numbers depend on ranks and train.accumulate; with text.pad = "max" they do not'
    )
    assert (said["exact"][0], said["exact"][1].splitlines()[0]) == (0, line)
    assert said["max"][0] == 0
    assert "pads to the longest" not in said["max"][1]
    assert said["batch"][0] == 2
    assert "text.pad: 'batch' makes a caption's padding depend on the captions beside it" in said["batch"][1]


def test_blocks_are_compiled_where_the_recipe_says(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(type(self).__name__)
    )
    assert tiny.here("run", recipe, "--out", tmp_path / "run", *FEW, "--set", "run.compile=true").code == 0
    assert compiled.count("ResBlock") > 8
