"""`mdmkit import`: a released checkpoint as a model folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdmkit.errors import MdmkitError, WrongInput

from .options import Sets, open_registry

if TYPE_CHECKING:
    from torch import Tensor

    from mdmkit.interop.apple_config import Translation
    from mdmkit.nn import NestedUNet

__all__ = ["command"]


def command(
    sets: Sets,
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="apple: a .pth of apple/ml-mdm")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the checkpoint, such as vis_model_64x64.pth")],
    out: Annotated[Path, typer.Option(help="an empty or new folder for the model")],
    config: Annotated[
        Path | None,
        typer.Option(help="the released YAML; the settings inside the checkpoint where not given"),
    ] = None,
) -> None:
    """Read a released checkpoint into a folder of safetensors and a resolved recipe; nothing in it is run."""
    if format != "apple":
        raise WrongInput(f"import: expected the format apple, got '{format}'")
    from safetensors import SafetensorError

    from mdmkit import assemble, model_folder
    from mdmkit.interop.apple_config import LEFT_OPEN, translate
    from mdmkit.interop.apple_file import read
    from mdmkit.interop.apple_unet import text_width
    from mdmkit.interop.apple_yaml import read_yaml
    from mdmkit.recipe.emit import write
    from mdmkit.recipe.load import loads
    from mdmkit.train.folder import refuse_full

    refuse_full(out)
    settings, twice = read_yaml(config) if config else (None, [])
    found = read(file)
    if settings is None:
        settings = found.settings
    if settings is None:
        raise WrongInput(f"{file}: has no settings inside (args); name the released YAML with --config")
    source = str(config or f"{file} (args)")
    told = translate(settings, text_width=text_width(found.tensors), source=source)
    registry = open_registry()
    recipe = loads(write(told.recipe), sets, registry, name=f"{source} as a recipe")
    try:
        nest = assemble.nest(recipe, registry, device="meta")
        weights = single(ours(found.tensors, nest))
    except ValueError as error:
        raise WrongInput(f"{file} does not fit {config or 'its own settings'}: {error}") from error
    numbers = {key: value for key, value in found.numbers.items() if math.isfinite(value)}
    facts = {"imported": {"format": format, "file": file.name, "config": config.name if config else None}}
    try:
        model_folder.write(out, recipe, weights, {**facts, "released": numbers})
    except (OSError, SafetensorError) as error:
        raise MdmkitError(f"{out} cannot be written: {error}") from error
    for line in (*twice, *told.account.lines(), LEFT_OPEN):
        print(f"{config or file}: {line}", file=sys.stderr)
    print(report(out, told, nest, text=recipe.text is not None))


def ours(tensors: Mapping[str, Tensor], nest: NestedUNet) -> dict[str, Tensor]:
    """Released tensors under our names, in single precision: what is so already is not copied.

    Half precision widens without loss, and a nest's own parameters are single everywhere (autocast lowers
    what it computes, not what it keeps).
    """
    from mdmkit.interop.apple_keys import from_released

    odd = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if odd:
        raise ValueError(f"expected floating point numbers, got {tensors[odd[0]].dtype} for {odd[0]}")
    return {name: tensor.float() for name, tensor in from_released(tensors, nest).items()}


def single(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, each tensor in memory of its own: two names may be views of one record."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in weights.items():
        where = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    return alone


def report(out: Path, told: Translation, nest: NestedUNet, *, text: bool) -> str:
    """What was carried over, the parameters of each level, and what to do next."""
    places: dict[str, list[str]] = {}
    for key, place in told.account.carried.items():
        places.setdefault(place, []).append(key)
    lines = [str(out), "carried over:"]
    for place, keys in places.items():
        inside = [key for key in keys if key.startswith("unet_config.")]
        shown = [key for key in keys if key not in inside]
        if inside:
            shown.append(f"{len(inside)} keys of unet_config")
        lines.append(f"  {place}: {', '.join(shown)}")
    lines.append("parameters:")
    counts = [sum(p.numel() for p in level.parameters()) for level in nest.levels]
    for r, (count, level) in enumerate(zip(counts, told.recipe["model"]["levels"], strict=True)):
        lines.append(f"  level {r}, {level['resolution']} pixels: {count:,}")
    lines.append(f"  all: {sum(counts):,}")
    prompt = ' --prompt "a red apple on a wooden table"' if text else ""
    return "\n".join([*lines, f"next: mdmkit sample {out}{prompt}"])
