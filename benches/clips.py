"""What do a clip's frames and pixels cost in a training step, and does the estimate of `check --build` hold?

    python benches/clips.py [--quick] [--frames 1 4 8 16] [--sides 16 32 64] [--rows N] [--threads N]

A training step (forward, loss at both levels, backward, AdamW, the average of weights) of a nest: one frame
at half the side, then all frames at the side, with attention over frames where there are several. Each case
runs in a process of its own: `peak` is what it holds at most beside what it held when everything was imported
and a small step had been made. `check --build` gives the FLOPs and its own estimate of the memory; `over` is
the median time of a step over the FLOPs that it runs, beside the same of one frame at that side: 1 is time
that follows the count. At the last side, with the most frames, come `use_checkpoint`, attention in eight
chunks of places, and both; `slower` is their time beside the plain step's. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from about import about
from growth_cost import memory

from mdmkit import assemble
from mdmkit.nn.cost import level_costs
from mdmkit.plugins import load_registry
from mdmkit.recipe import loads
from mdmkit.train.ema import EMA
from mdmkit.train.memory import keep_large_buffers

RECIPE = """
format = 1
[data]
use = "moving_shapes"
[[model.levels]]
resolution = {inner}
channels = [32, 64]
blocks = 1
norm_groups = 8
[[model.levels]]
resolution = {side}
channels = [32, 32]
blocks = 1
norm_groups = 8
strides = [[{frames}, 2, 2]]
{time}
[train]
steps = 1
batch = {rows}
"""
VARIANTS = {  # use_checkpoint, chunks
    "plain": (False, False),
    "checkpoint": (True, False),
    "chunks": (False, True),
    "both": (True, True),
}
Case = tuple[int, int, int, str]  # rows, frames, side, variant
MIB = 2**20


def step_of(rows: int, frames: int, side: int, variant: str) -> tuple[Any, dict[str, float]]:
    """A function that makes one step, and what `check --build` says of it; its first call makes tensors."""
    checkpoint, chunks = VARIANTS[variant]
    chunk = f", chunk = {side * side // 8}" if chunks else ""
    layer = f'frames = {frames}\ntemporal = {{ use = "attention"{chunk} }}' if frames > 1 else ""
    text = RECIPE.format(inner=side // 2, side=side, frames=frames, rows=rows, time=layer)
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = loads(text, [f"model.use_checkpoint={str(checkpoint).lower()}"], registry)
    sizes = assemble.resolutions(recipe)
    costs = level_costs(assemble.nest(recipe, registry, device="meta"), sizes, rows)
    passes = 4 if checkpoint else 3
    said = {
        "gflop": 3 * rows * sum(cost.flops for cost in costs) / 1e9,
        "run_gflop": passes * rows * sum(cost.flops for cost in costs) / 1e9,
        "estimate_mib": sum(cost.memory for cost in costs) / MIB,
    }
    made: dict[str, Any] = {}

    def step() -> None:
        if not made:
            nest = assemble.nest(recipe, registry).train()
            made.update(nest=nest, optimizer=torch.optim.AdamW(nest.parameters(), lr=1e-4))
            made["ema"] = EMA.of(nest, decay=0.999)
            made["z"] = [torch.randn(rows, 3, *size) for size in sizes]
        out = made["nest"](made["z"], torch.rand(rows))
        loss = torch.stack([(a - b).square().mean() for a, b in zip(out, made["z"], strict=True)]).sum()
        loss.backward()
        made["optimizer"].step()
        made["optimizer"].zero_grad()
        made["ema"].update()

    return step, said


def measured(case: Case, steps: int, threads: int) -> dict[str, Any]:
    """In a process of its own: the peak of a step, and how long the later ones take."""
    torch.set_num_threads(threads)
    keep_large_buffers()
    small, _ = step_of(1, case[1], 16, case[3])
    small()  # kernels and their workspaces are no cost of a size
    step, said = step_of(*case)
    del small
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what has been freed is no part of what was held before
    before = memory("VmRSS")
    taken = []
    for _ in range(steps + 1):  # the first is a warm-up
        started = time.process_time()
        step()
        taken.append(time.process_time() - started)
    peak = memory("VmHWM") - before
    return {**said, "peak_mib": peak / MIB, "seconds": statistics.median(taken[1:])}


def alone(case: Case, steps: int, threads: int) -> dict[str, Any]:
    """What `measured` finds in a process that is made for it."""
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        found = pool.submit(measured, case, steps, threads).result()
    return {**dict(zip(("rows", "frames", "side", "variant"), case, strict=True)), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two numbers of frames and sides, two steps")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    frames, sides, steps = options.frames, options.sides, 2 if options.quick else 3
    if options.quick:
        frames, sides = frames[:2], sides[:2]

    print(f"{'frames':>6} {'side':>5} {'':10} {'GFLOP':>8} {'s':>7} {'over':>6} {'slower':>6} "
          f"{'peak MiB':>9} {'estimate':>9} {'ratio':>6}")  # fmt: skip
    results = []
    for side in sides:
        cases = [(count, "plain") for count in frames]
        if side == sides[-1]:
            cases += [(frames[-1], variant) for variant in VARIANTS if variant != "plain"]
        here: list[dict[str, Any]] = []
        for count, variant in cases:
            row = alone((options.rows, count, side, variant), steps, options.threads)
            here.append(row)
            first, plain = here[0], here[min(len(here), len(frames)) - 1]
            row["over"] = row["seconds"] / row["run_gflop"] * first["run_gflop"] / first["seconds"]
            row["slower"] = row["seconds"] / plain["seconds"]
            row["ratio"] = row["peak_mib"] / row["estimate_mib"]
            numbers = [row[name] for name in ("over", "slower", "peak_mib", "estimate_mib", "ratio")]
            print(f"{count:6} {side:5} {variant:10} {row['gflop']:8.2f} {row['seconds']:7.3f} "
                  "{:6.2f} {:6.2f} {:9.1f} {:9.1f} {:6.2f}".format(*numbers), flush=True)  # fmt: skip
        results += here
    told = [{name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in results]
    print(json.dumps({**about("clips"), "threads": options.threads, "quick": options.quick, "results": told}))


if __name__ == "__main__":
    main()
