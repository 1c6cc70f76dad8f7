"""Rules on whole numbers that settings and modules share. No torch: recipes are checked without it."""

from __future__ import annotations

__all__ = ["check_divides", "divides_problem", "largest_divisor"]


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
