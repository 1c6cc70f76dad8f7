"""A model as a folder that diffusers' users expect, one subfolder a component of the pipeline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    from mdmkit.recipe import Recipe, Use

    from .export import Exported

__all__ = ["write"]

# of the loss; everything else of [diffusion] is the process
TRAINING = ("loss_space", "loss", "weighting", "time_sampler", "level_weights")
# the number of pictures, their prompts and seeds are those of a call
ELSEWHERE = ("prompts", "count", "seed")
PRETRAINED = "pretrained"  # where a local encoder's folder goes, beside text_encoder/config.json
# diffusers looks here for the class of a pipeline that is not its own
LOADER = '''"""DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)"""

from mdmkit.diffusers_pipeline import MatryoshkaPipeline

__all__ = ["MatryoshkaPipeline"]
'''


def write(out: Path, source: Exported) -> None:
    """Write the folder, visible only when whole.

    Raises:
        WrongInput: the model cannot read prompts.
    """
    import torch

    from mdmkit import assemble
    from mdmkit.diffusers_pipeline import (
        MatryoshkaPipeline,
        NestedUNetModel,
        PyramidSchedule,
        TextEncoderModel,
    )
    from mdmkit.recipe.emit import table
    from mdmkit.train.state import sync

    recipe = source.recipe
    if recipe.diffusion.given:
        raise WrongInput(
            f"a pipeline draws all its levels, and this model is given {recipe.diffusion.given} of them "
            "(diffusion.given); export it as safetensors"
        )
    if assemble.draws_clips(recipe):
        raise WrongInput("a pipeline draws pictures, and this model draws clips; export it as safetensors")
    text = prompted(recipe)
    process = {key: value for key, value in table(recipe.diffusion).items() if key not in TRAINING}
    drawn = {key: value for key, value in table(recipe.sample).items() if key not in ELSEWHERE}
    encoder = None
    with torch.device("meta"):  # nothing is made that the stored weights would replace; no encoder is loaded
        unet = NestedUNetModel(
            model=table(recipe.model),
            cond_dim=assemble.cond_dim(recipe),
            precision=recipe.run.precision,
            lift=assemble.lift(recipe),
        )
        if text is not None:
            encoder = TextEncoderModel(settings=text)
    unet.load_state_dict(part(source, "levels."), assign=True)
    if encoder is not None and encoder.trainable:
        encoder.load_state_dict(part(source, "text."), assign=True)
    scheduler = PyramidSchedule(diffusion=process, sample=drawn)
    pipeline = MatryoshkaPipeline(unet, scheduler, encoder)

    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".writing-{out.name}-{os.getpid()}"
    try:
        pipeline.save_pretrained(aside)
        (aside / "pipeline.py").write_text(LOADER, encoding="utf-8")
        if encoder is not None and not encoder.trainable:
            bring(aside / "text_encoder", text or {})
        for path in aside.rglob("*"):
            sync(path)
        if out.exists():
            out.rmdir()  # an empty one
        os.rename(aside, out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def part(source: Exported, prefix: str) -> dict[str, Any]:
    return {name: value for name, value in source.weights.items() if name.startswith(prefix)}


def prompted(recipe: Recipe) -> dict[str, Any] | None:
    """The table of the encoder that reads prompts, whole in itself; None where the model reads no text."""
    from mdmkit.recipe.emit import use_table

    use = recipe.text
    if use is None:
        return None
    if use.name == "cached":
        if use.settings.encoder is None:
            raise WrongInput(
                "a pipeline reads prompts, but this model's recipe names no encoder for them: "
                "its text features came with the data; set text.encoder in its recipe.resolved.toml"
            )
        use = use.settings.encoder
    return use_table(without_files(use))


def without_files(use: Use) -> Use:
    """The same encoder without what would stay behind: names of classes for their file, and no cache."""
    if getattr(use.settings, "cache", None) is not None:
        return attrs.evolve(use, settings=attrs.evolve(use.settings, cache=None))
    if use.name != "classes" or use.settings.file is None:
        return use
    from mdmkit.text import ClassEncoder

    names = ClassEncoder(file=use.settings.file, device="meta").names
    return attrs.evolve(use, settings=attrs.evolve(use.settings, names=names, file=None))


def bring(folder: Path, text: dict[str, Any]) -> None:
    """Copy a pretrained encoder's folder where it is a local one; one of the hub is only named."""
    local = Path(str(text.get("model", ""))).expanduser()
    if not text.get("model") or not local.is_dir():
        return
    shutil.copytree(local, folder / PRETRAINED)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["settings"]["model"] = PRETRAINED
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
