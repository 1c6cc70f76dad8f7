"""Hypothesis strategies over shapes, ratios and seeds; elements of tensors follow from a seed."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

__all__ = ["pyramid_of", "ratios", "resolutions", "seeds", "shares", "times"]


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a run: small ones first, then any of 64 bits."""
    return st.one_of(st.integers(0, 3), st.integers(0, 2**63 - 1))


def times(*, inside: bool = False) -> st.SearchStrategy[float]:
    """t in [0, 1], the ends included; `inside` keeps away from them."""
    return st.floats(0.01, 0.99) if inside else st.floats(0.0, 1.0)


def ratios(largest: int = 4) -> st.SearchStrategy[tuple[int, int]]:
    """Ratios (height, width) between neighbouring levels: integers >= 1 per axis, not both 1."""
    side = st.integers(1, largest)
    return st.tuples(side, side).filter(lambda ratio: ratio != (1, 1))


@st.composite
def resolutions(
    draw: st.DrawFn, *, levels: int | None = None, most_levels: int = 3, first: int = 4, largest: int = 64
) -> tuple[tuple[int, int], ...]:
    """Resolutions (height, width) low to high, each dividing the next per axis.

    levels: their number; 1 to `most_levels` where not given.
    first: the longest side of level 0. largest: the longest of all, at least first * 2 ** (levels - 1).
    """
    count = draw(st.integers(1, most_levels)) if levels is None else levels
    found = [(draw(st.integers(1, first)), draw(st.integers(1, first)))]
    for left in reversed(range(count - 1)):
        height, width = found[-1]
        room = largest >> left  # each level to come takes at least a factor of 2
        most = min(4, room // max(height, width))
        down, across = draw(ratios(most))
        found.append((height * down, width * across))
    return tuple(found)


@st.composite
def shares(draw: st.DrawFn, levels: int) -> tuple[float, ...]:
    """Shares of a batch by top level: not negative, summing to 1."""
    parts = draw(st.lists(st.integers(0, 8), min_size=levels, max_size=levels).filter(any))
    return tuple(part / sum(parts) for part in parts)


def pyramid_of(
    resolutions: tuple[tuple[int, int], ...],
    *,
    seed: int,
    batch: int = 2,
    channels: int = 3,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """Normal draws of shape (batch, channels, h, w) a level, a function of the seed."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return tuple(
        torch.randn((batch, channels, *side), generator=generator, dtype=dtype) for side in resolutions
    )
