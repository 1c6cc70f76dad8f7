"""Settings and registrations of the built-in components: rules, spacings, guidance, thresholds. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS"]

LIMIT_HELP = "pictures lie in [-limit, limit]"


@attrs.frozen
class DDIM:
    """DDIM: deterministic, or with fresh noise."""

    eta: float = opt(0.0, "0: deterministic; 1: as much fresh noise as ddpm", ge=0.0, le=1.0)


@attrs.frozen
class DDPM:
    """Ancestral sampling, as in DDPM."""


@attrs.frozen
class UniformT:
    """Equal steps in t from 1 to 0."""


@attrs.frozen
class Released:
    """The grid of the released sampler, which starts late."""

    table: int = opt(1000, "entries of the schedule's table", ge=2)


@attrs.frozen
class CFG:
    """Classifier-free guidance."""

    scale: float = opt(5.0, "1: no guidance", ge=0.0)


@attrs.frozen
class NoThreshold:
    """No threshold."""


@attrs.frozen
class Clip:
    """Static thresholding: cut."""

    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


@attrs.frozen
class Dynamic:
    """Dynamic thresholding: shrink a picture whose quantile is out of range, then cut."""

    quantile: float = opt(0.995, "of a picture's absolute values", ge=0.0, le=1.0)
    maximum: float = opt(100.0, "the largest divisor", ge=1.0)
    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


@attrs.frozen
class DynamicIF:
    """Dynamic thresholding as in DeepFloyd IF: a lower quantile, little shrinking."""

    quantile: float = opt(0.95, "of a picture's absolute values", ge=0.0, le=1.0)
    maximum: float = opt(1.5, "the largest divisor", ge=1.0)
    limit: float = opt(1.0, LIMIT_HELP, gt=0.0)


COMPONENTS: list[Component] = [
    Component("sampler", "ddim", DDIM, "mdmkit.sampling.rules:ddim"),
    Component("sampler", "ddpm", DDPM, "mdmkit.sampling.rules:ddpm"),
    Component("spacing", "uniform_t", UniformT, "mdmkit.sampling.spacing:uniform_t"),
    Component("spacing", "released", Released, "mdmkit.sampling.spacing:released"),
    Component("guidance", "cfg", CFG, "mdmkit.sampling.guidance:CFG"),
    Component("threshold", "none", NoThreshold, "mdmkit.sampling.threshold:none"),
    Component("threshold", "clip", Clip, "mdmkit.sampling.threshold:clip"),
    Component("threshold", "dynamic", Dynamic, "mdmkit.sampling.threshold:dynamic"),
    Component("threshold", "dynamic_if", DynamicIF, "mdmkit.sampling.threshold:dynamic_if"),
]
