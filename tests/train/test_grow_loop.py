"""A stage of growth in the training loop: what learns, how much, when it ends, and where it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from mdmkit.cli.run_stages import StageRun, grown, stage_run
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, dumps, loads
from mdmkit.train.folder import GROW_NOW, RESOLVED
from mdmkit.train.loop import train
from mdmkit.train.parallel import World
from mdmkit.train.plan import trained_parameters
from mdmkit.train.signals import Interrupted
from mdmkit.train.state import Checkpoint, checkpoints, ends_stage, load, next_stage

from . import tiny
from .test_frames import FRAMES

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})
CPU = torch.device("cpu")
GROWING = tiny.RECIPE.replace("steps = 12\nbatch = 8\n", "batch = 8\n").replace(
    'levels = { use = "mixed", shares = [0.5, 0.5] }\n', ""
)


def recipe_of(growth: str, *stages: str, text: str = GROWING, sets: tuple[str, ...] = ()) -> Recipe:
    table = f'\n[growth]\nuse = "{growth}"\nstages = [{", ".join(f"{{ {stage} }}" for stage in stages)}]\n'
    return loads(text + table, sets, registry=REGISTRY)


def go(stage: StageRun, folder: Path, seen: Callable[[int], None] = lambda step: None, **options: Any) -> Any:
    """Train a stage, or go on with it."""
    return train(
        stage.parts,
        stage.plan,
        device=CPU,
        world=World(),
        run_dir=folder,
        resume=stage.resume,
        texts={RESOLVED: dumps(stage.recipe)},
        on_step=lambda step, _: seen(step),
        **options,
    )


def newest(folder: Path) -> Checkpoint:
    return load(checkpoints(folder / "checkpoints")[-1])


def values(stage: StageRun) -> dict[str, Tensor]:
    return {
        name: p.detach().clone()
        for name, p in trained_parameters(stage.parts.nest, stage.parts.text).items()
    }


def begun(recipe: Recipe, folder: Path) -> StageRun:
    """The second stage of a recipe, after the first has been trained."""
    first = stage_run(recipe, REGISTRY, None, device="cpu")
    go(first, folder)
    return grown(recipe, REGISTRY, folder, device="cpu")


def test_while_the_core_is_frozen_only_what_is_new_learns(tmp_path: Path) -> None:
    recipe = recipe_of("freeze_then_thaw", "levels = 1, steps = 2", "levels = 2, steps = 5, freeze = 3")
    stage = begun(recipe, tmp_path)
    at: dict[int, dict[str, Tensor]] = {2: {**values(stage), **newest(tmp_path).tensors["model"]}}
    steps_of: dict[int, set[float]] = {}

    def seen(step: int) -> None:
        at[step] = values(stage)
        state = {id(p): s for p, s in stage.parts.optimizer.state.items()}
        old = [p for n, p in stage.parts.nest.named_parameters() if n not in stage.plan.phase.new]
        steps_of[step] = {float(state[id(p)]["step"]) for p in old}

    go(stage, tmp_path, seen)
    new = stage.plan.phase.new
    assert new
    assert all(name.startswith("levels.1.") for name in new)
    for step in (3, 4, 5, 6, 7):
        moved = {name for name in at[step] if not torch.equal(at[step][name], at[step - 1][name])}
        assert moved & new
        assert bool(moved - new) is (step > 5), step
    # what is held still is not updated at all: its moments and counts stand still too
    assert [steps_of[step] for step in (3, 4, 5, 6, 7)] == [{2.0}, {2.0}, {2.0}, {3.0}, {4.0}]
    assert all(p.requires_grad for p in stage.parts.nest.parameters())


def test_what_its_maker_does_not_train_is_not_thawed(tmp_path: Path) -> None:
    recipe = recipe_of(
        "freeze_then_thaw",
        "levels = 1, steps = 1",
        "levels = 2, steps = 3, freeze = 1",
        text=FRAMES.replace("steps = 12\nbatch = 8\n", "batch = 4\n").replace(
            'levels = { use = "mixed", shares = [0.5, 0.5] }\n', ""
        ),
    )
    stage = begun(recipe, tmp_path)
    before = values(stage)
    go(stage, tmp_path)
    after = values(stage)
    turns = [name for name in after if name.endswith("rotary.freqs")]
    assert turns
    for name in turns:
        assert torch.equal(before[name], after[name]), name
        # too much starts at zero in front of them for a gradient to arrive in three steps
        assert not trained_parameters(stage.parts.nest, None)[name].requires_grad


def test_the_rate_of_what_is_new_rises_by_itself(tmp_path: Path) -> None:
    recipe = recipe_of("staged", "levels = 1, steps = 3", "levels = 2, steps = 6, warmup = 4, lr = 2e-3")
    stage = begun(recipe, tmp_path)
    rates: list[dict[bool, float]] = []
    go(
        stage,
        tmp_path,
        lambda step: rates.append({g["new"]: g["lr"] for g in stage.parts.optimizer.param_groups}),
    )
    # the recipe's own warmup of four steps goes on over the stages
    assert [rate[False] for rate in rates] == pytest.approx([2e-3] * 6)
    assert [rate[True] for rate in rates] == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3])
    mine = {id(p) for g in stage.parts.optimizer.param_groups if g["new"] for p in g["params"]}
    named = trained_parameters(stage.parts.nest, stage.parts.text)
    assert mine == {id(named[name]) for name in stage.plan.phase.new}


FADE = ("levels = 1, steps = 2", "levels = 2, steps = 6, fade = 3")


def test_faded_out_a_step_is_that_of_the_network_before(tmp_path: Path) -> None:
    """G12, at 0: parameters after the step, moments and averages, bit for bit; what is new stands still."""
    recipe = recipe_of("fade_in", *FADE)
    first = stage_run(recipe, REGISTRY, None, device="cpu")
    go(first, tmp_path / "run")
    ended = newest(tmp_path / "run")
    stage = grown(recipe, REGISTRY, tmp_path / "run", device="cpu")
    start = values(stage)
    go(attrs.evolve(stage, plan=attrs.evolve(stage.plan, steps=3)), tmp_path / "grown")

    # the network before, one step on, on the same pictures
    same = attrs.evolve(ended, facts={**ended.facts, "ends_stage": False})
    before = stage_run(recipe, REGISTRY, same, device="cpu")
    before = attrs.evolve(
        before,
        plan=attrs.evolve(before.plan, steps=3),
        parts=attrs.evolve(before.parts, dataset=stage.parts.dataset),
    )
    go(before, tmp_path / "before")
    ours, theirs = (load(tmp_path / n / "checkpoints" / "step-0000003") for n in ("grown", "before"))
    for group in ("model", "ema", "optimizer"):
        for name, value in theirs.tensors[group].items():
            assert torch.equal(ours.tensors[group][name], value), name
    for name in stage.plan.phase.new:
        assert torch.equal(ours.tensors["model"][name], start[name]), name


def test_faded_in_a_step_is_the_plain_one(tmp_path: Path) -> None:
    """G12, at 1; and in between what the new level hands inwards is on its way."""
    recipe = recipe_of("fade_in", *FADE, sets=("train.checkpoint_every=1", "train.keep=9"))
    stage = begun(recipe, tmp_path)
    gains: list[float] = []
    go(stage, tmp_path, lambda step: gains.append(stage.parts.nest.gains[0]))  # type: ignore[arg-type]
    assert gains == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    assert stage.parts.nest.gains == (1.0,)
    halfway = load(tmp_path / "checkpoints" / "step-0000005")
    plain = recipe_of("staged", FADE[0], "levels = 2, steps = 6")
    go(stage_run(plain, REGISTRY, halfway, device="cpu"), tmp_path / "plain")
    ours, theirs = newest(tmp_path), newest(tmp_path / "plain")
    assert ours.step == theirs.step == 8
    for group in ("model", "ema", "optimizer"):
        for name, value in theirs.tensors[group].items():
            assert torch.equal(ours.tensors[group][name], value), name
    # while it is faded in it is not
    early = load(tmp_path / "checkpoints" / "step-0000004")
    go(stage_run(plain, REGISTRY, early, device="cpu"), tmp_path / "early")
    later = newest(tmp_path / "early").tensors["model"]
    assert any(not torch.equal(later[name], value) for name, value in ours.tensors["model"].items())


def test_a_plateau_ends_a_stage_and_what_was_seen_travels(tmp_path: Path) -> None:
    """No loss falls to a hundredth: the first window is the lowest, the second and third are flat."""
    stages = (
        "levels = 1, steps = 20, plateau = { window = 2, patience = 2, drop = 0.99 }",
        "levels = 2, steps = 2",
    )
    recipe = recipe_of("staged", *stages, sets=("train.checkpoint_every=3",))
    events: list[tuple[int, str, dict[str, Any]]] = []
    whole = stage_run(recipe, REGISTRY, None, device="cpu")
    go(whole, tmp_path / "whole", on_event=lambda *event: events.append(event))
    assert events == [(6, "stage_ends", {"stage": 0, "cause": "plateau"})]
    assert newest(tmp_path / "whole").step == 6
    assert newest(tmp_path / "whole").facts["ends_stage"]
    # from the checkpoint in the middle of a window
    middle = load(tmp_path / "whole" / "checkpoints" / "step-0000003")
    assert middle.tensors["parts"].keys() == {"plateau.seen"}
    events.clear()
    go(
        stage_run(recipe, REGISTRY, middle, device="cpu"),
        tmp_path / "resumed",
        on_event=lambda *event: events.append(event),
    )
    assert events == [(6, "stage_ends", {"stage": 0, "cause": "plateau"})]
    ours, theirs = newest(tmp_path / "resumed"), newest(tmp_path / "whole")
    assert ours.facts == theirs.facts
    for group in ("model", "ema", "optimizer", "parts"):
        for name, value in theirs.tensors[group].items():
            assert torch.equal(ours.tensors[group][name], value), name
    # the next stage watches nothing, and takes nothing of it
    stage = grown(recipe, REGISTRY, tmp_path / "whole", device="cpu")
    assert stage.resume is not None
    assert "parts" not in stage.resume.tensors
    go(stage, tmp_path / "whole")
    assert newest(tmp_path / "whole").step == 8


class Counts:
    """A resolution sampler that remembers how often it was asked."""

    def __init__(self, levels: int) -> None:
        self.levels, self.asked = levels, torch.zeros((), dtype=torch.int64)

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        self.asked += 1
        self.steps = [*getattr(self, "steps", []), step]
        return (0.0,) * (self.levels - 1) + (1.0,)

    def state_dict(self) -> dict[str, Tensor]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.asked = state["asked"].clone()


def test_a_resolution_sampler_begins_anew_with_its_stage(tmp_path: Path) -> None:
    recipe = recipe_of("staged", "levels = 1, steps = 2", "levels = 2, steps = 2")

    def counting(stage: StageRun) -> StageRun:
        sampler = Counts(len(stage.parts.resolutions))
        return attrs.evolve(stage, parts=attrs.evolve(stage.parts, resolution_sampler=sampler))

    go(counting(stage_run(recipe, REGISTRY, None, device="cpu")), tmp_path)
    kept = newest(tmp_path).tensors["parts"]["resolution_sampler.asked"]
    assert kept > 0
    stage = counting(grown(recipe, REGISTRY, tmp_path, device="cpu"))
    go(stage, tmp_path)
    assert min(stage.parts.resolution_sampler.steps) == 0, "its steps are those of the stage"
    # and is taken up again inside it
    again = counting(stage_run(recipe, REGISTRY, newest(tmp_path), device="cpu"))
    go(again, tmp_path)
    kept = newest(tmp_path).tensors["parts"]["resolution_sampler.asked"]
    assert again.parts.resolution_sampler.asked == kept


def test_a_decision_to_grow_is_taken_once(tmp_path: Path) -> None:
    """It is written down with its step; a run that is killed before it is taken away does not grow twice."""
    recipe = recipe_of("staged", "levels = 1, steps = 9", "levels = 2, steps = 3", "levels = 2, steps = 1")
    (tmp_path / GROW_NOW).touch()
    events: list[Any] = []
    go(stage_run(recipe, REGISTRY, None, device="cpu"), tmp_path, on_event=lambda *e: events.append(e))
    assert events == [(1, "stage_ends", {"stage": 0, "cause": "asked"})]
    assert not (tmp_path / GROW_NOW).exists()
    (tmp_path / GROW_NOW).write_text("1", encoding="utf-8")  # killed between its checkpoint and this
    stage = grown(recipe, REGISTRY, tmp_path, device="cpu")
    go(stage, tmp_path, on_event=lambda *e: events.append(e))
    assert len(events) == 1
    assert newest(tmp_path).step == 4, "the second stage has its three steps"


def test_a_decision_that_its_checkpoint_never_saw_stands(tmp_path: Path) -> None:
    recipe = recipe_of("staged", "levels = 1, steps = 9", "levels = 2, steps = 3")
    (tmp_path / GROW_NOW).write_text("4", encoding="utf-8")
    go(stage_run(recipe, REGISTRY, None, device="cpu"), tmp_path)
    assert newest(tmp_path).step == 4
    assert newest(tmp_path).facts["ends_stage"]


@pytest.mark.parametrize("when", ["in its last step", "while it is saved"])
def test_a_signal_between_two_stages_is_not_lost(tmp_path: Path, when: str) -> None:
    recipe = recipe_of("staged", "levels = 1, steps = 2", "levels = 2, steps = 2")
    stage = stage_run(recipe, REGISTRY, None, device="cpu")

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def in_step(step: int) -> None:
        if step == 1 and when == "in its last step":  # seen by the next one, which is the last
            stop()

    saving = stop if when == "while it is saved" else lambda: None
    with pytest.raises(Interrupted, match=r"^interrupted at step 2, and saved; go on with --resume"):
        go(stage, tmp_path, in_step, before_checkpoint=saving)
    assert newest(tmp_path).facts["ends_stage"]
    # behind the last stage there is nothing that would not be done
    go(grown(recipe, REGISTRY, tmp_path, device="cpu"), tmp_path, before_checkpoint=stop)
    assert newest(tmp_path).step == 4


def test_the_last_checkpoint_of_a_stage_is_kept_whatever_comes(tmp_path: Path) -> None:
    recipe = recipe_of(
        "staged", "levels = 1, steps = 3", "levels = 2, steps = 6",
        sets=("train.checkpoint_every=1", "train.keep=2"),
    )  # fmt: skip
    go(begun(recipe, tmp_path), tmp_path)
    kept = checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-0000003", "step-0000008", "step-0000009"]
    assert [ends_stage(path) for path in kept] == [True, False, False]


def test_the_next_stage_counts_steps_and_pictures_on(tmp_path: Path) -> None:
    recipe = recipe_of(
        "staged", "levels = 1, steps = 3, batch = 4", "levels = 2, images = 11, batch = 2",
        text=GROWING.replace("batch = 8\n", ""),
    )  # fmt: skip
    stage = begun(recipe, tmp_path)
    assert (stage.plan.steps, stage.plan.batch, stage.plan.phase.pictures) == (9, 2, 12)
    asked: list[int] = []
    dataset = stage.parts.dataset

    class Noted:
        resolution = dataset.resolution

        def sample(self, position: int) -> Any:
            asked.append(position)
            return dataset.sample(position)

    go(attrs.evolve(stage, parts=attrs.evolve(stage.parts, dataset=Noted())), tmp_path)
    assert asked == list(range(12, 24)), "no picture twice, none left out"
    assert next_stage(newest(tmp_path)).facts["pictures_before"] == 24


def test_old_levels_do_not_get_worse_when_a_level_is_grown(tmp_path: Path) -> None:
    """G13: over the first ten steps after growth their loss, on fixed draws, rises by less than a tenth."""
    recipe = recipe_of(
        "staged", "levels = 1, steps = 90", "levels = 2, steps = 10, warmup = 5", "levels = 2, steps = 1",
        sets=("train.optimizer.lr=3e-3", "train.log_every=50", "train.checkpoint_every=1000"),
    )  # fmt: skip
    first = stage_run(recipe, REGISTRY, None, device="cpu")
    before = fixed_loss(first)
    go(first, tmp_path)
    trained = fixed_loss(first)
    assert trained < 0.6 * before, "it has learned something that it could lose"
    stage = grown(recipe, REGISTRY, tmp_path, device="cpu")
    losses: list[float] = []
    go(stage, tmp_path, lambda step: losses.append(fixed_loss(stage)))
    assert len(losses) == 10
    assert max(losses) < 1.1 * trained, (trained, losses)


@torch.no_grad()
def fixed_loss(stage: StageRun) -> float:
    """The loss of the lowest level on the same 32 pictures, noises and times, always."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.as_tensor(stage.parts.dataset.sample(i).image) for i in range(9000, 9032)]
    pictures = torch.stack(found).movedim(-1, 1)
    x = torch.nn.functional.adaptive_avg_pool2d(pictures.float() / 127.5 - 1, 8)
    eps, t = torch.randn(x.shape, generator=generator), torch.linspace(0.02, 0.98, 32)
    assert stage.parts.text is not None
    cond, mask = stage.parts.text([""] * 32)
    return float(stage.parts.objective((x,), (eps,), t, cond=cond, cond_mask=mask).trained)
