"""Values as released files spell them: numbers, lists and ratios as strings, enums by name.

Everything that cannot be read is a ValueError.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["flag", "integer", "integers", "ratios", "real", "text", "word"]

FLAGS = {"true": True, "1": True, "false": False, "0": False}


def shown(value: Any) -> str:
    """A value in a message, short whatever it is."""
    return f"{value!r:.40}" if isinstance(value, str | int | float) else type(value).__name__


def real(value: Any) -> float:
    """A finite number, or its spelling."""
    number = math.nan
    if type(value) in (int, float, str):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a number, got {shown(value)}")
    return number


def integer(value: Any) -> int:
    """A whole number of at most nine digits, or its spelling."""
    number = real(value)
    if number != int(number) or abs(number) >= 1e9:
        raise ValueError(f"expected a whole number, got {shown(value)}")
    return int(number)


def flag(value: Any) -> bool:
    """True or false, as such, as 1 and 0, or as words."""
    found = FLAGS.get(str(value).lower()) if type(value) in (bool, int, str) else None
    if found is None:
        raise ValueError(f"expected true or false, got {shown(value)}")
    return found


def text(value: Any) -> str:
    """Words of at most 200 characters on one line."""
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError(f"expected a short text, got {shown(value)}")
    return value


def integers(value: Any) -> list[int]:
    """A list of whole numbers from 0 on, or its spelling with commas, with or without brackets."""
    if isinstance(value, str):
        value = [part for part in value.strip().strip("[]()").split(",") if part.strip()]
    found = [integer(item) for item in (value if isinstance(value, list | tuple) else [value])]
    if any(item < 0 for item in found):
        raise ValueError(f"expected numbers from 0 on, got {min(found)}")
    return found


def ratios(levels: int) -> Callable[[Any], list[float]]:
    """A reader of "16:4:1": one number from 0 on for each level, not all 0."""

    def convert(value: Any) -> list[float]:
        if not isinstance(value, str):
            raise ValueError(f"expected numbers with colons between them, like '2:1', got {shown(value)}")
        found = [real(part) for part in value.split(":")]
        if len(found) != levels or min(found) < 0 or sum(found) <= 0:
            raise ValueError(f"expected one number from 0 on for each of {levels} levels, got {shown(value)}")
        return found

    return convert


def word(known: Iterable[str]) -> Callable[[Any], str]:
    """A reader of a name in upper or lower case, one of those known."""
    names = list(known)

    def convert(value: Any) -> str:
        name = value.upper() if isinstance(value, str) else None
        if name not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {shown(value)}")
        return name

    return convert
