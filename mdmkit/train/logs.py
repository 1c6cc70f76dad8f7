"""What a run writes down while it trains: log.jsonl, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np

from mdmkit.errors import MdmkitError

from .folder import replace_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LOG_NAME", "JSONLines", "Logger", "Progress", "TensorBoard", "cut_back", "read_log"]

LOG_NAME = "log.jsonl"


class Logger(Protocol):
    """Takes numbers and pictures of a run; `step` counts finished optimiser steps.

    A run logs `loss` (weighted sum), `loss.0`, `loss.1`, ... (by level, low to high), `lr`, `grad_norm`,
    `seconds` (a step, mean since the line before), `pictures_per_second`, `pictures` (seen so far), `skipped`
    (samples so far).
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def images(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class JSONLines:
    """log.jsonl in the run folder: one JSON object a line, each line handed to the system as it is written.

    Lines of numbers are `{"step": 10, "loss": ...}`, events `{"step": 10, "event": "resumed", "time": ...}`.
    JSON has no NaN: numbers that are not finite are the strings "nan", "inf", "-inf" (`float` reads them). A
    resumed run cuts the file back to its checkpoint first (`cut_back`).
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / LOG_NAME
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write({"step": step, **{name: _number(value) for name, value in metrics.items()}})

    def event(self, step: int, event: str, **details: Any) -> None:
        """Something that happened: resumed, bad_step, skipped_sample, sampled, interrupted, finished, ..."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        plain = {
            name: _number(value) if isinstance(value, float) else value for name, value in details.items()
        }
        self._write({"step": step, "event": event, "time": now, **plain})

    def images(self, step: int, name: str, picture: Image.Image) -> None:
        """Pictures have files of their own in the run folder."""

    def sync(self) -> None:
        """Returns when every line is on the disk.

        Called before a checkpoint becomes visible, so that the log never ends before it.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def _number(value: Any) -> float | int | str:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log as dicts; a torn last line (the process was killed in it) is left out.

    No file is an empty log. MdmkitError, with the line's number, for a line in the middle that is not a JSON
    object.
    """
    return [entry for _, entry in _lines(Path(path))]


def cut_back(path: str | Path, step: int) -> int:
    """Drops the lines after `step`, the checkpoint's, and a torn last line; returns how many lines went.

    The file is written anew beside the old one and renamed, so that being killed here loses nothing.
    """
    path = Path(path)
    if not path.exists():
        return 0
    old = path.read_bytes()
    kept = [line for line, entry in _lines(path) if entry.get("step", 0) <= step]
    new = b"".join(line + b"\n" for line in kept)
    if new != old:
        replace_file(path, new)
    return len(old.removesuffix(b"\n").split(b"\n")) - len(kept) if old else 0


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            parsed.append((line, entry))
        elif number < len(lines):
            raise MdmkitError(
                f"{path}:{number}: expected a JSON object, got {line[:40]!r}; remove the line to go on"
            )
    return parsed


class TensorBoard:
    """Scalars and sample grids for TensorBoard, in `run_dir`/tensorboard.

    MdmkitError where tensorboard is not installed. The files are opened at the first value: what an earlier
    process wrote from that step on (it was killed after its last checkpoint) is marked as void.
    """

    def __init__(self, run_dir: str | Path, *, flush_seconds: float = 30.0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MdmkitError(
                "logger tensorboard: the package tensorboard is not installed; "
                "pip install 'mdmkit[report]', or leave it out with train.loggers = []"
            ) from error
        self._open = SummaryWriter
        self._dir = Path(run_dir) / "tensorboard"
        self._flush_seconds = flush_seconds
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            # "loss.0" -> "loss/0": TensorBoard puts what shares a first part into one section
            self._at(step).add_scalar(name.replace(".", "/"), float(value), step)

    def images(self, step: int, name: str, picture: Image.Image) -> None:
        self._at(step).add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _at(self, step: int) -> Any:
        if self._writer is None:
            flush = max(1, round(self._flush_seconds))
            self._writer = self._open(str(self._dir), purge_step=step, flush_secs=flush)
        return self._writer


class Progress:
    """How far a run is: a bar on a terminal, elsewhere a plain line every `interval` seconds; on stderr.

    `log` takes the numbers to show (`loss`, `pictures_per_second`), `advance` moves the bar between them,
    `note` says something above the bar. NO_COLOR is respected.
    """

    def __init__(
        self, total_steps: int, *, start_step: int = 0, interval: float = 10.0, file: TextIO | None = None
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.total, self.start_step, self.interval = total_steps, start_step, interval
        self._file = file or sys.stderr
        self._loss, self._rate, self._step = math.nan, math.nan, start_step
        self._began = self._spoke = time.monotonic()
        self._said = -1
        self._bar: Bar | None = None
        if self._file.isatty():
            console = Console(file=self._file, highlight=False)
            bar = Bar(
                TextColumn("[bold]train"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
                console=console, expand=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            bar.start()
            self._task = bar.add_task("train", total=total_steps, completed=start_step, numbers="", left="")
            self._bar = bar

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._loss = float(metrics.get("loss", self._loss))
        self._rate = float(metrics.get("pictures_per_second", self._rate))
        self.advance(step)

    def advance(self, step: int) -> None:
        self._step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=self._numbers(), left=self._left())
        elif time.monotonic() - self._spoke >= self.interval or (step == self.total != self._said):
            self._spoke, self._said = time.monotonic(), step
            parts = [f"step {step}/{self.total}", self._numbers(), self._left()]
            print("  ".join(part for part in parts if part), file=self._file, flush=True)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=self._file, flush=True)

    def images(self, step: int, name: str, picture: Image.Image) -> None:
        """A terminal shows none."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _numbers(self) -> str:
        loss = "" if math.isnan(self._loss) else f"loss {self._loss:.4f}"
        rate = (
            ""
            if math.isnan(self._rate)
            else f"{self._rate:.0f} pictures/s"
            if self._rate >= 100
            else f"{self._rate:.3g} pictures/s"
        )
        return "  ".join(part for part in (loss, rate) if part)

    def _left(self) -> str:
        """From the mean over this process's steps: what was done before a resume took none of its time."""
        done = self._step - self.start_step
        if done <= 0 or self._step >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self.total - self._step)
        return f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """Seconds as people read them: 0:42, 2:13, 1:02:13, 3d 4:05:06."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    text = (
        f"{rest // 60}:{rest % 60:02d}"
        if not hours and not days
        else f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    )
    return f"{days}d {text}" if days else text
