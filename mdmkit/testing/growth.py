"""The battery of growth strategies: stages, and what a network that grows says right afterwards."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from mdmkit.builtin.nn import UNetCore as CoreSettings
from mdmkit.builtin.nn import UNetShell as ShellSettings
from mdmkit.growth import apart
from mdmkit.nn import NestedUNet, UNetCore, UNetShell

from .nets import _distance, _draw, _stir
from .subject import Subject

__all__ = ["growth"]

LEVELS = 3
SETTINGS: dict[str, Any] = {
    "channels": (32, 64),
    "blocks": 2,
    "norm_groups": 4,
    "heads": 4,
    "extra_blocks": 1,
}
COND_DIM = 24


def growth(it: Subject) -> None:
    """Levels never fall and end whole; a stage's network is a part of the next; who preserves, preserves.

    All that a network has is carried into the next one, but where stages are `apart`: then nothing is.

    The networks are small U-Nets whose settings have `channels`, `emb_dim` and `extra_blocks`.
    """
    strategy = it.build(levels=LEVELS)
    it.must(isinstance(getattr(strategy, "preserves", None), bool), "must say `preserves`, True or False")
    it.must(
        not (strategy.preserves and apart(strategy)),
        "says that it preserves and that its stages are `apart`: one of the two is not so",
    )
    stages = tuple(strategy.stages)
    it.must(stages, "has no stage")
    levels = [stage.levels for stage in stages]
    most = int(it.context.get("levels", LEVELS))
    it.must(
        all(1 <= count <= most for count in levels), f"has stages of {levels} levels, of {most} there are"
    )
    it.must(levels == sorted(levels), f"lowers levels: its stages have {levels}")
    it.must(levels[-1] == most, f"ends with {levels[-1]} of {most} levels")
    it.must(tuple(it.build(levels=LEVELS).stages) == stages, "has other stages when it is built again")
    whole = [strategy.network(given, len(stages) - 1, r) for r, given in enumerate(_settings(most))]
    it.must(whole == _settings(most), "changes the settings of the last stage, which are the recipe's")
    for index in range(1, len(stages)):
        _grows(it, strategy, index, most)


def _settings(levels: int) -> list[Any]:
    core = CoreSettings(**SETTINGS, attention=(0, 1), cond_width=COND_DIM)
    return [core, *[ShellSettings(**SETTINGS)] * (levels - 1)]


def _nest(strategy: Any, stage: int, levels: int) -> NestedUNet:
    there = _settings(levels)[: strategy.stages[stage].levels]
    made = [attrs.asdict(strategy.network(given, stage, r), recurse=False) for r, given in enumerate(there)]
    for one in made:
        del one["block"]
    torch.manual_seed(0)
    core = UNetCore(**made[0], cond_dim=COND_DIM, dtype=torch.float64)
    shells: list[UNetShell] = []
    for one in made[1:]:
        inside = (shells[-1] if shells else core).channels[0]
        told = {"inner_channels": inside, "emb_dim": core.emb_dim, "cond_width": core.cond_width}
        shells.append(UNetShell(**one, **told, dtype=torch.float64))
    return NestedUNet(core, shells)


def _grows(it: Subject, strategy: Any, index: int, levels: int) -> None:
    """One growth, of parameters and of moments."""
    before, after = (_nest(strategy, stage, levels) for stage in (index - 1, index))
    _stir(before)
    old = {name: p.detach() for name, p in before.named_parameters()}
    wanted = dict(after.named_parameters())
    shapes = {name: p.shape for name, p in wanted.items()}
    for moment in (0, 1, 2):
        what = f"carry(..., moment={moment}) into stage {index}"
        carried = it.attempt(what, lambda: strategy.carry(old, shapes, moment=moment))  # noqa: B023
        lost = sorted(old.keys() - carried.keys())
        if apart(strategy):
            it.must(not carried, f"{what} carries {len(carried)} tensors, but it says that it is `apart`")
        else:
            it.must(not lost, f"{what} leaves out {', '.join(lost[:3])}")
        odd = sorted(name for name in carried if name not in shapes or carried[name].shape != shapes[name])
        it.must(not odd, f"{what} gives other names or shapes than the network has: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, value in strategy.carry(old, shapes).items():
            wanted[name].copy_(value)
        if strategy.preserves:
            _preserved(it, before, after, index)


def _preserved(it: Subject, before: NestedUNet, after: NestedUNet, index: int) -> None:
    """Every old level predicts what it did, whatever the new ones see."""
    few, many = len(before.levels), len(after.levels)
    z = [_draw(2, 3, 8 * 2**r, 8 * 2**r, seed=r) for r in range(many)]
    told: tuple[Tensor, ...] = (torch.tensor([0.2, 0.9], dtype=torch.float64), _draw(2, 5, COND_DIM, seed=9))
    for r, (said, says) in enumerate(zip(before(z[:few], *told), after(z, *told)[:few], strict=True)):
        off = _distance(said, says)
        it.must(off < 1e-9, f"says that it preserves, but level {r} is off by {off:.3g} in stage {index}")
