"""Our settings in the words of the released configuration (apple/ml-mdm): the inverse of reading one.

What the released networks and sampler have no words for, or would fail on, is named by `difference` and
`diffusion_config`; nothing of a model is left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

from .apple_keys import grid_side

__all__ = ["MODELS", "difference", "diffusion_config", "unet_config"]

Settings = Mapping[str, Any]

MODELS = ("unet", "nested_unet", "nested2_unet", "nested3_unet", "nested4_unet")  # by number of levels
# written into the released networks, out of reach of their configuration
CHANNELS, HEADS, NORM_GROUPS, STEPS = 3, 8, 32, 1000
PREDICTIONS = {"eps": "DDPM", "v": "V_PREDICTION"}
SCHEDULES: dict[str, tuple[str, Settings]] = {
    "cosine": ("DEEPFLOYD", {"form": "table", "steps": STEPS}),
    "cosine_logsnr": ("COSINE", {"logsnr_max": 5.0, "logsnr_min": -5.0, "form": "table", "steps": STEPS}),
    "ddpm": ("DDPM", {"steps": STEPS}),
}
THRESHOLDS: dict[str, tuple[str, Settings]] = {
    "none": ("NONE", {}),
    "clip": ("CLIP", {"limit": 1.0}),
    "dynamic": ("DYNAMIC", {"quantile": 0.995, "maximum": 100.0, "limit": 1.0}),
    "dynamic_if": ("DYNAMIC_IF", {"quantile": 0.95, "maximum": 1.5, "limit": 1.0}),
}


def unet_config(levels: Sequence[Settings]) -> dict[str, Any]:
    """The released `unet_config` tree of core and shells, low resolution to high.

    Each has the keys that `level_settings` gives; `unet_config` is its inverse: further keys (heads, strides,
    ...) are looked at by `difference` only.
    """
    tree: dict[str, Any] | None = None
    for settings in levels:
        tree = one_level(settings, tree)
    if tree is None:
        raise ValueError("expected at least one level, got none")
    return tree | {"nesting": False}


def one_level(settings: Settings, inner: dict[str, Any] | None) -> dict[str, Any]:
    layers = list(settings["attention"])
    core = inner is None
    config = {
        "num_resnets_per_resolution": list(settings["blocks"]),
        "temporal_dim": settings["emb_dim"],
        "attention_levels": [i for i, count in enumerate(layers) if count],
        "num_attention_layers": layers,
        # the released programs put the width of their text encoder here when they start
        "conditioning_feature_dim": -1,
        "conditioning_feature_proj_dim": (settings["cond_width"] or -1) if core else -1,
        "num_lm_head_layers": settings["text_layers"] if core else 0,
        "masked_cross_attention": int(settings["masked_cross_attention"]),
        "resolution_channels": list(settings["channels"]),
        "skip_mid_blocks": not settings["middle"] if core else True,
        "skip_cond_emb": not settings["pooled_text"] if core else True,
        "nesting": True,
        "micro_conditioning": micro_text(settings["micro_conditioning"]),
        **in_time(settings),
        "resnet_config": {
            "num_channels": -1,
            "output_channels": -1,
            "num_groups_norm": settings["norm_groups"],
            "dropout": settings["dropout"],
            "use_attention_ffn": settings["ffn"],
        },
    }
    if core:
        return config
    return config | {
        "inner_config": inner,
        "skip_inner_unet_input": not settings["inner_input"],
        "skip_normalization": not settings["normalize_input"],
        "initialize_inner_with_pretrained": None,
        "freeze_inner_unet": False,
        "interp_conditioning": False,
    }


def in_time(settings: Settings) -> dict[str, Any]:
    """What a level says of frames: whether its picture is a grid of them, halved in time or in space."""
    layers, grid = settings.get("temporal_attention"), settings.get("layout") == "grid"
    return {
        "num_temporal_attention_layers": list(layers) if layers else None,
        "temporal_mode": grid,
        "temporal_spatial_ds": grid and settings.get("strides") is None,
        "temporal_positional_encoding": settings.get("rotary", False),
    }


def micro_text(defaults: Mapping[str, float] | None) -> str | None:
    """Names and defaults as "scale:64,watermark_score:0"."""
    if not defaults:
        return None
    return ",".join(f"{key}:{number(value)}" for key, value in defaults.items())


def difference(levels: Sequence[Settings], cond_dim: int | None) -> str | None:
    """The first thing that a nest has and the released networks cannot, in words of the recipe; or None.

    `levels`: all settings of core and shells, low resolution to high; `resolution` is (height, width),
    `block` the name of the residual block. `cond_dim`: width of the text features, None: no text.
    """
    return next(differences(levels, cond_dim), None)


def differences(levels: Sequence[Settings], cond_dim: int | None) -> Iterator[str]:
    if len(levels) > len(MODELS):
        yield f"model.levels: {len(levels)} levels; the released networks have at most {len(MODELS)}"
    if cond_dim is None and len(levels) > 1:
        yield "text: there is none; a released network of several levels always reads text"
    core, side = levels[0], 1
    for r, settings in enumerate(levels):
        where = f"model.levels[{r}]"
        attends = any(settings["attention"]) or settings.get("middle", False)
        height, width = settings["resolution"]
        if height != width:
            yield f"{where}.resolution: [{height}, {width}]; the released sampler draws squares"
        if settings["block"] != "resnet":
            yield f"{where}.block: '{settings['block']}'; the released networks have 'resnet'"
        if settings.get("self_conditioning"):
            yield f"{where}.self_conditioning: true; the released networks have none"
        extra = settings.get("extra_blocks", 0)
        if extra if isinstance(extra, int) else any(extra):
            extra = extra if isinstance(extra, int) else list(extra)
            yield f"{where}.extra_blocks: {extra}; the released networks have none"
        if settings["in_channels"] != CHANNELS:
            yield f"{where}.in_channels: {settings['in_channels']}; the released networks have {CHANNELS}"
        if (strides := settings["strides"]) is not None:
            grid = settings.get("layout") == "grid"
            if any(stride != (2, 1, 1) if grid else stride not in (2, (2, 2)) for stride in strides):
                plain = [list(stride) if isinstance(stride, tuple) else stride for stride in strides]
                halve = "halve frames" if grid else "halve both sides"
                yield f"{where}.strides: {plain}; the released networks {halve} at each stage"
        if settings["heads"] != HEADS and (attends or settings.get("text_layers")):
            yield f"{where}.heads: {settings['heads']}; the released networks have {HEADS}"
        if settings["norm_groups"] != NORM_GROUPS and attends:
            yield (
                f"{where}.norm_groups: {settings['norm_groups']}; "
                f"the attention of the released networks has {NORM_GROUPS}"
            )
        if (settings["micro_conditioning"] or {}).get("scale", 1) <= 0:
            yield f"{where}.micro_conditioning.scale: the released networks divide by it; it must be above 0"
        if r == 0:
            if (frames := settings.get("frames", 1)) != 1:
                yield f"{where}.frames: {frames}; the core of a released network sees one picture"
            if cond_dim is not None and not settings["pooled_text"]:
                yield f"{where}.pooled_text: false; the released networks cannot read text without it"
            continue
        cut, side = frames_a_row(settings, side)
        if (frames := settings.get("frames", 1)) != cut**2:
            yield f"{where}.frames: {frames}; a released network of these levels has {cut**2}"
        if not settings["inner_input"]:
            yield f"{where}.inner_input: false; the released networks fail with such a setting"
        if attends and core["cond_width"] not in (None, cond_dim):
            yield (
                f"{where}.attention: the core projects text from width {cond_dim} to {core['cond_width']}; "
                "attention of a released outer level needs it at one width"
            )
        if attends and settings["masked_cross_attention"] != core["masked_cross_attention"]:
            yield (
                f"{where}.masked_cross_attention: {said(settings['masked_cross_attention'])}; "
                "in the released networks the core's setting holds for every level"
            )


def frames_a_row(settings: Settings, inner: int) -> tuple[int, int]:
    """How many frames a released shell sees in a row of its picture, and its ratio to the innermost level.

    `inner` is that of the level inside. A level that halves frames cuts by its own ratio, another by that of
    the level inside.
    """
    steps = len(settings["channels"]) - 1
    if settings.get("layout") != "grid":
        return 1, inner * 2**steps
    if settings["strides"] is None:
        return inner, inner * 2**steps
    side = grid_side(inner, steps)
    return side, side


def diffusion_config(
    *,
    levels: int,
    schedule: tuple[str, Settings],
    shift_power: float,
    prediction: str,
    loss_space: str,
    signal_scale: float = 1.0,
    signal_scale_power: float = 0.0,
    output_limit: float | None = None,
    threshold: tuple[str, Settings] = ("clip", {}),
    level_weights: Sequence[float] | None = None,
    shares: Sequence[float] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The released `diffusion_config`, and the paths of settings that it has no place for.

    Those belong to training and to how pictures are drawn. `schedule` and `threshold`: name and settings;
    `level_weights`, `shares`: low resolution to high; `output_limit`: the core's. Raises ValueError for a
    process that the released sampler does not have.
    """
    left_out = []
    shifted = shift_power != 0
    if levels > 1:
        # a released nest is shifted, by any power, or divides pictures by their ratio to the lowest level
        shifted = signal_scale_power == 0
        if output_limit is not None:
            raise ValueError(f"model.levels[0].output_limit: {output_limit}; a released nest has none")
        if signal_scale != 1:
            raise ValueError(f"diffusion.signal_scale: {signal_scale}; a released nest has 1.0")
        if not shifted and (signal_scale_power, shift_power) != (1, 0):
            raise ValueError(
                f"diffusion.signal_scale_power: {signal_scale_power}, with shift_power = {shift_power}; "
                "a released nest has one of the two, and no signal_scale_power but 1"
            )
    name, settings = schedule
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"diffusion.schedule: '{name}'; the released code has those called {known} here")
    kind, fixed = SCHEDULES[name]
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise ValueError(
                f"diffusion.schedule.{key}: {said(settings[key])}; the released code has {said(value)}"
            )
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"diffusion.prediction: '{prediction}'; the released code has {' and '.join(PREDICTIONS)}"
        )
    if loss_space not in PREDICTIONS:
        left_out.append("diffusion.loss_space")
    threshold_name, ours = threshold
    limits, fixed = THRESHOLDS.get(threshold_name, ("CLIP", {}))
    if threshold_name not in THRESHOLDS or any(ours.get(key, value) != value for key, value in fixed.items()):
        left_out.append("sample.threshold")
        limits = "CLIP"
    config: dict[str, Any] = {
        "sampler_config": {
            "num_diffusion_steps": STEPS,
            "reproject_signal": False,
            "schedule_type": kind,
            "prediction_type": PREDICTIONS[prediction],
            "loss_target_type": PREDICTIONS.get(loss_space, PREDICTIONS[prediction]),
            "beta_start": settings.get("beta_start", 1e-4),
            "beta_end": settings.get("beta_end", 0.02),
            "threshold_function": limits,
            "rescale_schedule": 1.0,
            "rescale_signal": None if signal_scale == 1 else 1 / signal_scale,
            "schedule_shifted": shifted,
            "schedule_shifted_power": shift_power if shifted else 1,
        },
        "model_output_scale": output_limit or 0,
        "use_vdm_loss_weights": False,
    }
    if levels == 1:
        return config, left_out
    return config | {
        "use_double_loss": True,
        "multi_res_weights": None if level_weights is None else high_to_low(level_weights),
        "no_use_residual": True,
        "use_random_interp": False,
        "mixed_ratio": None if shares is None else high_to_low(whole(shares)),
        "random_downsample": False,
        "average_downsample": False,
        "mid_downsample": False,
    }, left_out


def high_to_low(values: Sequence[float]) -> str:
    """Numbers of levels, low resolution to high, as "16:4:1" from high to low."""
    return ":".join(number(value) for value in reversed(values))


def whole(shares: Sequence[float]) -> Sequence[float]:
    """Shares that sum to 1 as whole numbers in the same ratio, where there are some."""
    parts = [Fraction(share).limit_denominator(1000) for share in shares]
    common = lcm(*(part.denominator for part in parts))
    exact = all(float(part) == share for part, share in zip(parts, shares, strict=True))
    return [int(part * common) for part in parts] if exact else shares


def number(value: float) -> str:
    return str(int(value) if value == int(value) else float(value))


def said(value: Any) -> str:
    """A value as a recipe has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
