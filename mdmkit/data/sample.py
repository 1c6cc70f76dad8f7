"""What a dataset is, and what it gives: samples by global position."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import attrs
import numpy as np

from mdmkit.errors import MdmkitError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Dataset", "Sample", "Unreadable", "first_readable"]

Place = TypeVar("Place")


@attrs.frozen(eq=False)
class Sample:
    """A picture or a clip, and its caption.

    `image`: uint8 (H, W, 3) at the dataset's resolution, of a clip (F, H, W, 3) with `fps` frames a second,
    where that is known. `size`: (height, width) of the original in pixels.
    `features` (L, D) and `features_mask` (L,) bool: the caption's stored text features, where the dataset
    has them. `skipped`: (key, cause) of every unreadable sample that was passed over before this one was
    found.
    """

    image: np.ndarray
    caption: str
    key: str
    size: tuple[int, int]
    features: np.ndarray | None = None
    features_mask: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    fps: float | None = None


@attrs.frozen(eq=False)
class Batch:
    """Samples as tensors, in the order of their positions.

    `images`: uint8 (B, 3, H, W), of clips (B, 3, F, H, W). `sizes`: int64 (B, 2), height and width of the
    originals. `features` (B, L, D) with `features_mask` (B, L) bool, padded to the longest, or None.
    `skipped`: (key, cause) of unreadable samples. `fps`: float32 (B,), 0 where it is not known; None of
    pictures.
    """

    images: Tensor
    captions: list[str]
    sizes: Tensor
    keys: list[str]
    positions: list[int]
    skipped: list[tuple[str, str]]
    features: Tensor | None = None
    features_mask: Tensor | None = None
    fps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, stop: int) -> Batch:
        """The rows from `start` up to `stop` as a batch (views; `skipped` stays with the whole)."""
        return Batch(
            images=self.images[start:stop],
            captions=self.captions[start:stop],
            sizes=self.sizes[start:stop],
            keys=self.keys[start:stop],
            positions=self.positions[start:stop],
            skipped=[],
            features=None if self.features is None else self.features[start:stop],
            features_mask=None if self.features_mask is None else self.features_mask[start:stop],
            fps=None if self.fps is None else self.fps[start:stop],
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's DataLoader calls this."""

        def pinned(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return attrs.evolve(
            self,
            images=self.images.pin_memory(),
            sizes=self.sizes.pin_memory(),
            features=pinned(self.features),
            features_mask=pinned(self.features_mask),
            fps=pinned(self.fps),
        )


@runtime_checkable
class Dataset(Protocol):
    """Samples by global position, counted on endlessly over epochs.

    `sample(position)` depends on the dataset's settings, its seed and `position` only, never on what was
    read before, and must be safe to call in worker processes (the dataset is pickled to them). A dataset
    with epochs has `__len__`; one that can name captions without their pictures has `captions(count,
    held_out=False) -> list[str]`.
    """

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of every picture, in pixels."""
        ...

    def sample(self, position: int) -> Sample:
        """The sample at this position; passes over unreadable ones and names them in `skipped`."""
        ...


class Unreadable(Exception):
    """A sample that cannot be read or decoded: which, and why."""

    def __init__(self, key: str, cause: str) -> None:
        super().__init__(key, cause)
        self.key = key
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.key}: {self.cause}"


def first_readable(places: Iterable[Place], read: Callable[[Place], Sample], *, max_bad: int) -> Sample:
    """The first of `places` that `read` can read; the others before it are named in its `skipped`.

    MdmkitError where `max_bad` places in a row are unreadable, or all of them.
    """
    skipped: list[tuple[str, str]] = []
    for place in places:
        try:
            sample = read(place)
        except Unreadable as bad:
            skipped.append((bad.key, bad.cause))
            if len(skipped) >= max_bad:
                break
        else:
            return attrs.evolve(sample, skipped=(*sample.skipped, *skipped)) if skipped else sample
    key, cause = skipped[-1]
    raise MdmkitError(
        f"{len(skipped)} samples in a row could not be read, the last {key}: {cause}; "
        "mend or remove them, or raise max_bad"
    )
