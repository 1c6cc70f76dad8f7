"""The `unet_config` of a released configuration as the tables of a recipe's levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mdmkit.errors import WrongInput

from .apple_account import Keys
from .apple_keys import HARMLESS, READ, level_settings
from .apple_values import flag, integer, integers, real, text

__all__ = ["default_side", "level_tables", "text_width", "unet_tables", "unknown_in"]

RESNET = {"num_channels", "output_channels", "num_groups_norm", "dropout", "use_attention_ffn"}
LEVEL_LIMIT, STAGE_LIMIT, LAYER_LIMIT = 5, 12, 64  # past these a config only means to exhaust memory

Unets = Sequence[tuple[Keys, Keys]]


def unet_tables(outer: Keys, depth: int = 1) -> Iterator[tuple[Keys, Keys]]:
    """The tables of a nest's networks, each with that of its ResNets, low resolution to high."""
    if depth > LEVEL_LIMIT:
        raise outer.wrong("", f"more than {LEVEL_LIMIT} levels")
    if outer.values.get("inner_config") is not None:
        yield from unet_tables(outer.inside("inner_config"), depth + 1)
    yield outer, outer.inside("resnet_config")


def unknown_in(unets: Unets) -> Iterator[str]:
    """A line for each key that is not known."""
    for unet, resnet in unets:
        yield from unet.unknown(READ, HARMLESS)
        yield from resnet.unknown(RESNET)


def default_side(unet: Keys) -> int | None:
    """The side that a level takes for granted where nothing is said: the default of its `scale`."""
    parts = (part.partition(":") for part in unet.take("micro_conditioning", "", text).split(","))
    found = [value for key, _, value in parts if key.strip() == "scale"]
    return int(found[0]) if found and found[0].strip().isdecimal() and len(found[0]) < 6 else None


def level_tables(unets: Unets, side: int, text_width: int | None) -> list[dict[str, Any]]:
    """The tables of the recipe's levels, low to high; `side` is that of the highest resolution."""
    sides: list[int] = []
    for unet, _ in reversed(unets):
        sides.insert(0, side)
        ratio = 2 ** (len(stages_of(unet)) - 1)
        if unet.take("temporal_mode", False, flag) and not unet.take("temporal_spatial_ds", False, flag):
            ratio = int(ratio**0.5)  # frames in a grid are resampled instead, along both of its sides
        if side % ratio:
            raise unet.wrong("resolution_channels", f"divides by {ratio}, which does not divide {side}")
        side //= ratio
    config: dict[str, Any] | None = None
    for unet, resnet in unets:
        config = plain_values(unet, resnet, config)
    assert config is not None
    try:
        settings = level_settings(config)
    except ValueError as error:
        raise WrongInput(f"{unets[-1][0].account.source}: unet_config: {error}") from None
    tables: list[dict[str, Any]] = []
    emb_dim = settings[0]["emb_dim"] or 4 * settings[0]["channels"][0]
    for (unet, _), at, level in zip(unets, sides, settings, strict=True):
        if tables:
            mine = level.pop("emb_dim") or 4 * level["channels"][0]
            if mine != emb_dim:
                raise unet.wrong("temporal_dim", f"expected {emb_dim}, as in the innermost level, got {mine}")
        elif text_width is None:
            level |= {"cond_width": None, "text_layers": 0}
        if dropout := level.pop("dropout"):
            level["block"] = {"use": "resnet", "dropout": dropout}
        tables.append({"resolution": at, **{key: value for key, value in level.items() if value is not None}})
    return tables


def stages_of(
    unet: Keys, key: str = "resolution_channels", default: str = "128,256,256,512,1024"
) -> list[int]:
    """A list of numbers about stages, which has a length that somebody may mean."""
    values = unet.take(key, integers(default), integers)
    if len(values) > STAGE_LIMIT:
        raise unet.wrong(key, f"expected at most {STAGE_LIMIT} stages, got {len(values)}")
    return values


def one_a_stage(unet: Keys, key: str, default: str, stages: int) -> list[int]:
    """A number of layers for each stage; a single one is for all."""
    values = stages_of(unet, key, default)
    values = values * stages if len(values) == 1 else values
    if len(values) != stages:
        raise unet.wrong(key, f"expected one number a stage, {stages}, got {len(values)}")
    if max(values) > LAYER_LIMIT:
        raise unet.wrong(key, f"expected at most {LAYER_LIMIT} a stage, got {max(values)}")
    return values


def plain_values(unet: Keys, resnet: Keys, inner: dict[str, Any] | None) -> dict[str, Any]:
    """One level's config with plain values and the released defaults filled in, around the one inside."""
    account, nested = unet.account, inner is not None
    unet.unread({"conditioning_feature_dim"}, "overwritten when the network is built")
    resnet.unread({"num_channels", "output_channels"}, "overwritten when the network is built")
    unet.unread({"interp_conditioning"}, "its layers have no effect")
    unet.machinery({"initialize_inner_with_pretrained"})
    if unet.take("freeze_inner_unet", False, flag):
        account.training_only.append(f"{unet.path}freeze_inner_unet")
    channels = stages_of(unet)
    values: dict[str, Any] = {
        "resolution_channels": channels,
        "num_resnets_per_resolution": one_a_stage(unet, "num_resnets_per_resolution", "2", len(channels)),
        "num_attention_layers": one_a_stage(unet, "num_attention_layers", "1", len(channels)),
        "attention_levels": stages_of(unet, "attention_levels", "2,3"),
        "num_temporal_attention_layers": unet.take("num_temporal_attention_layers", None, integers),
        "temporal_dim": unet.take("temporal_dim", None, integer),
        "conditioning_feature_proj_dim": unet.take("conditioning_feature_proj_dim", -1, integer),
        "num_lm_head_layers": unet.take("num_lm_head_layers", 0, integer),
        "masked_cross_attention": unet.take("masked_cross_attention", True, flag),
        "micro_conditioning": unet.take("micro_conditioning", None, text),
    }
    if not 0 <= values["num_lm_head_layers"] <= LAYER_LIMIT:
        raise unet.wrong("num_lm_head_layers", f"expected 0 to {LAYER_LIMIT}")
    flags = {"skip_mid_blocks": nested, "skip_cond_emb": nested, "temporal_mode": False}
    flags |= {"temporal_spatial_ds": False, "temporal_positional_encoding": False}
    if nested:
        flags |= {"skip_inner_unet_input": False, "skip_normalization": False}
    values |= {key: unet.take(key, default, flag) for key, default in flags.items()}
    values["resnet_config"] = {
        "num_groups_norm": resnet.take("num_groups_norm", 32, integer),
        "dropout": resnet.take("dropout", 0.0, real),
        "use_attention_ffn": resnet.take("use_attention_ffn", False, flag),
    }
    for keys, taken in ((unet, values), (resnet, values["resnet_config"])):
        account.carried |= {keys.path + key: "model.levels" for key in keys.values if key in taken}
    for key in ("nesting", "freeze_inner_unet"):
        if key in unet.values and f"{unet.path}{key}" not in account.training_only:
            account.carried[unet.path + key] = "as it is here"
    account.carried.pop(f"{unet.path}resnet_config", None)
    return values | ({"inner_config": inner} if nested else {})


def text_width(tensors: Mapping[str, Tensor]) -> int | None:
    """The width of the text features that the innermost network reads, by its weights; None: none."""
    inner = max(("".join(name.rpartition("inner_unet.")[:2]) for name in tensors), key=len, default="")
    own = {name.removeprefix(inner): tensor for name, tensor in tensors.items() if name.startswith(inner)}
    for suffix, axis in (("lm_proj.weight", 1), ("cond_emb.weight", 1), (".norm_cond.weight", 0)):
        found = [tensor for name, tensor in own.items() if name.endswith(suffix) and tensor.dim() > axis]
        if found:
            return found[0].shape[axis]
    return None
