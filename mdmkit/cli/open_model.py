"""A trained model as the command line names it: its folder, its recipe with overrides, what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmkit.errors import WrongInput

from .options import open_registry

if TYPE_CHECKING:
    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe

__all__ = ["Model", "Weights", "check_weights", "open_model"]

Model = Annotated[Path, typer.Argument(help="a run folder, or a model folder (a checkpoint is one)")]
Weights = Annotated[
    str | None, typer.Option(help="ema (averaged) or model (as trained); averaged where there are both")
]


def check_weights(verb: str, weights: str | None) -> None:
    """WrongInput for weights that no folder has."""
    from mdmkit.model_folder import GROUPS

    if weights not in (None, *GROUPS):
        raise WrongInput(f"{verb} --weights: expected {' or '.join(GROUPS)}, got '{weights}'")


def open_model(
    model: Path, overrides: Sequence[str], plugins: Sequence[str], *, allow_pipe: bool
) -> tuple[Path, Recipe, Registry]:
    """The folder with the weights, its resolved recipe with overrides, and a registry with its plugins.

    Raises:
        WrongInput: there is no model, or an override is wrong.
    """
    from mdmkit.model_folder import find
    from mdmkit.recipe import load
    from mdmkit.train.folder import RESOLVED

    from .run_resume import run_facts

    folder = find(model)
    modules = dict.fromkeys([*run_facts(folder).get("plugins_by_module", []), *plugins])
    registry = open_registry(list(modules))
    return folder, load(folder / RESOLVED, overrides, registry, allow_pipe=allow_pipe), registry
