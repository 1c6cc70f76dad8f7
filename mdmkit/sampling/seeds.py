"""Seeds of pictures, and what lies between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
from torch import Tensor

__all__ = ["Between", "Seed", "noise_of"]


@attrs.frozen
class Between:
    """A picture between those of two seeds; at weight 0 the first's, at 1 the second's.

    All noise is mixed as `cos(w pi / 2) first + sin(w pi / 2) second`: on the way from one to the other it
    keeps the distribution that a denoiser was trained on, which an average does not. It is the spherical
    interpolation of *DDIM*, arXiv 2010.02502, appendix D.5, of noises at right angles. Raises ValueError
    where the weight is outside [0, 1].
    """

    first: int
    second: int
    weight: float

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(
                f"expected weight in [0, 1], from seed {self.first} to {self.second}, got {self.weight}"
            )

    @property
    def shares(self) -> list[tuple[int, float]]:
        """The seeds whose noise is taken, and how much of it."""
        if self.weight == 0 or self.first == self.second:
            return [(self.first, 1.0)]
        if self.weight == 1:
            return [(self.second, 1.0)]
        angle = self.weight * math.pi / 2
        return [(self.first, math.cos(angle)), (self.second, math.sin(angle))]


Seed = int | Between


def shares_of(seed: Seed) -> list[tuple[int, float]]:
    return seed.shares if isinstance(seed, Between) else [(int(seed), 1.0)]


def noise_of(seed: Seed, draw: Callable[[int], Tensor]) -> Tensor:
    """The noise of a seed, where `draw` gives that of a number."""
    (number, share), *other = shares_of(seed)
    noise = draw(number) if share == 1 else share * draw(number)
    return noise + other[0][1] * draw(other[0][0]) if other else noise
