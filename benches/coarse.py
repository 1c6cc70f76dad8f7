"""What does it save to start outer levels late, and does it cost quality?

    python benches/coarse.py RUN [--count N] [--outer-from -4 -2 0 2 4] [--threads N]

Pictures of a run on captioned shapes, for captions of its data, with all levels from the start and with
`sample.outer_from` at several values. The share is of the forward passes' counted FLOPs; quality is the share
of prompts that the checker reads off the picture as asked, `detail`, the mean square of what pooling by two
loses (beside that of the data: blurred pictures have less, noisy ones more), and `seam`, how far the pooled
top level lies from the level inside (root mean square).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from about import about
from torch import Tensor

from mdmkit import assemble, model_folder
from mdmkit.evaluate.prompt_accuracy import PromptAccuracy
from mdmkit.nn.cost import level_costs
from mdmkit.plugins import load_registry
from mdmkit.pyramid import pool
from mdmkit.recipe import load
from mdmkit.sampling.coarse import enlarged
from mdmkit.sampling.draw import draw
from mdmkit.train.memory import keep_large_buffers


def detail(pictures: Tensor) -> float:
    """The mean square of what pooling by two loses."""
    half = (pictures.shape[-2] // 2, pictures.shape[-1] // 2)
    return (pictures - enlarged(pool(pictures, half), pictures.shape[2:])).square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--outer-from", type=float, nargs="+", default=[-4.0, -2.0, 0.0, 2.0, 4.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_large_buffers()
    registry = load_registry()
    folder = model_folder.find(options.run)
    recipe = load(folder / "recipe.resolved.toml", registry=registry)
    nest, text = model_folder.load(folder, recipe, registry)
    sides = assemble.resolutions(recipe)
    source = assemble.dataset(recipe, registry)
    captions = source.captions(options.count)
    truth = torch.stack([torch.as_tensor(source.sample(i).image) for i in range(options.count)])
    truth = truth.permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = getattr(recipe.text.settings, "max_tokens", 1) if recipe.text else 0
    meta = assemble.nest(recipe, registry, device="meta")
    costs = [cost.flops for cost in level_costs(meta, sides, 1, tokens, assemble.cond_dim(recipe))]

    ran: list[int] = []
    nest.register_forward_pre_hook(lambda _, args: ran.append(sum(costs[: len(args[0])]) * len(args[0][0])))
    drawing = assemble.drawing(recipe, registry)
    rows: list[dict[str, Any]] = []
    full = 0
    print(f"levels {[h for h, _ in sides]}, {options.count} pictures; data: detail {detail(truth):.4f}")
    print(f"{'outer_from':>10}{'FLOPs':>9}{'seconds':>9}{'right':>9}{'detail':>9}{'seam':>9}")
    for outer_from in [None, *options.outer_from]:
        ran.clear()
        started = time.perf_counter()
        pyramids = draw(
            nest,
            text,
            assemble.diffusion(recipe, registry),
            attrs.evolve(drawing, outer_from=outer_from),
            resolutions=sides,
            captions=captions,
            seed=1_000_000,
            batch=20,
        )
        seconds = time.perf_counter() - started
        full = full or sum(ran)
        top, inside = (torch.stack([pyramid[r] for pyramid in pyramids]) for r in (-1, -2))
        metric = PromptAccuracy(true_scenes=0)
        metric.update(top, captions)
        row = {
            "outer_from": outer_from,
            "flops": sum(ran) / full,
            "seconds": seconds,
            "right": metric.result()["all"],
            "detail": detail(top),
            "seam": (pool(top, inside.shape[2:]) - inside).square().mean().sqrt().item(),
        }
        rows.append(row)
        name = "none" if outer_from is None else f"{outer_from:g}"
        numbers = "".join(f"{value:9.4f}" for key, value in row.items() if key != "outer_from")
        print(f"{name:>10}{numbers}", flush=True)
    facts = {"levels": [list(side) for side in sides], "pictures": options.count, "threads": options.threads}
    print(json.dumps({**about("coarse"), **facts, "data_detail": detail(truth), "results": rows}))


if __name__ == "__main__":
    main()
