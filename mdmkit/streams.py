"""Random streams by key: a draw is a function of what it is for, never of what was drawn before."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["key_bytes", "normal", "seed_of", "stream"]


def key_bytes(key: tuple[int | str, ...], size: int = 16) -> bytes:
    """A hash of `size` bytes of a key of ints and strings; equal on every platform and Python."""
    # repr of a tuple of ints and strings is unambiguous ("1" and 1 differ); numpy ints would print otherwise
    plain = tuple(part if isinstance(part, str) else int(part) for part in key)
    return blake2b(repr(plain).encode(), digest_size=size).digest()


def seed_of(*key: int | str) -> int:
    """A 64-bit seed of this key, for generators that are not NumPy's."""
    return int.from_bytes(key_bytes(key, 8), "little")


def stream(*key: int | str) -> np.random.Generator:
    """The stream of this key, e.g. `stream(seed, step, position, level, "noise")`: NumPy's Philox.

    torch's CPU generator keeps only 32 bits of a seed, too few for so many streams.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key_bytes(key), "little")))


def normal(
    shape: tuple[int, ...],
    *key: int | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Standard normal draws of this key's stream, on `device`, in `dtype` (float32 where not given).

    On a CUDA device the numbers come from the device's own Philox generator, seeded by a 64-bit hash of the
    same key, so that training never waits for noise made by the CPU; they differ from the CPU's.
    """
    import torch

    dtype = dtype or torch.float32
    device = torch.device(device)
    if device.type == "cuda":
        generator = torch.Generator(device).manual_seed(seed_of(*key))
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    wide = dtype == torch.float64
    draws = stream(*key).standard_normal(shape, dtype=np.float64 if wide else np.float32)
    return torch.from_numpy(draws).to(device=device, dtype=dtype)
