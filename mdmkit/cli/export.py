"""`mdmkit export`: a trained model in another format."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from mdmkit.errors import MdmkitError, WrongInput

from .open_model import Model, Weights, check_weights, open_model
from .options import Plugins

if TYPE_CHECKING:
    from torch import Tensor

    from mdmkit.plugins import Registry
    from mdmkit.recipe import Recipe

__all__ = ["Exported", "command"]

FORMATS = ("apple", "diffusers", "safetensors")


@attrs.frozen
class Exported:
    """What an export starts from: the recipe, the weights under our names, and where they are from."""

    recipe: Recipe
    registry: Registry
    weights: dict[str, Tensor]
    facts: dict[str, Any]


def command(
    plugins: Plugins,
    model: Model,
    format: Annotated[
        str, typer.Option(help="safetensors (a model folder), diffusers (a pipeline), apple (a .pth)")
    ],
    out: Annotated[Path, typer.Option(help="the new folder; with --format apple the new file")],
    weights: Weights = None,
    levels: Annotated[
        int | None, typer.Option(help="only the inner levels, as a model of their own")
    ] = None,
) -> None:
    """Write a trained model, without its optimiser, in a form that other programs read."""
    from mdmkit import model_folder
    from mdmkit.train.memory import one_line_memory_errors

    if format not in FORMATS:
        raise WrongInput(f"export --format: expected {', '.join(FORMATS)}, got '{format}'")
    check_weights("export", weights)
    if levels is not None and levels < 1:
        raise WrongInput(f"export --levels: expected a number of at least 1, got {levels}")
    refuse_taken(out, file=format == "apple")
    source = opened(model, plugins, weights, levels)
    with one_line_memory_errors(), one_line_write_errors(out):
        if format == "safetensors":
            model_folder.write(out, source.recipe, source.weights, source.facts)
        elif format == "apple":
            from .export_apple import write

            for path in write(out, source):
                print(f"left out, as the released settings have no place for it: {path}", file=sys.stderr)
        else:
            from .export_diffusers import write as write_pipeline

            write_pipeline(out, source)
    print(out)


def refuse_taken(out: Path, *, file: bool) -> None:
    """Nothing, where a folder or file can be made without losing what stands there; WrongInput otherwise."""
    from mdmkit.train.folder import refuse_full

    if not file:
        refuse_full(out)
    elif out.exists():
        raise WrongInput(f"{out} exists; name another --out, a file")


@contextlib.contextmanager
def one_line_write_errors(out: Path) -> Iterator[None]:
    """Turn what a path or a disk refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise WrongInput(f"{out} cannot be made: {error.strerror}; name another --out") from error
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise MdmkitError(f"{out} cannot be written: {error}; make room and try again") from error


def opened(given: Path, plugins: list[str], group: str | None, levels: int | None) -> Exported:
    """The model that a user means, every tensor accounted for; nothing of it is copied into memory yet."""
    from mdmkit import assemble, model_folder
    from mdmkit.train.plan import trained_parameters
    from mdmkit.train.state import check_names
    from mdmkit.train.state import load as load_checkpoint

    folder, recipe, registry = open_model(given, [], plugins, allow_pipe=True)  # no data is read
    stored = model_folder.weights_in(folder, group)
    # an encoder on the meta device loads no file: a frozen one is named in the recipe and not exported
    text = assemble.text_encoder(recipe, registry, device="meta")
    check_names(folder, trained_parameters(assemble.nest(recipe, registry, device="meta"), text), stored)
    facts: dict[str, Any] = {"exported_from": folder.name}
    told = load_checkpoint(folder, only=()).facts
    facts |= {key: told[key] for key in ("step", "source") if key in told}
    if levels is not None:
        recipe = inner(recipe, registry, levels)
        kept = tuple(f"levels.{r}." for r in range(levels))
        stored = {name: value for name, value in stored.items() if name.startswith((*kept, "text."))}
    return Exported(recipe, registry, stored, facts)


def inner(recipe: Recipe, registry: Registry, levels: int) -> Recipe:
    """The recipe of the inner `levels` levels alone; rows that trained levels further out end at the last."""
    from mdmkit.recipe import resolve

    most = len(recipe.model.levels)
    if levels > most:
        raise WrongInput(f"export --levels: expected 1 to {most}, got {levels}: the model has no more")
    if levels <= recipe.diffusion.given:
        raise WrongInput(
            f"export --levels: expected {recipe.diffusion.given + 1} to {most}, got {levels}: the levels "
            "inside are given to this model, which cannot draw them; export the last checkpoint of the stage "
            "that does"
        )
    if levels == most:
        return recipe
    train, diffusion = recipe.train, recipe.diffusion
    shares = getattr(train.levels.settings, "shares", None)
    if shares is not None:
        cut = (*shares[: levels - 1], sum(shares[levels - 1 :]))
        train = attrs.evolve(
            train,
            levels=attrs.evolve(train.levels, settings=attrs.evolve(train.levels.settings, shares=cut)),
        )
    if diffusion.level_weights is not None:
        diffusion = attrs.evolve(diffusion, level_weights=diffusion.level_weights[:levels])
    model = attrs.evolve(recipe.model, levels=recipe.model.levels[:levels])
    return resolve(attrs.evolve(recipe, model=model, train=train, diffusion=diffusion), registry)
