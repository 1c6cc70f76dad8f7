"""Frames of a clip as rows of a batch, and convolutions along time over such rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FrameDownsample", "FrameUpsample", "along_time", "as_clips", "as_rows", "held"]


def as_rows(x: Tensor) -> Tensor:
    """The frames of clips as rows one after another: (B, C, F, H, W) to (B F, C, H, W); pictures stay."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


def as_clips(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_rows`, for a batch of the kind of `like`: so many clips, or pictures."""
    return rows if like.ndim == 4 else rows.unflatten(0, (len(like), -1)).transpose(1, 2)


def held(clip: Tensor, before: int, after: int) -> Tensor:
    """`clip (B, F, ...)` with its first and last frame repeated so often at its ends.

    Beyond its ends a clip stands still, so that a clip in which nothing moves is, frame by frame, what a
    lone picture is.
    """
    if before == after == 0:
        return clip
    first, last = clip[:, :1], clip[:, -1:]
    ends = first.expand(-1, before, *first.shape[2:]), last.expand(-1, after, *last.shape[2:])
    return torch.cat([ends[0], clip, ends[1]], 1)


def along_time(
    clip: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """A convolution of `clip (B, F, C, H, W)` along its frames, weight (C', C, k): (B, F', C', H, W).

    Computed as one over three axes, of which two have kernels of one.
    """
    steps, zeros = (stride, 1, 1), (padding, 0, 0)
    out = F.conv3d(clip.transpose(1, 2), weight[..., None, None], bias, stride=steps, padding=zeros)
    return out.transpose(1, 2)


class FrameDownsample(nn.Conv1d):
    """A strided convolution along time; (B F, C, H, W) to (B F / s, C, H, W), the stride s divides F.

    Starts as the average over s frames. One frame, a picture, stays one: it is a clip that stands still.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        width = max(3, stride)
        super().__init__(channels, channels, width, stride=stride, device=device, dtype=dtype)
        self.before = 1 if stride <= 2 else 0
        start_with(self, [0.0] * self.before + [1 / stride] * (width - self.before))

    def forward(self, input: Tensor, frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        clip = input.unflatten(0, (-1, frames))
        if frames == 1:
            clip = held(clip, 0, self.stride[0] - 1)
        out = along_time(held(clip, self.before, 0), self.weight, self.bias, stride=self.stride[0])
        return out.flatten(0, 1)


class FrameUpsample(nn.ConvTranspose1d):
    """Of each frame the s frames around it, each by a linear map of its own that starts as the identity.

    So what stands inside can say what comes first and what later, which repetition cannot. Of one frame, a
    picture, it makes one, by the mean of the maps.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, channels, stride, stride=stride, device=device, dtype=dtype)
        start_with(self, [1.0] * stride)

    def forward(self, input: Tensor, frames: int, to: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B F, C, H, W) to (B to, C, H, W); `to`: F times the stride, or 1 for a picture."""
        clip = input.unflatten(0, (-1, frames)).transpose(1, 2)
        maps = self.weight if to > 1 else self.weight.mean(2, keepdim=True)
        steps = (maps.shape[2], 1, 1)
        out = F.conv_transpose3d(clip, maps[..., None, None], self.bias, stride=steps)
        return out.transpose(1, 2).flatten(0, 1)


def start_with(conv: nn.Conv1d | nn.ConvTranspose1d, taps: list[float]) -> None:
    """Let a convolution be the same few taps for every channel, and no bias."""
    with torch.no_grad():
        taps_k = torch.tensor(taps, dtype=conv.weight.dtype, device=conv.weight.device)
        eye = torch.eye(conv.out_channels, dtype=conv.weight.dtype, device=conv.weight.device)
        conv.weight.copy_(eye[:, :, None] * taps_k)
        assert conv.bias is not None
        conv.bias.zero_()
