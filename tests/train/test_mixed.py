"""Batches whose rows stop at different levels: nothing depends on who else is there, nothing is biased."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit import assemble
from mdmkit.diffusion import Diffusion
from mdmkit.nn import NestedUNet
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.resolutions import Stochastic, level_factors
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.targets import SPACES, mse
from mdmkit.testing.strategies import pyramid_of, ratios, seeds
from mdmkit.train.loop import train
from mdmkit.train.objective import Objective
from mdmkit.train.parallel import World
from mdmkit.train.plan import trained_parameters
from mdmkit.weighting import MinSNR, Uniform
from tests.nn.nests import core, first, shell, stir, told

from . import tiny

CPU = torch.device("cpu")
ROWS = 3


@attrs.frozen
class Case:
    """A nest with random parameters, and a batch whose rows all reach its top."""

    sizes: tuple[tuple[int, int], ...]
    widths: tuple[tuple[int, ...], ...]
    nest: NestedUNet = attrs.field(repr=False)
    objective: Objective = attrs.field(repr=False)
    x: tuple[Tensor, ...] = attrs.field(repr=False)
    eps: tuple[Tensor, ...] = attrs.field(repr=False)
    told: dict[str, Any] = attrs.field(repr=False)

    def losses(self, rows: Sequence[int], order: Sequence[int] = range(ROWS)) -> Tensor:
        """By level, of the batch in this order, where the first `rows[r]` rows reach level r."""
        place = torch.tensor(list(order))
        x, eps = (
            tuple(level[place][:count] for level, count in zip(pyramid, rows, strict=False))
            for pyramid in (self.x, self.eps)
        )
        moved = first(self.told, place)
        return self.objective(x, eps, **moved).trained

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        named = dict(self.nest.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {
            name: torch.zeros_like(named[name]) if grad is None else grad
            for name, grad in zip(named, found, strict=True)
        }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Nests of one to three levels, any ratio per axis, several widths, with and without text."""
    seed, levels = draw(seeds()), draw(st.integers(1, 3))
    text, widths = draw(st.booleans()), st.sampled_from((8, 12, 16))
    sizes = [(draw(st.sampled_from((2, 4))), draw(st.sampled_from((2, 4))))]
    torch.manual_seed(seed)
    parts: list[Any] = [core(channels=(draw(widths), 8), **({} if text else {"cond_dim": None}))]
    for _ in range(1, levels):
        down, across = draw(ratios(3 if levels < 3 else 2))
        sizes.append((sizes[-1][0] * down, sizes[-1][1] * across))
        parts.append(shell(parts[-1], channels=(draw(widths),) * 2, strides=[(down, across)]))
    nest = NestedUNet(parts[0], parts[1:])
    stir(nest, seed % 2**31)
    process = Diffusion(shift_levels(Cosine(), sizes, shift_power=draw(st.sampled_from((1.0, 2.0)))), "v")
    objective = Objective(
        nest,
        None,
        diffusion=process,
        loss_space=draw(st.sampled_from(SPACES)),
        pixel_loss=mse,
        weighting=draw(st.sampled_from((Uniform(), MinSNR()))),
    )
    given_ = told(ROWS, seed % 2**31)
    given_["t"] = 0.02 + 0.96 * given_["t"]
    if not text:
        given_ = {key: value for key, value in given_.items() if not key.startswith("cond")}
    x, eps = (pyramid_of(tuple(sizes), seed=seed + i, batch=ROWS) for i in range(2))
    return Case(tuple(sizes), tuple(part.channels for part in parts), nest, objective, x, eps, given_)


counts = st.lists(st.integers(1, ROWS), min_size=2, max_size=2).map(
    lambda outer: (ROWS, *sorted(outer, reverse=True))
)


@settings(max_examples=15)
@given(case=cases(), rows=counts)
def test_a_row_in_a_mixed_batch_is_what_it_is_alone(case: Case, rows: tuple[int, ...]):
    rows = rows[: len(case.sizes)]
    z = case.objective.diffusion.noisy(
        tuple(x[:count] for x, count in zip(case.x, rows, strict=True)),
        tuple(e[:count] for e, count in zip(case.eps, rows, strict=True)),
        case.told["t"],
    )
    together = case.nest(z, **case.told)
    for row in range(ROWS):
        own = [level[row : row + 1] for level in z if row < len(level)]
        alone = case.nest(own, **first(case.told, slice(row, row + 1)))
        for level, prediction in enumerate(alone):
            torch.testing.assert_close(together[level][row : row + 1], prediction, rtol=1e-9, atol=1e-9)


def expected(case: Case, shares: Sequence[float]) -> Tensor:
    """Each level's loss of the whole batch, in the mean over how far the rows that reach it go."""
    means = []
    for level in range(len(case.sizes)):
        beyond = [
            (share, case.losses((ROWS,) * (top + 1))[level])
            for top, share in enumerate(shares)
            if top >= level and share
        ]
        means.append(sum(share * loss for share, loss in beyond) / sum(share for share, _ in beyond))
    return torch.stack(means)


@settings(max_examples=10)
@given(case=cases(), rows=counts)
def test_a_mixed_batch_has_the_loss_and_gradient_of_the_whole(case: Case, rows: tuple[int, ...]):
    rows = rows[: len(case.sizes)]
    # every row once at every place: the exact mean over which rows reach which level
    orders = [[(i + turn) % ROWS for i in range(ROWS)] for turn in range(ROWS)]
    drawn = torch.stack([case.losses(rows, order) for order in orders]).mean(0)
    shares = [(here - above) / ROWS for here, above in zip(rows, (*rows[1:], 0), strict=True)]
    whole = expected(case, shares)
    torch.testing.assert_close(drawn, whole, rtol=1e-9, atol=1e-12)
    ours, theirs = case.gradients(drawn.sum()), case.gradients(whole.sum())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-9)


@settings(max_examples=10)
@given(case=cases(), weights=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_stochastic_steps_have_the_loss_of_a_mixed_batch_in_the_mean(case: Case, weights: list[int]):
    levels = len(case.sizes)
    shares = [weight / sum(weights[:levels]) for weight in weights[:levels]]
    sampler = Stochastic(shares, levels=levels)
    total = torch.zeros((), dtype=torch.float64)
    for top, share in enumerate(shares):
        rows = (ROWS,) * (top + 1)
        factors = torch.tensor(level_factors(sampler, rows), dtype=torch.float64)
        total = total + share * (factors * case.losses(rows)).sum()
    torch.testing.assert_close(total, expected(case, shares).sum(), rtol=1e-9, atol=1e-12)


DECAY = tiny.RECIPE.replace("lr = 1e-3", "lr = 1e-3, weight_decay = 0.1")
SOMETIMES = DECAY.replace('"mixed", shares', '"stochastic", probabilities').replace("steps = 12", "steps = 6")


def tops(seed: int = 3, steps: int = 6) -> list[int]:
    """The level at which each step of SOMETIMES stops."""
    sampler = Stochastic((0.5, 0.5), levels=2)
    return [sampler.shares(seed, step).index(1.0) for step in range(steps)]


def test_a_step_that_stops_below_a_level_leaves_that_level_alone(tmp_path: Path) -> None:
    recipe = load(tiny.write_recipe(tmp_path, SOMETIMES), [], load_registry())
    parts = assemble.parts(recipe, load_registry())
    named = trained_parameters(parts.nest, parts.text)
    seen = [{name: p.detach().clone() for name, p in named.items()}]
    train(
        parts,
        attrs.evolve(assemble.plan(recipe), log_every=1),
        device=CPU,
        world=World(),
        run_dir=tmp_path,
        on_step=lambda step, said: seen.append({name: p.detach().clone() for name, p in named.items()}),
    )
    assert set(tops()) == {0, 1}
    assert tops().index(1) < 4, "a step without the shell must follow one with it: momentum is at hand"
    for top, before, after in zip(tops(), seen, seen[1:], strict=False):
        shell = [name for name in named if name.startswith("levels.1.")]
        assert all(torch.equal(before[name], after[name]) for name in shell) == (top == 0)
        # weight decay moves every matrix of what is trained
        moved = [name for name in named if named[name].ndim > 1 and name not in shell]
        assert all(not torch.equal(before[name], after[name]) for name in moved if before[name].any())


def test_steps_that_stop_at_different_levels_are_the_same_on_two_ranks(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, SOMETIMES)
    runs = {ranks: tmp_path / f"on-{ranks}" for ranks in (1, 2)}
    done_by = {1: tiny.here("run", recipe, "--out", runs[1])}
    done_by[2] = tiny.mdmkit("run", recipe, "--out", runs[2], ranks=2)
    for done in done_by.values():
        assert done.code == 0, done.err
        assert "Warning" not in done.err
    one, two = (tiny.numbers(run) for run in runs.values())
    for line, other, top in zip(one, two, tops(), strict=True):
        assert ("loss.1" in line) == ("loss.1" in other) == (top == 1)
        for key in ("loss", "loss.0", *(["loss.1"] if top else [])):
            assert line[key] == pytest.approx(other[key], rel=2e-4)
    ours, theirs = (tiny.tensors(run, 6) for run in runs.values())
    assert ours.keys() == theirs.keys()
    steps = {name: value for name, value in theirs.items() if name.startswith("optimizer:step/")}
    assert {int(value) for name, value in steps.items() if "/levels.1." in name} == {sum(tops())}
    assert {int(value) for name, value in steps.items() if "/levels.0.conv_in" in name} <= {6}
    for name, value in ours.items():
        if name.startswith(("model:", "optimizer:step/")):
            assert (value - theirs[name]).abs().max() < 2e-3, name
