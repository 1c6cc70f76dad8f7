"""`mdmkit evaluate`: what metrics say of pictures that a model draws, or of the model on its data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmkit.errors import WrongInput

from .open_model import Model, Weights, check_weights, open_model
from .options import AllowPipe, Plugins, Sets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdmkit.recipe.schema import Recipe

__all__ = ["command"]


def command(
    sets: Sets,
    plugins: Plugins,
    model: Model,
    metric: Annotated[
        list[str] | None, typer.Option(help="a metric; may be given often; the recipe's where not given")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="pictures; the recipe's evaluate.count where not given")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of the pictures, other than the grids'; the recipe's where not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a JSON file for the numbers")] = None,
    weights: Weights = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Measure pictures drawn for captions of the recipe's data, or the model on data; numbers by name."""
    from mdmkit import assemble, cascade
    from mdmkit.model_folder import load
    from mdmkit.recipe import load as load_recipe
    from mdmkit.train.folder import RESOLVED, one_line_disk_errors
    from mdmkit.train.memory import one_line_memory_errors
    from mdmkit.train.parallel import pick_device

    from .run_pictures import draws, measure, reads_prompts, said, save_metrics

    if allow_pipe:
        os.environ["MDMKIT_ALLOW_PIPE"] = "1"
    if count is not None and count < 1:
        raise WrongInput(f"evaluate --count: expected a number of at least 1, got {count}")
    check_weights("evaluate", weights)
    given = {"evaluate.count": count, "sample.seed": seed}
    overrides = [*sets, *(f"{name}={value}" for name, value in given.items() if value is not None)]
    folder, recipe, registry = open_model(model, overrides, plugins, allow_pipe=allow_pipe)
    if metric:
        overrides.append(f"evaluate.metrics={picked_metrics(recipe, metric)}")
        recipe = load_recipe(folder / RESOLVED, overrides, registry, allow_pipe=allow_pipe)
    if not recipe.evaluate.metrics:
        raise WrongInput(
            "evaluate: the recipe measures nothing (evaluate.metrics is empty); say --metric "
            f"(known: {', '.join(registry.names('metric'))})"
        )
    device = pick_device(recipe.run.device)
    advice = "lower sample.batch, or draw fewer pictures (--count)"
    with one_line_disk_errors(out or folder), one_line_memory_errors(advice):
        dataset = assemble.dataset(recipe, registry)  # first: what is wrong with files is known soonest
        nest, text = load(folder, recipe, registry, device=device, weights=weights)
        metrics = assemble.metrics(recipe, registry, device=device)
        if not reads_prompts(text) and any(map(draws, metrics.values())):
            raise WrongInput(
                "evaluate: text features are packed and text.encoder names no encoder for captions"
            )
        inner = (
            cascade.beside(folder, recipe, registry, device=device, text=text, weights=weights)
            if any(map(draws, metrics.values()))
            else []
        )
        results = measure(recipe, registry, metrics, nest, text, dataset, device, inner=inner)
        if out is not None:
            save_metrics(out, results)
    print(said(results))


def picked_metrics(recipe: Recipe, names: Sequence[str]) -> str:
    """The metrics of these names as TOML: with the recipe's settings where it has them, else by default."""
    from mdmkit.recipe import Use
    from mdmkit.recipe.describe import value_text

    there = {use.name: use for use in recipe.evaluate.metrics}
    return value_text(tuple(there.get(name, Use(name)) for name in dict.fromkeys(names)))
