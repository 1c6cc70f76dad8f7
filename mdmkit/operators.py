"""Growth operators: the tensors of a network, and the moments of its optimiser, in a larger network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mdmkit.streams import stream

__all__ = ["stacked", "widened"]


def widened(name: str, old: Tensor, shape: Sequence[int], *, moment: int = 0, split: float = 0.0) -> Tensor:
    """A parameter of a network, or the `moment`-th moments of its gradient, in one with wider layers.

    Along each axis the new length is a multiple of the old one, and each entry is repeated in place, copies
    next to each other: groups of norms, halves and thirds of joined projections, and heads keep their places.
    Axis 1 of a matrix or kernel reads copies, so its entries are split among them: in equal parts, or in
    random ones (a function of `name`) that differ by up to `split`, as copies with equal weights get equal
    gradients for ever. The function of the network stays: f(x) is the same to rounding.

    Where d entries of axis 0 stand for one, each gets 1/d of its gradient, which scales moments: the first
    by 1/d, the second by 1/d^2 (exact for split = 0). Queries of an attention whose heads grow d times are
    scaled by d^-1/2, as its scores are sums over the head divided by the root of its size; their gradient
    by d^-1/2 too.

    Raises ValueError for a shape that is no multiple.
    """
    new = tuple(shape)
    if len(new) != old.ndim or any(n % o for n, o in zip(new, old.shape, strict=True)):
        raise ValueError(f"{name}: expected a multiple of {tuple(old.shape)} along each axis, got {new}")
    times = [n // o for n, o in zip(new, old.shape, strict=True)]
    if all(factor == 1 for factor in times):
        return old
    if any(factor > 1 for factor in times[2:]):
        raise ValueError(f"{name}: kernels keep their size, but {tuple(old.shape)} is to become {new}")
    out = old
    for axis, factor in enumerate(times):
        out = out.repeat_interleave(factor, axis)
    outside, inside = times[0], times[1] if old.ndim > 1 else 1
    if moment == 0:
        if inside > 1:
            out = out * parts(name, out, inside, split)
    else:
        out = out / outside**moment
    if QUERIES.search(name) and outside > 1:
        first = torch.ones(new[0], 1, dtype=out.dtype)
        # as a value q / sqrt(d); as a gradient (1/d) * sqrt(d) of the old one
        first[: new[0] // 3] = outside**-0.5 if moment == 0 else outside ** (0.5 * moment)
        out = out * first.reshape(-1, *(1,) * (old.ndim - 1)).to(out.device)
    return out


# the joined projection to queries, keys and values of an attention over pictures
QUERIES = re.compile(r"\.qkv\.(weight|bias)$")


def parts(name: str, like: Tensor, count: int, split: float) -> Tensor:
    """Shares of `count` neighbours along axis 1, whose sum is 1; around 1 / count each."""
    if split == 0:
        return torch.full((), 1 / count, dtype=like.dtype, device=like.device)
    shape = (like.shape[0], like.shape[1] // count, count, *like.shape[2:])
    draws = stream(name, "widen").random(shape, dtype="float64")
    raw = 1 + split * (2 * torch.from_numpy(draws) - 1)
    shares = (raw / raw.sum(2, keepdim=True)).reshape(like.shape)
    return shares.to(like.device, like.dtype)


BLOCK = re.compile(r"(.*\.blocks\.)(\d+)(\..*)")


def stacked(old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The parameters of a network, those of blocks that it has more copied from the block before them.

    Raises ValueError where the block before has other shapes.
    """
    out = dict(old)
    for name, shape in shapes.items():
        match = BLOCK.fullmatch(name)
        if name in out or match is None or int(match[2]) == 0:
            continue
        level = name.split(".")[1]
        if not any(other.startswith(f"levels.{level}.") for other in old):
            continue  # a level that is new as a whole
        before = f"{match[1]}{int(match[2]) - 1}{match[3]}"
        source = out.get(before)
        if source is None or tuple(source.shape) != tuple(shape):
            came = "nothing" if source is None else str(tuple(source.shape))
            raise ValueError(
                f"{name}: stacking copies the block before it, expected a {tuple(shape)} at {before}, got {came}"
            )
        out[name] = source.clone()
    return out
