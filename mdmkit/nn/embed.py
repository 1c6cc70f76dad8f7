"""What a level's residual blocks are told: the time, and numbers about the picture (micro-conditioning)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .zero import zeroed

__all__ = ["Embedding", "sinusoid", "time_index"]


# of a clip: its frames a second, how many it has
COUNTS = ("fps", "frames")


def time_index(t: Tensor) -> Tensor:
    """The number that stands for t in [0, 1] inside the network: 1000 t - 1, float64.

    The released networks are fed 0..999 where their table of noise levels is read at 1..1000.
    """
    return 1000 * t.double() - 1


def sinusoid(value: Tensor, dim: int) -> Tensor:
    """[sin, cos] of value * 10000^(-k / half), k = 0 .. half - 1; (B,) to (B, dim = 2 half), float64."""
    half = dim // 2
    k = torch.arange(half, device=value.device, dtype=torch.float64)
    angle = value.double()[:, None] * torch.exp(-math.log(10_000) / half * k)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Embedding(nn.Module):
    """Time and micro-conditioning to one vector a row: (B,) each to (B, emb_dim).

    `micro_conditioning` names the numbers and their defaults, which stand in where a number is not given.
    "scale", the picture's original side in pixels, counts only up to its default; "fps" and "frames" are
    counts as they are; any other is expected around 0..1. The last layer of each starts at zero. Source: Gu
    et al. 2024 (2310.15111), released networks.
    """

    def __init__(
        self,
        emb_dim: int,
        *,
        micro_conditioning: Mapping[str, float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if emb_dim % 8:
            raise ValueError(
                f"expected emb_dim to be a multiple of 8, got {emb_dim}; try {emb_dim + -emb_dim % 8}"
            )
        self.emb_dim = emb_dim
        self.defaults = dict(micro_conditioning or {})
        for key in self.defaults:
            if not key.isidentifier():
                raise ValueError(f"expected a name in micro_conditioning, got {key!r}")
        where = {"device": device, "dtype": dtype}

        def mlp() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(emb_dim // 4, emb_dim, **where), nn.SiLU(), nn.Linear(emb_dim, emb_dim, **where)
            )

        self.time = mlp()
        self.micro = nn.ModuleDict({key: mlp() for key in self.defaults})
        for made in self.micro.values():
            last = made.get_submodule("2")
            assert isinstance(last, nn.Linear)
            zeroed(last)

    def extra_repr(self) -> str:
        return f"emb_dim={self.emb_dim}, micro_conditioning={self.defaults}"

    def forward(self, t: Tensor, micros: Mapping[str, Tensor] | None = None) -> Tensor:
        dtype = self.time[0].get_parameter("weight").dtype
        width = self.emb_dim // 4
        emb = self.time(sinusoid(time_index(t), width).to(dtype))
        for key, default in self.defaults.items():
            value = (micros or {}).get(key)
            value = torch.full_like(t, default, dtype=torch.float64) if value is None else value.double()
            if key == "scale":
                value = value.clamp(max=default)
            elif key not in COUNTS:
                value = 1000 * value
            emb = emb + self.micro[key](sinusoid(value, width).to(dtype))
        return emb
