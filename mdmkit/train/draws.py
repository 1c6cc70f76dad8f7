"""Every random draw of a training step, as a function of (seed, step, place in the global batch)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.pyramid import Pyramid
from mdmkit.streams import normal, stream

__all__ = ["Rows", "draw_noise", "dropped", "micro_batches", "numbered", "self_conditioned", "stopping"]


@attrs.frozen
class Rows:
    """A micro-batch: the places of its rows in the global batch, and how many (the first) reach a level."""

    places: tuple[int, ...]
    per_level: tuple[int, ...]


def micro_batches(
    rows_per_level: Sequence[int], *, rank: int, ranks: int, accumulate: int, first: int = 0
) -> list[Rows]:
    """Split a global batch, or a group of its rows, over ranks and micro-batches, equally at every level.

    Micro-batch m of rank k takes the places k + m * ranks, then every (ranks * accumulate)-th, counted from
    the group's `first`: rows with the highest top level stay first in each part, and whoever takes a place
    draws the same numbers for it. `rows_per_level[r]` rows reach level r. ValueError where one is not a
    multiple of ranks * accumulate.
    """
    parts = ranks * accumulate
    uneven = [rows for rows in rows_per_level if rows % parts]
    if uneven:
        raise ValueError(
            f"rows per level {tuple(rows_per_level)} do not split over {ranks} ranks x {accumulate} parts"
        )
    return [
        Rows(
            places=tuple(range(first + rank + ranks * m, first + rows_per_level[0], parts)),
            per_level=tuple(rows // parts for rows in rows_per_level),
        )
        for m in range(accumulate)
    ]


def stopping(rows_per_level: Sequence[int]) -> tuple[int, ...]:
    """How many rows have each level as their top, from how many reach it."""
    above = (*rows_per_level[1:], 0)
    return tuple(here - beyond for here, beyond in zip(rows_per_level, above, strict=True))


def numbered(
    rows: Rows, rows_per_level: Sequence[int], before: Sequence[int]
) -> list[tuple[int, int]]:
    """For each row of a micro-batch its top level, and its number among all rows with that top level.

    `before[r]` such rows came in earlier steps; within a step they count by their places.
    """
    tops = [sum(place < count for count in rows_per_level) - 1 for place in rows.places]
    first = (*rows_per_level[1:], 0)  # the place of the first row that stops at a level
    return [(top, before[top] + place - first[top]) for place, top in zip(rows.places, tops, strict=True)]


def draw_noise(
    rows: Rows,
    resolutions: Sequence[Sequence[int]],
    *,
    seed: int,
    step: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    channels: int = 3,
) -> Pyramid:
    """Standard normal noise of a micro-batch, independent by row and level: (B_r, C, [F_r,] H_r, W_r)."""

    def level(r: int) -> Tensor:
        shape = (channels, *resolutions[r])
        draws = [
            normal(shape, seed, step, place, r, "noise", device=device, dtype=dtype)
            for place in rows.places[: rows.per_level[r]]
        ]
        return torch.stack(draws)

    return tuple(level(r) for r in range(len(rows.per_level)))


def dropped(rows: Rows, share: float, *, seed: int, step: int) -> list[bool]:
    """Which rows lose their caption, each with probability `share`."""
    return [share > 0 and stream(seed, step, place, "caption").random() < share for place in rows.places]


def self_conditioned(rows: Rows, *, seed: int, step: int) -> list[bool]:
    """Which rows are shown their own estimate, each with probability 1/2 (Chen et al. 2022, 2208.04202)."""
    return [stream(seed, step, place, "estimate").random() < 0.5 for place in rows.places]
