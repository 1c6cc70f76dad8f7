"""What mdmkit finds at the entry point `cauchy`. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mdmkit.plugins import Component, hookimpl
from mdmkit.recipe import opt

__all__ = ["CauchySettings", "mdmkit_components", "mdmkit_recipes"]


@attrs.frozen
class CauchySettings:
    """Cauchy's density over logsnr: most draws near one noise level, and heavy tails."""

    mean: float = opt(0.0, "logsnr at t = 0.5, where the density is highest", gt=-20.0, lt=20.0)
    scale: float = opt(1.0, "half of the density's width at half height, in logsnr", gt=0.0)


@hookimpl
def mdmkit_components() -> Iterable[Component]:
    target = "mdmkit_cauchy.schedule:Cauchy"
    return [Component("noise_schedule", "cauchy.cauchy", CauchySettings, target)]


@hookimpl
def mdmkit_recipes() -> Iterable[Path]:
    return sorted((Path(__file__).parent / "recipes").glob("*.toml"))
