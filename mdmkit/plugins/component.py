"""What a plugin hands over: a component's kind, name, settings and target. No torch."""

from __future__ import annotations

import attrs
import pluggy

__all__ = ["Component", "hookimpl"]

hookimpl = pluggy.HookimplMarker("mdmkit")


@attrs.frozen
class Component:
    """A registration of a component under its kind and name.

    `target` is "module:attr", imported only on build; None: the settings object is the component.
    `version` changes when the same settings would give different numbers.
    """

    kind: str
    name: str
    settings: type
    target: str | None = None
    version: int = 1
