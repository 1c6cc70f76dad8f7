"""How a settings class describes its fields: help, bounds, choices, slots. No torch."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["REQUIRED", "Use", "opt", "slot"]

REQUIRED: Any = attrs.NOTHING


@attrs.frozen
class Use:
    """A component picked for a slot: its name, pinned version and settings (None: not structured yet, all defaults)."""

    name: str
    version: int | None = None
    settings: Any = None


def opt(
    default: Any = REQUIRED,
    help: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A field of a settings class; bounds and choices hold for each element where the field is a tuple."""
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    metadata = {"help": help, **{name: bound for name, bound in bounds.items() if bound is not None}}
    return attrs.field(default=default, metadata=metadata)


def slot(kind: str, default: Any = REQUIRED, help: str = "") -> Any:
    """A field that picks a component of `kind` (annotate it `Use`, `Use | None` or `tuple[Use, ...]`).

    A default may be a name ("cosine"), None, or a tuple of names.
    """
    if isinstance(default, str):
        default = Use(default)
    elif isinstance(default, tuple):
        default = tuple(Use(name) if isinstance(name, str) else name for name in default)
    return attrs.field(default=default, metadata={"help": help, "kind": kind})
