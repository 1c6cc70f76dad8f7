"""What must hold when a network grows: the whole state, over random nests and strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit import assemble, model_folder, start
from mdmkit.recipe import Recipe, loads
from mdmkit.recipe.stages import growth_of
from mdmkit.sampling import Denoiser, ddim, sample_pyramid
from mdmkit.train.draws import draw_noise, micro_batches
from mdmkit.train.objective import Objective
from mdmkit.train.plan import trained_parameters
from tests.growing import REGISTRY, State, fresh, grown, recipes, says, stirred, told

CARRIES = ("staged", "deepen", "net2wider")  # the others carry as staged does
EXACT = {name: name != "net2wider" for name in CARRIES}
seeds = st.integers(0, 999)


def same(ours: Tensor, theirs: Tensor, *, exact: bool) -> None:
    if exact:
        assert torch.equal(ours, theirs)
    else:
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("growth", CARRIES)
@settings(max_examples=4)
@given(data=st.data(), seed=seeds)
def test_old_levels_predict_what_they_did_whatever_the_new_ones_see(growth: str, data: Any, seed: int):
    """G1 and G2, for live and for averaged weights, growth after growth."""
    recipe = data.draw(recipes(growth))
    before = stirred(fresh(recipe, 0), seed)
    for index in range(1, len(recipe.model.levels)):
        after = grown(recipe, before, index)
        shown = told(after.recipe, seed)
        for averaged in (False, True):
            old, new = says(before, **shown, averaged=averaged), says(after, **shown, averaged=averaged)
            for ours, theirs in zip(new, old, strict=False):
                same(ours, theirs, exact=EXACT[growth])
            heads_are_silent(after.recipe, new, len(old))
        before = stirred(after, seed + index)


def heads_are_silent(recipe: Recipe, said: tuple[Tensor, ...], old: int) -> None:
    """A new head says 0; where it says x0, the picture inside at its own scale."""
    for r in range(old, len(said)):
        if recipe.diffusion.prediction != "x0":
            assert not said[r].any()
            continue
        inside, sides = said[r - 1], assemble.resolutions(recipe)
        up = inside.repeat_interleave(sides[r][0] // sides[r - 1][0], -2)
        up = up.repeat_interleave(sides[r][1] // sides[r - 1][1], -1)
        scales = assemble.diffusion(recipe, REGISTRY).scales or (1.0,) * len(said)
        assert torch.allclose(said[r], scales[r] / scales[r - 1] * up, rtol=1e-12, atol=1e-12)


@settings(max_examples=3)
@given(recipe=recipes("stack", levels=2), seed=seeds)
def test_stacking_keeps_what_it_promises(recipe: Recipe, seed: int):
    """Every old parameter and moment as it was, nothing lost; but another function."""
    assert not growth_of(recipe, REGISTRY).preserves
    before = stirred(fresh(recipe, 0), seed)
    after = grown(recipe, before, 1)
    for name, p in before.parameters.items():
        assert torch.equal(after.parameters[name], p)
    shown = told(after.recipe, seed)
    assert not torch.equal(says(before, **shown)[0], says(after, **shown)[0])
    copied = [name for name in after.parameters if name not in before.parameters and "levels.0" in name]
    assert copied
    for name in copied:
        assert after.parameters[name].any(), name
        assert after.ema.updates[name] == 0


def objective_of(state: State) -> Objective:
    diffusion = assemble.diffusion(state.recipe, REGISTRY)
    return Objective(
        state.nest,
        None,
        diffusion=diffusion,
        loss_space=state.recipe.diffusion.loss_space,
        pixel_loss=assemble.loss(state.recipe, REGISTRY),
        weighting=assemble.weighting(state.recipe, REGISTRY),
    )


@pytest.mark.parametrize("growth", CARRIES)
@settings(max_examples=3)
@given(data=st.data(), seed=seeds)
def test_losses_noise_and_levels_of_noise_of_old_levels_stay(growth: str, data: Any, seed: int):
    """G3, G4 and G5: terms of the loss, what is drawn, and what the draws are scaled by."""
    recipe = data.draw(recipes(growth))
    before = stirred(fresh(recipe, 0), seed)
    after = grown(recipe, before, 1)
    (old, new), (few, many) = (
        zip(*((objective_of(s), len(s.nest.levels)) for s in (before, after)), strict=True)  # type: ignore[arg-type]
    )
    times = torch.linspace(0, 1, 33, dtype=torch.float64)
    for r in range(few):
        assert torch.equal(old.diffusion.logsnr(times, r), new.diffusion.logsnr(times, r))
        for ours, theirs in zip(
            new.diffusion.alpha_sigma(times, r), old.diffusion.alpha_sigma(times, r), strict=True
        ):
            assert torch.equal(ours, theirs)
        micros = [s.nest.levels[r].micro_conditioning for s in (before, after)]  # type: ignore[union-attr]
        assert micros[0] == micros[1]
    draws: list[tuple[Tensor, ...]] = []
    for state, count in ((before, few), (after, many)):
        (rows,) = micro_batches((4,) * count, rank=0, ranks=1, accumulate=1)
        sizes = assemble.resolutions(state.recipe)
        draws.append(draw_noise(rows, sizes, seed=seed, step=3, device="cpu", dtype=torch.float64))
    for ours, theirs in zip(draws[1], draws[0], strict=False):
        assert torch.equal(ours, theirs)
    t = [assemble.time_sampler(s.recipe, REGISTRY).draw(seed, 3, [0, 1, 2, 3], 4) for s in (before, after)]
    assert torch.equal(*t)
    x = told(after.recipe, seed + 1, rows=4)["z"]
    cond: dict[str, Any] = {}
    if before.text is not None:
        said = before.text(["a red star", "", "two", "x"])
        cond = {"cond": said[0].detach(), "cond_mask": said[1]}
    with torch.no_grad():
        ours, theirs = new(x, draws[1], t[0].double(), **cond), old(x[:few], draws[0], t[0].double(), **cond)
    same(ours.trained[:few], theirs.trained, exact=EXACT[growth])


@pytest.mark.parametrize("growth", [*CARRIES, "stack"])
@settings(max_examples=3)
@given(data=st.data(), seed=seeds)
def test_moments_counts_and_averages_go_by_name(growth: str, data: Any, seed: int):
    """G7 and G8: what was there keeps its own; what is new has none yet, and counts from 0."""
    recipe = data.draw(recipes(growth, levels=2))
    before = stirred(fresh(recipe, 0), seed, updates=3)
    after = grown(recipe, before, 1)
    old = before.parameters
    for name, p in after.parameters.items():
        kept = after.optimizer.state.get(p, {})
        if name not in old:
            assert not kept, name
            assert after.ema.updates[name] == 0
            if growth != "stack" or name.startswith("levels.1"):
                assert torch.equal(after.ema.averages[name], p), "it starts at the live value"
            continue
        was = before.optimizer.state[old[name]]
        assert float(kept["step"]) == float(was["step"]) == 3
        assert after.ema.updates[name] == 3
        for key in ("exp_avg", "exp_avg_sq"):
            assert kept[key].shape == p.shape
            if p.shape == old[name].shape:
                assert torch.equal(kept[key], was[key])
        if p.shape == old[name].shape:
            assert torch.equal(after.ema.averages[name], before.ema.averages[name])
    # an update after: old ones count on, new ones begin
    for p in after.parameters.values():
        p.grad = torch.ones_like(p)
    after.optimizer.step()
    after.ema.update()
    for name, p in after.parameters.items():
        count = 4 if name in old else 1
        assert float(after.optimizer.state[p]["step"]) == count
        assert after.ema.updates[name] == count


@pytest.mark.parametrize("growth", CARRIES)
@settings(max_examples=3)
@given(data=st.data(), seed=seeds)
def test_no_branch_is_dead(growth: str, data: Any, seed: int):
    """G6: within four updates every new parameter has had a gradient, through all that starts at zero."""
    recipe = data.draw(recipes(growth, levels=2))
    before = stirred(fresh(recipe, 0), seed)
    after = grown(recipe, before, 1)
    had: set[str] = set()
    objective = objective_of(after)
    for step in range(4):
        x, eps = (told(after.recipe, seed + step + k, rows=4)["z"] for k in (0, 50))
        cond: dict[str, Any] = {}
        if after.text is not None:
            said = after.text(["a red star", "", "two", "x"])
            cond = {"cond": said[0], "cond_mask": said[1]}
        t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
        objective(x, eps, t, **cond).trained.sum().backward()
        had |= {name for name, p in after.parameters.items() if p.grad is not None and p.grad.any()}
        after.optimizer.step()
        after.optimizer.zero_grad()
    new = after.parameters.keys() - before.parameters.keys()
    assert new
    assert sorted(new - had) == []


@pytest.mark.parametrize("growth", ["staged", "deepen"])
@settings(max_examples=3)
@given(data=st.data(), seed=seeds)
def test_what_was_grown_can_be_cut_back(growth: str, data: Any, seed: int, tmp_path_factory: Any):
    """G9: shrink(grow(m)) is m, and m is the inside of grow(m); also over several stages."""
    recipe = data.draw(recipes(growth))
    folder: Path = tmp_path_factory.mktemp("models")
    states = [stirred(fresh(recipe, 0), seed)]
    for index in range(1, len(recipe.model.levels)):
        states.append(grown(recipe, states[-1], index))
    for big, state in enumerate(states):
        own = {name: p.detach() for name, p in state.parameters.items()}
        model_folder.write(folder / str(big), state.recipe, own, {})
    for big in range(len(states)):
        for small in range(len(states)):
            if growth == "deepen" and (big == 0) != (small == 0):
                continue  # the first stage is shallower: another network, and refused as such
            into = states[small].recipe
            found = start.find(into, REGISTRY, str(folder / str(big)))
            parameters = trained_parameters(
                assemble.nest(into, REGISTRY, dtype=torch.float64),
                assemble.text_encoder(into, REGISTRY, dtype=torch.float64),
            )
            with torch.no_grad():
                found.copy_into(parameters)
            shared = min(big, small)
            for name, p in states[shared].parameters.items():
                assert torch.equal(parameters[name], p), name
            if small <= big:
                assert parameters.keys() == states[small].parameters.keys()


@settings(max_examples=3)
@given(recipe=recipes("staged"), seed=seeds)
def test_a_row_says_the_same_whatever_stands_around_it(recipe: Recipe, seed: int):
    """G10: rows that stop at an inner level predict there as alone."""
    states = [stirred(fresh(recipe, 0), seed)]
    after = stirred(grown(recipe, states[0], 1), seed + 1)
    shown = told(after.recipe, seed, rows=4)
    z, t = shown["z"], shown["t"]
    cond: dict[str, Any] = {}
    if after.text is not None:
        said = after.text(["a red star", "", "two", "x"])
        cond = {"cond": said[0], "cond_mask": said[1]}
    with torch.no_grad():
        mixed = after.nest((z[0], z[1][:2]), t, **cond)
        alone = after.nest((z[0][2:],), t[2:], **{key: value[2:] for key, value in cond.items()})
        whole = after.nest((z[0][:2], z[1][:2]), t[:2], **{key: value[:2] for key, value in cond.items()})
    for ours, theirs in (
        (mixed[0][2:], alone[0]), (mixed[0][:2], whole[0]), (mixed[1], whole[1]),
    ):  # fmt: skip
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def sampled(state: State, levels: int, seed: int) -> list[Tensor]:
    """Every prediction on the way of a sampler, and the pictures."""
    diffusion = assemble.diffusion(state.recipe, REGISTRY)
    cond: dict[str, Any] = {}
    if state.text is not None:
        with torch.no_grad():
            said = state.text(["a red star", ""])
            cond = {"cond": said[0], "cond_mask": said[1]}
    seen: list[Tensor] = []
    with torch.no_grad():
        pictures = sample_pyramid(
            Denoiser(state.nest, diffusion, **cond),
            diffusion,
            shapes=[(3, *size) for size in assemble.resolutions(state.recipe)],
            seeds=[seed, seed + 1],
            rule=ddim,
            steps=3,
            levels=levels,
            dtype=torch.float64,
            callback=lambda step, at, denoised: seen.extend(denoised.x0),
        )
    return [*seen, *pictures]


@pytest.mark.parametrize("growth", CARRIES)
@settings(max_examples=3)
@given(data=st.data(), seed=seeds)
def test_cut_to_its_old_levels_it_repeats_the_old_sampler(growth: str, data: Any, seed: int):
    """G11, prediction by prediction; also where all its levels run, as new ones change nothing inside."""
    recipe = data.draw(recipes(growth))
    before = stirred(fresh(recipe, 0), seed)
    after = grown(recipe, before, 1)
    theirs, ours = sampled(before, 1, seed), sampled(after, 1, seed)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, exact=EXACT[growth])
    both = sampled(after, 2, seed)
    for a, b in zip(both[::2], theirs, strict=True):
        same(a, b, exact=EXACT[growth])


GRID = """
format = 1
[run]
device = "cpu"
[data]
use = "shapes"
[diffusion]
prediction = "{prediction}"
[[model.levels]]
resolution = 4
channels = [8, 8]
blocks = 1
norm_groups = 4
heads = 2
[[model.levels]]
resolution = 8
layout = "grid"
frames = 4
strides = [[2, 1, 1], [2, 1, 1]]
temporal_attention = 1
rotary = true
channels = [32, 32, 32]
blocks = 1
norm_groups = 4
[train]
batch = 4
[growth]
use = "{growth}"
stages = [{{ levels = 1, steps = 2 }}, {{ levels = 2, steps = 2 }}]
"""


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("growth", ["staged", "fade_in"])
def test_frames_may_be_what_is_grown(growth: str, prediction: str):
    """A picture model gains a level that is a grid of frames: the same on its picture."""
    recipe = loads(GRID.format(growth=growth, prediction=prediction), registry=REGISTRY)
    before = stirred(fresh(recipe, 0), 1)
    after = grown(recipe, before, 1)
    shown = told(after.recipe, 2)
    old, new = says(before, **shown), says(after, **shown)
    assert torch.equal(new[0], old[0])
    assert not new[1].any()
    for a, b in zip(sampled(after, 1, 5), sampled(before, 1, 5), strict=True):
        assert torch.equal(a, b)
