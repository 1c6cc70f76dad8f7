"""Components of kind `temporal_layer`: what lets the frames of a clip know of each other.

The frames of a clip are rows that follow each other, (B F, C, H, W). Each layer starts as the identity, so
that a network over pictures to which it is added says of every frame what it said; and of a clip that stands
still each says what it says of one of its frames alone, so that a picture is a clip of one frame. Sinusoidal
positions give up the second: who knows a frame's number tells frames apart that look alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdmkit.divisors import check_divides

from .attention import Attend, join_heads, sdpa
from .embed import sinusoid
from .frames import along_time, held
from .video import Rotary
from .zero import zeroed

__all__ = ["FrameAttention", "FrameConv", "FrameShift", "TemporalLayer"]

POSITIONS = ("rotary", "relative", "sinusoidal", "none")

class TemporalLayer(Protocol):
    """A layer along time: x (B F, C, H, W), emb (B, emb_dim), frames F to (B F, C, H, W); see the module.

    `attend` is the attention of the network, for a layer that attends.
    """

    def __call__(self, x: Tensor, emb: Tensor, frames: int, attend: Attend = sdpa, /) -> Tensor: ...


class FrameAttention(nn.Module):
    """Attention over the frames at each place of a picture, and an MLP, added to the input.

    positions: "rotary" turns queries and keys by their frame (RoFormer, 2104.09864); "relative" adds a number
    to each score that is learned for each head and distance, up to `max_distance`, from where on it stays
    (Shaw et al. 2018, 1803.02155, in the form of T5); "sinusoidal" adds waves of a frame's number to what is
    attended to (Vaswani et al. 2017, 1706.03762), so that a frame knows whether it begins or ends a clip, and
    a clip that stands still is no longer its picture; "none": frames may be permuted. causal: a frame sees
    itself and those before. spatial_heads: so many of the heads attend over the places of their own frame
    instead (factorised dot-product attention: ViViT, 2103.15691, model 4). chunk: at most so many places at a
    time, for less memory and the same numbers: in training each part is run again in the backward pass.

    Relative positions add to scores, which an exchangeable attention cannot; they use PyTorch's.
    """

    def __init__(
        self,
        *,
        head_dim: int = 32,
        positions: str = "rotary",
        causal: bool = False,
        spatial_heads: int = 0,
        max_distance: int = 32,
        ffn: bool = True,
        chunk: int | None = None,
        channels: int,
        emb_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        if positions not in POSITIONS:
            raise ValueError(f"expected positions out of {', '.join(POSITIONS)}, got {positions!r}")
        check_divides("head_dim", head_dim, "channels", channels)
        if positions == "sinusoidal" and channels % 2:
            raise ValueError(f"sinusoidal positions come in pairs: expected even channels, got {channels}")
        self.heads, self.spatial_heads = channels // head_dim, spatial_heads
        if not 0 <= spatial_heads < self.heads:
            raise ValueError(
                f"expected spatial_heads below the {self.heads} heads of {channels} channels, "
                f"got {spatial_heads}"
            )
        self.causal, self.chunk, self.max_distance = causal, chunk, max_distance
        self.norm = nn.LayerNorm(channels, **where)
        self.qkv = nn.Linear(channels, 3 * channels, **where)
        self.numbered = positions == "sinusoidal"
        self.rotary = Rotary(head_dim, **where) if positions == "rotary" else None
        self.bias = None
        if positions == "relative":
            over_time = self.heads - spatial_heads
            self.bias = nn.Parameter(torch.zeros(over_time, 2 * max_distance + 1, **where))
        self.out = zeroed(nn.Linear(channels, channels, **where))
        self.ffn = None
        if ffn:
            self.ffn = nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(channels, **where),
                    "up": nn.Linear(channels, 4 * channels, **where),
                    "down": zeroed(nn.Linear(4 * channels, channels, **where)),
                }
            )

    def extra_repr(self) -> str:
        return f"heads={self.heads}, causal={self.causal}, chunk={self.chunk}"

    def forward(self, x: Tensor, emb: Tensor, frames: int, attend: Attend = sdpa) -> Tensor:
        h, w = x.shape[-2:]
        # (B F, C, H, W) to (B, H W, F, C) and back
        tokens = x.unflatten(0, (-1, frames)).flatten(3).permute(0, 3, 1, 2)
        beside = None
        if self.spatial_heads:  # over whole frames, before places are taken in parts
            heads = self.parts(tokens, slice(0, self.spatial_heads))
            q, k, v = (part.permute(0, 2, 3, 1, 4).flatten(0, 1) for part in heads)
            beside = join_heads(attend(q, k, v, None)).unflatten(0, (-1, frames)).transpose(1, 2)
        made = []
        for part in self.places(tokens.shape[1]):
            told = tokens[:, part], None if beside is None else beside[:, part], attend
            again = self.chunk is not None and torch.is_grad_enabled()
            out = checkpoint(self.over_time, *told, use_reentrant=False) if again else self.over_time(*told)
            made.append(out)
        whole = made[0] if len(made) == 1 else torch.cat(made, 1)
        return whole.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (h, w))

    def places(self, count: int) -> Iterator[slice]:
        """The places to take at a time."""
        step = self.chunk or count
        return (slice(start, start + step) for start in range(0, count, step))

    def parts(self, tokens: Tensor, heads: slice) -> list[Tensor]:
        """Queries, keys and values (..., heads, D) of some heads for tokens (..., C)."""
        weight, bias = (
            p.unflatten(0, (3, self.heads, -1))[:, heads].flatten(0, 2)
            for p in (self.qkv.weight, self.qkv.bias)
        )
        some = len(range(self.heads)[heads])
        told = self.norm(tokens)
        if self.numbered:
            frames, channels = tokens.shape[-2:]
            told = told + sinusoid(torch.arange(frames, device=told.device), channels).to(told.dtype)
        return list(F.linear(told, weight, bias).unflatten(-1, (3, some, -1)).unbind(-3))

    def over_time(self, tokens: Tensor, beside: Tensor | None, attend: Attend) -> Tensor:
        """The layer at some places: tokens (B, P, F, C); beside (B, P, F, c), what the other heads found."""
        q, k, v = (
            part.flatten(0, 1).transpose(1, 2) for part in self.parts(tokens, slice(self.spatial_heads, None))
        )
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        out = join_heads(self.attended(q, k, v, attend)).unflatten(0, tokens.shape[:2])
        if beside is not None:
            out = torch.cat([beside, out], -1)
        tokens = tokens + self.out(out)
        if self.ffn is not None:
            tokens = tokens + self.ffn["down"](F.gelu(self.ffn["up"](self.ffn["norm"](tokens))))
        return tokens

    def attended(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Attention over frames: (P, N, F, D) each."""
        frames = q.shape[-2]
        place = torch.arange(frames, device=q.device)
        distance = place[None] - place[:, None]
        if self.bias is None:
            mask = (distance <= 0)[None, None].expand(len(q), -1, -1, -1) if self.causal else None
            return attend(q, k, v, mask)
        far = distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
        scores = self.bias[:, far]
        if self.causal:
            scores = scores.masked_fill(distance > 0, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=scores[None].to(q.dtype))


class FrameConv(nn.Module):
    """A convolution along the frames at each place, told the time of the diffusion, added to the input.

    kernel: frames that it sees, odd. depthwise: each channel on its own; else all of them together. causal: a
    frame sees itself and those before. Beyond its ends a clip stands still.
    """

    def __init__(
        self,
        *,
        kernel: int = 3,
        depthwise: bool = False,
        causal: bool = False,
        channels: int,
        emb_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, got {kernel}; try {kernel + 1}")
        self.before, self.after = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.norm = nn.GroupNorm(1, channels, **where)
        self.emb = nn.Linear(emb_dim, 2 * channels, **where)
        conv = nn.Conv1d(channels, channels, kernel, groups=channels if depthwise else 1, **where)
        self.conv = zeroed(conv)

    def forward(self, x: Tensor, emb: Tensor, frames: int, attend: Attend = sdpa) -> Tensor:
        scale, shift = self.emb(F.silu(emb)).repeat_interleave(frames, 0)[:, :, None, None].chunk(2, 1)
        clip = F.silu(self.norm(x) * (1 + scale) + shift).unflatten(0, (-1, frames))
        clip = held(clip, self.before, self.after)
        weight, bias = self.conv.weight, self.conv.bias
        if self.conv.groups == 1:
            return x + along_time(clip, weight, bias).flatten(0, 1)
        assert bias is not None
        # one channel at a time is no work for a convolution: its taps, one by one
        out = bias[:, None, None] + sum(
            clip[:, j : j + frames] * weight[:, 0, j, None, None] for j in range(weight.shape[-1])
        )
        return x + out.flatten(0, 1)


class FrameShift(nn.Module):
    """Some channels come from the frame before, as many from the frame after; no weights but a gate.

    A shift alone is no identity: the layer is x + gate (shifted - x), a number a channel that starts at zero,
    so that nothing changes until it has learned to look. share: of the channels that come from each side;
    causal: from before only. Source: Lin et al. 2019 (1811.08383), the residual shift, which has no gate.
    """

    def __init__(
        self,
        *,
        share: float = 0.125,
        causal: bool = False,
        channels: int,
        emb_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.moved = round(share * channels)
        sides = 1 if causal else 2
        if not 1 <= sides * self.moved <= channels:
            raise ValueError(
                f"expected a share that moves 1 to {channels // sides} of {channels} channels from each "
                f"side, got {share}, which moves {self.moved}"
            )
        self.causal = causal
        self.gate = nn.Parameter(torch.zeros(sides * self.moved, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"moved={self.moved}, causal={self.causal}"

    def forward(self, x: Tensor, emb: Tensor, frames: int, attend: Attend = sdpa) -> Tensor:
        clip = x.unflatten(0, (-1, frames))
        n, count = self.moved, len(self.gate)
        around = held(clip[:, :, :count], 1, 1)
        sides = [around[:, :-2, :n]] if self.causal else [around[:, :-2, :n], around[:, 2:, n:]]
        shifted = torch.cat(sides, 2)
        gate = self.gate[:, None, None].to(x.dtype)
        moved = clip[:, :, :count] + gate * (shifted - clip[:, :, :count])
        return torch.cat([moved, clip[:, :, count:]], 2).flatten(0, 1)
