"""A model as a file that the released code (apple/ml-mdm) reads: what a recipe says, in its words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.errors import WrongInput

if TYPE_CHECKING:
    from mdmkit.recipe import Recipe, Use

    from .export import Exported

__all__ = ["released_settings", "write"]

LOSS = ("loss", "weighting", "time_sampler")  # what the released code has of these, it has of nothing else


def write(out: Path, source: Exported) -> list[str]:
    """Write the file, visible only when whole; the paths of settings that it has no place for.

    Raises:
        WrongInput: the released code has no words for this model.
    """
    import torch

    from mdmkit import assemble
    from mdmkit.interop.apple_keys import to_released
    from mdmkit.train.state import sync

    settings, left_out = released_settings(source.recipe)
    nest = assemble.nest(source.recipe, source.registry, device="meta")
    # the released trainer goes on from these where it resumes; the losses are those that it starts with
    around = {"batch_num": source.facts.get("step", 0)}
    around |= {"exp_avg_loss": 0.0, "exp_avg_loss_var": 0.0, "best_avg_loss": 1e12}
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".writing-{out.name}-{os.getpid()}"
    try:
        tensors = to_released(source.weights, nest)
        with aside.open("wb") as file:  # torch's own files say nothing of a full disk
            torch.save({"state_dict": tensors, **around, "args": settings}, file)
        sync(aside)
        os.rename(aside, out)
        sync(out.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return left_out


def released_settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """The settings that a released checkpoint carries, and the paths of those it has no place for.

    Raises:
        WrongInput: the released code has no words for this model; the line names the first difference.
    """
    from mdmkit import assemble
    from mdmkit.interop.apple_settings import MODELS, difference, diffusion_config, unet_config

    try:
        levels = level_tables(recipe)
        text_model = released_text(recipe.text)
        if found := difference(levels, assemble.cond_dim(recipe)):
            raise ValueError(found)
        said = recipe.diffusion
        if said.given:
            raise ValueError(f"diffusion.given: {said.given}; a released nest draws all its levels")
        process = {f.name: getattr(said, f.name) for f in attrs.fields(type(said)) if f.name not in LOSS}
        process["schedule"] = (said.schedule.name, attrs.asdict(said.schedule.settings))
        del process["given"], process["given_noise"]
        # the levels of a released network have their frames in a grid
        del process["shift_power_frames"], process["frame_pooling"]
        limits = recipe.sample.threshold
        if isinstance(limits, tuple) and len(set(limits)) == 1:
            limits = limits[0]
        config, left_out = diffusion_config(
            levels=len(levels),
            output_limit=levels[0].get("output_limit"),
            # the released sampler has one for all levels
            threshold=("several", {})
            if isinstance(limits, tuple)
            else (limits.name, attrs.asdict(limits.settings)),
            shares=getattr(recipe.train.levels.settings, "shares", None),
            **process,
        )
    except ValueError as error:
        raise WrongInput(f"the released code cannot hold this model: {error}") from error
    uniform = said.weighting.name == "uniform" and said.weighting.settings.space in (None, said.loss_space)
    same = {"weighting": uniform, "loss": said.loss.name == "mse"}
    same |= {"time_sampler": said.time_sampler.name == "uniform"}
    left_out += [f"diffusion.{name}" for name, holds in same.items() if not holds]
    model = MODELS[len(levels) - 1]
    settings = {"model": model, "vision_model": model, "text_model": text_model}
    settings |= {"unet_config": unet_config(levels), "diffusion_config": config}
    return settings | around_model(recipe, levels[-1]["resolution"][0]), left_out


def around_model(recipe: Recipe, side: int) -> dict[str, Any]:
    """The arguments of the released programs that recipes have too: data, text and training."""
    text, train = recipe.text, recipe.train
    if text is not None and text.name == "cached":
        text = text.settings.encoder
    tokens = -1 if text is None else text.settings.max_tokens
    padded = text is not None and getattr(text.settings, "pad", "") == "max"
    said = {
        "seed": recipe.run.seed,
        "fp16": int(recipe.run.precision == "bf16"),  # the type that it casts to is bfloat16
        "use_precomputed_text_embeddings": int(recipe.text is not None and recipe.text.name == "cached"),
        "sample_image_size": side,
        "reader_config": {
            "image_size": side,
            "max_token_length": tokens,
            "pad_to_max_length": padded,
            "append_eos": True,
            "prepad_bos": False,
            "prepad_caption_with_space": True,
            "padding_token": "<pad>",
        },
        "num_training_steps": train.steps,
        "batch_size": None if train.batch is None else train.batch // train.accumulate,
        "num_gradient_accumulations": train.accumulate,
        "gradient_clip_norm": train.clip,
        "loss_factor": 1,
        "save_freq": train.checkpoint_every,
        "log_freq": train.log_every,
    }
    if train.optimizer.name == "adamw":
        said |= {"use_adamw": True, "lr": train.optimizer.settings.lr}
    if train.lr_schedule.name == "warmup":
        said["warmup_steps"] = train.lr_schedule.settings.steps
    return {key: value for key, value in said.items() if value is not None}


def level_tables(recipe: Recipe) -> list[dict[str, Any]]:
    """The settings of core and shells as one table each, as the released networks' settings are compared."""
    from mdmkit import assemble

    tables: list[dict[str, Any]] = []
    for r, (level, size) in enumerate(zip(recipe.model.levels, assemble.resolutions(recipe), strict=True)):
        if level.network.name != "unet":
            raise ValueError(f"model.levels[{r}]: '{level.network.name}'; the released networks are 'unet'")
        given = level.network.settings
        table = {field.name: getattr(given, field.name) for field in attrs.fields(type(given))}
        stages = len(table["channels"])
        table["blocks"] = per_stage(table["blocks"], stages)
        if table["attention"] is None:
            table["attention"] = (*(0,) * (stages - 1), 1)
        table["attention"] = per_stage(table["attention"], stages)
        table["block"] = given.block.name
        table["dropout"] = getattr(given.block.settings, "dropout", 0.0)
        if any(layers := per_stage(table.get("temporal_attention", 0), stages)):
            table["temporal_attention"] = layers
        else:
            table.pop("temporal_attention", None)
        if r:  # every level of ours has the embedding of the core, a released one that of its own channels
            table["emb_dim"] = tables[0]["emb_dim"] or 4 * tables[0]["channels"][0]
        tables.append(table | {"resolution": size})
    return tables


def per_stage(value: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    return (value,) * stages if isinstance(value, int) else value


def released_text(text: Use | None) -> str | None:
    """The name of the text encoder; ValueError for one that the released code does not have."""
    if text is not None and text.name == "cached" and text.settings.encoder is not None:
        text = text.settings.encoder
    if text is None:
        return None
    if text.name != "t5":
        raise ValueError(f"text: '{text.name}'; the released networks read the features of a 't5'")
    if text.settings.layer != "last":
        raise ValueError(f"text.layer: '{text.settings.layer}'; the released code takes the 'last'")
    return text.settings.model
