"""What does a level more cost in training, and what does growing itself cost?

    python benches/growth_cost.py [--quick] [--threads N] [--recipe RECIPE] [--set PATH=VALUE ...]

A training step (forward, loss at every level, backward, AdamW) of a recipe's first 1, 2, 3, ... levels, all
rows at all of them, in turn in one process: `over` is the time that a step of k + 1 levels takes more than
one of k, over the FLOPs that it does more, beside the same of the core alone: 1 is a level that costs its own
FLOPs.

Then the recipe's stages, a few steps each: growing from one to the next, as a run does it (read the
checkpoint, put the larger network together, carry the whole state over into it), over a step of the stage
that it leads to; and, in a process of its own, the memory that stays (`state_mb`: network, optimizer and
averages, before the first gradient), and what it takes beside that for a while (`more_mb`), over the size of
the new stage's checkpoint. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.queues import Queue
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
from mdmkit.train.ema import EMA
from mdmkit.train.folder import RESOLVED
from mdmkit.train.loop import train
from mdmkit.train.memory import keep_large_buffers
from mdmkit.train.optim import set_apart
from mdmkit.train.parallel import world
from mdmkit.train.plan import trained_parameters
from mdmkit.train.state import restore

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


def taken_over(recipe: Recipe, registry: Registry, folder: Path) -> tuple[StageRun, EMA]:
    """The next stage with the whole state in it, as `train` begins it."""
    stage = grown(recipe, registry, folder, device=CPU)
    parts, new = stage.parts, stage.plan.phase.new
    parameters = trained_parameters(parts.nest, parts.text)
    ema = EMA(parameters, decay=stage.plan.ema)
    set_apart(parts.optimizer, [p for name, p in parameters.items() if name in new])
    assert stage.resume is not None
    restore(stage.resume, parameters, ema, parts.optimizer, new=new)
    return attrs.evolve(stage, resume=None), ema


def memory(field: str) -> int:
    """Bytes of this process, as Linux names them: VmRSS, now; VmHWM, at most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def growing_memory(
    name: str, sets: list[str], steps: int, folder: Path, answer: Queue[dict[str, float]]
) -> None:
    """In a process of its own, whose peak is growing's: what stays, and how much more it was for a while."""
    torch.set_num_threads(1)
    registry = load_registry()
    recipe = short(load(find_recipe(name, registry), sets, registry), steps)
    stage_run(recipe, registry, None, device=CPU)  # what is imported on the way is not growth's
    gc.collect()
    before = memory("VmRSS")
    stage = taken_over(recipe, registry, folder)
    peak = memory("VmHWM")
    gc.collect()
    after = memory("VmRSS")
    del stage
    answer.put({"state_mb": (after - before) / 1e6, "more_mb": (peak - after) / 1e6})


def apart(*arguments: Any) -> dict[str, float]:
    context = get_context("spawn")
    answer: Queue[dict[str, float]] = context.Queue()
    process = context.Process(target=growing_memory, args=(*arguments, answer))
    process.start()
    try:
        return answer.get(timeout=600)
    finally:
        process.join()


def growing(name: str, sets: list[str], registry: Registry, *, rounds: int) -> list[dict[str, Any]]:
    """What growing takes from each stage to the next."""
    found = []
    recipe = short(load(find_recipe(name, registry), sets, registry), 1 + rounds)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        stage = stage_run(recipe, registry, None, device=CPU)
        trained(stage, folder)
        while not stage.plan.phase.last:
            seconds = []
            for _ in range(rounds):
                started = time.process_time()
                taken_over(recipe, registry, folder)
                seconds.append(time.process_time() - started)
            used = apart(name, sets, 1 + rounds, folder)
            stage = grown(recipe, registry, folder, device=CPU)
            steps = trained(stage, folder)
            size = sum(path.stat().st_size for path in find(folder).iterdir())
            found.append({
                "levels": len(stage.parts.resolutions),
                "grow_seconds": statistics.median(seconds),
                "step_seconds": statistics.median(steps),
                "over_step": statistics.median(seconds) / statistics.median(steps),
                "checkpoint_mb": size / 1e6,
                **used,
                "over_checkpoint": used["more_mb"] * 1e6 / size,
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
    grows = growing(options.recipe, options.sets, registry, rounds=rounds)
    table(grows)
    facts = {"recipe": options.recipe, "set": options.sets, "rows": options.rows, "threads": options.threads}
    print(json.dumps({**about("growth_cost"), **facts, "steps": steps, "growing": grows}))


if __name__ == "__main__":
    main()
