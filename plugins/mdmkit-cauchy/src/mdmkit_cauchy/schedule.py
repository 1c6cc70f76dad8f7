"""The noise schedule whose density over logsnr is Cauchy's."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from mdmkit.schedules import ByDensity

__all__ = ["Cauchy"]


@attrs.frozen
class Cauchy(ByDensity):
    """Cauchy's density over logsnr, scale / (pi ((logsnr - mean)^2 + scale^2)), variance preserving.

    logsnr(t) = mean + scale tan(pi / 2 (1 - 2 t)), cut off where it leaves -20 .. 20 (a share of about
    scale / 63 at each end: the tails are heavy). ValueError where scale is not above 0 or mean lies beyond
    the cut-off. *Improved Noise Schedule for Diffusion Training*, arXiv 2407.03297, table 1.
    """

    mean: float = 0.0
    scale: float = 1.0

    def tail(self, share: Tensor) -> Tensor:
        # tan(pi / 2 - pi share); the tangent of near pi / 2 loses digits
        return 1 / torch.tan(math.pi * share)
