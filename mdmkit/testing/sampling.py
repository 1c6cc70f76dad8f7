"""Batteries of sampling: update rules, spacings, guidance, thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .subject import Subject, load

__all__ = ["grey_denoiser", "guidance", "sampler", "spacing", "threshold", "two_levels"]

Pyramid = tuple[Tensor, ...]
SHAPES = ((2, 3, 4, 6), (2, 3, 8, 12))


def _pyramid(seed: int) -> Pyramid:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-0.9, 0.9) for shape in SHAPES
    )


def two_levels() -> Any:
    schedules = load("mdmkit.schedules:shift_levels")(
        load("mdmkit.schedules:Cosine")(), [(4, 6), (8, 12)], shift_power=2.0
    )
    return load("mdmkit.diffusion:Diffusion")(tuple(schedules), "v")


def grey_denoiser() -> Any:
    """A denoiser that sees grey everywhere, at as many levels as it is asked about."""

    def grey(z: Pyramid, at: Any) -> Pyramid:
        return tuple(torch.zeros_like(level) for level in z)

    return _denoiser(grey, grey)


def _denoiser(
    answers: Callable[[Pyramid, Any], Pyramid], unconditional: Callable[[Pyramid, Any], Pyramid]
) -> Any:
    """A denoiser that knows the answer: what it says for x0, and the eps that belongs to it."""
    denoised = load("mdmkit.sampling.denoise:Denoised")

    class Oracle:
        def __call__(self, z: Pyramid, at: Any) -> Any:
            return self._said(answers, z, at)

        plain = __call__

        def answers(self, z: Pyramid, at: Any) -> Any:
            cond = self(z, at)
            return load("mdmkit.sampling.denoise:Answers")(cond, None, cond)

        def both(self, z: Pyramid, at: Any) -> tuple[Any, Any]:
            return self._said(answers, z, at), self._said(unconditional, z, at)

        def _said(self, answer: Callable[[Pyramid, Any], Pyramid], z: Pyramid, at: Any) -> Any:
            x0 = answer(z, at)
            eps = tuple((x - a * c) / s for x, c, a, s in zip(z, x0, at.alpha, at.sigma, strict=False))
            return denoised(x0, eps)

    return Oracle()


def sampler(it: Subject) -> None:
    """With a perfect denoiser every level ends at x0, in any number of steps, each picture by itself."""
    rule = it.build()
    diffusion, x0, start = two_levels(), _pyramid(0), _pyramid(1)
    for steps in (1, 2, 7, 20):
        path = [diffusion.at(1 - i / steps) for i in range(steps + 1)]

        def run(rows: slice, path: list[Any] = path) -> Pyramid:
            perfect = _denoiser(*[lambda z, at: tuple(x[rows] for x in x0)] * 2)
            z = tuple(x[rows] for x in start)
            what = f"a trajectory of {len(path) - 1} steps"
            return it.attempt(what, lambda: rule(perfect, z, path, lambda *key: _noise(*key)[rows]))

        made = run(slice(None))
        it.must(len(made) == len(x0), f"{len(made)} levels come out of {len(x0)}")
        for level, (got, wanted) in enumerate(zip(made, x0, strict=True)):
            it.must(got.shape == wanted.shape, f"level {level} comes out as {tuple(got.shape)}")
            # at t = 0 the process itself keeps (1 - alpha) and sigma of its noise
            slack = 1e-6 + 6 * path[-1].sigma[level] + 2 * abs(1 - path[-1].alpha[level])
            off = float((got - wanted).abs().max())
            it.must(
                off <= slack,
                f"with a perfect denoiser and {steps} steps level {level} ends {off:.3g} away from x0",
            )
        for level, (row, among) in enumerate(zip(run(slice(1, 2)), made, strict=True)):
            off = float((row - among[1:]).abs().max())
            it.must(
                off < 1e-9, f"a picture at level {level} depends on the pictures beside it (by {off:.3g})"
            )
    it.must(
        all(torch.equal(a, b) for a, b in zip(start, _pyramid(1), strict=True)),
        "the noise it was given is changed in place",
    )


def _noise(step: int, level: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + level)
    return torch.randn(SHAPES[level], generator=generator, dtype=torch.float64)


def spacing(it: Subject) -> None:
    """`steps` + 1 times that fall strictly from its start, at most 1, to 0."""
    times_of = it.build()
    diffusion = two_levels()
    for steps in (1, 2, 3, 10, 50):
        times = [float(t) for t in it.attempt(f"{steps} steps", lambda: times_of(steps, diffusion))]  # noqa: B023
        it.must(len(times) == steps + 1, f"{steps} steps give {len(times)} times, expected {steps + 1}")
        it.must(times[-1] == 0, f"{steps} steps end at t = {times[-1]}, expected 0")
        it.must(0 < times[0] <= 1, f"{steps} steps start at t = {times[0]}, expected 0 < t <= 1")
        for a, b in pairwise(times):
            it.must(b < a, f"times of {steps} steps must fall: {a} is followed by {b}")


def guidance(it: Subject) -> None:
    """Nothing changes where both predictions agree; scale 1 is the conditional one; it can be wrapped.

    Guidance by another model (`OverModel`) is given one that says what the absence of text says.
    """
    diffusion, a, b, z = two_levels(), _pyramid(0), _pyramid(2), _pyramid(1)
    at = diffusion.at(0.5)
    agreed, split = _denoiser(lambda *_: a, lambda *_: a), _denoiser(lambda *_: a, lambda *_: b)

    def built(other: Any, settings: Any = None) -> Any:
        guide = it.build(settings)
        return guide.over(other, len(SHAPES)) if hasattr(guide, "over") else guide

    guide = built(agreed)
    for denoise, name in ((agreed, "a denoiser"), (guide.wrap(agreed), "a guided denoiser")):
        wrapped = it.attempt(f"wrap({name})", lambda: guide.wrap(denoise))  # noqa: B023
        said = it.attempt(f"a guided step over {name}", lambda: wrapped(z, at))  # noqa: B023
        _agrees(it, said, agreed(z, at), f"changes {name} whose two predictions agree")
    absent = _denoiser(lambda *_: b, lambda *_: b)
    said = it.attempt("a guided step", lambda: built(absent).wrap(split)(z, at))
    for part in ("x0", "eps"):
        for level, (got, given) in enumerate(zip(getattr(said, part), z, strict=True)):
            it.must(got.shape == given.shape and got.isfinite().all(), f"{part} of level {level} is broken")
    if "scale" in it.fields:
        plain = built(absent, {"scale": 1.0}).wrap(split)
        # the eps to renoise with is a guidance's own choice
        _agrees(it, plain(z, at), split(z, at), "at scale 1 is not the conditional prediction", ("x0",))


def _agrees(it: Subject, said: Any, wanted: Any, message: str, parts: Sequence[str] = ("x0", "eps")) -> None:
    for part in parts:
        for level, (got, expected) in enumerate(zip(getattr(said, part), getattr(wanted, part), strict=True)):
            off = float((got - expected).abs().max())
            it.must(off < 1e-8, f"{message}: {part} of level {level} is off by {off:.3g}")


def threshold(it: Subject) -> None:
    """Pictures in range stay as they are; twice is once; a row does not see its batch mates."""
    limit = it.build()
    inside = _pyramid(0)[1]
    outside = 3 * torch.randn(inside.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = it.attempt("the threshold", lambda: limit(outside))
    it.must(got.shape == outside.shape, f"gives {tuple(got.shape)} for {tuple(outside.shape)}")
    it.must(got.isfinite().all(), "gives numbers that are not finite")
    it.must(torch.equal(limit(inside), inside), "changes a picture that is in [-1, 1] already")
    it.must(torch.allclose(limit(got), got), "applied twice differs from once")
    alone = torch.cat([limit(outside[i : i + 1]) for i in range(len(outside))])
    it.must(torch.equal(alone, got), "a picture depends on the pictures beside it")
    it.must(
        torch.equal(got, outside) or float(got.abs().max()) <= float(outside.abs().max()),
        "pushes pictures further out",
    )
