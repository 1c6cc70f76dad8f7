"""Pictures of a dataset by the levels that they reach without being enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np

from mdmkit.errors import WrongInput
from mdmkit.streams import seed_of

from .order import Order, Place
from .sample import Sample, first_readable

__all__ = ["AnySize", "BySize", "Sized"]


@runtime_checkable
class Sized(Protocol):
    """A dataset that knows the sizes of its pictures, and reads any of them at any resolution."""

    seed: int
    max_bad: int
    order: Order

    def picture_sizes(self) -> list[np.ndarray]:
        """(height, width) of every picture (N, 2) by shard; (0, 0) where it cannot be opened."""
        ...

    def read(self, place: Place, position: int, resolution: tuple[int, int]) -> Sample:
        """The picture at a place, raising Unreadable; `position` keys what is drawn for it."""
        ...


@runtime_checkable
class AnySize(Protocol):
    """A dataset whose pictures are made at whatever resolution is asked for."""

    def drawn(self, position: int, resolution: tuple[int, int]) -> Sample:
        """The sample at this position at a resolution."""
        ...


class BySize:
    """A dataset whose rows stop at the size of their pictures: one endless sequence of pictures a level.

    `position(level, number)` names picture `number` of a level's sequence for `sample`. A sequence goes round
    its pictures: all of them once, in a new order, before any comes again. A picture belongs to the sequence
    of the highest level whose height and width it has, `own_only`; else to that and all below. It is cropped
    and resized to its level's resolution, never above its own size. `Sample.image` has the highest level's
    resolution, each pixel repeated, so that it stacks with others; pooling gives the pixels back.

    `counts`: the number of pictures in each sequence, None where the dataset makes them at any size;
    `small` and `unread`: how many are smaller than level 0, and how many cannot be opened; they are left out.
    `largest`: the size of the picture with the longest short side.

    WrongInput where the dataset does not know its sizes.
    """

    def __init__(self, dataset: Any, resolutions: Sequence[tuple[int, int]], *, own_only: bool) -> None:
        self.dataset = dataset
        self.resolutions = tuple(resolutions)
        self.own_only = own_only
        self.counts: tuple[int, ...] | None = None
        self.small = self.unread = 0
        self.largest: tuple[int, int] | None = None
        if isinstance(dataset, AnySize):
            return
        if not isinstance(dataset, Sized):
            raise WrongInput(
                f"by_source: a {type(dataset).__name__} does not know the sizes of its pictures; take other "
                "train.levels, or other data ('folder', 'webdataset' and 'shapes' know theirs)"
            )
        sizes = dataset.picture_sizes()
        # levels grow along both axes: the number of levels whose size a picture has says which those are
        tops = [(shard[:, None] >= self.resolutions).all(-1).sum(1) - 1 for shard in sizes]
        flat = np.concatenate(sizes)
        self.unread = int((flat == 0).any(1).sum())
        self.small = int((np.concatenate(tops) < 0).sum()) - self.unread
        h, w = flat[flat.min(1).argmax()].tolist()
        self.largest = h, w
        self.rows = [
            [np.flatnonzero(shard == level if own_only else shard >= level) for shard in tops]
            for level in range(len(self.resolutions))
        ]
        self.counts = tuple(sum(map(len, shards)) for shards in self.rows)
        order = dataset.order
        self.orders = [
            Order(
                [len(shard) for shard in shards],
                seed=seed_of(dataset.seed, "level", level),
                window=order.window,
                shuffle=order.shuffle,
            )
            if count
            else None
            for level, (shards, count) in enumerate(zip(self.rows, self.counts, strict=True))
        ]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of every sample's image."""
        return self.resolutions[-1]

    def position(self, level: int, number: int) -> int:
        """What `sample` calls picture `number` of a level's sequence."""
        return number * len(self.resolutions) + level

    def sample(self, position: int) -> Sample:
        """The sample at a position that `position` gave; unreadable ones are passed over."""
        number, level = divmod(position, len(self.resolutions))
        size = self.resolutions[level]
        if self.counts is None:
            found = self.dataset.drawn(position, size)
        else:
            order, rows = self.orders[level], self.rows[level]
            assert order is not None, "rows are only given to levels with pictures"

            def read(place: Place) -> Sample:
                there = Place(place.epoch, place.shard, int(rows[place.shard][place.row]))
                return self.dataset.read(there, position, size)

            found = first_readable(order.candidates(number), read, max_bad=self.dataset.max_bad)
        (h, w), (height, width) = size, self.resolution
        image = found.image.repeat(height // h, axis=0).repeat(width // w, axis=1)
        return attrs.evolve(found, image=image)

    def facts(self) -> dict[str, Any]:
        """What a log says of it."""
        return {"pictures": self.counts, "too_small": self.small, "unreadable": self.unread}

    def __str__(self) -> str:
        if self.counts is None:
            return "by_source: the data have pictures of every size"
        verb = "stop at" if self.own_only else "reach"
        sides = [f"{h} x {w}" for h, w in self.resolutions]
        parts = [f"{count:,} {verb} level {r} ({sides[r]})" for r, count in enumerate(self.counts)]
        said = f"by_source: of the pictures {', '.join(parts)}"
        left = [(self.small, "smaller than level 0"), (self.unread, "unreadable")]
        left_out = " and ".join(f"{count:,} {why}" for count, why in left if count)
        return f"{said}; left out: {left_out}" if left_out else said
