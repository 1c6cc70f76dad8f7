"""Plots of a diffusion over a pyramid: noise by level, loss, what each level knows when. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mdmkit.diffusion import Diffusion
from mdmkit.schedules import time_at

from .curves import COLOURS
from .inspection import Knowledge

if TYPE_CHECKING:
    from mdmkit.times import TimeSampler

__all__ = ["save_plot"]

TIME = "t  (0: the picture, 1: noise)"


def save_plot(
    path: Path,
    diffusion: Diffusion,
    names: Sequence[str],
    *,
    title: str,
    sampler: TimeSampler,
    steps: Sequence[float],
    times: Sequence[float] = (),
    knowledge: Knowledge | None = None,
    pictures: int = 0,
) -> None:
    """A PNG of logsnr by level, with the times of training and of sampling; more of it with `knowledge`.

    `names` of the levels, low to high; `steps`: the times that sampling visits; `knowledge` at `times` over
    so many `pictures` adds the loss and, a panel a level, what is known. ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    if knowledge is None:
        figure = Figure(figsize=(8, 5), layout="constrained")
        noise(figure.subplots(), diffusion, names, sampler, steps)
    else:
        levels = len(names)
        figure = Figure(figsize=(max(11, 4.4 * levels), 9), layout="constrained")
        parts: Any = figure.subfigures(2, 1)
        upper, lower = parts
        left, right = upper.subplots(1, 2)
        noise(left, diffusion, names, sampler, steps)
        loss(right, names, times, knowledge)
        panels = lower.subplots(1, levels, sharey=True, squeeze=False)[0]
        for level, axes in enumerate(panels):
            known(axes, diffusion, names, level, times, knowledge)
        panels[0].set_ylabel("share of the picture's variance explained")
        lower.suptitle(f"What is known of each level's picture, from noisy ones ({pictures} pictures)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png", metadata={"Software": None})


def noise(
    axes: Any, diffusion: Diffusion, names: Sequence[str], sampler: TimeSampler, steps: Sequence[float]
) -> None:
    """logsnr of each level, dots where sampling asks the network, the density of training's times below."""
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    density = axes.twinx()
    inside = t[1:-1]
    density.fill_between(inside, sampler.density(inside), color="0.88", linewidth=0)
    # the lowest fifth: the curves are what the plot is of
    peak = float(sampler.density(inside).max())
    density.set_ylim(0, 5 * peak)
    density.set_yticks([0, peak / 2, peak], ["0", f"{peak / 2:.2g}", f"{peak:.2g}"])
    density.set_ylabel("density of t in training (grey)", color="0.45", loc="bottom")
    density.tick_params(colors="0.45")
    density.spines["top"].set_visible(False)
    axes.set_zorder(density.get_zorder() + 1)
    axes.patch.set_visible(False)
    visited = torch.tensor([step for step in steps if step > 0], dtype=torch.float64)
    size = 5 if len(visited) < 60 else 2
    for level, name in enumerate(names):
        colour = COLOURS[level % len(COLOURS)]
        axes.plot(t, diffusion.logsnr(t, level), color=colour, label=name)
        axes.plot(visited, diffusion.logsnr(visited, level), ".", color=colour, markersize=size)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_ylabel("logsnr = ln(signal / noise power)")
    finish(axes, f"Noise of each level; dots: the {len(visited)} steps of sampling")


def loss(axes: Any, names: Sequence[str], times: Sequence[float], knowledge: Knowledge) -> None:
    """The training loss of each level, weighted as in training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for level, name in enumerate(names):
        axes.plot(times, knowledge.loss[level], color=COLOURS[level % len(COLOURS)], label=name)
    if (knowledge.loss > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_ylabel("training loss, mean over pixels")
    finish(axes, "Loss at each time, with the recipe's weights")


def known(
    axes: Any,
    diffusion: Diffusion,
    names: Sequence[str],
    level: int,
    times: Sequence[float],
    knowledge: Knowledge,
) -> None:
    """What is known of a level's picture, over t, with the level's logsnr along the top."""
    last = level == len(names) - 1
    colour = COLOURS[level % len(COLOURS)]
    axes.plot(times, knowledge.whole[level], color=colour, linewidth=2, label="the whole nest")
    if not last:
        axes.plot(times, knowledge.inner[level], color=colour, linestyle="--", label=alone(level))
    if knowledge.below[level].isfinite().all():
        label = f"{alone(level - 1)}, enlarged"
        axes.plot(times, knowledge.below[level], color="0.35", linestyle="-.", label=label)
    axes.plot(times, knowledge.pixel[level], color="0.6", linestyle=":", label="a noisy pixel by itself")
    axes.set_ylim(-0.05, 1.05)
    finish(axes, names[level])
    marks = torch.tensor([10.0, 6.0, 3.0, 0.0, -3.0, -6.0, -10.0], dtype=torch.float64)
    at = time_at(diffusion.schedules[level], marks)
    inside = (at > 0.02) & (at < 0.98)
    top = axes.secondary_xaxis("top")
    labels = [f"{mark:g}" for mark in marks[inside].tolist()]
    top.set_xticks(at[inside].tolist(), labels, fontsize=8, color="0.35")
    top.set_xlabel("logsnr of this level", fontsize=8, color="0.35")


def alone(level: int) -> str:
    return f"levels 0 to {level} run alone" if level else "level 0 run alone"


def finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(TIME)
    axes.set_xlim(0, 1)
    axes.grid(True, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
