"""Batteries of the values: schedules, weights, times, losses, resolution samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .subject import Subject, load

__all__ = ["loss", "noise_schedule", "resolution_sampler", "time_sampler", "weighting"]

SPACES = ("x0", "eps", "v", "flow")
LEVELS = 3
DRAWS = 2048


def noise_schedule(it: Subject) -> None:
    """logsnr falls from data to noise; alpha and sigma belong to it at every t and after every shift."""
    schedule = it.build()
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    logsnr = it.attempt("logsnr(t)", lambda: schedule.logsnr(t))
    it.must(logsnr.shape == t.shape, f"logsnr(t) of {tuple(t.shape)} has shape {tuple(logsnr.shape)}")
    it.must(logsnr.dtype == t.dtype, f"logsnr(t) of float64 is {logsnr.dtype}")
    if not logsnr.isfinite().all():
        where = float(t[~logsnr.isfinite()][0])
        it.breaks(f"logsnr(t) is not finite at t = {where:.4g}; clamp it, a shift cannot move infinity")
    rises = (logsnr.diff() > 0).nonzero().flatten()
    if len(rises):
        i = int(rises[0])
        it.breaks(
            "logsnr(t) must fall with t (t = 0 is data): "
            f"it rises from {logsnr[i]:.4g} at t = {t[i]:.4g} to {logsnr[i + 1]:.4g} at t = {t[i + 1]:.4g}"
        )
    # a clamp may hold an end still, but not the process
    it.must(logsnr[64] > logsnr[192] + 0.1, "logsnr(t) hardly falls between t = 0.25 and t = 0.75")
    alone = torch.stack([schedule.logsnr(x) for x in t[::64]])
    it.must(_close(alone, logsnr[::64]), "logsnr of one t differs from the same t among others")
    _scales_belong(it, "alpha_sigma(t)", schedule.alpha_sigma(t), logsnr, inside=slice(4, -4))
    alpha, sigma = schedule.alpha_sigma(t[:1])
    got = f"({float(alpha):.6g}, {float(sigma):.3g})"
    it.must(alpha == 1 and sigma == 0, f"alpha_sigma(0) is {got}, expected (1, 0): a sample keeps no noise")
    finite = logsnr[4:-4]
    for shift in (0.0, -2.5, 1.0):
        what = f"alpha_sigma_at(logsnr{shift:+g})" if shift else "alpha_sigma_at(logsnr)"
        _scales_belong(it, what, schedule.alpha_sigma_at(finite + shift), finite + shift)
    for a, b in zip(schedule.alpha_sigma(t[4:-4]), schedule.alpha_sigma_at(finite), strict=True):
        it.must(_close(a, b), "alpha_sigma_at(logsnr(t)) differs from alpha_sigma(t)")


def _scales_belong(
    it: Subject, what: str, scales: tuple[Tensor, Tensor], logsnr: Tensor, inside: slice = slice(None)
) -> None:
    alpha, sigma = scales
    for name, scale in (("alpha", alpha), ("sigma", sigma)):
        it.must(scale.shape == logsnr.shape, f"{name} of {what} has shape {tuple(scale.shape)}")
        it.must(scale.isfinite().all() and (scale >= 0).all(), f"{name} of {what} is negative or not finite")
    given = 2 * (alpha[inside].log() - sigma[inside].log())
    off = float((given - logsnr[inside]).abs().max())
    it.must(off <= 1e-6, f"ln(alpha^2 / sigma^2) of {what} is off logsnr by {off:.3g}")


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    same_ends = (a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))
    return bool(same_ends.all())


def weighting(it: Subject) -> None:
    """A weight is finite, not negative, a function of logsnr, and says in which space its loss stands."""
    weight = it.build()
    known = f"expected one of {', '.join(SPACES)}, or None where it holds in all"
    it.must(weight.space in (None, *SPACES), f"space is {weight.space!r}, {known}")
    logsnr = torch.linspace(-20, 20, 161, dtype=torch.float64)
    got = it.attempt("weight(logsnr)", lambda: weight.weight(logsnr))
    it.must(
        got.shape == logsnr.shape, f"weight(logsnr) of {tuple(logsnr.shape)} has shape {tuple(got.shape)}"
    )
    for bad, word in ((~got.isfinite(), "not finite"), (got < 0, "negative")):
        if bad.any():
            it.breaks(f"weight is {word} at logsnr = {float(logsnr[bad][0]):.4g}")
    it.must((got > 0).any(), "weight is zero everywhere")
    alone = torch.stack([weight.weight(x) for x in logsnr[::20]])
    it.must(_close(alone, got[::20]), "the weight at a logsnr depends on the others beside it")


def time_sampler(it: Subject) -> None:
    """Draws lie in [0, 1], follow `density`, and depend on (seed, step, position, batch) only."""
    times = it.build(schedule=load("mdmkit.schedules:Cosine")())
    everyone = list(range(DRAWS))
    t = it.attempt("draw(seed, step, positions, batch)", lambda: times.draw(0, 1, everyone, DRAWS))
    it.must(t.shape == (DRAWS,), f"draw of {DRAWS} positions has shape {tuple(t.shape)}")
    it.must(t.dtype == torch.float64, f"draw gives {t.dtype}, expected float64")
    it.must(
        (t > 0).all() and (t <= 1).all(), f"draws leave (0, 1]: {float(t.min()):.4g} .. {float(t.max()):.4g}"
    )
    it.must(
        torch.equal(t, times.draw(0, 1, everyone, DRAWS)), "the same key draws other times the second time"
    )
    some = [3, 1, DRAWS - 1]
    it.must(
        torch.equal(t[some], times.draw(0, 1, some, DRAWS)),
        "the time at a position depends on the positions beside it",
    )
    for key, what in (((1, 1), "seed"), ((0, 2), "step")):
        it.must(not torch.equal(t, times.draw(*key, everyone, DRAWS)), f"draws do not depend on the {what}")
    edges = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    density = it.attempt("density(t)", lambda: times.density((edges[1:] + edges[:-1]) / 2))
    it.must(density.isfinite().all() and (density >= 0).all(), "density is negative or not finite")
    below = torch.cat([torch.zeros(1, dtype=torch.float64), density.cumsum(0) / (len(edges) - 1)])
    it.must(abs(float(below[-1]) - 1) < 1e-2, f"density integrates to {float(below[-1]):.4g}, expected 1")
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) one set of true draws in a thousand
    ordered = t.sort().values
    expected = below[(ordered * (len(edges) - 1)).long().clamp(max=len(edges) - 1)]
    ranks = torch.arange(DRAWS, dtype=torch.float64) / DRAWS
    distance = float(torch.maximum((expected - ranks).abs(), (expected - ranks - 1 / DRAWS).abs()).max())
    limit = 1.95 / math.sqrt(DRAWS)
    it.must(
        distance < limit, f"draws do not follow density: KS distance {distance:.3g}, expected < {limit:.3g}"
    )


def loss(it: Subject) -> None:
    """Zero where prediction and target agree, positive elsewhere, one number a pixel, gradients finite."""
    distance = it.build()
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    prediction = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    got = it.attempt("the loss", lambda: distance(prediction, target))
    it.must(got.shape == target.shape, f"loss of {tuple(target.shape)} has shape {tuple(got.shape)}")
    it.must((got > 0).all() and got.isfinite().all(), "loss must be positive and finite where inputs differ")
    equal = distance(target, target).abs().max()
    it.must(equal <= 1e-12, f"loss is {float(equal):.3g} where prediction equals target, expected 0")
    alone = distance(prediction[:1], target[:1])
    it.must(torch.allclose(alone, got[:1]), "the loss of a row depends on the rows beside it")
    for start, where in ((prediction, "where inputs differ"), (target, "where inputs agree")):
        leaf = start.clone().requires_grad_()
        distance(leaf, target).sum().backward()
        grad = leaf.grad
        it.must(grad is not None and grad.isfinite().all(), f"the loss has no finite gradient {where}")


def resolution_sampler(it: Subject) -> None:
    """Shares are one a level, sum to 1, and depend on (seed, step) only."""
    sampler = it.build(levels=LEVELS)
    again = it.build(levels=LEVELS)
    seen: dict[tuple[int, int], tuple[float, ...]] = {}
    levels = int(it.context.get("levels", LEVELS))
    for seed in (0, 7):
        for step in (5, 0, 1, 1000, 5):
            shares = it.attempt(f"shares({seed}, {step})", lambda: sampler.shares(seed, step))  # noqa: B023
            it.must(len(shares) == levels, f"{len(shares)} shares for {levels} levels")
            it.must(all(0 <= s <= 1 for s in shares), f"shares {shares} leave [0, 1]")
            it.must(abs(sum(shares) - 1) < 1e-6, f"shares {shares} sum to {sum(shares):.6g}, expected 1")
            first = seen.setdefault((seed, step), tuple(shares))
            same = tuple(shares) == first == tuple(again.shares(seed, step))
            it.must(same, "shares depend on more than (seed, step)")
