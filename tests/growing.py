"""Random nests that grow: recipes of them, and a whole training state on both sides of a growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mdmkit import assemble
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, loads
from mdmkit.recipe.stages import growth_of, stage_recipe
from mdmkit.train.ema import EMA
from mdmkit.train.optim import named_state
from mdmkit.train.plan import trained_parameters
from mdmkit.train.state import Checkpoint, grow, next_stage, restore

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})
SPACES = ("eps", "v", "flow", "x0")
TEXT = """
[text]
use = "bytes"
width = 8
layers = 1
heads = 2
max_tokens = 12
"""
LEVEL = """
[[model.levels]]
resolution = [{height}, {width}]
channels = {channels}
strides = {strides}
blocks = {blocks}
attention = {attention}
heads = 2
norm_groups = {groups}
extra_blocks = {extra}
{more}
"""
RECIPE = """
format = 1

[run]
seed = {seed}
device = "cpu"

[data]
use = "shapes"
objects = [1, 1]
{text}
[diffusion]
prediction = "{prediction}"
loss_space = "{loss_space}"
shift_power = {shift}
signal_scale_power = {scale_power}
{levels}
[train]
optimizer = {{ use = "adamw", lr = 1e-3 }}
lr_schedule = {{ use = "warmup", steps = 0 }}
batch = 4
caption_dropout = 0.0
log_every = 1

[growth]
use = "{growth}"
stages = [{stages}]
"""


@st.composite
def recipes(
    draw: st.DrawFn,
    growth: str = "staged",
    *,
    levels: int | None = None,
    predictions: tuple[str, ...] = SPACES,
    stage: str = "",
) -> Recipe:
    """A recipe of 2 or 3 levels that come one by one; sides, ratios, widths, text and prediction vary.

    `stage` is put into every stage but the first. Net2wider begins with half the channels, deepen and stack
    without extra blocks, and they are whole from the second stage on.
    """
    count = levels or draw(st.integers(2, 3), label="levels")
    height, width = draw(st.sampled_from([(4, 4), (4, 2), (2, 4)]), label="sides")
    made = []
    for r in range(count):
        strides = draw(st.sampled_from([(2, 2), (1, 2), (2, 1)] if r == 0 else [(2, 2), (2, 1), (3, 2)]))
        if r:
            height, width = height * strides[0], width * strides[1]
        groups = draw(st.sampled_from([1, 2]), label="norm_groups")
        made.append(
            LEVEL.format(
                height=height,
                width=width,
                channels=[8 * draw(st.integers(1, 2)), 8 * draw(st.integers(1, 2))],
                strides=[list(strides)],
                attention=draw(st.sampled_from([[0, 1], [0, 0], [1, 0]])),
                groups=groups,
                blocks=2 if growth == "stack" else 1,  # stacking copies the second of two
                extra=draw(st.integers(1, 2)) if growth in ("deepen", "stack") else draw(st.integers(0, 1)),
                more="" if r == 0 or not draw(st.booleans()) else "normalize_input = true\n",
            )
        )
    first = {"net2wider": ", narrower = 2", "deepen": ", extra_blocks = 0", "stack": ", extra_blocks = 0"}
    stages = [f"{{ levels = 1, steps = 3{first.get(growth, '')} }}"]
    stages += [f"{{ levels = {r}, steps = 4{stage} }}" for r in range(2, count + 1)]
    text = RECIPE.format(
        seed=draw(st.integers(0, 99), label="seed"),
        text=TEXT if draw(st.booleans(), label="text") else "",
        prediction=draw(st.sampled_from(predictions), label="prediction"),
        loss_space=draw(st.sampled_from(["eps", "v"])),
        shift=draw(st.sampled_from([0.0, 1.0, 2.0])),
        scale_power=draw(st.sampled_from([0.0, 1.0])),
        levels="".join(made),
        growth=growth,
        stages=", ".join(stages),
    )
    return loads(text, registry=REGISTRY)


@attrs.define
class State:
    """A training state: networks, their averages, the optimiser."""

    recipe: Recipe
    nest: nn.Module
    text: nn.Module | None
    ema: EMA
    optimizer: torch.optim.Optimizer

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return trained_parameters(self.nest, self.text)

    def checkpoint(self, *, stage: int, step: int) -> Checkpoint:
        """As it would be written at the end of a stage."""
        facts = {"stage": stage, "step": step, "pictures": 4 * step, "ema": dict(self.ema.updates)}
        facts |= {"ends_stage": True, "first": 0, "pictures_before": 0, "sums": [0.0], "taken": [0]}
        tensors = {
            "model": {name: p.detach().clone() for name, p in self.parameters.items()},
            "ema": {name: a.clone() for name, a in self.ema.averages.items()},
            "optimizer": {
                name: x.clone() for name, x in named_state(self.optimizer, self.parameters.items()).items()
            },
        }
        return Checkpoint(Path("checkpoint"), facts, tensors)


def fresh(recipe: Recipe, index: int, *, dtype: torch.dtype = torch.float64) -> State:
    """The state of a stage as it is made; its fresh parameters do not depend on the stages before."""
    here = stage_recipe(recipe, REGISTRY, index)
    torch.manual_seed(recipe.run.seed)
    nest = assemble.nest(here, REGISTRY, dtype=dtype)
    text = assemble.text_encoder(here, REGISTRY, dtype=dtype)
    parameters = trained_parameters(nest, text)
    ema = EMA(parameters, decay=0.9)
    return State(here, nest, text, ema, assemble.optimizer(here, REGISTRY, list(parameters.items())))


def stirred(state: State, seed: int, updates: int = 2) -> State:
    """Nothing in it is zero by construction, and it has been updated a few times, with random gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=p.dtype)

    with torch.no_grad():
        for p in state.parameters.values():
            p.copy_(0.3 * random(p) + (p.ndim == 1))
    for _ in range(updates):
        for p in state.parameters.values():
            p.grad = 0.1 * random(p)
        state.optimizer.step()
        state.ema.update()
    state.optimizer.zero_grad()
    return state


def grown(recipe: Recipe, before: State, index: int) -> State:
    """What stage `index` begins with, from the state at the end of the stage before."""
    after = fresh(recipe, index, dtype=next(before.nest.parameters()).dtype)
    parameters = after.parameters
    ended = before.checkpoint(stage=index - 1, step=3)
    shapes = {name: p.shape for name, p in parameters.items()}
    begun = grow(next_stage(ended), shapes, growth_of(recipe, REGISTRY).carry)
    new = frozenset(parameters.keys() - before.parameters.keys())
    restore(begun, parameters, after.ema, after.optimizer, new=new)
    return after


def told(recipe: Recipe, seed: int = 0, rows: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A noisy pyramid of all levels of a recipe, times, and captions."""
    generator = torch.Generator().manual_seed(seed)
    z = [
        torch.randn(rows, 3, *size, generator=generator, dtype=dtype) for size in assemble.resolutions(recipe)
    ]
    return {"z": tuple(z), "t": torch.rand(rows, generator=generator, dtype=dtype)}


def says(state: State, z: tuple[Tensor, ...], t: Tensor, *, averaged: bool = False) -> tuple[Tensor, ...]:
    """What a state predicts, with its averages where told so."""
    with torch.no_grad():
        if averaged:
            with state.ema.swap():
                return says(state, z, t)
        cond = mask = None
        if state.text is not None:
            cond, mask = state.text(["a red star", "", "two", "x"][: len(t)])
        return state.nest(z[: len(state.nest.levels)], t, cond, mask)  # type: ignore[arg-type]
