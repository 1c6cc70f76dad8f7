"""A level around another network: it works at a higher resolution and hands its features inwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdmkit.grid import pack, unpack

from .blocks import ResBlock
from .frames import as_clips, as_rows
from .grid import Grid
from .unet import Running, Text, UNet, picture_stage
from .zero import zeroed

__all__ = ["Encoded", "UNetShell"]


class Encoded(NamedTuple):
    """A shell on its way in: its lowest features, what it keeps for the way out, what it hands inwards."""

    x: Tensor
    emb: Tensor
    skips: list[Tensor]
    text: Text | None
    inwards: Tensor | None


class UNetShell(UNet):
    """Level r >= 1 of a nest: the outer part of a U-Net, whose lowest stage works at the resolution inside.

    Settings as of `UNetCore`; the product of the strides is the ratio to the level inside. inner_input: the
    inner level sees this one's features. normalize_input: the picture is divided by its own standard
    deviation. layout "grid", for imported models: a picture is a square grid of `frames` frames, which pass
    the level one by one; strides are then [frames, height, width] too. temporal_attention: layers over the
    frames behind each residual block of a stage; rotary: they know the order of frames. Otherwise clips are
    (B, C, F, H, W), and pictures clips of one frame, with temporal and temporal_layers.

    inner_channels: width of the features of the level inside, its channels[0]. emb_dim: the core's, as its
    pooled text is added to this level's time embedding; 4 * channels[0] where not given. cond_width: the
    core's, width of the text features that it gives; None: no cross-attention here.

    Everything that joins the level inside starts at zero, so that a new shell changes nothing below it.
    Source: Gu et al. 2024 (2310.15111), section 3.2 and the released networks.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 2,
        attention: int | Sequence[int] = 0,
        strides: Sequence[int | Sequence[int]] | None = None,
        extra_blocks: int | Sequence[int] = 0,
        in_channels: int = 3,
        heads: int = 8,
        norm_groups: int = 32,
        ffn: bool = True,
        masked_cross_attention: bool = True,
        micro_conditioning: Mapping[str, float] | None = None,
        inner_input: bool = True,
        normalize_input: bool = False,
        layout: str | None = None,
        frames: int = 1,
        temporal_attention: int | Sequence[int] = 0,
        rotary: bool = False,
        self_conditioning: bool = False,
        temporal: Callable[..., nn.Module] | None = None,
        temporal_layers: int | Sequence[int] = 1,
        block: Callable[..., nn.Module] = ResBlock,
        inner_channels: int,
        emb_dim: int | None = None,
        cond_width: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        grid = None
        if layout == "grid":
            if extra_blocks if isinstance(extra_blocks, int) else any(extra_blocks):
                raise ValueError('layout="grid" is for imported models, which have no extra_blocks')
            strides = (2,) * (len(channels) - 1) if strides is None else strides
            grid = Grid(frames, strides, temporal_attention=temporal_attention, rotary=rotary)
            strides, frames = grid.strides, 1
        elif layout is not None:
            raise ValueError(f'expected layout "grid" or none, got {layout!r}')
        elif temporal_attention or rotary:
            raise ValueError(
                'temporal_attention and rotary are for layout="grid"; clips have temporal and temporal_layers'
            )
        super().__init__(
            channels=channels,
            blocks=blocks,
            attention=attention,
            strides=strides,
            extra_blocks=extra_blocks,
            in_channels=in_channels,
            emb_dim=emb_dim,
            heads=heads,
            norm_groups=norm_groups,
            ffn=ffn,
            masked_cross_attention=masked_cross_attention,
            micro_conditioning=micro_conditioning,
            block=block,
            middle=False,
            cond_width=cond_width,
            self_conditioning=self_conditioning,
            frames=frames,
            temporal=temporal,
            temporal_layers=temporal_layers,
            stage=picture_stage if grid is None else grid.stage,
            device=device,
            dtype=dtype,
        )
        self.inner_channels, self.normalize_input = inner_channels, normalize_input
        self.grid_frames = self.inner_grid_frames = 1
        if grid is not None:
            self.grid_frames, self.inner_grid_frames = grid.frames, grid.inner_frames
            self.multiple, times = grid.multiple, grid.side // grid.inner_side
            self.ratio = self.ratio[0] * times, self.ratio[1] * times
        width = self.channels[-1]

        def adapter(inside: int, outside: int) -> nn.Conv2d:
            return zeroed(nn.Conv2d(inside, outside, 3, padding=1, device=device, dtype=dtype))

        self.in_adapter = adapter(width, inner_channels) if inner_input else None
        self.out_adapter = adapter(inner_channels, width)

    def extra_repr(self) -> str:
        grid = f", frames={self.grid_frames} in a grid" if self.grid_frames > 1 else ""
        return f"normalize_input={self.normalize_input}{grid}"

    def encode(
        self,
        z: Tensor,
        t: Tensor,
        *,
        text: Text | None = None,
        micros: Mapping[str, Tensor] | None = None,
        carried: Tensor | None = None,
        previous: Tensor | None = None,
        run: Running | None = None,
    ) -> Encoded:
        """The way in: z (B, in_channels, [F,] H, W), t (B,); carried and previous as in `UNetCore.forward`.

        `inwards` of the result is (B, inner_channels, [F / ratio,] H / ratio, W / ratio), or None without
        inner_input.
        Raises ValueError where the strides do not divide H and W.
        """
        self.check_size(z)
        clips = z
        z = self.rows_of(z)
        if self.normalize_input:
            z = z / z.std(dim=(1, 2, 3), keepdim=True)
        emb = self.embedding(t, micros)
        if text is not None and text.pooled is not None:
            emb = emb + text.pooled
        few, shown = (None if part is None else self.rows_of(part) for part in (carried, previous))
        x, skips = self.go_down(z, emb, few, text, run or Running(), shown)
        x = pack(x, self.inner_grid_frames)
        inwards = None if self.in_adapter is None else as_clips(self.in_adapter(x), clips)
        return Encoded(x, emb, skips, text, inwards)

    def decode(self, encoded: Encoded, inner: Tensor, run: Running | None = None) -> tuple[Tensor, Tensor]:
        """The way out: the features of the level inside to prediction and features at the resolution of z."""
        x = encoded.x + self.out_adapter(as_rows(inner))
        x = unpack(x, self.inner_grid_frames)
        x = self.go_up(x, encoded.emb, encoded.skips, encoded.text, run or Running())
        prediction, x = (pack(part, self.grid_frames) for part in (self.head(x), x))
        return as_clips(prediction, inner), as_clips(x, inner)

    def rows_of(self, z: Tensor) -> Tensor:
        """What passes the level one by one: pictures, the frames of clips, those of grids."""
        return unpack(as_rows(z), self.grid_frames)
