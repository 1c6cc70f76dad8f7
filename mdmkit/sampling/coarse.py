"""Coarse to fine: while noise hides what outer levels could say, only the inner ones run; how a level joins.

An outer level is a second look at what the inner one shows: pooled by m pixels it is `a x + noise`, of
precision `P_1 = m a^2 / sigma^2`, x the inner picture and `P_0 = alpha^2 / sigma^2` that of the inner level.
Together they tell of x what one look of precision P_0 + P_1 does. So the inner levels run on to the time at
which their own precision is that sum, and what they have there is split in two: the inner level goes back to
its noise at the time of the join, and the outer one gets its share. Whatever the data are, inner picture and
outer coarse picture then have the joint distribution of the process; starting the outer level from noise
alone, or from the predicted picture, would not have it. Left out is only the outer level's detail, of which
there is `SNR_1` at that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import Pyramid, pool, ratio
from mdmkit.schedules import time_at

__all__ = ["Phase", "enlarged", "join", "level_scale", "phases", "times_from"]


@attrs.frozen
class Phase:
    """A part of a trajectory: how many inner levels run, and when."""

    levels: int
    times: list[float]


def phases(
    times: Sequence[float],
    diffusion: Diffusion,
    shapes: Sequence[Sequence[int]],
    outer_from: float | None,
) -> list[Phase]:
    """The parts of a trajectory over `times`, in which a level joins when its logsnr reaches `outer_from`.

    `shapes`: (C, [F,] H, W) of the levels to run, low to high. Each phase but the last ends beyond the time
    at which the next one starts (see above). Raises ValueError where a level would join after the last step.
    """
    levels = len(shapes)
    if outer_from is None:
        return [Phase(levels, list(times))]
    if not math.isfinite(outer_from):
        raise ValueError(f"expected a finite logsnr for outer_from, got {outer_from}; leave it out for none")
    parts: list[Phase] = []
    start = times[0]
    for r in range(1, levels):
        when = time_at(diffusion.schedules[r], torch.tensor(outer_from, dtype=torch.float64)).item()
        if when >= times[0] and not parts:
            continue
        # a level never joins before the one inside
        when = min(when, start)
        end = shared_time(diffusion, shapes, r, when) if when > 0 else 0.0
        if end <= 0:
            most = float(diffusion.logsnr(torch.tensor(0.0), r))
            raise ValueError(
                f"outer_from={outer_from:g} leaves level {r} no step, as its logsnr ends at {most:.3g}; "
                "choose a lower one, such as -2"
            )
        parts.append(Phase(r, times_until(times_from(times, start), end)))
        start = when
    return [*parts, Phase(levels, times_from(times, start))]


def shared_time(diffusion: Diffusion, shapes: Sequence[Sequence[int]], level: int, t: float) -> float:
    """When the level inside alone knows as much as it and the pooled `level` know together at `t`."""
    inner, outer = precisions(diffusion, shapes[level - 1][1:], shapes[level][1:], level, diffusion.at(t))
    told = torch.tensor(math.log(inner + outer), dtype=torch.float64)
    return time_at(diffusion.schedules[level - 1], told).item()


def precisions(
    diffusion: Diffusion, inner: Sequence[int], outer: Sequence[int], level: int, at: NoiseLevel
) -> tuple[float, float]:
    """What the level inside says about its picture, and what `level` does when it is pooled to it."""
    scale = level_scale(diffusion, level, level - 1) * at.alpha[level]
    pixels = math.prod(ratio(outer, inner))
    return (at.alpha[level - 1] / at.sigma[level - 1]) ** 2, pixels * (scale / at.sigma[level]) ** 2


def level_scale(diffusion: Diffusion, level: int, inner: int) -> float:
    """How the x_r of a level of the process, pooled, is scaled against the x_r of a level inside."""
    return 1.0 if diffusion.scales is None else diffusion.scales[level] / diffusion.scales[inner]


def join(
    z: Pyramid,
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    before: NoiseLevel,
    at: NoiseLevel,
    diffusion: Diffusion,
) -> Pyramid:
    """One level more: `z` at `before` becomes a pyramid of one more level at `at`, which is noisier.

    `noise`: standard normal, of the new level's shape. `fresh(level)`: the same, for the levels further
    inside, like `z[level]`.
    """
    level = len(z)
    edge = level - 1
    size = z[edge].shape[2:]
    inner, outer = precisions(diffusion, size, noise.shape[2:], level, at)
    share = outer / (inner + outer)
    known = z[edge] / before.alpha[edge]  # x and noise of variance 1 / (inner + outer)
    coarse = pool(noise, size)
    pixels = math.prod(ratio(noise.shape[2:], size))
    # the split's noise is the coarse part of the new level's, with the other sign: independent of its detail
    split = at.alpha[edge] * known - at.sigma[edge] * math.sqrt(share * pixels) * coarse
    joined = level_scale(diffusion, level, edge) * at.alpha[level] * known
    joined = joined - at.sigma[level] * (1 - math.sqrt(1 - share)) * coarse
    grown = enlarged(joined, noise.shape[2:]) + at.sigma[level] * noise
    further = [renoised(z[r], fresh(r), before, at, r) for r in range(edge)]
    return (*further, split, grown)


def renoised(z: Tensor, noise: Tensor, before: NoiseLevel, at: NoiseLevel, level: int) -> Tensor:
    """`z` of `before` with as much noise more as `at` has."""
    kept = at.alpha[level] / before.alpha[level]
    return kept * z + math.sqrt(max(at.sigma[level] ** 2 - (kept * before.sigma[level]) ** 2, 0.0)) * noise


def enlarged(x: Tensor, size: Sequence[int], *, pick: bool = False) -> Tensor:
    """`x (B, C, [F,] h, w)` at a larger size, each pixel repeated: `pool` takes it back.

    pick: where that picks frames, the frames that it leaves out are zero.
    """
    if pick and len(size) == 3:
        apart = x.new_zeros(*x.shape[:2], size[0], *x.shape[3:])
        apart[:, :, :: size[0] // x.shape[2]] = x
        x = apart
    for axis, factor in enumerate(ratio(size, x.shape[2:]), start=2):
        x = x.repeat_interleave(factor, dim=axis)
    return x


def times_from(times: Sequence[float], start: float) -> list[float]:
    """A grid of falling times cut to begin at `start`; a time less than half a step below it is left out."""
    rest = [t for t in times if t < start]
    steps = [now - after for now, after in pairwise(rest)]
    # multistep rules divide by the step before: it must not be a tiny one
    if len(rest) > 1 and start - rest[0] < steps[0] / 2:
        rest = rest[1:]
    return [start, *rest]


def times_until(times: Sequence[float], end: float) -> list[float]:
    """A grid of falling times cut to end at `end`; a time less than half a step above it is left out."""
    rest = [t for t in times if t > end]
    if len(rest) > 1 and rest[-1] - end < (rest[-2] - rest[-1]) / 2:
        rest = rest[:-1]
    return [*rest, end]
