"""The built-in components and recipes, offered through the same hooks as anyone's. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mdmkit.plugins.component import Component, hookimpl

__all__ = ["mdmkit_components", "mdmkit_recipes"]


@hookimpl
def mdmkit_components() -> Iterable[Component]:
    from . import data, evaluate, growth, nn, resolutions, sampling, shapes, text, train, values, video

    rooms = (values, resolutions, nn, text, data, shapes, video, sampling, train, growth, evaluate)
    return [component for room in rooms for component in room.COMPONENTS]


@hookimpl
def mdmkit_recipes() -> Iterable[Path]:
    # in a wheel the recipes travel inside the package, in a checkout they stand beside it
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.toml"))
    return []
