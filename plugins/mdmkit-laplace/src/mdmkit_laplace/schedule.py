"""The noise schedule whose density over logsnr is Laplace's."""

from __future__ import annotations

import attrs
from torch import Tensor

from mdmkit.schedules import VariancePreserving

__all__ = ["Laplace"]


@attrs.frozen(kw_only=True)
class Laplace(VariancePreserving):
    """logsnr(t) = mean - scale sgn(1/2 - t) ln(1 - 2 |t - 1/2|), variance preserving.

    mean, scale: of the density exp(-|logsnr - mean| / scale) / (2 scale) that uniform t gives to logsnr.
    limit: logsnr is clamped to -limit .. limit; the formula is infinite at t = 0 and t = 1.
    ValueError where scale or limit is not above 0, or the limit leaves the mean out.

    Source: Hang et al., Improved Noise Schedule for Diffusion Training, arXiv 2407.03297, section 2.
    """

    mean: float = 0.0
    scale: float = 0.5
    limit: float = 15.0

    def __attrs_post_init__(self) -> None:
        if self.scale <= 0 or self.limit <= 0:
            raise ValueError(f"expected scale > 0 and limit > 0, got scale={self.scale}, limit={self.limit}")
        if abs(self.mean) >= self.limit:
            wider = f"{abs(self.mean) + 15:g}"
            raise ValueError(f"limit={self.limit} leaves out mean={self.mean}; try limit={wider}")

    def logsnr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) at t in [0, 1], any shape; falls with t."""
        # 1 - 2 |t - 1/2| as twice the distance to the nearer end: no digit is lost near t = 0
        from_end = 2 * t.minimum(1 - t)
        return (self.mean - self.scale * (0.5 - t).sign() * from_end.log()).clamp(-self.limit, self.limit)
