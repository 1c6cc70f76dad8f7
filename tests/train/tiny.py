"""A whole run in a second or two, as the tests start it: in a process of its own, or in this one."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.cli import main
from mdmkit.train.logs import read_log

RECIPE = """
format = 1

[run]
seed = 3
device = "cpu"
threads = 1

[data]
use = "shapes"
objects = [1, 1]

[text]
use = "bytes"
width = 16
layers = 1
heads = 2
max_tokens = 24

[[model.levels]]
resolution = 8
channels = [8, 16]
blocks = [1, 1]
attention = [0, 1]
heads = 2
norm_groups = 4

[[model.levels]]
resolution = 16
channels = [8, 8]
blocks = [1, 1]
norm_groups = 4

[train]
optimizer = { use = "adamw", lr = 1e-3 }
lr_schedule = { use = "warmup", steps = 4 }
steps = 12
batch = 8
levels = { use = "mixed", shares = [0.5, 0.5] }
checkpoint_every = 5
sample_every = 4
log_every = 1
loggers = []

[sample]
steps = 2
count = 2
"""

ROOT = Path(__file__).parent.parent.parent
STOP = ("--plugin", "tests.train.stop_at")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """The tiny recipe as a file."""
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mdmkit(*arguments: str | Path, ranks: int = 1, **environment: str) -> Done:
    """`python -m mdmkit ...` in a process of its own, under torchrun where ranks > 1; a hang is killed."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    process = subprocess.Popen(
        [*start, "mdmkit", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # ends when the last process that holds the pipes has ended: orphans too
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(
            f"{' '.join(map(str, arguments))} did not end; it said {err[-2000:]!r}"
        ) from None
    return Done(process.returncode, out, err)


def here(*arguments: str | Path, **environment: str) -> Done:
    """The same in this process, which is much faster to start; SIGKILL would end the tests."""
    out, err = io.StringIO(), io.StringIO()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            torch.set_num_threads(threads)
            torch.set_rng_state(state)
    return Done(code, out.getvalue(), err.getvalue())


def numbers(run: Path) -> list[dict[str, Any]]:
    """The lines of a log that hold losses, without what the clock says."""
    timed = ("seconds", "pictures_per_second")
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in read_log(run / "log.jsonl")
        if "event" not in line
    ]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """The log's events of one name, without their times."""
    lines = [line for line in read_log(run / "log.jsonl") if line.get("event") == name]
    return [{key: value for key, value in line.items() if key not in ("time", "event")} for line in lines]


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by file and name."""
    files = (run / "checkpoints" / f"step-{step:07d}").glob("*.safetensors")
    return {f"{path.stem}:{name}": value for path in files for name, value in load_file(path).items()}
