"""A level whose pictures are grids of frames: frames are rows of a batch between its first and last layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdmkit.divisors import grid_multiple, grid_problems, triples
from mdmkit.grid import grid_side

from .blocks import Downsample, Upsample
from .unet import Stage, per_stage
from .video import TemporalAttention, TemporalDownsample, TemporalUpsample

__all__ = ["Grid", "GridStage"]


class GridStage(Stage):
    """A stage over frames: residual blocks frame by frame, each followed by attention over time."""

    def __init__(
        self,
        *,
        blocks: Sequence[nn.Module],
        temporal: Sequence[Sequence[nn.Module]],
        resample: nn.Module | None,
        frames: int,
    ) -> None:
        super().__init__(
            blocks=blocks, attention=[() for _ in blocks], temporal=temporal, resample=resample
        )
        self.frames = frames

    def inward(self, x: Tensor, clips: int) -> Tensor:
        if isinstance(self.resample, TemporalDownsample):
            return self.resample(x, self.frames)
        return super().inward(x, clips)

    def outward(self, x: Tensor, clips: int, frames: int) -> Tensor:
        if isinstance(self.resample, TemporalUpsample):
            return self.resample(x, self.frames)
        return super().outward(x, clips, frames)


class Grid:
    """How many frames each stage of a level has, and how its stages are made.

    frames: in the picture of the level, a square number. strides: between the stages, an int, (height, width)
    or (frames, height, width) each, in time or in space. temporal_attention: layers behind each residual
    block of a stage. Raises ValueError where the numbers do not fit.
    """

    def __init__(
        self,
        frames: int,
        strides: Sequence[int | Sequence[int]],
        *,
        temporal_attention: int | Sequence[int],
        rotary: bool,
    ) -> None:
        given = triples(strides)
        for _, problem in grid_problems(frames, given):
            raise ValueError(problem)
        self.steps, self.strides = [f for f, _, _ in given], [(h, w) for _, h, w in given]
        self.frames, self.inner_frames = frames, frames // prod(self.steps)
        # in pictures: how many frames stand in a row, here and in what is handed inwards
        self.side, self.inner_side = grid_side(frames), grid_side(self.inner_frames)
        self.layers = per_stage("temporal_attention", temporal_attention, len(self.steps) + 1)
        self.multiple = grid_multiple(frames, given, self.layers)
        self.rotary = rotary

    def stage(
        self,
        i: int,
        width: int,
        *,
        blocks: Sequence[nn.Module],
        attention: Sequence[Sequence[nn.Module]],
        temporal: Sequence[Sequence[nn.Module]],
        resample: type[Downsample] | type[Upsample],
        stride: tuple[int, int, int] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> Stage:
        """The i-th stage from high resolution to low, as `picture_stage` makes it for pictures."""
        if any(attention):
            raise ValueError('layout="grid" has attention over time only; say attention=0')
        if any(temporal):
            raise ValueError('layout="grid" has temporal_attention; leave temporal out')
        where: dict[str, Any] = {"device": device, "dtype": dtype}

        def over_time() -> list[nn.Module]:
            return [TemporalAttention(width, rotary=self.rotary, **where) for _ in range(self.layers[i])]

        between: nn.Module | None = None
        if stride is not None:
            step = self.steps[i if resample is Downsample else i - 1]
            in_time = TemporalDownsample if resample is Downsample else TemporalUpsample
            between = resample(width, stride[1:], **where) if step == 1 else in_time(width, step, **where)
        return GridStage(
            blocks=blocks,
            temporal=[over_time() for _ in blocks],
            resample=between,
            frames=self.frames // prod(self.steps[:i]),
        )
