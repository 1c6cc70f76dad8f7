"""Clips as one picture: frames side by side in a square grid, as the released video models have them."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["grid_side", "pack", "unpack"]


def grid_side(frames: int) -> int:
    """How many frames stand in a row of the grid. Raises ValueError for a number that is no square."""
    side = math.isqrt(frames) if frames > 0 else 0
    if side * side != frames or frames < 1:
        raise ValueError(f"a grid of frames is a square: expected frames of 1, 4, 9, 16 ..., got {frames}")
    return side


def unpack(x: Tensor, frames: int) -> Tensor:
    """The frames of grids as rows: (B, C, n H, n W), n^2 = frames, to (B frames, C, H, W); line by line.

    Raises ValueError where the frames do not divide the picture.
    """
    if frames == 1:
        return x
    n = grid_side(frames)
    if x.shape[-2] % n or x.shape[-1] % n:
        came = " x ".join(map(str, x.shape[-2:]))
        raise ValueError(f"expected a picture that {n} x {n} frames divide, got {came}")
    b, c, h, w = x.shape
    parts = x.reshape(b, c, n, h // n, n, w // n)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b * frames, c, h // n, w // n)


def pack(x: Tensor, frames: int) -> Tensor:
    """The inverse of `unpack`: (B frames, C, H, W) to (B, C, n H, n W)."""
    if frames == 1:
        return x
    n = grid_side(frames)
    rows, c, h, w = x.shape
    parts = x.reshape(rows // frames, n, n, c, h, w)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(rows // frames, c, n * h, n * w)
