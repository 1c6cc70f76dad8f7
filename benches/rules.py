"""How near do update rules come, in few evaluations, to where they go in many?

    python benches/rules.py RUN_OR_MODEL [--count N] [--evaluations 6 10 20 50] [--long 1000] [--threads N]
        [--only ddim dpmpp_2m ...]

Pictures of a trained model for its recipe's prompts, with its guidance and threshold, from the same noise.
Deterministic rules all follow the probability flow: the reference is `flow_heun` with `--long` evaluations.
Rules with fresh noise have a reference each, their own result with as many: the noise of a picture is one
Brownian path whatever the steps. The answer is the root mean square distance at the highest level, of
pictures in [-1, 1]; beside it how far two seeds of one prompt lie apart.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from about import about
from torch import Tensor

from mdmkit import assemble, model_folder, sampling
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.sampling.draw import draw
from mdmkit.train.memory import keep_large_buffers

# name, rule, evaluations a step
DETERMINISTIC: list[tuple[str, Any, int]] = [
    ("ddim", sampling.ddim, 1),
    ("heun", sampling.heun, 2),
    ("flow_heun", sampling.flow_heun, 2),
    ("dpmpp_2s (eta 0)", partial(sampling.dpmpp_2s_ancestral, eta=0.0), 2),
    ("dpmpp_2m", sampling.dpmpp_2m, 1),
    ("dpmpp_3m (eta 0)", partial(sampling.dpmpp_3m_sde, eta=0.0), 1),
    ("lms", sampling.lms, 1),
    ("unipc", sampling.unipc, 1),
    ("unipc 3", partial(sampling.unipc, order=3), 1),
]
STOCHASTIC: list[tuple[str, Any, int]] = [
    ("ddpm", sampling.ddpm, 1),
    ("dpmpp_2s_ancestral", sampling.dpmpp_2s_ancestral, 2),
    ("dpmpp_2m_sde", sampling.dpmpp_2m_sde, 1),
    ("dpmpp_3m_sde", sampling.dpmpp_3m_sde, 1),
]
SPACINGS = ("uniform_t", "uniform_logsnr", "karras", "poly_exponential", "leading")


class Model:
    """A trained model and the captions to draw for."""

    def __init__(self, given: Path, count: int) -> None:
        registry = load_registry()
        folder = model_folder.find(given)
        recipe = load(folder / "recipe.resolved.toml", registry=registry)
        self.nest, self.text = model_folder.load(folder, recipe, registry)
        self.diffusion = assemble.diffusion(recipe, registry)
        self.drawing = assemble.drawing(recipe, registry)
        self.resolutions = assemble.resolutions(recipe)
        prompts = list(recipe.sample.prompts)
        self.captions = [prompts[i % len(prompts)] for i in range(count)]

    def draw(self, rule: Any, steps: int, spacing: Any = sampling.uniform_t, seed: int = 0) -> Tensor:
        """The pictures at the highest level, (N, 3, H, W)."""
        drawing = attrs.evolve(self.drawing, rule=rule, steps=steps, spacing=spacing)
        drawn = draw(
            self.nest,
            self.text,
            self.diffusion,
            drawing,
            resolutions=self.resolutions,
            captions=self.captions,
            seed=seed,
            batch=len(self.captions),
        )
        return torch.stack([pyramid[-1] for pyramid in drawn])


def distance(one: Tensor, other: Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


def row(name: str, values: list[float]) -> str:
    return f"{name:22}" + "".join(f"{value:9.4f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[6, 10, 20, 50])
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="some of the rules, by name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_large_buffers()
    model, started = Model(options.model, options.count), time.perf_counter()
    results: dict[str, list[float]] = {}
    print(f"{'evaluations':22}" + "".join(f"{count:9}" for count in options.evaluations))

    def measure(name: str, rule: Any, cost: int, goal: Any, spacing: Any = sampling.uniform_t) -> None:
        if options.only and name not in options.only:
            return
        goal = goal() if callable(goal) else goal
        steps = [max(1, count // cost) for count in options.evaluations]
        results[name] = [distance(model.draw(rule, count, spacing), goal) for count in steps]
        print(row(name, results[name]), flush=True)

    flow = model.draw(sampling.flow_heun, options.long // 2)
    for name, rule, cost in DETERMINISTIC:
        measure(name, rule, cost, flow)
    for spacing in SPACINGS[1:]:
        measure(f"dpmpp_2m {spacing}", sampling.dpmpp_2m, 1, flow, getattr(sampling, spacing))
    for name, rule, cost in STOCHASTIC:
        measure(name, rule, cost, partial(model.draw, rule, options.long // cost))
    apart = distance(model.draw(sampling.flow_heun, 25, seed=10_000), flow)
    print(f"two seeds of a prompt lie {apart:.4f} apart; {time.perf_counter() - started:.0f} s in all")
    facts = {"evaluations": options.evaluations, "results": results, "two_seeds": apart}
    print(json.dumps({**about("rules"), "pictures": options.count, **facts}))


if __name__ == "__main__":
    main()
