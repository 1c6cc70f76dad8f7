"""Resolution samplers: which levels a batch, or each part of a batch, trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs

__all__ = ["All", "Mixed", "ResolutionSampler", "rows_per_level"]


@runtime_checkable
class ResolutionSampler(Protocol):
    """Which levels the rows of a batch train."""

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        """For each level, low to high, the part of the rows whose **top** level it is; the sum is 1.

        A function of its arguments only, so that all ranks agree.
        """
        ...


@attrs.frozen
class All:
    """Every row trains every level."""

    levels: int

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return (0.0,) * (self.levels - 1) + (1.0,)


@attrs.frozen
class Mixed:
    """A fixed part of each batch stops at each level: `shares[r]` of the rows have r as their top level.

    The mixed batches of the released 1024 configuration (`2:1` from high to low is `shares = (1/3, 2/3)`
    here). Raises ValueError where there is not one share >= 0 a level or their sum is not 1 (to 0.001; then
    made exact).
    """

    row_shares: tuple[float, ...] = attrs.field(alias="shares", converter=tuple)
    levels: int = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if len(self.row_shares) != self.levels:
            raise ValueError(
                f"expected shares for {self.levels} levels, low to high, got {len(self.row_shares)}"
            )
        if min(self.row_shares) < 0 or abs(sum(self.row_shares) - 1) > 1e-3:
            raise ValueError(f"expected shares >= 0 whose sum is 1, got {list(self.row_shares)}")

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        total = math.fsum(self.row_shares)
        return tuple(share / total for share in self.row_shares)


def rows_per_level(shares: Sequence[float], batch: int, multiple: int = 1) -> tuple[int, ...]:
    """How many of `batch` rows reach level r, for each level: never rising, the first is `batch`.

    Rows with the highest top level come first, so that level r trains the first `rows[r]` rows. `multiple`
    (ranks times micro-batches): every level's own rows are a multiple of it, so that all parts are alike.
    Largest remainders, ties to the lower level; every level with a share gets at least one unit.
    Raises ValueError where `batch` is no multiple of `multiple` or has too few units.
    """
    if batch % multiple:
        raise ValueError(f"batch={batch} is not a multiple of {multiple} (ranks times micro-batches)")
    units, wanted = batch // multiple, [level for level, share in enumerate(shares) if share > 0]
    if units < len(wanted):
        need = len(wanted) * multiple
        raise ValueError(
            f"batch={batch} cannot give each of {len(wanted)} levels with a share its rows; use >= {need}"
        )
    quotas = [share * units for share in shares]
    counts = [max(math.floor(quota), int(share > 0)) for quota, share in zip(quotas, shares, strict=True)]
    while sum(counts) != units:
        short = sum(counts) < units
        # the level furthest below its quota gains a unit; where minima overshot, the furthest above loses one
        open_levels = wanted if short else [level for level in wanted if counts[level] > 1]
        gap = {level: quotas[level] - counts[level] for level in open_levels}
        level = max(gap, key=lambda r: (gap[r], -r)) if short else min(gap, key=lambda r: (gap[r], -r))
        counts[level] += 1 if short else -1
    return tuple(multiple * sum(counts[level:]) for level in range(len(counts)))
