"""Autoguidance: a weaker model of the same pictures, which the answers are led away from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
from torch import Tensor

from mdmkit.diffusion import NoiseLevel

from .denoise import Answers, Denoise, Denoised, PairedDenoise
from .guidance import Guidance, Scale, Wrapped, is_one, of_level, tupled

__all__ = ["Auto", "AutoFolder", "OverModel"]


@attrs.frozen
class Auto:
    """Autoguidance: `weak + scale (cond - weak)`, where a weaker model answers the same question.

    `weak`: a denoiser of the same noise levels, told the same text: fewer steps of training, fewer channels
    (`Denoiser(weak_nest, ...)`; it may predict in another space). `levels`: how many inner levels it knows,
    all where not given; an earlier growth stage has fewer. Levels that it lacks, and levels of scale 1, are
    left as the guidance in front has them. `scale` as for `CFG`; at 1 the weak model is not asked.

    Behind other guidance its `(scale - 1) (cond - weak)` is added to what that said; guidance behind it takes
    the guided answer for the conditional one, so that `cfg` multiplies it. *Guiding a Diffusion Model with a
    Bad Version of Itself*, arXiv 2406.02507, eq. 5. Raises ValueError for levels below 1.
    """

    weak: Denoise
    scale: Scale = attrs.field(default=2.0, converter=tupled)
    levels: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise ValueError(f"expected the weak model to know at least 1 level, got {self.levels}")

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The guided denoiser."""
        return denoise if is_one(self.scale) else Ahead(denoise, self)


class Ahead(Wrapped):
    """A denoiser led away from a weaker one."""

    def __init__(self, denoise: PairedDenoise, auto: Auto) -> None:
        super().__init__(denoise)
        self.auto = auto

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """Those inside; where nothing there led away from anything, the weak one is what this leads from."""
        inside = self.denoise.answers(z, at)
        weak = self.weak(inside.cond, z, at)
        said = self.led(inside.said, inside.cond, weak)
        return Answers(inside.cond, weak if inside.uncond is None else inside.uncond, said)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The guided answer, and the unconditional one as it is."""
        cond, uncond = self.denoise.both(z, at)
        return self.led(cond, cond, self.weak(cond, z, at)), uncond

    def weak(self, cond: Denoised, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """What the weak model says; the strong one's words at levels that it lacks."""
        levels = len(z) if self.auto.levels is None else min(self.auto.levels, len(z))
        weak = self.auto.weak(tuple(z[:levels]), at)
        if len(weak.x0) != levels:
            raise ValueError(
                f"expected answers for {levels} levels from the weak model, got {len(weak.x0)}; say how many "
                "it knows: Auto(weak, levels=...)"
            )
        return Denoised((*weak.x0, *cond.x0[levels:]), (*weak.eps, *cond.eps[levels:]))

    def led(self, said: Denoised, cond: Denoised, weak: Denoised) -> Denoised:
        """What is said, led on by `(scale - 1) (cond - weak)`."""
        x0, eps = (
            tuple(
                s + (of_level(self.auto.scale, level) - 1) * (c - w)
                for level, (s, c, w) in enumerate(zip(*parts, strict=True))
            )
            for parts in zip(said, cond, weak, strict=True)
        )
        return Denoised(x0, eps)


@runtime_checkable
class OverModel(Protocol):
    """Guidance that asks another model, named by its folder; the program opens it and gives its denoiser."""

    weak: str
    weights: str | None

    def over(self, denoise: Denoise, levels: int) -> Guidance:
        """The guidance by that model's denoiser, which knows so many levels."""
        ...


@attrs.frozen
class AutoFolder:
    """Autoguidance as a recipe says it: `weak` names a checkpoint, a run folder or a model folder.

    `weights`: "ema" (averaged) or "model" (as trained); averaged where the folder has them. It guides once it
    has its model (`over`), which `mdmkit.assemble` opens; `Auto` is for denoisers at hand.
    """

    weak: str
    scale: Scale = attrs.field(default=2.0, converter=tupled)
    weights: str | None = None

    def over(self, denoise: Denoise, levels: int | None = None) -> Auto:
        """Autoguidance by that model's denoiser."""
        return Auto(denoise, self.scale, levels)

    def wrap(self, denoise: PairedDenoise) -> PairedDenoise:
        """The denoiser itself at scale 1; ValueError elsewhere, as no model is open."""
        if is_one(self.scale):
            return denoise
        raise ValueError(
            f"auto: the weak model {self.weak!r} is not loaded; draw with what mdmkit.assemble.drawing "
            "gives, or take mdmkit.sampling.Auto with a denoiser of yours"
        )
