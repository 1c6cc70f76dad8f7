"""What mdmkit finds at the entry point `laplace`. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mdmkit.plugins import Component, hookimpl
from mdmkit.recipe import opt

__all__ = ["LaplaceSettings", "mdmkit_components", "mdmkit_recipes"]


@attrs.frozen
class LaplaceSettings:
    """Laplace density over logsnr: most draws near one noise level."""

    mean: float = opt(0.0, "logsnr at t = 0.5, where the density is highest")
    scale: float = opt(0.5, "width of the density, in logsnr", gt=0.0)
    limit: float = opt(15.0, "logsnr stays within -limit .. limit, which the ends would leave", gt=0.0)


@hookimpl
def mdmkit_components() -> Iterable[Component]:
    target = "mdmkit_laplace.schedule:Laplace"
    return [Component("noise_schedule", "laplace.density", LaplaceSettings, target)]


@hookimpl
def mdmkit_recipes() -> Iterable[Path]:
    return sorted((Path(__file__).parent / "recipes").glob("*.toml"))
