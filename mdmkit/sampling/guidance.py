"""Guidance: wraps a denoiser into a denoiser.

Each component is a value; `wrap` gives a denoiser that asks the one inside, whose answers it sees:
conditional, unconditional, and what is gone on with. Several are applied in order, the first the innermost.
Everything acts on each picture and level by itself, on x0 and eps at once: at a given z all prediction spaces
are affine in each other, so that what is linear is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.targets import from_x0_eps

from .denoise import Answers, Denoised, PairedDenoise, from_space

__all__ = ["APG", "CFG", "CFGPP", "CFGZero", "Guidance", "Guided", "Interval", "Rescale"]

Scale = float | tuple[float, ...]


@runtime_checkable
class Guidance(Protocol):
    """Wraps a denoiser into one that is guided; several are applied in order."""

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise: ...


class Wrapped:
    """A denoiser around another, which decides what is asked and what is gone on with."""

    def __init__(self, denoise: PairedDenoise) -> None:
        self.denoise = denoise

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        return self.answers(z, at).said

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """The answers that were asked for, and what is gone on with."""
        raise NotImplementedError

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The two answers that guidance starts from."""
        return self.denoise.both(z, at)

    def plain(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The conditional answer alone."""
        return self.denoise.plain(z, at)


class Guided(Wrapped):
    """A denoiser that goes on with `change(answers, z, at)`.

    `first`: it asks for both answers itself. Otherwise it changes what is said inside, where that asked for
    both.
    """

    def __init__(
        self,
        denoise: PairedDenoise,
        change: Callable[[Answers, Sequence[Tensor], NoiseLevel], Denoised],
        *,
        first: bool,
    ) -> None:
        super().__init__(denoise)
        self.change, self.first = change, first

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """Both answers, and what is gone on with."""
        if self.first:
            cond, uncond = self.denoise.both(z, at)
            inside = Answers(cond, uncond, cond)
        else:
            inside = self.denoise.answers(z, at)
        return inside if inside.uncond is None else inside._replace(said=self.change(inside, z, at))


class Within(Wrapped):
    """A denoiser that is what it is while level 0's logsnr lies inside an interval, and plain outside."""

    def __init__(self, denoise: PairedDenoise, interval: Interval) -> None:
        super().__init__(denoise)
        self.interval, self.logsnr = interval, interval.logsnr

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """Those inside; outside of the interval nothing unconditional is asked."""
        if self.logsnr[0] <= at.logsnr[0] <= self.logsnr[1]:
            return self.denoise.answers(z, at)
        plain = self.plain(z, at)
        return Answers(plain, None, plain)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The two answers as they are inside; outside of the interval unguided."""
        within = self.logsnr[0] <= at.logsnr[0] <= self.logsnr[1]
        return (self.denoise if within else bare(self.denoise)).both(z, at)


def bare(denoise: PairedDenoise) -> PairedDenoise:
    """The denoiser inside of all guidance."""
    while isinstance(denoise, Wrapped):
        denoise = denoise.denoise
    return denoise


def of_level(scale: Scale, level: int) -> float:
    """The scale at a level: one for all, or one each, low to high."""
    if isinstance(scale, tuple):
        if level >= len(scale):
            raise ValueError(f"expected a scale for each level, low to high, got {len(scale)}: {list(scale)}")
        return scale[level]
    return scale


def is_one(scale: Scale) -> bool:
    return all(value == 1 for value in (scale if isinstance(scale, tuple) else (scale,)))


def tupled(scale: float | Sequence[float]) -> Scale:
    return scale if isinstance(scale, int | float) else tuple(scale)


def extrapolated(answers: Answers, scale: Scale) -> Denoised:
    """`uncond + scale (cond - uncond)`, of x0 and eps at every level."""
    assert answers.uncond is not None
    x0, eps = (
        tuple(
            u + of_level(scale, level) * (c - u)
            for level, (c, u) in enumerate(zip(conds, unconds, strict=True))
        )
        for conds, unconds in zip(answers.cond, answers.uncond, strict=True)
    )
    return Denoised(x0, eps)


@attrs.frozen
class CFG:
    """Classifier-free guidance: `uncond + scale (cond - uncond)` at every level; no second answer at scale 1.

    `scale`: one for all levels, or one each, low to high. *Classifier-Free Diffusion Guidance*, arXiv
    2207.12598, eq. 6, with scale = 1 + w.
    """

    scale: Scale = attrs.field(default=5.0, converter=tupled)

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser."""
        if is_one(self.scale):
            return denoise
        return Guided(denoise, lambda answers, z, at: extrapolated(answers, self.scale), first=True)


@attrs.frozen
class CFGPP:
    """CFG++: the guided picture, renoised with the unconditional noise; `scale` is in [0, 1], 0.6 is usual.

    *CFG++*, arXiv 2406.08070, algorithm 2. It never leaves the range between both answers, so that thresholds
    have little to do. Raises ValueError where a scale is outside [0, 1].
    """

    scale: Scale = attrs.field(default=0.6, converter=tupled)

    def __attrs_post_init__(self) -> None:
        values = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"expected scale in [0, 1], got {self.scale}; cfg takes larger ones")

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser."""

        def change(answers: Answers, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            assert answers.uncond is not None
            return Denoised(extrapolated(answers, self.scale).x0, answers.uncond.eps)

        return Guided(denoise, change, first=True)


@attrs.frozen
class CFGZero:
    """CFG-Zero*: the unconditional velocity scaled to fit the conditional one, and a start that waits.

    With flow = eps - x0, the unconditional flow is multiplied by `<cond, uncond> / |uncond|^2` before it is
    extrapolated from; while t is above 1 - `zero` the flow is 0, as an early one of a model that is not
    trained out leads nowhere. *CFG-Zero**, arXiv 2503.18886, section 3. `scale` as for `CFG`.
    """

    scale: Scale = attrs.field(default=5.0, converter=tupled)
    zero: float = 0.04

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser."""

        def change(answers: Answers, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            assert answers.uncond is not None
            flows = []
            for level in range(len(z)):
                cond, uncond = (said.eps[level] - said.x0[level] for said in (answers.cond, answers.uncond))
                fit = inner(cond, uncond) / inner(uncond, uncond).clamp(min=1e-12)
                base = fit * uncond
                guided = base + of_level(self.scale, level) * (cond - base)
                flows.append(torch.zeros_like(guided) if at.t > 1 - self.zero else guided)
            return from_space(flows, z, at, "flow")

        return Guided(denoise, change, first=True)


class APG:
    """Adaptive projected guidance: what is parallel to the conditional picture is held back.

    The difference of both pictures is averaged over steps with `momentum` (negative: pushed away from where
    it was), cut to the norm `norm`, and split into a part along the conditional picture, which counts `eta`
    times, and the rest, which counts in full. *APG*, arXiv 2410.02416, section 4, with norms of whole
    pictures at each level. `scale` as for `CFG`; at eta = 1, momentum = 0 and without a norm it is that.
    """

    def __init__(
        self,
        *,
        scale: float | Sequence[float] = 7.5,
        eta: float = 0.0,
        norm: float | None = 15.0,
        momentum: float = -0.5,
    ) -> None:
        if norm is not None and not norm > 0:
            raise ValueError(f"expected norm > 0, got {norm}; leave it out for no limit")
        self.scale, self.eta, self.norm, self.momentum = tupled(scale), eta, norm, momentum

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser of one trajectory after another: going back to more noise begins a new one."""
        running: list[Tensor] = []
        last = 0.0

        def change(answers: Answers, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            nonlocal running, last
            assert answers.uncond is not None
            pairs = list(zip(answers.cond.x0, answers.uncond.x0, strict=True))
            differences = [cond - uncond for cond, uncond in pairs]
            if at.t < last and [r.shape for r in running] == [d.shape for d in differences]:
                differences = [d + self.momentum * r for d, r in zip(differences, running, strict=True)]
            running, last = differences, at.t
            x0 = []
            for level, (difference, (cond, _)) in enumerate(zip(differences, pairs, strict=True)):
                if self.norm is not None:
                    size = inner(difference, difference).sqrt()
                    difference = difference * (self.norm / size.clamp(min=self.norm))
                along = inner(difference, cond) / inner(cond, cond).clamp(min=1e-12) * cond
                kept = difference - along + self.eta * along
                x0.append(cond + (of_level(self.scale, level) - 1) * kept)
            return from_space(x0, z, at, "x0")

        return Guided(denoise, change, first=True)


@attrs.frozen
class Rescale:
    """After guidance: bring the deviation of each picture back towards that of the conditional answer.

    In `space`, `said * (1 - factor + factor * std(cond) / std(said))`, deviations over all pixels of a level.
    *Common Diffusion Noise Schedules and Sample Steps are Flawed*, arXiv 2305.08891, eq. 15 and 16, for v.
    Raises ValueError where factor is outside [0, 1].
    """

    factor: float = 0.7
    space: str = "v"

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ValueError(f"expected factor in [0, 1], got {self.factor}")

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The rescaled denoiser."""

        def change(answers: Answers, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            rescaled = []
            for level in range(len(z)):
                said, cond = (
                    from_x0_eps(a.x0[level], a.eps[level], at.alpha[level], at.sigma[level], self.space)
                    for a in (answers.said, answers.cond)
                )
                ratio = deviation(cond) / deviation(said).clamp(min=1e-12)
                rescaled.append(said * (1 - self.factor + self.factor * ratio))
            return from_space(rescaled, z, at, self.space)

        return Guided(denoise, change, first=False)


@attrs.frozen
class Interval:
    """Guide only while level 0's logsnr lies inside an interval; outside, one row runs, the conditional one.

    *Guidance interval*, arXiv 2404.07724, section 3, whose interval is of sigma_edm = exp(-logsnr / 2).
    Raises ValueError where the interval is empty.
    """

    logsnr: tuple[float, ...] = attrs.field(default=(-3.0, 5.0), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if len(self.logsnr) != 2 or not self.logsnr[0] < self.logsnr[1]:
            raise ValueError(f"expected logsnr = [low, high], low < high, got {list(self.logsnr)}")

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The denoiser that is guided inside of the interval."""
        return Within(denoise, self)

    def check(self, diffusion: Diffusion) -> None:
        """ValueError where the schedule of level 0 never comes into the interval."""
        ends = [float(diffusion.logsnr(torch.tensor(t, dtype=torch.float64), 0)) for t in (1.0, 0.0)]
        if not (self.logsnr[0] <= ends[1] and ends[0] <= self.logsnr[1]):
            raise ValueError(
                f"expected an interval that meets the schedule's logsnr, {ends[0]:.3g} to {ends[1]:.3g} at "
                f"level 0, got {list(self.logsnr)}, in which nothing would be guided; [-3, 5] is usual"
            )


def check_intervals(denoise: object, diffusion: Diffusion) -> None:
    """ValueError where an interval around a denoiser lies outside of the schedule."""
    while isinstance(denoise, Wrapped):
        if isinstance(denoise, Within):
            denoise.interval.check(diffusion)
        denoise = denoise.denoise


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, shaped to broadcast against it."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def deviation(x: Tensor) -> Tensor:
    """The standard deviation of each row, shaped to broadcast against it."""
    return x.flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))
