"""Residual blocks, and the layers that change resolution between the stages of a U-Net."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmkit.divisors import check_divides

from .zero import zeroed

__all__ = ["Block", "Downsample", "ResBlock", "Upsample"]


class Block(Protocol):
    """A residual block: x (B, in_channels, H, W), emb (B, emb_dim) to (B, out_channels, H, W)."""

    def __call__(self, x: Tensor, emb: Tensor, /) -> Tensor: ...


class ResBlock(nn.Module):
    """A residual block of two 3x3 convolutions, scaled and shifted by the embedding in between.

    x (B, in_channels, H, W), emb (B, emb_dim) to (B, out_channels, H, W); starts as the identity (as a 1x1
    convolution where the widths differ). Source: Gu et al. 2024 (2310.15111), after Dhariwal and Nichol 2021.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        norm_groups: int = 32,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        check_divides("norm_groups", norm_groups, "channels", in_channels)
        check_divides("norm_groups", norm_groups, "channels", out_channels)
        self.dropout = dropout
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, **where)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, **where)
        self.emb = nn.Linear(emb_dim, 2 * out_channels, **where)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, **where)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1, **where))
        self.skip = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, **where)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return self.conv2(h) + (x if self.skip is None else self.skip(x))


class Downsample(nn.Conv2d):
    """A strided convolution, 3x3 or as wide as the stride; (B, C, H, W) to (B, C, H / s, W / s)."""

    def __init__(
        self,
        channels: int,
        stride: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        (kh, kw), (ph, pw) = (max(3, s) for s in stride), (1 if s <= 2 else 0 for s in stride)
        super().__init__(
            channels, channels, (kh, kw), stride=stride, padding=(ph, pw), device=device, dtype=dtype
        )


def window_sums(x: Tensor, width: int, dim: int) -> Tensor:
    """Sums over windows of `width` neighbours along one axis, which shortens by width - 1."""
    length = x.shape[dim] - width + 1
    total = x.narrow(dim, 0, length)
    for start in range(1, width):
        total = total + x.narrow(dim, start, length)
    return total


class Upsample(nn.Conv2d):
    """Nearest neighbour, then a 3x3 convolution; (B, C, H, W) to (B, C, s H, s W).

    Computed as one transposed convolution whose kernel sums the taps that fall on one input pixel: the same
    numbers to rounding, and for s = 2 only 16 multiplications where the two steps take 36.
    """

    def __init__(
        self,
        channels: int,
        stride: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, channels, 3, padding=1, device=device, dtype=dtype)
        self.scale = stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, scale={self.scale}"

    def forward(self, input: Tensor) -> Tensor:
        sh, sw = self.scale
        taps = F.pad(self.weight.flip(2, 3), (sw - 1, sw - 1, sh - 1, sh - 1))
        kernel = window_sums(window_sums(taps, sh, 2), sw, 3)
        return F.conv_transpose2d(input, kernel.transpose(0, 1), self.bias, stride=(sh, sw), padding=1)
