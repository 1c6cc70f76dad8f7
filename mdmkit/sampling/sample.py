"""Drawing pyramids: noise by seed, a spacing, a denoiser, a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import Pyramid
from mdmkit.streams import normal

from .brownian import BrownianPath
from .coarse import join, phases
from .denoise import Denoise, Denoised
from .rules import Noise, Rule, ddim
from .spacing import Spacing, uniform_t
from .threshold import Threshold, clip, thresholded

__all__ = ["Callback", "sample_pyramid"]

Callback = Callable[[int, NoiseLevel, Denoised], None]


@torch.no_grad()
def sample_pyramid(
    denoise: Denoise,
    diffusion: Diffusion,
    shapes: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    rule: Rule = ddim,
    steps: int = 50,
    spacing: Spacing = uniform_t,
    threshold: Threshold = clip,
    levels: int | None = None,
    outer_from: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    noise_device: torch.device | str | None = None,
    callback: Callback | None = None,
) -> Pyramid:
    """Pictures of `seeds`, one a seed, at every level, low to high: `(len(seeds), *shapes[r])`.

    `denoise`: a `Denoiser`, guided or not (`CFG(scale).wrap(denoiser)`). `shapes`: (C, H, W) or (C, F, H, W)
    a level, low to high. `levels`: draw the innermost levels only, at their cost. All noise of a picture is a
    function of its seed, the level and the noise levels of a step (`BrownianPath`), so that a picture depends
    neither on its batch nor on the levels around, and more steps go nearer to the same picture.
    `outer_from`: an outer level does not run until its logsnr is that (`mdmkit.sampling.coarse`); the rule
    starts anew whenever one joins. Good where the inner levels were trained alone too.
    `noise_device`: where noise is drawn, `device` if not given; "cpu" gives the same noise on every device.
    `callback(evaluation, at, denoised)` sees every intermediate prediction, guided and thresholded.
    Raises ValueError where levels do not fit, a spacing does not fall to 0 or a level would never join.
    """
    levels = len(shapes) if levels is None else levels
    if not 1 <= levels <= min(len(shapes), diffusion.levels):
        have = min(len(shapes), diffusion.levels)
        raise ValueError(f"expected 1 to {have} levels, got {levels}")
    times = spacing(steps, diffusion)
    if times[-1] != 0 or times[0] > 1 or any(now <= after for now, after in pairwise(times)):
        raise ValueError(f"expected times that fall from at most 1 to 0, got {times}")
    parts = phases(times, diffusion, shapes[:levels], outer_from)

    source = device if noise_device is None else noise_device
    where: dict[str, Any] = {"device": source, "dtype": dtype}

    def drawn(level: int, purpose: str, part: int = 0) -> Tensor:
        rows = [normal(tuple(shapes[level]), int(seed), part, level, purpose, **where) for seed in seeds]
        return torch.stack(rows).to(device)

    observed = observe(thresholded(denoise, threshold, diffusion), callback, diffusion)
    z: Pyramid = ()
    at = diffusion.at(parts[0].times[0])
    for number, part in enumerate(parts):
        path = [diffusion.at(t) for t in part.times]
        if number == 0:
            # data of unit variance at each level; 1 for variance-preserving schedules wherever it starts
            start = [math.hypot(path[0].alpha[level], path[0].sigma[level]) for level in range(part.levels)]
            z = tuple(start[level] * drawn(level, "sample") for level in range(part.levels))
        else:
            fresh = partial(drawn, purpose="join", part=number)
            z = join(z, drawn(len(z), "sample"), fresh, at, path[0], diffusion)
        z = rule(observed, z, path, path_noise(path, shapes, seeds, number, device, where))
        at = path[-1]
    return diffusion.pictures(z)


def path_noise(
    path: Sequence[NoiseLevel],
    shapes: Sequence[Sequence[int]],
    seeds: Sequence[int],
    part: int,
    device: torch.device | str,
    where: Mapping[str, Any],
) -> Noise:
    """The fresh noise of a part of a trajectory; parts overlap in time, so that each has its own."""
    name = "path" if part == 0 else f"path {part}"
    walks = [
        [BrownianPath(tuple(shape), int(seed), level, name, **where) for seed in seeds]
        for level, shape in enumerate(shapes)
    ]

    def noise(step: int, level: int) -> Tensor:
        now, after = path[step].logsnr[level], path[step + 1].logsnr[level]
        return torch.stack([walk.increment(now, after) for walk in walks[level]]).to(device)

    return noise


def observe(denoise: Denoise, callback: Callback | None, diffusion: Diffusion) -> Denoise:
    """The same denoiser, with every answer shown to `callback`: pictures and noise."""
    if callback is None:
        return denoise
    evaluations = 0

    def denoise_and_show(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        nonlocal evaluations
        answer = denoise(z, at)
        callback(evaluations, at, Denoised(diffusion.pictures(answer.x0), answer.eps))
        evaluations += 1
        return answer

    return denoise_and_show
