"""What a run writes down: lines that a resume can cut back, events for TensorBoard, how far it is."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdmkit.errors import MdmkitError
from mdmkit.train.logs import LOG_NAME, JSONLines, Progress, TensorBoard, clock, cut_back, read_log


def write_run(folder: Path, steps: list[int]) -> Path:
    log = JSONLines(folder)
    for step in steps:
        log.log(step, {"loss": 1 / 3 / step, "loss.0": 0.1 * step})
        log.event(step, "skipped_sample", key=f"shard-{step}/ä")
    log.close()
    return folder / LOG_NAME


def test_lines_come_back_as_they_were_told_to_the_last_bit(tmp_path: Path) -> None:
    log = JSONLines(tmp_path)
    log.log(10, {"loss": 0.1 + 0.2, "loss.0": torch.tensor(0.1, dtype=torch.float64), "skipped": 3})  # pyright: ignore
    log.log(20, {"loss": math.nan, "loss.0": -math.inf})
    log.event(20, "bad_step", loss=math.inf, keys=["a", "b"])
    entries = read_log(log.path)  # before close: each line is handed over as it is written
    log.close()
    assert entries[0] == {"step": 10, "loss": 0.1 + 0.2, "loss.0": 0.1, "skipped": 3}
    assert math.isnan(float(entries[1]["loss"]))
    assert float(entries[1]["loss.0"]) == -math.inf
    assert entries[2].pop("time").endswith("+00:00")
    assert entries[2] == {"step": 20, "event": "bad_step", "loss": "inf", "keys": ["a", "b"]}
    for line in log.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_lines_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from mdmkit.train.logs import JSONLines\n"
        "log = JSONLines(sys.argv[1]); log.log(1, {'loss': 0.5}); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert read_log(tmp_path / LOG_NAME) == [{"step": 1, "loss": 0.5}]


@given(
    gaps=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    step=st.integers(0, 60),
    torn=st.integers(0, 10_000),
)
def test_cut_back_at_any_byte_gives_the_lines_up_to_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], step: int, torn: int
) -> None:
    path = write_run(tmp_path_factory.mktemp("run"), [sum(gaps[: i + 1]) for i in range(len(gaps))])
    whole = path.read_bytes()
    kept_bytes = whole[: torn % (len(whole) + 1)]
    path.write_bytes(kept_bytes)
    before = read_log(path)
    dropped = cut_back(path, step)
    assert read_log(path) == [entry for entry in before if entry["step"] <= step]
    assert path.read_bytes() == b"".join(
        line + b"\n" for line in whole.splitlines()[: len(before)] if json.loads(line)["step"] <= step
    )
    assert dropped == len(kept_bytes.splitlines()) - len(read_log(path))
    assert cut_back(path, step) == 0
    assert [p.name for p in path.parent.iterdir()] == [LOG_NAME]


def test_a_resumed_log_equals_the_one_that_was_never_killed(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = JSONLines(tmp_path / "whole"), JSONLines(tmp_path / "killed")
    for step in range(1, 31):
        whole.log(step, {"loss": 1 / step})
    for step in range(1, 26):
        killed.log(step, {"loss": 1 / step})
    killed.close()
    with killed.path.open("ab") as file:
        file.write(b'{"step": 26, "lo')
    assert cut_back(killed.path, 20) == 6
    killed = JSONLines(tmp_path / "killed")
    for step in range(21, 31):
        killed.log(step, {"loss": 1 / step})
    whole.close()
    killed.close()
    assert killed.path.read_bytes() == whole.path.read_bytes()


def test_being_killed_while_cutting_back_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, [1, 2, 3])
    whole = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cut_back(path, 1)
    assert path.read_bytes() == whole


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert cut_back(tmp_path / LOG_NAME, 5) == 0
    assert read_log(tmp_path / LOG_NAME) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    for read in (read_log, lambda path: cut_back(path, 1)):
        with pytest.raises(MdmkitError, match=r"log\.jsonl:2: expected a JSON object, got .*remove the line"):
            read(path)


def test_tensorboard_holds_scalars_and_pictures_and_voids_what_a_resume_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    for step in (10, 20, 30):
        board.log(step, {"loss.0": step / 10, "lr": 0.1})
    board.images(30, "samples/0", Image.new("RGB", (7, 5), "red"))
    board.close()
    board = TensorBoard(tmp_path)
    board.log(20, {"loss.0": 7.0})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/0")] == [(10, 1.0), (20, 7.0)]
    assert events.Tags()["scalars"] == ["loss/0", "lr"]
    (image,) = TensorBoard_images(tmp_path)
    assert (image.width, image.height) == (7, 5)


def TensorBoard_images(folder: Path) -> list:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    values = [
        value
        for path in sorted((folder / "tensorboard").iterdir())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "samples/0"
    ]
    return [Image.open(io.BytesIO(value.tensor.string_val[2])) for value in values]


def test_a_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MdmkitError, match=r"pip install 'mdmkit\[report\]'"):
        TensorBoard(tmp_path)


def test_progress_elsewhere_than_on_a_terminal_is_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    progress = Progress(100, start_step=20, interval=10.0, file=file)
    for step in range(21, 101):
        now[0] += 1.0
        progress.log(step, {"loss": 0.25, "pictures_per_second": 64.0})
        progress.advance(step)
    progress.note("wrote report.html")
    progress.close()
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 30/100  loss 0.2500  64 pictures/s  1:10 left"
    assert lines[-2:] == ["step 100/100  loss 0.2500  64 pictures/s", "wrote report.html"]
    assert len(lines) == 9
    assert "\x1b" not in file.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("colour", [True, False])
def test_progress_on_a_terminal_is_a_bar(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    progress = Progress(50, start_step=10, file=file)
    progress.log(20, {"loss": 0.125, "pictures_per_second": 1234.5})
    progress.note("[resumed] from step 10")
    progress.log(50, {"loss": 0.0625})
    progress.close()
    shown = file.getvalue()
    assert "50/50" in shown
    assert "loss 0.0625" in shown
    assert "1234 pictures/s" in shown
    assert "[resumed] from step 10" in shown
    assert ("\x1b[38;" in shown or "\x1b[32m" in shown) == colour


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (42.4, "0:42"),
        (133, "2:13"),
        (3733, "1:02:13"),
        (273906, "3d 4:05:06"),
        (86400, "1d 0:00:00"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
