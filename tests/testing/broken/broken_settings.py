"""Settings of components that each break one promise. No torch."""

from __future__ import annotations

import attrs

from mdmkit.recipe import opt


@attrs.frozen
class Plain:
    """No settings at all."""


@attrs.frozen
class Scaled:
    """One setting."""

    scale: float = opt(2.0, "some factor", gt=0.0)


@attrs.frozen
class Required:
    """One setting without a default."""

    path: str = opt(help="some file")


@attrs.define
class Mutable:
    """Can be changed."""


@attrs.frozen
class Undocumented:
    scale: float = opt(2.0, "some factor")


Undocumented.__doc__ = None


class NotAttrs:
    """A plain class."""


@attrs.frozen
class Helpless:
    """Its field explains nothing."""

    scale: float = 2.0


@attrs.frozen
class OutOfBounds:
    """Its default is outside its own bound."""

    scale: float = opt(-1.0, "some factor", ge=0.0)


@attrs.frozen
class Overlapping:
    """Takes what the program gives."""

    levels: int = opt(3, "number of levels")
