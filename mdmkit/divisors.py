"""Rules on whole numbers that settings and modules share. No torch: recipes are checked without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt, lcm, prod

__all__ = ["check_divides", "divides_problem", "grid_multiple", "grid_problems", "largest_divisor", "triples"]


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def divides_problem(name: str, part: int, of: str, whole: int, *, all_of: int | None = None) -> str | None:
    """What is wrong where `part` does not divide `whole`, with what to try; None where it does.

    The number to try divides `all_of` too, where given.
    """
    if whole % part == 0:
        return None
    divisor = largest_divisor(all_of or whole, part)
    advice = f"{name}={divisor}" if divisor > 1 else f"{of}={-(-whole // part) * part}"
    return f"{name}={part} does not divide {of}={whole}; try {advice}"


def check_divides(name: str, part: int, of: str, whole: int) -> None:
    """ValueError where `part` does not divide `whole`."""
    problem = divides_problem(name, part, of, whole)
    if problem:
        raise ValueError(problem)


def triples(strides: Sequence[int | Sequence[int]]) -> list[tuple[int, int, int]]:
    """Strides, each an int, [height, width] or [frames, height, width], as (frames, height, width).

    Raises ValueError for any other length.
    """
    given = []
    for stride in ((s, s) if isinstance(s, int) else s for s in strides):
        if len(stride) not in (2, 3):
            raise ValueError(
                "expected a stride as one number, [height, width] or [frames, height, width], "
                f"got {list(stride)}"
            )
        given.append((stride[0] if len(stride) == 3 else 1, stride[-2], stride[-1]))
    return given


def grid_problems(frames: int, strides: Sequence[tuple[int, int, int]]) -> Iterator[tuple[str, str]]:
    """What is wrong where a picture is a square grid of frames, and strides go in time or in space."""
    for i, (f, h, w) in enumerate(strides):
        if f > 1 and (h, w) != (1, 1):
            yield (
                f"strides[{i}]",
                f"expected a stride in time or in space, got {[f, h, w]}; "
                "say [frames, 1, 1] or [1, height, width]",
            )
    inside, rest = divmod(frames, prod(f for f, _, _ in strides))
    if rest or frames < 2:
        yield "frames", f"expected frames that the strides divide, at least 2, got {frames}"
    for count in (frames, inside):
        if isqrt(count) ** 2 != count or count < 1:
            yield "frames", f"a grid of frames is a square: expected 1, 4, 9, 16 ..., got {count}"
            break


def grid_multiple(
    frames: int, strides: Sequence[tuple[int, int, int]], temporal_attention: Sequence[int]
) -> tuple[int, int]:
    """What divides the height and width of a picture that is a grid of frames.

    Attention over time, so many layers at each stage, halves the frames of its stage: their sides are even.
    """
    sides = [[stride[axis] for stride in strides] for axis in (1, 2)]
    halved = [i for i, count in enumerate(temporal_attention) if count]
    h, w = (lcm(prod(side), *(2 * prod(side[:i]) for i in halved)) for side in sides)
    return isqrt(frames) * h, isqrt(frames) * w
