"""Brownian paths by key: the same path whatever the steps, so that more of them refine the same picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdmkit.streams import normal

__all__ = ["BrownianPath"]

RANGE = 40.0  # of logsnr, on both sides: what schedules and their shifts reach, and more
DEPTH = 14
CELL = 2 * RANGE / 2**DEPTH  # 0.005: less than any of 1000 steps takes


class BrownianPath:
    """A Brownian motion W over u = alpha^2 / sigma^2 = e^logsnr, of one picture at one level.

    The noise that an ancestral or SDE step adds from `now` to `next` is `sigma_next / sqrt(u_next)` times
    `W(u_next) - W(u_now)`: with the same W, steps of any size add up to the same noise. W is found by
    bisection of logsnr, each midpoint drawn from its own stream given the two ends (a Brownian bridge), so
    that nothing is stored and nothing depends on what was asked before. `key` names the path.
    *Scalable Gradients for Stochastic Differential Equations*, arXiv 2001.01328, section 4 (virtual Brownian
    tree).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *key: int | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.key, self.where = shape, key, {"device": device, "dtype": dtype}
        self.last: tuple[int, Tensor] | None = None  # one step's end is the next one's start

    def increment(self, now: float, after: float) -> Tensor:
        """The noise from logsnr `now` to `after`, scaled to unit variance; independent where steps are apart.

        logsnr counts within +-40. Raises ValueError where `after` is not above `now`.
        """
        if not after > now:
            raise ValueError(f"expected a step to a higher logsnr, got {now} to {after}")
        start, end = cell(now), cell(after)
        if start == end:  # too small a step for the tree: noise of its own
            return self.draw(start, "within", repr(now))
        before = self.last[1] if self.last is not None and self.last[0] == start else self.value(start)
        there = self.value(end)
        self.last = (end, there)
        low, high = logsnr_of(start), logsnr_of(end)
        # sqrt(u_high - u_low), without the difference of near equals
        return (there - before) / (math.exp(high / 2) * math.sqrt(-math.expm1(low - high)))

    def value(self, index: int) -> Tensor:
        """W at the `index`-th point of the grid."""
        left, right = 0, 2**DEPTH
        w_left = math.exp(-RANGE / 2) * self.draw(left, "node")
        w_right = w_left + math.sqrt(2 * math.sinh(RANGE)) * self.draw(right, "node")
        while index not in (left, right):
            middle = (left + right) // 2
            u_left, u, u_right = (math.exp(logsnr_of(point)) for point in (left, middle, right))
            share = (u - u_left) / (u_right - u_left)
            spread = math.sqrt((u - u_left) * (1 - share))
            w = w_left + share * (w_right - w_left) + spread * self.draw(middle, "node")
            if index < middle:
                right, w_right = middle, w
            else:
                left, w_left = middle, w
        return w_left if index == left else w_right

    def draw(self, *part: int | str) -> Tensor:
        """A standard normal draw of its own."""
        return normal(self.shape, *self.key, *part, "brownian", **self.where)


def cell(logsnr: float) -> int:
    """The point of the grid next to a logsnr; of an infinite one, the end."""
    return round((min(max(logsnr, -RANGE), RANGE) + RANGE) / CELL)


def logsnr_of(point: int) -> float:
    return point * CELL - RANGE
