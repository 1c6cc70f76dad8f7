"""What a plugin can implement.

No hook is called inside a forward pass: what happens there is a component in a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from .component import Component

if TYPE_CHECKING:
    from mdmkit.recipe.problems import Problem
    from mdmkit.recipe.schema import Recipe

__all__ = ["hookspec"]

hookspec = pluggy.HookspecMarker("mdmkit")


@hookspec
def mdmkit_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """The components of every kind that this plugin offers. Must not import torch."""


@hookspec
def mdmkit_recipes() -> Iterable[Path]:  # type: ignore[empty-body]
    """Recipe files, offered as plugin:stem."""


@hookspec
def mdmkit_check_recipe(recipe: Recipe) -> Iterable[Problem]:  # type: ignore[empty-body]
    """What is wrong with a recipe (structured, with its defaults) that only this plugin can see. No torch."""


@hookspec
def mdmkit_run_start(run: Any) -> None:
    """Training starts, or goes on after a resume."""


@hookspec
def mdmkit_run_end(run: Any, error: BaseException | None) -> None:
    """Training has ended; `error` says why where it did not finish."""


@hookspec
def mdmkit_step_end(run: Any, step: int, metrics: Mapping[str, Any]) -> None:
    """An optimiser step is done; `metrics` are tensors that stay on the device."""


@hookspec
def mdmkit_level_grown(run: Any, level: int) -> None:
    """A level joined the nest."""


@hookspec
def mdmkit_checkpoint_saved(run: Any, step: int, path: Path) -> None:
    """A checkpoint became visible at `path`."""
