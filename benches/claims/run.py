"""Do the paper's claims hold, small, at equal training compute?

    python benches/claims/run.py [--only a b | nest2 plain ...] [--seeds 0 1 2] [--threads 1]
        [--data shapes emoji] [--emoji FOLDER]

Trains every arm (a recipe beside this file; the cascade has two) with every seed, draws and measures, and
appends a line to `results.jsonl`; what is there already, of the same recipe, is passed over. Training compute
is counted (`compute.py`) and equal to one percent, or the arm is refused; the seconds are of the CPU, without
waiting for other work. `table.py` makes the tables of `benches/README.md`. The recipes are of shapes; `--data
emoji` trains the same arms on shards of emoji with captions in a folder (a .png and a .txt a sample).

(a) a nest against a plain U-Net      nest2, nest2_full, plain
(b) a nest against a cascade          nest2, cascade
(c) grown against all at once         grow50 and nest2, grow50_lr and nest2_lr
(d) one, two, three levels            plain, nest2, nest3
(e) longer training at low resolution nest2 (none), grow25, grow50, grow75, grow50_lr, grow75_lr
(f) mixed batches against full ones   nest2, nest2_full
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cascade import draw_large, train_high
from compute import picture_flops, training_flops

from mdmkit import assemble, model_folder
from mdmkit.cli import extractor
from mdmkit.cli.run import execute
from mdmkit.cli.run_pictures import captions_of, compare
from mdmkit.plugins import Registry, hookimpl, load_registry
from mdmkit.recipe import Recipe, dumps, load
from mdmkit.recipe.checks import uses
from mdmkit.sampling.draw import draw

sys.path.append(str(Path(__file__).parent.parent))
from about import about  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
WORK = Path("runs/claims")
EMOJI = Path("data/emoji")
CLAIMS = {
    "a": ("plain", "nest2", "nest2_full"),
    "b": ("cascade", "nest2"),
    "c": ("nest2", "grow50", "grow50_lr", "nest2_lr"),
    "d": ("plain", "nest2", "nest3"),
    "e": ("nest2", "grow25", "grow50", "grow75", "grow50_lr", "grow75_lr"),
    "f": ("nest2_full", "nest2"),
}
ARMS = tuple(dict.fromkeys(arm for arms in CLAIMS.values() for arm in arms))
WORDS = "runs/claims/words-emoji.safetensors"
# what other data change in every recipe, beside [data] itself
DATA: dict[str, tuple[str, ...]] = {
    "shapes": (),
    "emoji": (
        "text.max_tokens=88",
        f"evaluate.metrics=[{{ use = 'fidelity', weights = '{WORDS}' }}]",
    ),
}
STEPS = {"shapes": 600, "emoji": 1500}  # of the feature extractor
PARTS = {"cascade": ("cascade_low", "cascade_high")}  # of an arm that is more than one training


class Clock:
    """Seconds of this process's CPU from the start of a run to its last step."""

    seconds = 0.0

    @hookimpl
    def mdmkit_run_start(self) -> None:
        self.started = time.process_time()

    @hookimpl
    def mdmkit_step_end(self) -> None:
        self.seconds = time.process_time() - self.started


def paths(arm: str) -> list[Path]:
    """The recipes of an arm's trainings."""
    return [HERE / f"{name}.toml" for name in PARTS.get(arm, (arm,))]


def sets_of(data: str, folder: Path) -> list[str]:
    """What a kind of data changes in a recipe; `folder` has its shards."""
    source = [] if data == "shapes" else [f"data={{ use = 'webdataset', urls = '{folder}' }}"]
    return [*source, *DATA[data]]


def recipes_of(
    arm: str, seed: int, registry: Registry, data: str = "shapes", folder: Path = EMOJI
) -> list[Recipe]:
    """An arm's recipes with this seed, on this data."""
    return [load(path, [f"run.seed={seed}", *sets_of(data, folder)], registry) for path in paths(arm)]


def digest(arm: str, registry: Registry, data: str = "shapes") -> str:
    """Of what the arm's recipes say and of the components' versions: of what gives other numbers."""
    said: list[Any] = [tomllib.loads(path.read_text(encoding="utf-8")) for path in paths(arm)]
    said += DATA[data]
    used = [sorted({u.pinned for _, u in uses(recipe)}) for recipe in recipes_of(arm, 0, registry, data)]
    return hashlib.sha256(json.dumps([said, used], sort_keys=True).encode()).hexdigest()[:16]


def train_and_measure(recipe: Recipe, registry: Registry, folder: Path) -> tuple[dict[str, Any], float]:
    """A whole run, as `mdmkit run` makes it: its metrics, and the seconds of its training."""
    clock = Clock()
    registry.manager.register(clock)
    try:
        execute(recipe, dumps(recipe), dumps(recipe), folder, registry, resumed=False)
    finally:
        registry.manager.unregister(clock)
    metrics = folder / "metrics.json"
    return json.loads(metrics.read_text()) if metrics.is_file() else {}, clock.seconds


def cascade(
    recipes: Sequence[Recipe], registry: Registry, folder: Path
) -> tuple[dict[str, Any], float]:
    """Both models of the cascade, and what metrics say of pictures drawn with them in sequence."""
    low, high = recipes
    _, seconds = train_and_measure(low, registry, folder / "low")
    started = time.process_time()
    parts, ema = train_high(high, registry, folder / "high")
    seconds += time.process_time() - started
    cpu, seed = torch.device("cpu"), high.sample.seed + 1_000_000
    captions, drawing = captions_of(parts.dataset, high.evaluate.count), assemble.drawing(high, registry)
    nest, text = model_folder.load(model_folder.find(folder / "low"), low, registry, device=cpu)
    small = draw(
        nest, text, assemble.diffusion(low, registry), drawing,
        resolutions=assemble.resolutions(low), captions=captions, seed=seed, batch=64,
    )  # fmt: skip
    metrics = assemble.metrics(high, registry)
    with ema.swap():
        diffusion = assemble.diffusion(high, registry)
        large = draw_large(parts, diffusion, drawing, [x for (x,) in small], captions, seed=seed)
    for first in range(0, len(captions), 64):
        for metric in metrics.values():
            metric.update(large[first : first + 64], captions[first : first + 64])
    compare(high, registry, [m for m in metrics.values() if hasattr(m, "beside")], parts.dataset, cpu)
    return {f"{n}.{key}": v for n, m in metrics.items() for key, v in m.result().items()}, seconds


def drawing_flops(recipes: Sequence[Recipe], registry: Registry) -> int:
    """FLOPs of drawing one picture, guided."""
    return sum(2 * recipe.sample.steps * sum(picture_flops(recipe, registry)) for recipe in recipes)


def work(
    arm: str, seed: int, registry: Registry, wanted: int, data: str, emoji: Path
) -> dict[str, Any]:
    """One arm with one seed, from nothing to its line; `wanted`: the compute that it has to have."""
    recipes = recipes_of(arm, seed, registry, data, emoji)
    flops = sum(training_flops(recipe, registry) for recipe in recipes)
    if abs(flops / wanted - 1) > 0.01:
        raise SystemExit(f"{arm} has {flops / wanted:.3f} of the compute of nest2; change its steps")
    folder = WORK / f"{data}-{arm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    if arm in PARTS:
        metrics, seconds = cascade(recipes, registry, folder)
    else:
        metrics, seconds = train_and_measure(recipes[0], registry, folder)
    return {
        "data": data,
        "arm": arm,
        "seed": seed,
        "recipe": digest(arm, registry, data),
        "training_tflop": round(flops / 1e12, 4),
        "drawing_gflop": round(drawing_flops(recipes, registry) / 1e9, 3),
        "parameters": sum(parameters(recipe, registry) for recipe in recipes),
        "cpu_seconds": round(seconds, 1),
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
    }


def parameters(recipe: Recipe, registry: Registry) -> int:
    return sum(p.numel() for p in assemble.nest(recipe, registry, device="meta").parameters())


def done() -> set[tuple[str, str, int, str]]:
    """What is in the results: data, arm, seed, recipe."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    keys = ("arm", "seed", "recipe")
    return {(of_data(line), *(line[key] for key in keys)) for line in map(json.loads, lines)}


def of_data(line: dict[str, Any]) -> str:
    """The data of a line of the results; those that do not say are of shapes."""
    return line.get("data", "shapes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*CLAIMS, *ARMS], metavar="CLAIM|ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["shapes"])
    parser.add_argument("--emoji", type=Path, default=EMOJI, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry = load_registry()
    asked = options.only or ARMS
    arms = list(dict.fromkeys(arm for name in asked for arm in CLAIMS.get(name, (name,))))
    facts = {**about("claims"), "threads": options.threads}
    for data in options.data:
        words = Path(WORDS) if data == "emoji" else WORK / "words.safetensors"
        if not words.exists():
            sets = sets_of(data, options.emoji)
            recipe = load(HERE / "nest2.toml", sets, registry)
            told = extractor.make(recipe, registry, words, steps=STEPS[data], seed=0)
            print(json.dumps({"extractor": told, "data": data}), flush=True)
        wanted = training_flops(recipes_of("nest2", 0, registry, data, options.emoji)[0], registry)
        for seed in options.seeds:
            for arm in arms:
                if (data, arm, seed, digest(arm, registry, data)) in done():
                    continue
                line = {**work(arm, seed, registry, wanted, data, options.emoji), **facts}
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
