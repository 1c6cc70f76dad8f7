"""The four prediction spaces, x0, eps, v and flow: conversions, training targets, pixel-wise losses.

With `z = alpha x0 + sigma eps`:

    v    = alpha eps - sigma x0       *Progressive Distillation*, arXiv 2202.00512, appendix D
    flow = eps - x0                   *Rectified Flow*, arXiv 2209.03003, eq. 1, with t running from data to
    noise

and the inverses below hold for any alpha and sigma, not only where alpha^2 + sigma^2 = 1. `alpha` and `sigma`
are floats or tensors that broadcast against `z`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mdmkit.pyramid import pool

__all__ = ["SPACES", "PixelLoss", "convert", "from_x0_eps", "huber", "mse", "multiscale", "to_eps", "to_x0"]

SPACES = ("x0", "eps", "v", "flow")

Scale = Tensor | float


def to_x0(pred: Tensor, z: Tensor, alpha: Scale, sigma: Scale, space: str) -> Tensor:
    """x0 of a prediction in `space` at `z`.

    From eps it is not determined where alpha is 0: 0, the middle of the range, stands in for it there.
    Raises ValueError for an unknown space.
    """
    match space:
        case "x0":
            return pred
        case "eps":
            return divide(z - sigma * pred, alpha)
        case "v":
            return (alpha * z - sigma * pred) / (alpha**2 + sigma**2)
        case "flow":
            return (z - sigma * pred) / (alpha + sigma)
    raise unknown(space)


def to_eps(pred: Tensor, z: Tensor, alpha: Scale, sigma: Scale, space: str) -> Tensor:
    """eps of a prediction in `space` at `z`.

    From x0 it is not determined where sigma is 0: 0 stands in for it there. Raises ValueError for an unknown
    space.
    """
    match space:
        case "x0":
            return divide(z - alpha * pred, sigma)
        case "eps":
            return pred
        case "v":
            return (sigma * z + alpha * pred) / (alpha**2 + sigma**2)
        case "flow":
            return (z + alpha * pred) / (alpha + sigma)
    raise unknown(space)


def from_x0_eps(x0: Tensor, eps: Tensor, alpha: Scale, sigma: Scale, space: str) -> Tensor:
    """The target in `space` of a picture and its noise. Raises ValueError for an unknown space."""
    match space:
        case "x0":
            return x0
        case "eps":
            return eps
        case "v":
            return alpha * eps - sigma * x0
        case "flow":
            return eps - x0
    raise unknown(space)


def convert(pred: Tensor, z: Tensor, alpha: Scale, sigma: Scale, source: str, target: str) -> Tensor:
    """A prediction in space `source` at `z`, in space `target`; the same tensor where they are one."""
    if source == target and source in SPACES:
        return pred
    x0, eps = to_x0(pred, z, alpha, sigma, source), to_eps(pred, z, alpha, sigma, source)
    return from_x0_eps(x0, eps, alpha, sigma, target)


class PixelLoss(Protocol):
    """The distance of prediction and target, pixel by pixel: same shape out as in."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared difference, pixel by pixel."""
    return (prediction - target) ** 2


def huber(prediction: Tensor, target: Tensor, *, delta: float = 0.1) -> Tensor:
    """Pseudo-Huber: the squared difference d^2 well below `delta`, 2 delta |d| well above.

    2 delta^2 (sqrt(1 + (d / delta)^2) - 1), so that a few pixels that are far off pull no harder than 2 delta
    each. A weighting keeps its meaning in another loss space for small errors only, since only squares follow
    its conversion. ValueError where delta is not above 0. *Scheduled Pseudo-Huber Loss*, arXiv 2403.16728,
    but with one delta for all times.
    """
    if not delta > 0:
        raise ValueError(f"expected delta > 0, got {delta}")
    square = (prediction - target) ** 2
    # the root minus 1 loses every digit of a small difference
    return 2 * square / (1 + (1 + square / delta**2).sqrt())


def multiscale(prediction: Tensor, target: Tensor, *, smallest: int = 32, power: float = 1.0) -> Tensor:
    """Squared differences of the pictures, and of their halves, quarters, ... by average pooling.

    The scale of side s counts (d / s)^power, d being the picture's own shorter side, whose weight is 1; it
    goes on halving while the sides are even and s stays >= `smallest`. Each scale's squares stand at the
    pixels that they are of, so that the mean over pixels is the weighted sum of the scales' means. With
    power = 1 it is d times the loss of *simple diffusion*, arXiv 2301.11093, whose weights are 1 / s, from
    32 up.

    For a single level: the levels of a nest are scales of one picture already, each with a loss and a weight
    of its own (`level_weights`). An error changes by one factor a picture from space to space, so that
    weightings keep their meaning. ValueError where smallest is not at least 1.
    """
    if smallest < 1:
        raise ValueError(f"expected smallest >= 1, a side in pixels, got {smallest}")
    difference = prediction - target
    side = min(difference.shape[-2:])
    scales = [difference]
    while (h := difference.shape[-2]) % 2 == 0 == (w := difference.shape[-1]) % 2:
        if min(h, w) // 2 < smallest:
            break
        difference = pool(difference, (*difference.shape[2:-2], h // 2, w // 2))
        scales.append(difference)
    total = torch.zeros_like(scales[-1])
    for scale in reversed(scales):
        if total.shape != scale.shape:
            total = total.repeat_interleave(2, -2).repeat_interleave(2, -1)
        total = total + (side / min(scale.shape[-2:])) ** power * scale**2
    return total


def divide(numerator: Tensor, scale: Scale) -> Tensor:
    """`numerator / scale`, 0 where the scale is exactly 0, with finite gradients there."""
    if not isinstance(scale, Tensor):
        return numerator / scale if scale else torch.zeros_like(numerator)
    zero = scale == 0
    return torch.where(zero, torch.zeros_like(numerator), numerator / torch.where(zero, 1.0, scale))


def unknown(space: str) -> ValueError:
    return ValueError(f"unknown prediction space {space!r}; expected one of {', '.join(SPACES)}")
