"""A whole run in a second or two, as the tests start it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

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
log_every = 1
loggers = []

[sample]
steps = 2
count = 2
"""

HERE = Path(__file__).parent


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """The tiny recipe as a file."""
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mdmkit(*arguments: str | Path, ranks: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m mdmkit ...`, with the tests' own plugin modules importable; under torchrun where ranks > 1."""
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return subprocess.run(
        [*start, "mdmkit", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=240, check=False,
    )


def numbers(run: Path) -> list[dict[str, Any]]:
    """The lines of a log that hold losses, without what the clock says."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("seconds", "pictures_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines if "event" not in line]


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by file and name."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    return {f"{path.stem}:{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
