"""How a settings class describes its fields: help, bounds, choices, slots. No torch."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["REQUIRED", "Use", "opt", "slot"]

REQUIRED: Any = attrs.NOTHING


@attrs.frozen
class Use:
    """A component picked for a slot: its name, pinned version and settings (None: all defaults).

    `kind` is the slot's; a recipe written in Python may leave it and the version out, `resolve` fills them.
    """

    name: str
    version: int | None = None
    settings: Any = None
    kind: str | None = None

    @property
    def pinned(self) -> str:
        """What a recipe's `use` says: "cosine@1", or "cosine" where no version is pinned."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


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
    """A field of a settings class; bounds and choices hold for each element of a tuple or table.

    In TOML an absent key is the default, and the string "none" is None where the annotation allows None.
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    metadata = {"help": help, **{name: bound for name, bound in bounds.items() if bound is not None}}
    return attrs.field(default=default, metadata=metadata)


def slot(kind: str | tuple[str, str], default: Any = REQUIRED, help: str = "", *, flat: bool = False) -> Any:
    """A field that picks a component of `kind` (annotate it `Use`, `Use | None` or `tuple[Use, ...]`;
    `Use | tuple[Use, ...]`: one, or a list).

    A default may be a name ("cosine"), None, or a tuple of names. `flat`: the component's `use` and settings
    stand in the same TOML table as the other fields of the class. A pair of kinds is for a class that stands
    in a list: the first table of the list picks the first kind, every later one the second.
    """
    single = kind if isinstance(kind, str) else None
    if isinstance(default, str):
        default = Use(default, kind=single)
    elif isinstance(default, tuple):
        default = tuple(Use(name, kind=single) if isinstance(name, str) else name for name in default)
    metadata = {"help": help, "kind": kind}
    return attrs.field(default=default, metadata={**metadata, "flat": True} if flat else metadata)
