"""Layers along time: attention over the frames of a clip, and strided convolutions that halve or double them.

The frames of a clip are rows that follow each other, (B F, C, H, W), as the layers over pixels have them; F
is told, as the tensor does not know it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmkit.divisors import check_divides

from .attention import Attend, TextLayer, sdpa
from .frames import along_time
from .zero import zeroed

__all__ = ["Rotary", "TemporalAttention", "TemporalDownsample", "TemporalUpsample"]


class Rotary(nn.Module):
    """Turns queries and keys (..., L, D) by their place in the sequence, pair by pair of their numbers.

    The frequencies are the usual 10000^(-2 k / D). They are a parameter that is not trained: released models
    bring their own, and a model folder holds parameters.
    Source: RoFormer, Su et al. 2021 (2104.09864), equation 34.
    """

    def __init__(
        self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        k = torch.arange(0, dim, 2, device=device, dtype=dtype or torch.get_default_dtype())
        self.freqs = nn.Parameter(10_000.0 ** (-k / dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[-2], device=x.device, dtype=self.freqs.dtype)
        angle = place[:, None] * self.freqs
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class TemporalAttention(nn.Module):
    """Attention over the frames at each pixel of a picture half as high and wide, added to the input.

    x (B F, C, H, W); emb is not looked at; returns (B F, C, H, W). A strided convolution, a transformer
    layer along time, nearest neighbour and a last convolution that starts at zero, so that a fresh layer is
    the identity. rotary: the layer knows the order of frames; without, frames may be permuted. Source: Gu et
    al. 2024 (2310.15111), released networks.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int = 32,
        rotary: bool = False,
        emb_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        check_divides("head_dim", head_dim, "channels", channels)
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1, **where)
        turn = Rotary(head_dim, **where) if rotary else None
        self.layer = TextLayer(channels, heads=channels // head_dim, rotary=turn, **where)
        self.up = zeroed(nn.Conv2d(channels, channels, 3, padding=1, **where))

    def forward(self, x: Tensor, emb: Tensor, frames: int, attend: Attend = sdpa) -> Tensor:
        low = self.down(x)
        h, w = low.shape[-2:]
        # (B F, C, h, w) to (B h w, F, C) and back
        along = low.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2).flatten(0, 2)
        along = self.layer(along, None, attend)
        low = along.unflatten(0, (-1, h, w)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        return x + self.up(F.interpolate(low, size=x.shape[-2:]))


class TemporalDownsample(nn.Conv1d):
    """A strided convolution along time; (B F, C, H, W) to (B F / s, C, H, W). The stride divides F."""

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        width, padding = max(3, stride), 1 if stride <= 2 else 0
        super().__init__(
            channels, channels, width, stride=stride, padding=padding, device=device, dtype=dtype
        )

    def forward(self, input: Tensor, frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return over_time(self, input, frames)


class TemporalUpsample(nn.Conv1d):
    """Each frame s times, then a convolution of three frames; (B F, C, H, W) to (B s F, C, H, W)."""

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, channels, 3, padding=1, device=device, dtype=dtype)
        self.scale = stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, scale={self.scale}"

    def forward(self, input: Tensor, frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return over_time(self, input.repeat_interleave(self.scale, 0), frames * self.scale)


def over_time(conv: nn.Conv1d, x: Tensor, frames: int) -> Tensor:
    """A convolution along time on (B F, C, H, W), with the stride and padding that it has."""
    clip = x.unflatten(0, (-1, frames))
    stride, padding = conv.stride[0], int(conv.padding[0])
    return along_time(clip, conv.weight, conv.bias, stride=stride, padding=padding).flatten(0, 1)
