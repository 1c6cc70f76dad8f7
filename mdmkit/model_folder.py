"""A model as a folder: `model.safetensors` and the resolved recipe that it is built by.

A checkpoint of a run is one too, with averaged weights in `ema.safetensors` and the optimiser beside them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mdmkit.plugins import Registry
    from mdmkit.recipe.schema import Recipe

__all__ = ["GROUPS", "find", "load", "picked", "weights_in", "write"]

GROUPS = ("ema", "model")  # averaged, as trained


def find(given: Path) -> Path:
    """The folder with weights and a resolved recipe that a user means: itself, or a run's newest checkpoint.

    Raises:
        WrongInput: there is none.
    """
    from mdmkit.train.folder import RESOLVED
    from mdmkit.train.state import latest

    if (given / "checkpoints").is_dir():
        found = latest(given / "checkpoints")
        if found is None:
            raise WrongInput(
                f"{given} has no whole checkpoint yet; let it train longer: mdmkit run --resume {given}"
            )
        return found
    if not (given / RESOLVED).is_file():
        raise WrongInput(f"{given} is neither a run folder nor a model folder ({RESOLVED} is missing)")
    return given


def weights_in(folder: Path, weights: str | None = None) -> dict[str, Tensor]:
    """The stored parameters by name, mapped into memory: nothing is read before it is used.

    `weights`: "ema" (averaged) or "model" (as trained); where not given, averaged where the folder has them.

    Raises:
        WrongInput: the folder does not have those.
        MdmkitError: it is not whole.
    """
    from mdmkit.train.state import load as load_checkpoint

    name = picked(folder, weights)
    return load_checkpoint(folder, only=(name,)).tensors[name]


def picked(folder: Path, weights: str | None = None) -> str:
    """Which weights of a folder are meant; "ema" or "model", as for `weights_in`.

    Raises:
        WrongInput: the folder does not have those.
    """
    there = [name for name in GROUPS if (folder / f"{name}.safetensors").is_file()]
    name = weights or (there or ["model"])[0]
    if name not in there:
        has = f"; it has {', '.join(f'{name}.safetensors' for name in there)}" if there else ""
        raise WrongInput(f"{folder} has no {name}.safetensors{has}")
    return name


def load(
    folder: Path,
    recipe: Recipe,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    weights: str | None = None,
    encoder: bool = True,
) -> tuple[nn.Module, nn.Module | None]:
    """The nest and the text encoder of a model folder, every tensor accounted for.

    `weights` as for `weights_in`. On a CPU the parameters are the mapped file itself, without a copy. Without
    `encoder` no text encoder is made or loaded, and None stands in its place.

    Raises:
        WrongInput: the folder does not have those weights, or other parameters than the recipe says.
        MdmkitError: it is not whole.
    """
    from mdmkit import assemble
    from mdmkit.train.plan import trained_parameters
    from mdmkit.train.state import check_names, copy_into

    stored = weights_in(folder, weights)
    nest = assemble.nest(recipe, registry, device="meta")
    text = assemble.text_encoder(recipe, registry, device=device if encoder else "meta")
    check_names(folder, trained_parameters(nest, text), stored)
    if any(True for _ in nest.buffers()):  # these are made by constructors, on a real device only
        nest = assemble.nest(recipe, registry, device=device)
        copy_into(dict(nest.named_parameters()), stored)
    else:
        mine = {name: stored[name] for name, _ in nest.named_parameters()}
        nest.load_state_dict(mine, assign=True)
        nest.to(device)
    if not encoder:
        return nest, None
    learns = {name: p for name, p in trained_parameters(nest, text).items() if name.startswith("text.")}
    copy_into(learns, stored)
    return nest, text


def write(folder: Path, recipe: Recipe, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a model folder, visible only when whole; `facts` say where the weights are from (JSON).

    Raises:
        WrongInput: the folder is there already and not empty.
    """
    from mdmkit.recipe import dumps
    from mdmkit.train.folder import RESOLVED, refuse_full
    from mdmkit.train.state import write_whole

    refuse_full(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".writing-{folder.name}-{os.getpid()}"
    write_whole(folder, aside, {"model": weights}, facts, {RESOLVED: dumps(recipe)})
