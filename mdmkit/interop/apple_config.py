"""A released configuration (apple/ml-mdm) as a recipe, with account given of every key.

A key is carried over, or the released code never read it, or it is about their files, reader and machines, or
it matters in training only and has no counterpart here. A key that is none of these is an error, and so is a
value by which the network would compute something else than it does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mdmkit.errors import WrongInput

from .apple_account import Account, Keys
from .apple_unet import default_side, level_tables, unet_tables, unknown_in
from .apple_values import flag, integer, ratios, real, text, word

__all__ = ["LEFT_OPEN", "Translation", "translate"]

Table = dict[str, Any]

TOP = {
    *("name", "model", "vision_model", "unet_config", "diffusion_config", "reader_config", "text_model"),
    *("num_training_steps", "batch_size", "num_gradient_accumulations", "gradient_clip_norm", "loss_factor"),
    *("warmup_steps", "log_freq", "save_freq", "lr", "fp16", "use_adamw", "seed", "sample_image_size"),
    *("use_precomputed_text_embeddings", "categorical_conditioning"),
    *("lm_embed_dim", "input_channels", "output_channels"),
}
# arguments of the released programs about files, readers, machines and measuring
MACHINERY = {
    *("dataset_config", "file_list", "test_file_list", "reader_config_file", "model_config_file"),
    *("config_path", "output_dir", "sample_dir", "model_file", "pretrained_vision_file", "vocab_file"),
    *("device", "multinode", "local_rank", "loglevel", "port", "num_epochs", "resume_from_ema"),
    *("min_examples", "eval_freq", "num_eval_batches"),
}
# what stands in released files, or is an argument there, and no line of the released code looks at
UNREAD = {
    *("prediction_length", "avg_lm_steps", "use_lm_mask", "metrics", "random_low_noise", "predict_variances"),
    *("lr_scaling_factor", "skip_normalization", "reproject_signal"),
}
SAMPLER = {
    *("num_diffusion_steps", "schedule_type", "prediction_type", "loss_target_type", "threshold_function"),
    *("beta_start", "beta_end", "rescale_schedule", "rescale_signal"),
    *("schedule_shifted", "schedule_shifted_power"),
}
SAMPLER_UNREAD = {"reproject_signal", "predict_variances"}
TRAINING_ONLY = {"use_random_interp", "random_downsample", "average_downsample", "mid_downsample"}
DIFFUSION = {
    *("model_output_scale", "use_vdm_loss_weights", "use_double_loss", "multi_res_weights"),
    *("no_use_residual", "mixed_ratio", *TRAINING_ONLY),
}
READER = {
    *("image_size", "max_token_length", "append_eos", "prepad_bos", "padding_token"),
    *("prepad_caption_with_space", "use_tokenizer_scores", "pad_to_max_length"),
}
READER_MACHINERY = {
    *("num_readers", "num_kept_files", "endpoint_url", "bucket", "reader_buffer_size"),
    "max_caption_length",
}
READER_UNREAD = {"smaller_side_size", "random_crop", "shuffle_buffer_size"}

MODELS = {"UNET": 1, "NESTED_UNET": 2, "NESTED2_UNET": 3, "NESTED3_UNET": 4, "NESTED4_UNET": 5}
SCHEDULES = {"DEEPFLOYD": "cosine", "DDPM": "ddpm", "COSINE": "cosine_logsnr"}
SPACES = {"V_PREDICTION": "v", "DDPM": "eps", "DDIM": "eps"}
THRESHOLDS = {"NONE": "none", "CLIP": "clip", "DYNAMIC": "dynamic", "DYNAMIC_IF": "dynamic_if"}

# moments, averaging and caption dropout of the same group's later paper (arXiv 2405.21048), the sampler of
# their demonstration, as in the shipped recipes
LEFT_OPEN = (
    "not in a released config, and as in the shipped cc12m recipes: data.urls, betas, ema, caption_dropout, "
    "the sampling rule and guidance"
)
SHARDS = "data/cc12m/{000000..001241}.tar"


@attrs.frozen
class Translation:
    """The table of a recipe, and the account of the keys that it was made from."""

    recipe: Table
    account: Account


def translate(config: Mapping[str, Any], *, text_width: int | None, source: str = "config") -> Translation:
    """The recipe that a released config describes, for text features of a width (None: no text).

    The width is in no config: the released code takes it from the encoder, an importer from the weights.

    Raises:
        WrongInput: a key is unknown, or a value is impossible or has no counterpart here.
    """
    account = Account(source)
    top = Keys(config, "", account)
    diffusion, data = top.inside("diffusion_config"), top.inside("reader_config")
    sampler = diffusion.inside("sampler_config")
    top.lift(SAMPLER, sampler)
    diffusion.lift(SAMPLER, sampler)
    top.lift(DIFFUSION, diffusion)
    unets = list(unet_tables(top.inside("unet_config")))
    unknown = [
        *top.unknown(TOP, MACHINERY, UNREAD),
        *diffusion.unknown(DIFFUSION, {"sampler_config"}),
        *sampler.unknown(SAMPLER, SAMPLER_UNREAD),
        *data.unknown(READER, READER_MACHINERY, READER_UNREAD),
        *unknown_in(unets),
    ]
    if unknown:
        raise WrongInput("\n".join(unknown))
    if not unets[-1][0].values:
        raise top.wrong("unet_config", "missing; expected the table of the network")
    for keys, unread, machinery in (
        (top, UNREAD, MACHINERY),
        (sampler, SAMPLER_UNREAD, ()),
        (data, READER_UNREAD, READER_MACHINERY),
    ):
        keys.unread(unread)
        keys.machinery(machinery)
    top.unread({"lm_embed_dim"}, "the weights say it")
    for key, convert, default in (
        ("categorical_conditioning", flag, False),
        ("input_channels", integer, 3),
        ("output_channels", integer, 3),
    ):
        top.must(key, default, convert, default)
    for key in ("model", "vision_model"):
        name = top.take(key, None, word(MODELS), "model.levels")
        if name is not None and MODELS[name] != len(unets):
            raise top.wrong(key, f"{name.lower()} has {MODELS[name]} levels, unet_config has {len(unets)}")
    recipe = {
        "format": 1,
        "summary": top.take("name", "", text, "summary"),
        "run": run_table(top),
        "data": {"use": "webdataset", "urls": SHARDS},
        "diffusion": diffusion_table(top, diffusion, sampler, len(unets)),
        "model": {"levels": level_tables(unets, top_side(top, data, unets[-1][0]), text_width)},
        "train": train_table(top, diffusion, len(unets)),
        "sample": sample_table(sampler, text_width),
    }
    if len(unets) == 1:
        limit = diffusion.take("model_output_scale", 0.0, real, "model.levels[0].output_limit")
        if limit < 0:
            raise diffusion.wrong("model_output_scale", f"expected 0 (none) or above, got {limit}")
        if limit:
            recipe["model"]["levels"][0]["output_limit"] = limit
    add_text(recipe, top, data, text_width)
    return Translation(recipe, account)


def run_table(top: Keys) -> Table:
    seed = top.take("seed", -1, integer, "run.seed")  # -1: by the clock
    half = top.take("fp16", False, flag, "run.precision")  # the type that it casts to is bfloat16
    return {"seed": max(seed, 0), "precision": "bf16" if half else "fp32"}


def top_side(top: Keys, data: Keys, unet: Keys) -> int:
    """The side of the highest resolution: of pictures read, of pictures drawn, or of the default `scale`."""
    read = data.take("image_size", -1, integer, "model.levels")
    drawn = top.take("sample_image_size", -1, integer, "model.levels")
    if read > 0 and drawn > 0 and read != drawn:
        raise data.wrong("image_size", f"{read}, but sample_image_size is {drawn}")
    side = max(read, drawn) if max(read, drawn) > 0 else default_side(unet)
    if side is None:
        raise data.wrong("image_size", "missing; nothing in the config says the side of the pictures")
    return side


def add_text(recipe: Table, top: Keys, data: Keys, width: int | None) -> None:
    """Give the recipe its text encoder, as far as the network reads text."""
    name = top.take("text_model", "google/flan-t5-xl", text, "text.model")
    tokens = data.take("max_token_length", -1, integer, "text.max_tokens")
    whole = data.take("pad_to_max_length", False, flag, "text.pad")
    packed = top.take("use_precomputed_text_embeddings", False, flag, "text, data.features")
    # tokens as the encoder's own tokenizer makes them
    for key, wanted in (
        *(("append_eos", True), ("prepad_bos", False)),
        *(("prepad_caption_with_space", True), ("use_tokenizer_scores", True)),
    ):
        data.must(key, wanted, flag, wanted)
    data.must("padding_token", "<pad>", text, "<pad>")
    if width is None:
        return
    encoder: Table = {"use": "t5", "model": name, "width": width, "precision": recipe["run"]["precision"]}
    # the released networks look at padding, and have to see as much of it as there
    encoder["pad"] = "max" if whole else "exact"
    if tokens > 0:
        encoder["max_tokens"] = tokens
    recipe["text"] = encoder
    if packed:
        held = {"max_tokens": tokens} if tokens > 0 else {}
        recipe["text"] = {"use": "cached", "width": width, "encoder": encoder, **held}
        recipe["data"]["features"] = True


def diffusion_table(top: Keys, diffusion: Keys, sampler: Keys, levels: int) -> Table:
    sampler.must("num_diffusion_steps", 32, integer, 1000)
    sampler.must("rescale_schedule", 1.0, real, 1.0)
    kind = sampler.take("schedule_type", "DDPM", word(SCHEDULES), "diffusion.schedule")
    schedule: Table = {"use": SCHEDULES[kind]}
    if kind == "DDPM":
        for key, default in (("beta_start", 1e-4), ("beta_end", 0.02)):
            schedule[key] = sampler.take(key, default, real, f"diffusion.schedule.{key}")
    else:
        sampler.unread({"beta_start", "beta_end"}, f"for {kind}")
    prediction = sampler.take("prediction_type", "DDPM", word(SPACES), "diffusion.prediction")
    target = sampler.take("loss_target_type", prediction, word(SPACES), "diffusion.loss_space")
    shifted = sampler.take("schedule_shifted", False, flag, "diffusion.shift_power")
    power = sampler.take("schedule_shifted_power", 1.0, real, "diffusion.shift_power")
    scaling: Table = {}
    if levels > 1:
        # without the shift a nest divides pictures by their ratio to the innermost side instead
        if not shifted:
            scaling = {"signal_scale_power": 1.0}
        diffusion.must("no_use_residual", False, flag, True)
        sampler.unread({"rescale_signal"}, "in a nest")
        diffusion.unread({"model_output_scale"}, "in a nest")
    else:
        divisor = sampler.take("rescale_signal", None, real, "diffusion.signal_scale")
        if divisor is not None and not divisor > 0:
            raise sampler.wrong("rescale_signal", f"expected a number above 0, got {divisor}")
        if divisor not in (None, 1.0):
            scaling = {"signal_scale": 1 / divisor}
        nested_only = {"no_use_residual", "use_double_loss", "multi_res_weights", "mixed_ratio"}
        diffusion.unread(nested_only, "without a nest")
    off = {"use_vdm_loss_weights": True} | dict.fromkeys(sorted(TRAINING_ONLY), False)
    for key, default in off.items():
        if diffusion.take(key, default, flag, "off, as it is here"):
            diffusion.account.carried.pop(diffusion.path + key, None)
            diffusion.account.training_only.append(diffusion.path + key)
    table: Table = {
        "schedule": schedule,
        "shift_power": power if shifted else 0.0,
        "prediction": SPACES[prediction],
        "loss_space": SPACES[target],
        **scaling,
    }
    weights = level_weights(top, diffusion, levels)
    return table if set(weights) == {1.0} else table | {"level_weights": weights}


def level_weights(top: Keys, diffusion: Keys, levels: int) -> list[float]:
    """The loss weight of each level, low to high."""
    weights = [1.0] * levels
    if levels > 1:
        place = "diffusion.level_weights"
        every = diffusion.take("use_double_loss", False, flag, place)
        said = diffusion.take("multi_res_weights", None, ratios(levels), place)
        if said and not every:
            raise diffusion.wrong("multi_res_weights", "needs use_double_loss = true")
        weights = said[::-1] if said else [float(every)] * (levels - 1) + [1.0]
    if not top.take("fp16", False, flag):
        top.unread({"loss_factor"}, "without fp16")
        return weights
    factor = top.take("loss_factor", 1.0, real, "diffusion.level_weights")
    return [factor * weight for weight in weights]


def train_table(top: Keys, diffusion: Keys, levels: int) -> Table:
    top.take("use_adamw", False, flag, "train.optimizer")  # its decay is 0, with which Adam is the same
    parts = top.take("num_gradient_accumulations", 1, integer, "train.accumulate")
    rows = top.take("batch_size", max(2, levels), integer, "train.batch, which counts all processes together")
    lr = top.take("lr", 1e-3, real, "train.optimizer.lr")
    warmup = top.take("warmup_steps", 5000, integer, "train.lr_schedule.steps")
    table: Table = {
        "optimizer": {"use": "adamw", "lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.0},
        "lr_schedule": {"use": "warmup", "steps": warmup},
        "steps": top.take("num_training_steps", 850_000, integer, "train.steps"),
        "batch": rows * parts,
        "accumulate": parts,
        "clip": top.take("gradient_clip_norm", 2.0, real, "train.clip"),
        "ema": 0.9999,
        "caption_dropout": 0.1,
        "checkpoint_every": top.take("save_freq", 1000, integer, "train.checkpoint_every"),
        "log_every": top.take("log_freq", 100, integer, "train.log_every"),
    }
    if levels > 1 and (mixed := diffusion.take("mixed_ratio", None, ratios(levels), "train.levels")):
        # '2:1': of three rows the first two go through all levels, the third stops at the innermost
        table["levels"] = {"use": "mixed", "shares": [part / sum(mixed) for part in reversed(mixed)]}
    return table


def sample_table(sampler: Keys, width: int | None) -> Table:
    threshold = THRESHOLDS[sampler.take("threshold_function", "CLIP", word(THRESHOLDS), "sample.threshold")]
    table: Table = {"rule": "ddim", "steps": 250, "batch": 4, "threshold": threshold}
    return table if width is None else table | {"guidance": [{"use": "cfg", "scale": 7.5}]}
