"""Small nests with random parameters, for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdmkit.nn import NestedUNet, UNetCore, UNetShell

WIDTH = 16  # of the text features


def core(**settings: Any) -> UNetCore:
    """A core of two stages that reads text, float64."""
    made: dict[str, Any] = {
        "channels": (8, 16),
        "blocks": 1,
        "attention": (0, 1),
        "heads": 4,
        "norm_groups": 4,
    }
    made |= {"cond_dim": WIDTH, "micro_conditioning": {"scale": 64.0}, "dtype": torch.float64}
    return UNetCore(**made | settings)


def shell(inner: UNetCore | UNetShell, **settings: Any) -> UNetShell:
    """A shell of two stages around a level, float64."""
    made: dict[str, Any] = {
        "channels": (8, 8),
        "blocks": 1,
        "heads": 4,
        "norm_groups": 4,
        "dtype": torch.float64,
    }
    made |= {"inner_channels": inner.channels[0], "emb_dim": inner.emb_dim}
    return UNetShell(**made | settings)


def nest(levels: int, *, seed: int = 0, **settings: Any) -> NestedUNet:
    """A fresh nest of so many levels, each twice the one inside, which is the same for any number."""
    torch.manual_seed(seed)
    made: list[Any] = [core(**settings)]
    for r in range(1, levels):
        torch.manual_seed(seed + r)
        made.append(shell(made[-1]))
    return NestedUNet(made[0], made[1:])


def stir(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every parameter, so that nothing is zero by construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2 + (p.ndim == 1))
    return module


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(rows: Sequence[int], side: tuple[int, int] = (8, 12), seed: int = 0) -> tuple[Tensor, ...]:
    """A noisy pyramid: so many rows a level, each level twice the one inside."""
    h, w = side
    return tuple(draw(count, 3, h << r, w << r, seed=seed + r) for r, count in enumerate(rows))


def told(rows: int, seed: int = 0) -> dict[str, Any]:
    """Time, text with a mask, and micro-conditioning."""
    generator = torch.Generator().manual_seed(seed + 100)
    lengths = torch.randint(1, 6, (rows, 1), generator=generator)
    return {
        "t": torch.rand(rows, generator=generator, dtype=torch.float64),
        "cond": draw(rows, 5, WIDTH, seed=seed + 101),
        "cond_mask": torch.arange(5)[None] < lengths,
        "micros": {"scale": 16 + 64 * torch.rand(rows, generator=generator)},
    }


def first(told: dict[str, Any], rows: slice | Tensor) -> dict[str, Any]:
    """The same for some rows only."""
    return {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in told.items()
    }
