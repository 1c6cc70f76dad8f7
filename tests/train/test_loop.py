"""The training loop: what a step does, what it does with a bad one, and what it says."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from mdmkit import assemble
from mdmkit.data import Sample
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.times import LossAwareTime
from mdmkit.train.ema import EMA
from mdmkit.train.loop import train
from mdmkit.train.objective import Losses, row_losses
from mdmkit.train.parallel import World
from mdmkit.train.plan import Parts, Plan, trained_parameters
from mdmkit.train.signals import Interrupted
from mdmkit.train.state import load as load_checkpoint

from . import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny.write_recipe(tmp_path_factory.mktemp("recipe")), [], load_registry())


@pytest.fixture
def parts(recipe: Any) -> Parts:
    return assemble.parts(recipe, load_registry())


class Log:
    """What a training said."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.events: list[tuple[int, str, dict[str, Any]]] = []

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.lines.append({"step": step, **metrics})

    def event(self, step: int, event: str, facts: dict[str, Any]) -> None:
        self.events.append((step, event, facts))


def run(parts: Parts, plan: Plan, folder: Path, log: Log | None = None, **options: Any) -> EMA:
    log = log or Log()
    return train(
        parts, plan, device=CPU, world=World(), run_dir=folder, on_log=log.log, on_event=log.event, **options
    )


def plan(**changes: Any) -> Plan:
    return Plan(**{"steps": 4, "batch": 8, "seed": 3, "log_every": 1, **changes})


def values(parts: Parts) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained_parameters(parts.nest, parts.text).items()}


class Faulty(nn.Module):
    """An objective whose loss is spoilt at some calls."""

    def __init__(self, objective: nn.Module, spoil: dict[int, float]) -> None:
        super().__init__()
        self.objective, self.spoil, self.calls = objective, spoil, 0
        self.diffusion = objective.diffusion

    def forward(self, *args: Any, **given: Any) -> Losses:
        self.calls += 1
        said, by = self.objective(*args, **given), self.spoil.get(self.calls, 1.0)
        return said._replace(trained=said.trained * by, plain=said.plain * by)


def test_a_bad_step_changes_nothing_and_is_counted(parts: Parts, tmp_path: Path) -> None:
    before: dict[int, dict[str, Tensor]] = {}
    log = Log()
    spoilt = attrs.evolve(parts, objective=Faulty(parts.objective, {2: float("nan"), 3: float("inf")}))
    run(spoilt, plan(), tmp_path, log, on_step=lambda step, _: before.update({step: values(parts)}))
    for name in before[1]:
        assert torch.equal(before[1][name], before[3][name]), name
    assert any(not torch.equal(before[3][name], before[4][name]) for name in before[1])
    assert [(step, event, facts["in_row"]) for step, event, facts in log.events] == [
        (2, "bad_step", 1),
        (3, "bad_step", 2),
    ]
    assert [line["bad_steps"] for line in log.lines] == [0, 1, 2, 2]
    assert str(log.lines[1]["loss"]) == "nan"
    assert "loss.0" not in log.lines[1]
    assert all(torch.isfinite(value).all() for value in values(parts).values())


def test_a_gradient_that_is_not_finite_is_a_bad_step_too(parts: Parts, tmp_path: Path) -> None:
    parameter = next(iter(parts.nest.parameters()))
    hook = parameter.register_hook(lambda grad: grad * float("inf"))
    log = Log()
    run(parts, plan(steps=1), tmp_path, log)
    hook.remove()
    assert [(step, event) for step, event, _ in log.events] == [(1, "bad_step")]


def test_too_many_bad_steps_in_a_row_stop_the_run(parts: Parts, tmp_path: Path) -> None:
    nan = float("nan")
    # three in a row never come until calls 6 to 8
    spoilt = attrs.evolve(parts, objective=Faulty(parts.objective, dict.fromkeys((1, 2, 4, 6, 7, 8), nan)))
    with pytest.raises(MdmkitError) as raised:
        run(spoilt, plan(steps=12, max_bad_steps=3), tmp_path)
    assert str(raised.value) == (
        "3 steps in a row had a loss or gradient that is not finite (the last is step 8); "
        "lower train.optimizer.lr or train.clip, or start from an earlier checkpoint"
    )


def test_accumulation_equals_one_big_batch(recipe: Any, tmp_path: Path) -> None:
    results = []
    for accumulate in (1, 4):
        parts = assemble.parts(recipe, load_registry())
        log = Log()
        slow = attrs.evolve(
            parts, optimizer=torch.optim.SGD(trained_parameters(parts.nest, parts.text).values(), lr=0.1)
        )
        run(slow, plan(accumulate=accumulate, clip=None), tmp_path / str(accumulate), log)
        results.append((values(parts), [line["loss"] for line in log.lines]))
    (one, losses), (four, others) = results
    assert others == pytest.approx(losses, rel=1e-5)
    for name in one:
        assert torch.allclose(one[name], four[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("clip", [1e-3, None])
def test_the_gradient_is_clipped_to_its_norm(parts: Parts, tmp_path: Path, clip: float | None) -> None:
    parameters = trained_parameters(parts.nest, parts.text)
    log, before = Log(), values(parts)
    slow = attrs.evolve(parts, optimizer=torch.optim.SGD(parameters.values(), lr=1.0), lr_schedule=Constant())
    run(slow, plan(steps=1, clip=clip), tmp_path, log)
    moved = torch.cat([(parameters[name].detach() - before[name]).flatten() for name in before]).norm().item()
    assert log.lines[0]["grad_norm"] > 1e-2, "the norm that is logged is the one before clipping"
    assert moved == pytest.approx(clip if clip else log.lines[0]["grad_norm"], rel=1e-3)


class Constant:
    def factor(self, step: int) -> float:
        return 1.0


def test_the_average_moves_from_the_first_step_on(parts: Parts, tmp_path: Path) -> None:
    before = values(parts)
    ema = run(parts, plan(steps=1, ema=0.999), tmp_path)
    after = values(parts)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in before:
        assert torch.allclose(ema.averages[name], before[name].lerp(after[name], 0.9), atol=1e-7), name


class EverySecond:
    """The top level takes part in every second step only."""

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return (1.0, 0.0) if step % 2 else (0.5, 0.5)


def test_a_level_counts_only_where_it_takes_part(parts: Parts, tmp_path: Path) -> None:
    one, four = Log(), Log()
    sometimes = attrs.evolve(parts, resolution_sampler=EverySecond())
    seen: list[Tensor] = []
    run(
        sometimes,
        plan(log_every=4),
        tmp_path,
        four,
        on_step=lambda _, said: seen.append(said["loss"].clone()),
    )
    assert [float(loss[1]) > 0 for loss in seen] == [True, False, True, False]
    assert four.lines[0]["loss.1"] == pytest.approx(float(seen[0][1] + seen[2][1]) / 2)
    assert four.lines[0]["loss.0"] == pytest.approx(float(sum(loss[0] for loss in seen)) / 4)
    run(sometimes, plan(steps=2), tmp_path, one)
    assert ["loss.1" in line for line in one.lines] == [True, False]


def test_a_batch_that_does_not_split_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(
        WrongInput, match=r"^train.levels on 1 ranks, in 3 micro-batches: batch=8 is not a multiple of 3"
    ):
        run(parts, plan(accumulate=3), tmp_path)


class Holes:
    """A dataset with some unreadable samples."""

    resolution = (16, 16)

    def __init__(self, dataset: Any, holes: set[int]) -> None:
        self.dataset, self.holes = dataset, holes

    def sample(self, position: int) -> Sample:
        found = self.dataset.sample(position)
        return attrs.evolve(found, skipped=((f"k{position}", "torn"),)) if position in self.holes else found


def test_skipped_samples_are_counted_and_named(parts: Parts, tmp_path: Path) -> None:
    log = Log()
    run(attrs.evolve(parts, dataset=Holes(parts.dataset, {1, 9, 10})), plan(steps=3), tmp_path, log)
    assert [line["skipped"] for line in log.lines] == [1, 3, 3]
    assert [(step, facts["key"], facts["cause"]) for step, event, facts in log.events] == [
        (1, "k1", "torn"),
        (2, "k9", "torn"),
        (2, "k10", "torn"),
    ]
    # and the count goes on where a checkpoint left it
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-0000003")
    run(attrs.evolve(parts, dataset=Holes(parts.dataset, {24})), plan(), tmp_path, log, resume=checkpoint)
    assert log.lines[-1]["skipped"] == 4


def test_cut_captions_are_counted(recipe: Any, tmp_path: Path) -> None:
    parts, log = assemble.parts(recipe, load_registry()), Log()
    run(parts, plan(caption_dropout=0.0), tmp_path, log)
    long = [len(parts.dataset.sample(i).caption) > 23 for i in range(32)]
    assert [line["truncated"] for line in log.lines] == [sum(long[: 8 * step]) for step in (1, 2, 3, 4)]
    assert 0 < sum(long) < 32 or all(long)


def test_what_a_component_refuses_is_one_line_with_the_step(parts: Parts, tmp_path: Path) -> None:
    def refuse(captions: list[str]) -> None:
        raise ValueError("unknown class 'unicorn'")

    parts.text.encode = refuse  # type: ignore[union-attr]
    with pytest.raises(MdmkitError, match=r"^step 1: unknown class 'unicorn'$"):
        run(parts, plan(), tmp_path)


def test_packed_features_and_an_encoder_that_reads_captions_do_not_go_together(recipe: Any) -> None:
    class Packed:
        features = True

    with pytest.raises(WrongInput, match="the data bring text features, but the text encoder reads captions"):
        assemble.hold_empty_features(recipe, assemble.text_encoder(recipe, load_registry()), Packed())


def test_a_second_interrupt_ends_at_once(parts: Parts, tmp_path: Path) -> None:
    def twice(step: int, _: Any) -> None:
        # to this thread, at once: two that wait for a process are one
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # a shell that runs the tests in the background has them ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(parts, plan(), tmp_path, on_step=twice)
        assert not (tmp_path / "checkpoints").exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_saves_what_was_done(parts: Parts, tmp_path: Path) -> None:
    def once(step: int, _: Any) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    log = Log()
    with pytest.raises(
        Interrupted, match=f"^interrupted at step 2, and saved; go on with --resume {tmp_path}$"
    ):
        run(parts, plan(), tmp_path, log, on_step=once)
    stored = load_checkpoint(tmp_path / "checkpoints" / "step-0000002").tensors["model"]
    assert all(torch.equal(stored[name], value) for name, value in values(parts).items())
    assert log.events == [(2, "interrupted", {})]


class Remembers:
    """A time sampler that counts its draws, and decides by them."""

    def __init__(self, times: Any) -> None:
        self.times, self.draws = times, torch.zeros((), dtype=torch.int64)

    def draw(self, *key: Any) -> Tensor:
        self.draws += 1
        return self.times.draw(*key) / self.draws

    def state_dict(self) -> dict[str, Tensor]:
        return {"draws": self.draws}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != {"draws"}:
            raise ValueError(f"expected draws, got {sorted(state)}")
        self.draws = state["draws"].clone()


def test_what_a_part_has_seen_is_in_the_checkpoint(recipe: Any, tmp_path: Path) -> None:
    def fresh() -> Parts:
        parts = assemble.parts(recipe, load_registry())
        return attrs.evolve(parts, time_sampler=Remembers(parts.time_sampler))

    whole, stopped, log = fresh(), fresh(), Log()
    run(whole, plan(), tmp_path / "whole", log)
    run(stopped, plan(steps=2), tmp_path / "stopped")
    checkpoint = load_checkpoint(tmp_path / "stopped" / "checkpoints" / "step-0000002")
    assert {name: int(x) for name, x in checkpoint.tensors["parts"].items()} == {"time_sampler.draws": 2}
    resumed, again = fresh(), Log()
    run(resumed, plan(), tmp_path / "stopped", again, resume=checkpoint)
    assert int(resumed.time_sampler.draws) == 4
    for ours, theirs in zip(again.lines, log.lines[2:], strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])
    # nothing is passed over: neither what nobody takes, nor what nobody gives, nor what does not fit
    plain = assemble.parts(recipe, load_registry())
    with pytest.raises(WrongInput, match="has of the time_sampler, but this run's remembers nothing"):
        run(plain, plan(), tmp_path / "other", resume=checkpoint)
    nothing = attrs.evolve(checkpoint, tensors={**checkpoint.tensors, "parts": {}})
    with pytest.raises(WrongInput, match="has nothing of the time_sampler, but this run's remembers some"):
        run(fresh(), plan(), tmp_path / "other", resume=nothing)
    odd = attrs.evolve(
        checkpoint, tensors={**checkpoint.tensors, "parts": {"time_sampler.odd": torch.ones(1)}}
    )
    with pytest.raises(WrongInput, match=r"does not fit this run's time_sampler: expected draws, got \['odd"):
        run(fresh(), plan(), tmp_path / "other", resume=odd)


def test_parts_that_remember_nothing_leave_no_trace(parts: Parts, tmp_path: Path) -> None:
    run(parts, plan(steps=1), tmp_path)
    assert "parts" not in load_checkpoint(tmp_path / "checkpoints" / "step-0000001").tensors


class Watched(nn.Module):
    """An objective that keeps what it is given, and what it said."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective, self.given, self.said = objective, [], []
        self.diffusion = objective.diffusion

    def forward(self, x: Any, eps: Any, t: Tensor, **given: Any) -> Losses:
        said = self.objective(x, eps, t, **given)
        self.given.append({"t": t, **given})
        self.said.append(said)
        return said


def test_losses_teach_the_times_and_are_weighted_back(parts: Parts, tmp_path: Path) -> None:
    times = LossAwareTime(bins=4, floor=0.5)
    middle = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    times.observe(times.tally(middle, middle**2))
    taught = LossAwareTime(bins=4, floor=0.5)
    taught.load_state_dict(times.state_dict())
    objective = Watched(parts.objective)
    watched = attrs.evolve(parts, objective=Faulty(objective, {2: float("nan")}), time_sampler=times)
    run(watched, plan(steps=3, accumulate=2, level_weights=(1.0, 3.0)), tmp_path)
    for step in range(3):
        seen = torch.zeros(2, 4, dtype=torch.float64)
        for given, said in list(zip(objective.given, objective.said, strict=True))[2 * step : 2 * step + 2]:
            assert torch.equal(given["importance"], taught.importance(given["t"]))
            assert float(given["importance"].std()) > 0
            seen += taught.tally(given["t"], row_losses(said.rows, torch.tensor([1.0, 3.0])))
        if step != 0:  # a bad one teaches nothing
            taught.observe(seen)
    assert all(torch.equal(ours, taught.state_dict()[name]) for name, ours in times.state_dict().items())
