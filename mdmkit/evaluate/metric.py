"""What a metric is: numbers, of drawn pictures or of the network on pictures of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from mdmkit.diffusion import Diffusion
    from mdmkit.sampling.denoise import Denoise

__all__ = ["ComparingMetric", "Metric", "ModelMetric", "PictureMetric"]


class Metric(Protocol):
    """Gives numbers of what it was shown: as a `PictureMetric` or a `ModelMetric` takes it."""

    def result(self) -> dict[str, float]:
        """The numbers over all pictures so far, by name."""
        ...


class PictureMetric(Metric, Protocol):
    """Accumulates drawn pictures."""

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        """Takes pictures (B, 3, H, W) in [-1, 1] and the caption of each."""
        ...


class ComparingMetric(PictureMetric, Protocol):
    """Compares drawn pictures as a whole with pictures of the data: with the `data` first unseen ones."""

    data: int

    def beside(self, pictures: Tensor) -> None:
        """Takes pictures of the data (B, 3, H, W) in [-1, 1]."""
        ...


class ModelMetric(Metric, Protocol):
    """Tries the network on pictures of the data; nothing is drawn for it."""

    def examine(
        self, denoise: Denoise, diffusion: Diffusion, pictures: Sequence[Tensor], positions: Sequence[int]
    ) -> None:
        """Takes a pyramid of pictures in [-1, 1], each with its position, and the denoiser of their captions.

        The denoiser also takes the innermost levels of a noisy pyramid alone.
        """
        ...
