"""A picture or clip as a pyramid: one tensor a level, low resolution to high, by average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from mdmkit.grid import grid_side, pack, unpack

__all__ = ["Pyramid", "normalize_resolution", "of_one_frame", "pool", "pool_grid", "pyramid", "ratio"]

Pyramid: TypeAlias = tuple[Tensor, ...]


def normalize_resolution(resolution: int | Sequence[int]) -> tuple[int, ...]:
    """`(height, width)` of a side or of a height and a width; `(frames, height, width)` stays as it is.

    Raises ValueError for any other length and for sizes below 1.
    """
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(
            f"expected a side, [height, width] or [frames, height, width] >= 1, got {resolution}"
        )
    return size


def of_one_frame(sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The sizes of levels for a picture: of clips with one frame at each level, of pictures as they are."""
    return tuple((1, *size[1:]) if len(size) == 3 else tuple(size) for size in sizes)


def ratio(high: Sequence[int], low: Sequence[int]) -> tuple[int, ...]:
    """How many times larger `high` is than `low`, per axis; any integers >= 1.

    Raises ValueError where an axis does not divide.
    """
    high, low = tuple(high), tuple(low)
    if len(high) != len(low):
        raise ValueError(f"cannot compare sizes {high} and {low}: they have {len(high)} and {len(low)} axes")
    if any(h % lo for h, lo in zip(high, low, strict=True)):
        down = tuple(max(h - h % lo, lo) for h, lo in zip(high, low, strict=True))
        raise ValueError(f"size {high} is not an integer multiple of {low} on every axis; try {down}")
    return tuple(h // lo for h, lo in zip(high, low, strict=True))


def pool(x: Tensor, size: Sequence[int], *, pick: bool = False) -> Tensor:
    """Average pooling of `x (B, C, [F,] H, W)` to `size ([F,] H, W)`; `x` itself where nothing changes.

    `D^r` of *Matryoshka Diffusion Models*, arXiv 2310.15111, section 3.1. It composes: pooling twice is
    pooling once. pick: frames are not averaged; of each few the first is kept. Raises ValueError where a
    ratio is not an integer.
    """
    factors = ratio(x.shape[2:], size)
    if pick and len(factors) == 3:
        x, factors = x[:, :, :: factors[0]], (1, *factors[1:])
    if all(factor == 1 for factor in factors):
        return x
    return F.avg_pool3d(x, factors) if len(factors) == 3 else F.avg_pool2d(x, factors)


def pool_grid(x: Tensor, size: Sequence[int], frames: tuple[int, int]) -> Tensor:
    """A grid of frames as a smaller grid: of `frames` (those of x, those of the result), every k-th is kept.

    As the released video models have it: frames are picked, the first among them, and only their pixels are
    averaged. `x (B, C, n H, n W)`, `size` of the result as a picture. ValueError where a ratio is no integer.
    """
    high, low = frames
    if high % low:
        raise ValueError(f"expected a number of frames that divides {high}, got {low}")
    clip = unpack(x, high)
    clip = clip.unflatten(0, (-1, high))[:, :: high // low].flatten(0, 1)
    return pack(pool(clip, [side // grid_side(low) for side in size]), low)


def pyramid(
    x: Tensor,
    resolutions: Sequence[int | Sequence[int]],
    rows: Sequence[int] | None = None,
    *,
    frames: Sequence[int] | None = None,
    pick: bool = False,
) -> Pyramid:
    """`x (B, C, [F,] H, W)` at each of `resolutions` (low to high); at level r only the first `rows[r]` rows.

    Every level is pooled from `x` itself, so that no level depends on which others there are.
    `pick` as for `pool`. `frames`: where pictures are grids of frames, how many at each level, those of x
    last. Raises ValueError where `x` is no integer multiple of a resolution.
    """
    sizes = [normalize_resolution(resolution) for resolution in resolutions]
    rows = [len(x)] * len(sizes) if rows is None else rows
    if len(rows) != len(sizes):
        raise ValueError(f"expected rows for {len(sizes)} levels, got {len(rows)}")
    if frames is not None:
        kept = zip(sizes, rows, frames[: len(sizes)], strict=True)
        return tuple(pool_grid(x[:count], size, (frames[-1], low)) for size, count, low in kept)
    return tuple(pool(x[:count], size, pick=pick) for size, count in zip(sizes, rows, strict=True))
