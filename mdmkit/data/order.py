"""One global, endless order of samples: which sample stands at a position, without reading any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mdmkit.streams import stream

__all__ = ["Order", "Place"]


class Place(NamedTuple):
    """Where a sample stands: row `row` of shard `shard`, met in epoch `epoch`."""

    epoch: int
    shard: int
    row: int


class Order:
    """position -> place, where every epoch holds each sample exactly once, in an order of its own.

    Each epoch permutes the shards and cuts them into windows of `window` shards; the samples of a window
    are permuted among themselves, so that a reader has few shards open at a time. `sizes` are the shards'
    numbers of samples; samples that are not in shards are one shard. All of it is a function of (seed,
    position).
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, window: int = 8, shuffle: bool = True) -> None:
        if window < 1:
            raise ValueError(f"expected window >= 1 shards, got {window}")
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed = seed
        self.window = window
        self.shuffle = shuffle
        self.starts = _starts(self.sizes)
        self.total = int(self.sizes.sum())
        if self.total == 0:
            raise ValueError("expected at least one sample, got none")
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, position: int) -> Place:
        """The place at a position; O(log shards) once the epoch and the window have been seen."""
        if position < 0:
            raise IndexError(f"expected position >= 0, got {position}")
        epoch, offset = divmod(int(position), self.total)
        if not self.shuffle:
            return self._place(epoch, offset)
        shards, starts = self._layout(epoch)
        windows = starts[:: self.window]
        w = int(np.searchsorted(windows, offset, side="right")) - 1
        start = int(windows[w])
        stop = int(windows[w + 1]) if w + 1 < len(windows) else self.total
        moved = start + int(_permutation(stop - start, self.seed, "order", epoch, w)[offset - start])
        s = int(np.searchsorted(starts, moved, side="right")) - 1
        return Place(epoch, int(shards[s]), moved - int(starts[s]))

    def candidates(self, position: int) -> Iterator[Place]:
        """The place at a position, then substitutes drawn by its key; each sample comes once."""
        first = self[position]
        yield first
        seen = {(first.shard, first.row)}
        draws = stream(self.seed, "substitute", position)
        while len(seen) < self.total:
            place = self._place(first.epoch, int(draws.integers(self.total)))
            if (place.shard, place.row) not in seen:
                seen.add((place.shard, place.row))
                yield place

    def _place(self, epoch: int, index: int) -> Place:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return Place(epoch, shard, index - int(self.starts[shard]))

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and where each then starts."""
        layout = self._layouts.get(epoch)
        if layout is None:
            shards = stream(self.seed, "shards", epoch).permutation(len(self.sizes))
            layout = shards, _starts(self.sizes[shards])
            # two: a batch may straddle the end of an epoch
            self._layouts = {e: kept for e, kept in self._layouts.items() if abs(e - epoch) == 1} | {
                epoch: layout
            }
        return layout


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


@lru_cache(maxsize=6)
def _permutation(count: int, *key: int | str) -> np.ndarray:
    return stream(*key).permutation(np.arange(count, dtype=np.int32 if count < 2**31 else np.int64))
