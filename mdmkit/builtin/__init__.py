"""The built-in components, offered through the same hook as anyone's. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from mdmkit.plugins.component import Component, hookimpl

__all__ = ["mdmkit_components"]


@hookimpl
def mdmkit_components() -> Iterable[Component]:
    from . import data, evaluate, nn, sampling, text, train, values

    return [c for room in (values, nn, text, data, sampling, train, evaluate) for c in room.COMPONENTS]
