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


def sides(sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(size) for size in sizes)


@attrs.frozen
class Windows:
    """Asks a denoiser window by window, of the size it was trained for, and averages what it says.

    `sizes`: (height, width) of a window at each level, low to high; of clips (frames, height, width). A
    window is the same piece of the picture at every level, so that all levels stay one picture, the innermost
    one being common to all windows. Neighbours share `overlap` of a window, in which each counts the less the
    nearer its border is. *MultiDiffusion*, arXiv 2302.08113, eq. 5.

    Clips can be longer in two ways. Either all levels are, by the same factor; or the inner ones, of as few
    frames as a window has, are one clip that every window sees whole. Raises ValueError where overlap is
    outside [0, 1).
    """

    sizes: tuple[tuple[int, ...], ...] = attrs.field(converter=sides)
    overlap: float = 0.5

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"expected overlap in [0, 1), the shared part of a window, got {self.overlap}")

    def wrap(self, make: Callable[[], Denoise]) -> Denoise:
        """A denoiser of canvases; `make()` gives one for each window: guidance may remember what it saw.

        The denoiser raises ValueError for a canvas that is smaller than a window, or has other ratios.
        """
        denoisers: dict[tuple[int, ...], Denoise] = {}

        def denoise(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            said: list[list[Tensor]] = [[torch.zeros_like(level) for level in z] for _ in range(2)]
            total = [torch.zeros_like(level[:1, :1]) for level in z]
            common = self.common(z)
            places = self.places(z)
            for place in places:
                if place not in denoisers:
                    denoisers[place] = make()
                cuts = [self.cut(place, r, common) for r in range(len(z))]
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

    def common(self, z: Sequence[Tensor]) -> int:
        """How many inner levels of a longer clip have no more frames than a window: all windows see them."""
        if z[0].ndim == 4:
            return 0
        longer = [level.shape[2] > size[0] for level, size in zip(z, self.sizes, strict=False)]
        return longer.index(True) if any(longer) else 0

    def places(self, z: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Where windows begin at level 0, in time at the first level that is longer than a window."""
        first = self.common(z)
        base = [*self.sizes[0]]
        canvas = [*z[0].shape[2:]]
        if len(base) == 3:
            base[0], canvas[0] = self.sizes[first][0], z[first].shape[2]
        wanted = []
        for r, size in enumerate(self.sizes[: len(z)]):
            inside = len(size) == 3 and r < first
            scaled = [side * own // b for side, own, b in zip(canvas, size, base, strict=True)]
            wanted.append((size[0], *scaled[1:]) if inside else tuple(scaled))
        came = [tuple(level.shape[2:]) for level in z]
        if wanted != came or any(c < w for c, w in zip(canvas, base, strict=True)):
            raise ValueError(
                f"expected a canvas of at least {self.sizes[0]} at level 0, with levels in the ratios of "
                f"{', '.join(map(str, self.sizes[: len(z)]))}, got {', '.join(map(str, came))}"
            )
        return list(product(*(starts(c, w, self.overlap) for c, w in zip(canvas, base, strict=True))))

    def cut(self, place: tuple[int, ...], level: int, common: int = 0) -> tuple[slice, ...]:
        """The window at a place, at a level; `common` inner levels are in it whole, in time."""
        size, base = self.sizes[level], [*self.sizes[0]]
        if len(size) == 3:
            base[0] = self.sizes[common][0]
            if level < common:
                place, base[0] = (0, *place[1:]), size[0]
        along = (
            slice(start * factor, start * factor + side)
            for start, factor, side in zip(place, ratio(size, base), size, strict=True)
        )
        return (slice(None), slice(None), *along)


def starts(canvas: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side, the last one at its end."""
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, canvas - window, step), canvas - window]


def tent(size: Sequence[int], *, like: Tensor) -> Tensor:
    """How much each pixel of a window counts: the more the further it is from its borders."""
    share = torch.ones((), dtype=like.dtype, device=like.device)
    for side in size:
        along = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).to(like)
        share = share[..., None] * along
    return share
