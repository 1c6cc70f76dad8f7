"""Settings and parameter names of the released Matryoshka networks (apple/ml-mdm), translated both ways.

There levels run from high resolution to low, each holding the next as `inner_unet`, and the stages of the way
up are numbered from low resolution to high; here levels run from low to high, and stages are numbered alike
both ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.nn.grid import GridStage
from mdmkit.nn.unet import Stage, UNet

__all__ = ["build_nest", "from_released", "grid_side", "key_map", "level_settings", "micro_conditioning"]
__all__ += ["to_released"]

Settings = dict[str, Any]

# what a released config may say without any effect on the networks that exist here
HARMLESS = {"nesting", "initialize_inner_with_pretrained", "freeze_inner_unet", "interp_conditioning"}
READ = {
    "num_resnets_per_resolution",
    "temporal_dim",
    "attention_levels",
    "num_attention_layers",
    "conditioning_feature_proj_dim",
    "num_lm_head_layers",
    "masked_cross_attention",
    "resolution_channels",
    "skip_mid_blocks",
    "skip_cond_emb",
    "micro_conditioning",
    "resnet_config",
    "inner_config",
    "skip_inner_unet_input",
    "skip_normalization",
    "num_temporal_attention_layers",
    "temporal_mode",
    "temporal_spatial_ds",
    "temporal_positional_encoding",
    # must be at the value that switches it off
    "conditioning_feature_dim",
}


def micro_conditioning(text: str | None) -> dict[str, float] | None:
    """ "scale:64,watermark_score:0" as names and defaults."""
    if not text:
        return None
    parts = (part.split(":") for part in text.split(","))
    return {key.strip(): float(default) for key, default in parts}


def level_settings(unet_config: Mapping[str, Any]) -> list[Settings]:
    """The settings of core and shells, low resolution to high, from a released `unet_config` tree.

    The keys of each are arguments of `UNetCore` or `UNetShell`; `dropout` stands apart, it is the block's.
    Raises ValueError for a key that is not known and for what has no counterpart here.
    """
    configs = [unet_config]
    while (inner := configs[-1].get("inner_config")) is not None:
        configs.append(inner)
    levels, side = [], 1
    for config in reversed(configs):
        settings = one_level(config, shell=config is not configs[-1])
        frames, side = grid(config, side)
        levels.append(settings | frames)
    return levels


def grid(config: Mapping[str, Any], inner: int) -> tuple[Settings, int]:
    """How a level cuts pictures into frames, and its ratio to the innermost; inner: that of the one inside.

    There a level in time cuts its picture into as many frames a row as its ratio says, a level that halves
    frames in space into those of the level inside. Raises ValueError for what cannot be built there either.
    """
    # the innermost level is the measure of all ratios, whatever stages it has
    steps = len(config["resolution_channels"]) - 1 if config.get("inner_config") is not None else 0
    layers = config.get("num_temporal_attention_layers")
    if not config.get("temporal_mode"):
        for key in ("temporal_spatial_ds", "num_temporal_attention_layers"):
            if config.get(key):
                raise ValueError(f"released {key}={config[key]!r} is only for networks with temporal_mode")
        return {}, inner * 2**steps
    if config.get("inner_config") is None:
        raise ValueError("a released network with temporal_mode has a level inside, got none in inner_config")
    if config.get("temporal_spatial_ds"):
        if layers:
            raise ValueError("released networks with temporal_spatial_ds have no temporal attention layers")
        return {"layout": "grid", "frames": inner**2}, inner * 2**steps
    if steps % 2:
        raise ValueError(
            f"a released network with temporal_mode halves frames an even number of times, got {steps}"
        )
    side = grid_side(inner, steps)
    settings: Settings = {"layout": "grid", "frames": side**2, "strides": ((2, 1, 1),) * steps}
    if layers:
        rotary = bool(config["temporal_positional_encoding"])
        settings |= {"temporal_attention": tuple(layers), "rotary": rotary}
    return settings, side


def grid_side(inner: int, steps: int) -> int:
    """How many frames stand in a row of a level that halves them `steps` times, in a grid as high as wide.

    It is the level's ratio to the innermost level too; `inner` is that of the level inside.
    """
    return inner * 2 ** (steps // 2)


def one_level(config: Mapping[str, Any], *, shell: bool) -> Settings:
    unknown = sorted(config.keys() - READ - HARMLESS)
    if unknown:
        raise ValueError(f"unknown keys in a released unet_config: {', '.join(unknown)}")
    resnet = config["resnet_config"]
    stages = len(config["resolution_channels"])
    attended = config.get("attention_levels") or []
    layers = config["num_attention_layers"]
    settings = {
        "channels": tuple(config["resolution_channels"]),
        "blocks": tuple(config["num_resnets_per_resolution"]),
        "attention": tuple(layers[i] if i in attended else 0 for i in range(stages)),
        "emb_dim": config["temporal_dim"],
        "norm_groups": resnet["num_groups_norm"],
        "dropout": float(resnet["dropout"]),
        "ffn": bool(resnet["use_attention_ffn"]),
        "masked_cross_attention": bool(config["masked_cross_attention"]),
        "micro_conditioning": micro_conditioning(config["micro_conditioning"]),
    }
    if not shell:
        width = config["conditioning_feature_proj_dim"]
        return settings | {
            "middle": not config["skip_mid_blocks"],
            "cond_width": width if width and width > 0 else None,
            "text_layers": config["num_lm_head_layers"],
            "pooled_text": not config["skip_cond_emb"],
        }
    if not config["skip_mid_blocks"] or not config["skip_cond_emb"] or config["num_lm_head_layers"]:
        raise ValueError(
            "a released outer level with a middle, pooled text or text layers of its own is not read here"
        )
    return settings | {
        "inner_input": not config["skip_inner_unet_input"],
        "normalize_input": not config["skip_normalization"],
    }


def build_nest(
    unet_config: Mapping[str, Any],
    cond_dim: int | None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> NestedUNet:
    """The network that a released `unet_config` describes, with fresh parameters."""
    from functools import partial

    from mdmkit.nn import ResBlock

    levels: list[UNet] = []
    for settings in level_settings(unet_config):
        block = partial(ResBlock, dropout=settings.pop("dropout"))
        if levels:
            core = levels[0]
            assert isinstance(core, UNetCore)
            context: Settings = {"inner_channels": levels[-1].channels[0], "cond_width": core.cond_width}
            context["emb_dim"] = settings.pop("emb_dim") or 4 * settings["channels"][0]
            levels.append(UNetShell(**settings, **context, block=block, device=device, dtype=dtype))
        else:
            if cond_dim is None:
                settings["cond_width"] = None
            levels.append(UNetCore(**settings, cond_dim=cond_dim, block=block, device=device, dtype=dtype))
    return NestedUNet(levels[0], levels[1:])


# layers that `interp_conditioning` makes and nothing there uses: no output and no gradient depends on them
DEAD = re.compile(r"(inner_unet\.)*interp_layer[12]\.(weight|bias)")

# names inside a module, ours and theirs
BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_layer",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv3",
}
ATTENTION = {
    "norm": "norm",
    "qkv": "qkv",
    "text_norm": "norm_cond",
    "text_kv": "kv_cond",
    "out": "proj_out",
    "ffn.norm": "ffn.0",
    "ffn.up": "ffn.1",
    "ffn.down": "ffn.3",
}
TEXT_LAYER = {
    "norm": "attn.norm",
    "qkv": "attn.qkv",
    "out": "attn.proj_out",
    "ffn_norm": "mlp.main.0",
    "ffn_up": "mlp.main.1",
    "ffn_down": "mlp.main.3",
}
TEMPORAL = {
    **{f"layer.{ours}": theirs for ours, theirs in TEXT_LAYER.items()},
    "layer.rotary": "attn.pos_emb",
    "down": "down_conv",
    "up": "up_conv",
}
LEVEL = {
    "embedding.time.0": "temb_layer1",
    "embedding.time.2": "temb_layer2",
    "conv_in": "conv_in",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
    "in_adapter": "in_adapter",
    "out_adapter": "out_adapter",
    "text.project": "lm_proj",
    "text.pool": "cond_emb",
}


def key_map(nest: NestedUNet) -> dict[str, str]:
    """Released parameter names by ours, for every parameter of a nest."""
    top = len(nest.levels) - 1
    names = {}
    for r, level in enumerate(nest.levels):
        assert isinstance(level, UNet)
        theirs = "inner_unet." * (top - r)
        for ours, released in level_map(level):
            names[f"levels.{r}.{ours}"] = theirs + released
    return {
        f"{module}.{kind}": f"{names[module]}.{kind}"
        for module, kind in (name.rsplit(".", 1) for name in nest.state_dict())
    }


def level_map(level: UNet) -> Iterator[tuple[str, str]]:
    yield from LEVEL.items()
    for key in level.embedding.defaults:
        yield f"embedding.micro.{key}.0", f"cond_layers.{key}.0"
        yield f"embedding.micro.{key}.2", f"cond_layers.{key}.1"
    for i in range(len(getattr(getattr(level, "text", None), "layers", ()))):
        yield from prefixed(TEXT_LAYER, f"text.layers.{i}", f"lm_head.{i}")
    stages = len(level.channels)
    for i in range(stages):
        yield from stage_map(level.down[i], f"down.{i}", f"down_blocks.{i}")
        yield from stage_map(level.up[i], f"up.{i}", f"up_blocks.{stages - 1 - i}")
    if level.middle is not None:
        # theirs are two stages of one block each
        for j in range(2):
            yield from prefixed(BLOCK, f"middle.blocks.{j}", f"mid_blocks.{j}.resnets.0")
        yield from prefixed(ATTENTION, "middle.attention.0.0", "mid_blocks.0.attn.0")


def stage_map(stage: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    assert isinstance(stage, Stage)
    number = 0
    for j, layers in enumerate(stage.attention):
        yield from prefixed(BLOCK, f"{ours}.blocks.{j}", f"{theirs}.resnets.{j}")
        for k in range(len(layers)):  # pyright: ignore[reportArgumentType]
            yield from prefixed(ATTENTION, f"{ours}.attention.{j}.{k}", f"{theirs}.attn.{number}")
            number += 1
    if isinstance(stage, GridStage):
        number = 0
        for j, layers in enumerate(stage.temporal):
            for k in range(len(layers)):  # pyright: ignore[reportArgumentType]
                yield from prefixed(TEMPORAL, f"{ours}.temporal.{j}.{k}", f"{theirs}.t_attn.{number}")
                number += 1
    yield f"{ours}.resample", f"{theirs}.resample"


def prefixed(names: Mapping[str, str], ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for a, b in names.items():
        yield f"{ours}.{a}", f"{theirs}.{b}"


def from_released(state: Mapping[str, Tensor], nest: NestedUNet) -> dict[str, Tensor]:
    """A released state dict under our names, in our shapes (their 1x1 convolutions are linear layers here).

    Raises ValueError for a parameter of the nest that is missing, a name that is left over, or a wrong shape.
    """
    names, wanted = key_map(nest), nest.state_dict()
    state = {name: tensor for name, tensor in state.items() if not DEAD.fullmatch(name)}
    refuse("released weights lack", names.values() - state.keys())
    refuse("released weights have parameters that the network lacks:", state.keys() - set(names.values()))
    return {ours: fitted(state[theirs], wanted[ours].shape, theirs) for ours, theirs in names.items()}


def to_released(state: Mapping[str, Tensor], nest: NestedUNet) -> dict[str, Tensor]:
    """The inverse of `from_released`: our state dict under the released names, in the released shapes."""
    names = key_map(nest)
    refuse("weights lack", names.keys() - state.keys())
    refuse("weights have parameters that the network lacks:", state.keys() - names.keys())
    return {
        theirs: state[ours][..., None, None] if is_pointwise(theirs) else state[ours]
        for ours, theirs in names.items()
    }


def is_pointwise(theirs: str) -> bool:
    """Whether a released weight is that of a 1x1 convolution where ours is a linear layer."""
    return re.search(r"blocks\.\d+\.attn\.\d+\.(qkv|proj_out|ffn\.[13])\.weight$", theirs) is not None


def fitted(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    if is_pointwise(name) and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    if tensor.shape != shape:
        raise ValueError(f"expected released {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor


def refuse(what: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ValueError(f"{what} {shown}")
