"""Growth operators: the tensors of a network, and the moments of its optimiser, in a larger network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

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


BLOCK = re.compile(
    r"(?P<stage>levels\.\d+\.)(?P<way>down|up)(?P<list>\.\d+\.blocks\.)(?P<index>\d+)\.(?P<rest>.*)"
)


def stacked(old: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The parameters of a network, those of residual blocks that it has more copied from blocks it had.

    A block is copied from the nearest before it, on the way up else from the last of that stage on the way
    down, that has its shapes. Raises ValueError where none has.
    """
    new: dict[str, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        match = BLOCK.fullmatch(name)
        grown = match is not None and any(other.startswith(match["stage"]) for other in old)
        if match is not None and grown and name not in old:
            new.setdefault(name.removesuffix(match["rest"]), {})[match["rest"]] = tuple(shape)
    out = dict(old)
    for block, wanted in new.items():
        source = next((like for like in candidates(block) if parameters_of(like, out) == wanted), None)
        if source is None:
            raise ValueError(
                f"{block[:-1]}: stacking copies a block of the same stage and shapes, and there is none; "
                "give the stage two blocks, or take deepen"
            )
        out |= {block + rest: out[source + rest].clone() for rest in wanted}
    return out


def candidates(block: str) -> Iterator[str]:
    """Names of blocks that one may be a copy of, the nearest first."""
    match = BLOCK.fullmatch(block + "x")
    assert match is not None
    most = int(match["index"])
    for way in dict.fromkeys((match["way"], "down")):
        yield from (f"{match['stage']}{way}{match['list']}{i}." for i in reversed(range(most)))


def parameters_of(block: str, tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Shapes of the parameters of a block, by their names in it."""
    return {
        name.removeprefix(block): tuple(value.shape)
        for name, value in tensors.items()
        if name.startswith(block)
    }
