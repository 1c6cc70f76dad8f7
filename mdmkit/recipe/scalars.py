"""Single values of TOML: exact types, bounds and choices. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .problems import Problem, describe, wrong

__all__ = ["bounds", "out_of_bounds", "scalar"]

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def scalar(value: Any, wanted: type, name: str | None = None) -> Any:
    """The value, where its type is exactly the wanted one (`name` in messages); an int does for a float."""
    name = name or wanted.__name__
    if wanted is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise wrong(f"expected {name}, got {describe(value)}") from None
    if type(value) is not wanted:
        raise wrong(f"expected {name}, got {describe(value)}{hint(value, wanted)}")
    if wanted is float and not math.isfinite(value):
        raise wrong(f"expected a finite float, got {value}")
    return value


def hint(value: Any, wanted: type) -> str:
    """What to do about a wrong type, where that is plain."""
    if wanted is str and isinstance(value, (int, float)):
        return " (put it in quotes)"
    if isinstance(value, str) and wanted is bool and value in ("true", "false"):
        return " (remove the quotes)"
    if isinstance(value, str) and wanted in (int, float):
        try:
            wanted(value)
        except ValueError:
            return ""
        return " (remove the quotes)"
    if wanted is int and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    return ""


def out_of_bounds(value: Any, metadata: Any) -> Iterable[Problem]:
    """A problem for each element that the bounds or choices of its field do not allow."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from (problem.under((i,)) for problem in out_of_bounds(item, metadata))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (problem.under((key,)) for problem in out_of_bounds(item, metadata))
    elif "choices" in metadata and value is not None and value not in metadata["choices"]:
        choices = ", ".join(str(choice) for choice in metadata["choices"])
        one_of = "one of " if len(metadata["choices"]) > 1 else ""
        yield Problem((), f"expected {one_of}{choices}, got {describe(value)}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not within(value, metadata):
        yield Problem((), f"expected {type(value).__name__} {bounds(metadata)}, got {value}")


def bounds(metadata: Any) -> str:
    """The bounds of a field as people write them: ">= 0 and < 1", or nothing."""
    return " and ".join(f"{sign} {metadata[name]}" for name, sign in SIGNS.items() if name in metadata)


def within(value: float, metadata: Any) -> bool:
    return (
        value > metadata.get("gt", -math.inf)
        and value >= metadata.get("ge", -math.inf)
        and value < metadata.get("lt", math.inf)
        and value <= metadata.get("le", math.inf)
    )
