"""What `mdmkit sample` tells the network of every picture beside its text: micro-conditioning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    from mdmkit.recipe.schema import Recipe

__all__ = ["Micro", "frame_rate", "micros_of"]

FASTEST = 1000  # frames a second that can be written
Micro = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE: a number that the model reads (micro_conditioning), as fps=12; often"),
]


def read_by(recipe: Recipe, levels: int | None = None) -> dict[str, float]:
    """The numbers that the levels of a model read, and their defaults, those of the highest level first."""
    settings = [level.network.settings for level in recipe.model.levels[:levels]]
    return {
        name: value
        for one in settings
        for name, value in (getattr(one, "micro_conditioning", None) or {}).items()
    }


def micros_of(given: Sequence[str], recipe: Recipe, levels: int | None) -> dict[str, float]:
    """The numbers to tell the levels that are drawn.

    Raises:
        WrongInput: one is none, or stands there twice, or no level reads it.
    """
    known = read_by(recipe, levels)
    told: dict[str, float] = {}
    for one in given:
        name, _, text = one.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise WrongInput(f"sample --micro: expected NAME=VALUE with a number, as fps=12, got '{one}'")
        if name not in known:
            names = f"known: {', '.join(sorted(known))}" if known else "they read none"
            raise WrongInput(f"sample --micro: the levels to draw do not read {name!r} ({names})")
        if name in told:
            raise WrongInput(f"sample --micro: {name} is given twice; leave one out")
        if name == "fps" and not 0 <= value < FASTEST:
            raise WrongInput(
                f"sample --micro: expected fps from 0 (not known) to below {FASTEST}, got {value:g}"
            )
        told[name] = value
    return told


def frame_rate(recipe: Recipe, micros: Mapping[str, float]) -> float:
    """Frames a second of drawn clips: what the network is told of them, 8 where it is told nothing."""
    return (read_by(recipe) | dict(micros)).get("fps") or 8.0
