"""What does a level more cost in training, and what does growing itself cost?

    python benches/growth_cost.py [--quick] [--threads N] [--recipe RECIPE] [--set PATH=VALUE ...]

A training step (forward, loss at every level, backward, AdamW) of a recipe's first 1, 2, 3, ... levels, all
rows at all of them, in turn in one process: `over` is the time that a step of k + 1 levels takes more than
one of k, over the FLOPs that it does more, beside the same of the core alone: 1 is a level that costs its own
FLOPs.

Then the recipe's stages, a few steps each: growing from one to the next, as a run does it (read the
checkpoint, put the larger network together, carry the whole state over), over a step of the stage that it
leads to; and its peak memory above what the process had before, over the size of the checkpoint that the new
stage writes. The new network, its optimizer and its averages are in that. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import torch
from about import about
from nest import step_of

from mdmkit import assemble
from mdmkit.cli.run_stages import StageRun, grown, stage_run
from mdmkit.model_folder import find
from mdmkit.nn.cost import level_costs
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe import Recipe, dumps, load
from mdmkit.recipe.load import find as find_recipe
from mdmkit.train.folder import RESOLVED
from mdmkit.train.loop import train
from mdmkit.train.memory import keep_large_buffers
from mdmkit.train.parallel import world

CPU = torch.device("cpu")


def steps_by_levels(
    recipe: Recipe, registry: Registry, *, rows: int, rounds: int
) -> list[dict[str, Any]]:
    """What a step of 1, 2, 3, ... levels takes, and its FLOPs."""
    sides = assemble.resolutions(recipe)
    tokens = getattr(recipe.text.settings, "max_tokens", 1) if recipe.text else 0
    whole = assemble.nest(recipe, registry, device="meta")
    costs = [cost.flops for cost in level_costs(whole, sides, 1, tokens, assemble.cond_dim(recipe))]
    counts = range(1, len(sides) + 1)
    steps = [
        step_of(
            assemble.nest(recipe, registry, levels=count),
            [side for side, _ in sides[:count]], [rows] * count, "cpu", train=True,
        )
        for count in counts
    ]  # fmt: skip
    taken: list[list[float]] = [[] for _ in counts]
    for number in range(rounds + 1):
        for times, step in zip(taken, steps, strict=True):
            started = time.process_time()
            step()
            if number:  # the first is a warm-up
                times.append(time.process_time() - started)
    found = []
    for count in counts:
        # what the level adds is taken round by round: neighbours in time had the same machine
        inside = taken[count - 2] if count > 1 else [0.0] * rounds
        added = statistics.median(a - b for a, b in zip(taken[count - 1], inside, strict=True))
        flops = 3 * rows * costs[count - 1]
        found.append({
            "levels": count,
            "seconds": statistics.median(taken[count - 1]),
            "gflop": 3 * rows * sum(costs[:count]) / 1e9,
            "over": added / flops / (statistics.median(taken[0]) / (3 * rows * costs[0])),
        })  # fmt: skip
    return found


def trained(stage: StageRun, folder: Path) -> list[float]:
    """Train a stage to its end, in a folder; the seconds of its steps but for the first."""
    ends: list[float] = []
    with world(CPU) as ranks:
        train(
            stage.parts,
            stage.plan,
            device=CPU,
            world=ranks,
            run_dir=folder,
            resume=stage.resume,
            texts={RESOLVED: dumps(stage.recipe)},
            on_step=lambda step, metrics: ends.append(time.process_time()),
        )
    return [after - before for before, after in pairwise(ends)]


def memory(field: str) -> int:
    """Bytes of this process, as Linux names them: VmRSS, now; VmHWM, at most since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def growing(recipe: Recipe, registry: Registry, folder: Path, *, rounds: int) -> list[dict[str, Any]]:
    """What growing takes from each stage to the next."""
    found = []
    stage: StageRun | None = stage_run(recipe, registry, None, device=CPU)
    assert stage is not None
    trained(stage, folder)
    last = stage.plan.phase.last
    while not last:
        seconds, peaks = [], []
        for _ in range(rounds):
            stage = None  # as in a run: the next stage is a network of its own
            gc.collect()
            before = memory("VmRSS")
            forget_peak()
            started = time.process_time()
            stage = grown(recipe, registry, folder, device=CPU)
            seconds.append(time.process_time() - started)
            peaks.append(memory("VmHWM") - before)
        assert stage is not None
        steps = trained(stage, folder)
        size = sum(path.stat().st_size for path in find(folder).iterdir())
        last = stage.plan.phase.last
        found.append({
            "levels": len(stage.parts.resolutions),
            "grow_seconds": statistics.median(seconds),
            "step_seconds": statistics.median(steps),
            "over_step": statistics.median(seconds) / statistics.median(steps),
            "peak_mb": max(peaks) / 1e6,
            "checkpoint_mb": size / 1e6,
            "over_checkpoint": max(peaks) / size,
        })  # fmt: skip
    return found


def short(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with stages of a few steps."""
    settings = recipe.growth.settings
    stages = tuple(
        attrs.evolve(stage, steps=steps, images=None, warmup=min(stage.warmup, steps))
        for stage in settings.stages
    )
    return attrs.evolve(
        recipe, growth=attrs.evolve(recipe.growth, settings=attrs.evolve(settings, stages=stages))
    )


def table(rows: list[dict[str, Any]]) -> None:
    print("".join(f"{key:>17}" for key in rows[0]))
    for row in rows:
        cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
        print("".join(f"{cell:>17}" for cell in cells))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", default="mdmkit:tiny_grow")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_large_buffers()
    registry = load_registry()
    recipe = load(find_recipe(options.recipe, registry), options.sets, registry)
    rounds = 3 if options.quick else 15
    steps = steps_by_levels(recipe, registry, rows=options.rows, rounds=rounds)
    table(steps)
    with tempfile.TemporaryDirectory() as folder:
        grows = growing(short(recipe, 1 + rounds), registry, Path(folder), rounds=rounds)
    table(grows)
    facts = {"recipe": options.recipe, "set": options.sets, "rows": options.rows, "threads": options.threads}
    print(json.dumps({**about("growth_cost"), **facts, "steps": steps, "growing": grows}))


if __name__ == "__main__":
    main()
