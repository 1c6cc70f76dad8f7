"""Settings and registrations of the built-in components: what is measured of any model. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "Likelihood"]


@attrs.frozen
class Likelihood:
    """Variational bounds of the data's pictures at every level, in bits per dimension."""

    draws: int = opt(16, "noise levels a picture, evenly over logsnr; 16 or more", ge=1)
    logsnr_max: float = opt(12.0, "where pixels are read: as near to it as the schedule comes")
    seed: int = opt(0, "of the noise", ge=0)


COMPONENTS: list[Component] = [
    Component("metric", "likelihood", Likelihood, "mdmkit.evaluate.likelihood:Likelihood"),
]
