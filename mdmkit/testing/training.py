"""Batteries of what training turns on: optimisers and learning-rate schedules."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from .subject import Subject

__all__ = ["lr_schedule", "optimizer"]


def optimizer(it: Subject) -> None:
    """A few steps lower a quadratic; at lr 0 nothing moves; its state can be saved and goes on the same."""
    lr = it.fields.get("lr")

    def run(steps: int, **changes: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        leaf = nn.Parameter(torch.tensor([3.0, -2.0, 1.0]))
        made = it.build(changes, params=[leaf])
        for _ in range(steps):
            _descend(leaf, made)
        return leaf, made

    start, _ = run(0)
    quick = {} if lr is None else {"lr": max(float(lr), 0.01)}
    end, made = it.attempt("a step", lambda: run(40, **quick))
    it.must(end.isfinite().all(), "40 steps on a quadratic end at NaN or infinity")
    it.must(
        end.square().sum() < start.square().sum(),
        f"40 steps on a quadratic raise it: {_norm(start)} to {_norm(end)}",
    )
    if lr is not None:
        still, _ = run(3, lr=0.0)
        it.must(torch.equal(still, start), "at lr = 0 the parameters move")
    for group in made.param_groups:
        it.must("lr" in group, "a parameter group has no 'lr', which the learning-rate schedule sets")
    other = nn.Parameter(end.detach().clone())
    restored = it.build(quick, params=[other])
    # loading may keep the very tensors that it is given
    restored.load_state_dict(copy.deepcopy(made.state_dict()))
    for leaf, rule in ((end, made), (other, restored)):
        _descend(leaf, rule)
    it.must(torch.equal(end, other), "a step after loading the saved state differs from the step without")


def _descend(leaf: nn.Parameter, rule: torch.optim.Optimizer) -> None:
    rule.zero_grad()
    leaf.square().sum().backward()
    rule.step()


def _norm(leaf: Tensor) -> str:
    return f"{float(leaf.detach().square().sum()):.4g}"


def lr_schedule(it: Subject) -> None:
    """The factor is finite, in [0, 1], positive at the first step, and a function of the step."""
    schedule = it.build()
    for step in (0, 1, 2, 9, 99, 999, 100_000, 10_000_000, 0):
        factor = it.attempt(f"factor({step})", lambda: schedule.factor(step))  # noqa: B023
        it.must(math.isfinite(factor) and 0 <= factor <= 1, f"factor({step}) is {factor}, expected 0 .. 1")
        it.must(factor == schedule.factor(step), f"factor({step}) differs the second time")
    it.must(schedule.factor(0) > 0, "factor(0) is 0: the first step would change nothing")
