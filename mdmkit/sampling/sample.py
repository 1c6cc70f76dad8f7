"""Drawing pyramids: noise by seed, a spacing, a denoiser, a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel, mixed
from mdmkit.pyramid import Pyramid
from mdmkit.streams import normal

from .brownian import BrownianPath
from .coarse import join, phases, renoised, times_from
from .denoise import Denoise, Denoised
from .edit import Given, Known, Start, check_given, check_sizes, stretches
from .guidance import check_intervals
from .rules import Noise, Rule, ddim
from .seeds import Seed, noise_of
from .spacing import Spacing, uniform_t
from .threshold import Threshold, clip, thresholded

__all__ = ["Callback", "sample_pyramid"]

Callback = Callable[[int, NoiseLevel, Denoised], None]


@torch.no_grad()
def sample_pyramid(
    denoise: Denoise,
    diffusion: Diffusion,
    shapes: Sequence[Sequence[int]],
    seeds: Sequence[Seed],
    *,
    rule: Rule = ddim,
    steps: int = 50,
    spacing: Spacing = uniform_t,
    threshold: Threshold | Sequence[Threshold] = clip,
    levels: int | None = None,
    outer_from: float | None = None,
    start: Start | None = None,
    known: Known | None = None,
    given: Sequence[Tensor] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    noise_device: torch.device | str | None = None,
    callback: Callback | None = None,
) -> Pyramid:
    """Pictures of `seeds`, one a seed, at every level, low to high: `(len(seeds), *shapes[r])`.

    `denoise`: a `Denoiser`, guided or not (`CFG(scale).wrap(denoiser)`). `seeds`: numbers, or places between
    two of them (`Between`). `shapes`: (C, H, W) or (C, F, H, W) a level, low to high. `levels`: draw the
    innermost levels only, at their cost. All noise of a picture is a function of its seed, the level and the
    noise levels of a step (`BrownianPath`), so that a picture depends neither on its batch nor on the levels
    around, and more steps go nearer to the same picture.
    `outer_from`: an outer level does not run until its logsnr is that (`mdmkit.sampling.coarse`); the rule
    starts anew whenever one joins. Good where the inner levels were trained alone too. `start`: begin with
    these pictures, made noisy; `known`: what is known of the result (`mdmkit.sampling.edit`). `given`:
    pictures in [-1, 1] of the inner levels that the model is given, one row for all or a row each.
    `threshold`: one for all levels, or one each, low to high.
    `noise_device`: where noise is drawn, `device` if not given; "cpu" gives the same noise on every device.
    `callback(evaluation, at, denoised)` sees every intermediate prediction, guided and thresholded.
    Raises ValueError where levels do not fit, a spacing does not fall to 0, a level would never join, a
    guidance interval lies outside of the schedule, or the denoiser answers with NaN or infinity.
    """
    levels = len(shapes) if levels is None else levels
    if not 1 <= levels <= min(len(shapes), diffusion.levels):
        have = min(len(shapes), diffusion.levels)
        raise ValueError(f"expected 1 to {have} levels, got {levels}")
    times = spacing(steps, diffusion)
    if times[-1] != 0 or times[0] > 1 or any(now <= after for now, after in pairwise(times)):
        raise ValueError(f"expected times that fall from at most 1 to 0, got {times}")
    check_intervals(denoise, diffusion)
    if start is not None:
        start.check(shapes[:levels], len(seeds))
        if start.strength < 1:
            times = times_from(times, start.strength)
    if known is not None:
        known.check(shapes[:levels], len(seeds))
    check_given(given, diffusion, levels)
    check_sizes("given picture", given or (), shapes, len(seeds))
    parts = phases(times, diffusion, shapes[:levels], outer_from)

    source = device if noise_device is None else noise_device
    where: dict[str, Any] = {"device": source, "dtype": dtype}

    def drawn(level: int, purpose: str, part: int = 0) -> Tensor:
        def of(number: int) -> Tensor:
            return normal(tuple(shapes[level]), number, part, level, purpose, **where)

        return torch.stack([noise_of(seed, of) for seed in seeds]).to(device)

    wrapped = thresholded(finite(denoise, times), threshold, diffusion)
    asked = wrapped if known is None else known.wrap(wrapped, diffusion)
    if given:
        noise = [drawn(level, "given") for level in range(len(given))]
        asked = Given([x.to(device) for x in given], noise).wrap(asked, diffusion)
    observed = observe(asked, callback, diffusion)
    z: Pyramid = ()
    at = diffusion.at(times[0])
    for number, part in enumerate(parts):
        path = [diffusion.at(t) for t in part.times]
        if number == 0:
            z = first(at, tuple(drawn(level, "sample") for level in range(part.levels)), start, diffusion)
        else:
            fresh = partial(drawn, purpose="join", part=number)
            z = join(z, drawn(len(z), "sample"), fresh, at, path[0], diffusion)
        name = "path" if number == 0 else f"path {number}"
        passes, jump = (1, len(path)) if known is None else (known.passes, known.jump)
        # pictures to start from, at strength 0, are where they end: a path without a step
        for stretch, again in stretches(path, passes, jump if passes > 1 else len(path)):
            if again:
                back = [drawn(level, f"back, {again}", number) for level in range(len(z))]
                z = tuple(
                    renoised(x, noise, stretch[-1], stretch[0], level)
                    for level, (x, noise) in enumerate(zip(z, back, strict=True))
                )
            walk = f"{name}, {again}" if again else name
            z = rule(observed, z, stretch, path_noise(stretch, shapes, seeds, walk, device, where))
        at = path[-1]
    inner = tuple(x.to(level).expand_as(level) for x, level in zip(given or (), z, strict=False))
    return (*inner, *diffusion.pictures(z)[len(inner) :])


def finite(denoise: Denoise, times: Sequence[float]) -> Denoise:
    """The same denoiser; ValueError, with the step and the level, where it says NaN or infinity."""
    steps = len(times) - 1

    def denoise_and_check(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        said = denoise(z, at)
        for level, parts in enumerate(zip(said.x0, said.eps, strict=True)):
            good = [part.isfinite() for part in parts]
            if not all(part.all() for part in good):
                step = min(sum(t >= at.t for t in times), steps)
                rows = [i for i in range(len(good[0])) if not all(part[i].all() for part in good)]
                raise ValueError(
                    f"expected finite answers of the network, got NaN or infinity in step {step} of {steps} "
                    f"(t = {at.t:.4g}) at level {level}, pictures {', '.join(map(str, rows))} of the batch; "
                    "look for it in the weights and the text features, or run the network in float32"
                )
        return said

    return denoise_and_check


def first(at: NoiseLevel, noise: Pyramid, start: Start | None, diffusion: Diffusion) -> Pyramid:
    """Where a trajectory begins: noise, as of data of unit variance, or noisy pictures."""
    levels = list(zip(at.alpha, at.sigma, noise, strict=False))
    if start is None or start.strength == 1:
        # 1 for variance-preserving schedules wherever it starts
        return tuple(math.hypot(alpha, sigma) * eps for alpha, sigma, eps in levels)
    x0 = diffusion.scaled([picture.to(noise[0]) for picture in start.pictures])
    return tuple(
        mixed(x, eps, alpha, sigma) for x, (alpha, sigma, eps) in zip(x0, levels, strict=False)
    )


def path_noise(
    path: Sequence[NoiseLevel],
    shapes: Sequence[Sequence[int]],
    seeds: Sequence[Seed],
    name: str,
    device: torch.device | str,
    where: Mapping[str, Any],
) -> Noise:
    """The fresh noise of a part of a trajectory; parts that overlap in time have names of their own."""
    walks: dict[tuple[int, int], BrownianPath] = {}

    def noise(step: int, level: int) -> Tensor:
        now, after = path[step].logsnr[level], path[step + 1].logsnr[level]

        def of(number: int) -> Tensor:
            key = number, level
            if key not in walks:
                walks[key] = BrownianPath(tuple(shapes[level]), *key, name, **where)
            return walks[key].increment(now, after)

        return torch.stack([noise_of(seed, of) for seed in seeds]).to(device)

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
