"""Attention over the pixels of a picture and over text, all through one exchangeable function."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmkit.divisors import check_divides

from .zero import zeroed

__all__ = ["Attend", "ImageAttention", "KeysValues", "TextLayer", "sdpa"]

KeysValues: TypeAlias = tuple[Tensor, Tensor]


class Attend(Protocol):
    """Attention itself: softmax(q k' / sqrt(D)) v.

    q (B, N, L, D), k and v (B, N, S, D); mask bool, True: attend, (B, S) or (B, 1, L, S), None: to
    everything. Returns (B, N, L, D). Attention over nothing (a row of the mask all False) gives zero, with
    zero gradients.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, /) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by PyTorch's scaled_dot_product_attention, which picks a kernel; an `Attend`."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    if mask.ndim == 2:
        mask = mask[:, None, None]
    # a row of the softmax over nothing is 0 / 0: let it see everything, then take its answer away
    something = mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~something)
    return out.masked_fill(~something, 0.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, N D) to (B, N, L, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, N, L, D) to (B, L, N D)."""
    return x.transpose(1, 2).flatten(2)


class ImageAttention(nn.Module):
    """Self-attention over pixels, plus cross-attention to text by the same queries, plus an optional MLP.

    x (B, C, H, W), text (B, L, cond_width), or what `keys_values` made of it, or None, mask (B, L) bool or
    None; returns (B, C, H, W). Starts as the identity. Source: Gu et al. 2024 (2310.15111), released
    networks.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 8,
        norm_groups: int = 32,
        cond_width: int | None = None,
        ffn: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        check_divides("norm_groups", norm_groups, "channels", channels)
        check_divides("heads", heads, "channels", channels)
        self.channels, self.heads = channels, heads
        self.norm = nn.GroupNorm(norm_groups, channels, **where)
        self.qkv = nn.Linear(channels, 3 * channels, **where)
        self.text_norm = self.text_kv = None
        if cond_width is not None:
            self.text_norm = nn.LayerNorm(cond_width, **where)
            self.text_kv = nn.Linear(cond_width, 2 * channels, **where)
        self.out = zeroed(nn.Linear(channels, channels, **where))
        self.ffn = None
        if ffn:
            self.ffn = nn.ModuleDict(
                {
                    "norm": nn.GroupNorm(norm_groups, channels, **where),
                    "up": nn.Linear(channels, 4 * channels, **where),
                    "down": zeroed(nn.Linear(4 * channels, channels, **where)),
                }
            )

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}"

    def keys_values(self, text: Tensor) -> KeysValues | None:
        """Keys and values of a text (B, L, cond_width), (B, N, L, D) each; None where it is not looked at."""
        if self.text_kv is None or self.text_norm is None:
            return None
        k, v = (split_heads(part, self.heads) for part in self.text_kv(self.text_norm(text)).chunk(2, -1))
        return k, v

    def forward(
        self,
        x: Tensor,
        text: Tensor | KeysValues | None = None,
        mask: Tensor | None = None,
        attend: Attend = sdpa,
    ) -> Tensor:
        shape = x.shape
        x = x.flatten(2)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm(x).mT).chunk(3, -1))
        out = attend(q, k, v, None)
        known = self.keys_values(text) if isinstance(text, Tensor) else text
        if known is not None:
            out = out + attend(q, *known, mask)
        x = x + self.out(join_heads(out)).mT
        if self.ffn is not None:
            h = self.ffn["up"](self.ffn["norm"](x).mT)
            x = x + self.ffn["down"](F.gelu(h)).mT
        return x.reshape(shape)


class TextLayer(nn.Module):
    """A transformer layer over a sequence: pre-norm self-attention and MLP, both starting at zero.

    x (B, L, width), mask (B, L) bool or None; returns (B, L, width). The tokens of a text have no order here;
    rotary, from (B, N, L, D) to the same, gives one to queries and keys (frames: `mdmkit.nn.video.Rotary`).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        rotary: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        check_divides("heads", heads, "cond_width", width)
        self.heads, self.rotary = heads, rotary
        self.norm = nn.LayerNorm(width, **where)
        self.qkv = nn.Linear(width, 3 * width, **where)
        self.out = zeroed(nn.Linear(width, width, **where))
        self.ffn_norm = nn.LayerNorm(width, **where)
        self.ffn_up = nn.Linear(width, 4 * width, **where)
        self.ffn_down = zeroed(nn.Linear(4 * width, width, **where))

    def forward(self, x: Tensor, mask: Tensor | None = None, attend: Attend = sdpa) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, -1))
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        x = x + self.out(join_heads(attend(q, k, v, mask)))
        return x + self.ffn_down(F.gelu(self.ffn_up(self.ffn_norm(x))))
