"""Settings and registrations of the built-in components: resolution samplers. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "All", "BySource", "Curriculum", "Fixed", "Mixed", "Stochastic"]


@attrs.frozen
class All:
    """Every row trains every level."""


@attrs.frozen
class Fixed:
    """Every row stops at one level."""

    level: int = opt(help="the top level of every row; 0 is the core", ge=0)


@attrs.frozen
class Mixed:
    """A fixed part of each batch stops at each level."""

    shares: tuple[float, ...] = opt(
        help="for each level, low to high, the part of the rows that stop there", ge=0.0
    )


@attrs.frozen
class Stochastic:
    """All rows of a step stop at one level, drawn anew in each step."""

    probabilities: tuple[float, ...] = opt(
        help="for each level, low to high, how often a step stops there", ge=0.0
    )


@attrs.frozen
class Curriculum:
    """Shares that move straight from `start` to `end`, and then stay."""

    start: tuple[float, ...] = opt(help="shares at the first step, low to high", ge=0.0)
    end: tuple[float, ...] = opt(help="shares from step `steps` on", ge=0.0)
    steps: int = opt(help="how long they move, from a stage's first step where there are stages", ge=1)


@attrs.frozen
class BySource:
    """A picture trains the levels up to its own size: none is enlarged."""

    shares: tuple[float, ...] | None = opt(
        None, "the part of the rows that stop at each level; as in the data where not given", ge=0.0
    )


COMPONENTS: list[Component] = [
    Component("resolution_sampler", "all", All, "mdmkit.resolutions:All"),
    Component("resolution_sampler", "fixed", Fixed, "mdmkit.resolutions:Fixed"),
    Component("resolution_sampler", "mixed", Mixed, "mdmkit.resolutions:Mixed"),
    Component("resolution_sampler", "stochastic", Stochastic, "mdmkit.resolutions:Stochastic"),
    Component("resolution_sampler", "curriculum", Curriculum, "mdmkit.resolutions:Curriculum"),
    Component("resolution_sampler", "by_source", BySource, "mdmkit.resolutions:BySource"),
]
