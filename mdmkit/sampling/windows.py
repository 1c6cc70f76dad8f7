"""Canvases larger than a network was trained for, by overlapping windows over one noisy pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import attrs
import torch
from torch import Tensor

from mdmkit.diffusion import NoiseLevel
from mdmkit.pyramid import ratio

from .denoise import Denoise, Denoised

__all__ = ["Windows"]


def sides(sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((height, width) for height, width in sizes)


@attrs.frozen
class Windows:
    """Asks a denoiser window by window, of the size it was trained for, and averages what it says.

    `sizes`: (height, width) of a window at each level, low to high. A window is the same piece of the picture
    at every level, so that all levels stay one picture, the innermost one being common to all windows.
    Neighbours share `overlap` of a window, in which each counts the less the nearer its border is.
    *MultiDiffusion*, arXiv 2302.08113, eq. 5. Raises ValueError where overlap is outside [0, 1).
    """

    sizes: tuple[tuple[int, int], ...] = attrs.field(converter=sides)
    overlap: float = 0.5

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"expected overlap in [0, 1), the shared part of a window, got {self.overlap}")

    def wrap(self, make: Callable[[], Denoise]) -> Denoise:
        """A denoiser of canvases; `make()` gives one for each window: guidance may remember what it saw.

        The denoiser raises ValueError for a canvas that is smaller than a window, or has other ratios.
        """
        denoisers: dict[tuple[int, int], Denoise] = {}

        def denoise(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            said: list[list[Tensor]] = [[torch.zeros_like(level) for level in z] for _ in range(2)]
            total = [torch.zeros_like(level[:1, :1]) for level in z]
            places = self.places(z)
            for place in places:
                if place not in denoisers:
                    denoisers[place] = make()
                cuts = [self.cut(place, r) for r in range(len(z))]
                part = denoisers[place](tuple(level[cut] for level, cut in zip(z, cuts, strict=True)), at)
                if len(places) == 1:
                    return part
                for r, cut in enumerate(cuts):
                    share = tent(self.sizes[r], like=z[r])
                    total[r][cut] += share
                    for whole, own in zip(said, part, strict=True):
                        whole[r][cut] += share * own[r]
            x0, eps = (
                tuple(level / share for level, share in zip(whole, total, strict=True)) for whole in said
            )
            return Denoised(x0, eps)

        return denoise

    def places(self, z: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Where windows begin at level 0."""
        canvas, window = tuple(z[0].shape[2:]), self.sizes[0]
        wanted = [
            tuple(side * factor for side, factor in zip(canvas, ratio(size, window), strict=True))
            for size in self.sizes[: len(z)]
        ]
        came = [tuple(level.shape[2:]) for level in z]
        if wanted != came or any(c < w for c, w in zip(canvas, window, strict=True)):
            raise ValueError(
                f"expected a canvas of at least {window} at level 0, with levels in the ratios of "
                f"{', '.join(map(str, self.sizes[: len(z)]))}, got {', '.join(map(str, came))}"
            )
        down, across = (starts(c, w, self.overlap) for c, w in zip(canvas, window, strict=True))
        return list(product(down, across))

    def cut(self, place: tuple[int, int], level: int) -> tuple[slice, ...]:
        """The window at a place, at a level."""
        factors = ratio(self.sizes[level], self.sizes[0])
        along = (
            slice(start * factor, start * factor + side)
            for start, factor, side in zip(place, factors, self.sizes[level], strict=True)
        )
        return (slice(None), slice(None), *along)


def starts(canvas: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side, the last one at its end."""
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, canvas - window, step), canvas - window]


def tent(size: Sequence[int], *, like: Tensor) -> Tensor:
    """How much each pixel of a window counts: the more the further it is from both borders."""
    rows, columns = (
        torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).to(like) for side in size
    )
    return rows[:, None] * columns
