"""`mdmkit extractor`: a network that reads the words of a recipe's captions off its pictures or clips."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdmkit.errors import MdmkitError, WrongInput

from .options import AllowPipe, Plugins, RecipeSource, Sets, open_registry

if TYPE_CHECKING:
    from mdmkit.plugins import Registry
    from mdmkit.recipe import Recipe

__all__ = ["command", "make"]


def command(
    recipe: RecipeSource,
    sets: Sets,
    plugins: Plugins,
    out: Annotated[Path, typer.Option(help="the file to write, .safetensors")],
    count: Annotated[int, typer.Option(help="pictures or clips to look at, at most")] = 4096,
    steps: Annotated[int | None, typer.Option(help="of its training; of clips it takes more")] = None,
    seed: Annotated[int, typer.Option(help="of the network and of what it is shown when")] = 0,
    allow_pipe: AllowPipe = False,
) -> None:
    """Learn the extractor of the metrics fidelity and video_fidelity from a recipe's data and captions."""
    from mdmkit.recipe import load

    for name, value in (("--count", count), ("--steps", steps)):
        if value is not None and value < 1:
            raise WrongInput(f"extractor {name}: expected a number of at least 1, got {value}")
    if allow_pipe:
        os.environ["MDMKIT_ALLOW_PIPE"] = "1"
    registry = open_registry(plugins)
    parsed = load(recipe, sets, registry, allow_pipe=allow_pipe)
    if parsed.run.threads is not None:
        import torch

        torch.set_num_threads(parsed.run.threads)
    told = make(parsed, registry, out, pictures=count, steps=steps, seed=seed)
    print(out)
    print(json.dumps(told), file=sys.stderr)


def make(recipe: Recipe, registry: Registry, out: Path, **settings: Any) -> dict[str, float]:
    """Learn the network of a recipe's data, with the settings of `learn`, and write it; how well it reads.

    Raises:
        MdmkitError: the data cannot be read, has no words that tell anything apart, or the file is refused.
    """
    import torch

    from mdmkit import assemble
    from mdmkit.evaluate.words import learn, save
    from mdmkit.train.folder import one_line_disk_errors
    from mdmkit.train.memory import one_line_memory_errors

    with one_line_disk_errors(out), one_line_memory_errors("look at fewer pictures (--count)"):
        out.parent.mkdir(parents=True, exist_ok=True)  # first: what is wrong with it is known soonest
        try:
            net, told = learn(assemble.dataset(recipe, registry), **settings)
        except ValueError as error:
            raise MdmkitError(f"extractor: {error}") from error
        facts = {name: value for name, value in settings.items() if value is not None}
        facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        save(out, net, {**told, **facts})
    return told
