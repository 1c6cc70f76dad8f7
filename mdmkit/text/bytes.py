"""A small transformer over the UTF-8 bytes of captions, trained with the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import TextEncoder, check_pad, padded_length

__all__ = ["BytesEncoder", "caption_bytes"]

START = 256  # after the 256 byte values; alone it is the empty caption
PAD = 0  # never seen: the mask leaves it out


class BytesEncoder(TextEncoder):
    """A feature for the start token and for every byte of the caption; nothing to download.

    Pre-norm transformer with learned positions and full attention. Captions longer than `max_tokens - 1`
    bytes are cut between characters, and counted in `truncated`. `pad`: see `padded_length`.
    """

    trainable = True

    def __init__(
        self,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        max_tokens: int = 64,
        pad: str = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        if max_tokens < 1:
            raise ValueError(f"expected max_tokens >= 1, got {max_tokens}")
        check_pad(pad)
        self.width = width
        self.max_tokens = max_tokens
        self.pad = pad
        self.tokens = nn.Embedding(257, width, device=device, dtype=dtype)
        self.positions = nn.Embedding(max_tokens, width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            _Layer(width=width, heads=heads, device=device, dtype=dtype) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, device=device, dtype=dtype)
        # from torch's standard normal, words are learned in about half as many steps again
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        texts = [caption_bytes(caption, self.max_tokens - 1) for caption in captions]
        self.truncated += sum(
            len(text) < len(_utf8(caption)) for text, caption in zip(texts, captions, strict=True)
        )
        lengths = [1 + len(text) for text in texts]
        length = padded_length(max(lengths, default=1), self.max_tokens, self.pad)
        ids = np.full((len(texts), length), PAD, dtype=np.int64)
        ids[:, 0] = START
        for row, text in zip(ids, texts, strict=True):
            row[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
        device = self.tokens.weight.device
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
        return self._features(torch.from_numpy(ids).to(device), mask.to(device))

    def spans(self, caption: str) -> list[tuple[int, int]]:
        kept = caption_bytes(caption, self.max_tokens - 1)
        each = [(i, i + 1) for i, character in enumerate(caption) for _ in _utf8(character)]
        return [(0, 0), *each[: len(kept)]]

    def _features(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        for layer in self.layers:
            x = layer(x, mask_BL)
        return self.norm(x) * mask_BL.unsqueeze(-1), mask_BL

    def extra_repr(self) -> str:
        return f"width={self.width}, max_tokens={self.max_tokens}"


class _Layer(nn.Module):
    """Pre-norm self-attention and a feed-forward part, `(x (B, L, D), mask (B, L)) -> x`."""

    def __init__(
        self, *, width: int, heads: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, device=device, dtype=dtype)
        self.qkv = nn.Linear(width, 3 * width, device=device, dtype=dtype)
        self.out = nn.Linear(width, width, device=device, dtype=dtype)
        self.mlp_norm = nn.LayerNorm(width, device=device, dtype=dtype)
        self.mlp_in = nn.Linear(width, 4 * width, device=device, dtype=dtype)
        self.mlp_out = nn.Linear(4 * width, width, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask_BL: Tensor) -> Tensor:
        q_BNLD, k_BNLD, v_BNLD = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        seen = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, attn_mask=mask_BL[:, None, None, :])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


def caption_bytes(caption: str, limit: int) -> bytes:
    """At most `limit` bytes of the caption's UTF-8, ending between two characters."""
    text = _utf8(caption)
    if len(text) <= limit:
        return text
    while limit > 0 and text[limit] & 0xC0 == 0x80:  # a continuation byte: the character began before the cut
        limit -= 1
    return text[:limit]


def _utf8(caption: str) -> bytes:
    return caption.encode("utf-8", "replace")  # half a surrogate pair, from a broken json, becomes "?"
