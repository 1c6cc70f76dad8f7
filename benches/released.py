"""How much memory and time does a released checkpoint of full size take to import, to draw with, to export?

    python benches/released.py [--quick] [--size 64 256 1024] [--keep DIR]

A checkpoint of each size is made in the released layout, filled with random numbers, beside its config.
Each verb has a process of its own; the answer is that process's peak memory (the figure of /usr/bin/time -v,
mapped pages counted) over the size of the file: 2.2 is the most that was promised for `import` at 1024.
`mdmkit sample` then draws a picture from it in two guided DDIM steps, for stored random text features, and
`mdmkit export --format apple` writes it back; the two files are compared tensor by tensor, bit for bit.
`--quick` is the 64 pixel one alone; `--keep` leaves checkpoints and models in a folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from about import about
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.interop import released  # noqa: E402

NAMES = {int(name.partition("x")[0]): name for name in released.NAMES}
TEXT_WIDTH = 2048


class Taken(NamedTuple):
    """What a process took: seconds from start to end, bytes at its peak."""

    seconds: float
    peak: int


def measured(arguments: list[str | Path]) -> Taken:
    """Run `mdmkit` in a process of its own."""
    command = [sys.executable, "-m", "mdmkit", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MDMKIT_PLUGINS": ""}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"mdmkit {arguments[0]}: exit {process.returncode}\n{told.read().strip()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Taken(seconds, usage.ru_maxrss * unit)


def elsewhere(function: Callable[..., Any], *arguments: Any) -> None:
    """Call in another process: a child's peak begins at that of the process that it was forked from."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def make(folder: Path, size: int) -> tuple[Path, Path]:
    """A checkpoint of random numbers in the released layout, and its config."""
    table = released.config(NAMES[size])
    file = folder / f"vis_model_{NAMES[size]}.pth"
    elsewhere(released.checkpoint, file, table, TEXT_WIDTH)
    return file, released.write_yaml(folder / f"cc12m_{NAMES[size]}.yaml", table)


def import_(folder: Path, size: int, file: Path, config: Path) -> Taken:
    return measured(["import", "apple", file, "--config", config, "--out", folder / f"mdm{size}"])


def sample(folder: Path, size: int, file: Path, config: Path) -> Taken:
    """A picture of the highest level."""
    generator = torch.Generator().manual_seed(size)
    features = {
        name: torch.randn((1, tokens, TEXT_WIDTH), generator=generator)
        for name, tokens in (("features", 12), ("negative_features", 1))
    }
    save_file(features, folder / "features.safetensors")
    out = folder / "drawn"
    # two steps of the recipe's rule and guidance; one picture more would only take longer
    taken = measured(
        [
            *("sample", folder / f"mdm{size}", "--features", folder / "features.safetensors"),
            *("--steps", "2", "--count", "1", "--set", 'run.device="cpu"', "--out", out),
        ]
    )
    (picture,) = (Image.open(path) for path in out.glob("picture-*.png"))
    if picture.size != (size, size):
        raise SystemExit(f"sample: expected a picture of {size} pixels, got {picture.size}")
    return taken


def export(folder: Path, size: int, file: Path, config: Path) -> Taken:
    """The checkpoint again, equal to the first bit for bit."""
    back = folder / "back.pth"
    taken = measured(["export", folder / f"mdm{size}", "--format", "apple", "--out", back])
    elsewhere(compare, file, back)
    return taken


def compare(file: Path, back: Path) -> None:
    """Exit where the tensors of two checkpoints are not alike to the last bit."""
    first, second = (torch.load(path, mmap=True, weights_only=True)["state_dict"] for path in (file, back))
    odd = sorted(first.keys() ^ second.keys())
    odd += [name for name in first.keys() & second.keys() if not equal(first[name], second[name])]
    if odd:
        raise SystemExit(f"export: {len(odd)} tensors are not those of {file}, the first is {odd[0]}")


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


# each is given the folder, the size, the checkpoint and its config, and finds there what those before it left
STEPS: dict[str, Callable[[Path, int, Path, Path], Taken]] = {
    "import": import_,
    "sample": sample,
    "export": export,
}


def measure(folder: Path, size: int) -> dict[str, Any]:
    file, config = make(folder, size)
    row: dict[str, Any] = {"size": size, "file_gb": round(file.stat().st_size / 1e9, 3)}
    for name, step in STEPS.items():
        taken = step(folder, size, file, config)
        row[f"{name}_s"] = round(taken.seconds, 1)
        row[f"{name}_peak_gb"] = round(taken.peak / 1e9, 3)
        row[f"{name}_peak_over_file"] = round(taken.peak / file.stat().st_size, 2)
        print(
            f"{size:5} {name:8} {row['file_gb']:8.3f} {row[f'{name}_s']:9.1f} {row[f'{name}_peak_gb']:9.3f} "
            f"{row[f'{name}_peak_over_file']:10.2f}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest one alone")
    parser.add_argument("--size", type=int, nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--keep", type=Path, help="a folder for checkpoints and models, which stay there")
    options = parser.parse_args()
    sizes = options.size[:1] if options.quick else options.size

    print(f"{'size':>5} step      file GB   seconds   peak GB  peak/file", flush=True)
    with tempfile.TemporaryDirectory() as made:
        results = []
        for size in sizes:
            folder = (options.keep or Path(made)) / str(size)
            folder.mkdir(parents=True)
            results.append(measure(folder, size))
            if options.keep is None:  # a model of full size and its checkpoint are 4 GB
                shutil.rmtree(folder)
    print(json.dumps({**about("released"), "quick": options.quick, "results": results}))


if __name__ == "__main__":
    main()
