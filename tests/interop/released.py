"""Released configurations and checkpoints in small: the key names and values of the three released configs.

The files themselves are not here; what they say is, and what is odd about how they say it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from mdmkit.interop.apple_keys import build_nest, to_released

__all__ = ["NAMES", "PARAMETERS", "checkpoint", "config", "tiny_config", "write_yaml"]

NAMES = ("64x64", "256x256", "1024x1024")
# of the released networks with 2048 text features, worked out from the papers
PARAMETERS = {"64x64": 461_359_107, "256x256": 476_613_958, "1024x1024": 480_970_057}
MODELS = {1: "unet", 2: "nested_unet", 3: "nested2_unet"}


def network(side: int, channels: list[int], inner: dict[str, Any] | None, **said: Any) -> dict[str, Any]:
    """One level's unet_config: a core where nothing is inside, else a shell around it."""
    core = inner is None
    table: dict[str, Any] = {
        "attention_levels": [1, 2] if core else [],
        "num_attention_layers": [0, 1, 5] if core else [0, 0, 0],
        "num_resnets_per_resolution": [2, 2, 2] if core else [2, 2, 1],
        "resolution_channels": channels,
        "conditioning_feature_dim": -1,
        "conditioning_feature_proj_dim": 2048 if core else -1,
        "masked_cross_attention": 0 if core else 1,
        "micro_conditioning": f"scale:{side}",
        "num_lm_head_layers": 0,
        "skip_cond_emb": not core,
        "skip_mid_blocks": not core,
        "temporal_mode": False,
        "temporal_positional_encoding": False,
        "temporal_spatial_ds": False,
        "nesting": False,
        "resnet_config": {
            "dropout": 0.0,
            "num_channels": -1,
            "num_groups_norm": 32,
            "output_channels": -1,
            "use_attention_ffn": core,
        },
    }
    if inner is not None:
        table |= {
            "inner_config": {**inner, "nesting": True},
            "temporal_dim": 1024,
            "num_temporal_attention_layers": None,
            "freeze_inner_unet": False,
            "initialize_inner_with_pretrained": "None",
            "interp_conditioning": False,
            "skip_inner_unet_input": False,
            "skip_normalization": True,
        }
    return table | said


def config(name: str) -> dict[str, Any]:
    """What a released config comes to, as a table."""
    levels = NAMES.index(name) + 1
    side = int(name.partition("x")[0])
    unet = network(64, [256, 512, 768], None)
    if levels > 1:
        unet = network(256, [64, 128, 256], unet, skip_normalization=levels == 2)
    if levels > 2:
        unet = network(1024, [32, 32, 64], unet, initialize_inner_with_pretrained="8rwvbg85tt")
    sampler: dict[str, Any] = {
        "num_diffusion_steps": 1000,
        "reproject_signal": False,
        "prediction_type": "V_PREDICTION",
        "loss_target_type": "DDPM",
        "schedule_type": "DEEPFLOYD",
    }
    diffusion: dict[str, Any] = {"model_output_scale": 0, "use_vdm_loss_weights": False}
    if levels == 1:
        sampler |= {"beta_start": 0.0001, "beta_end": 0.02, "threshold_function": "CLIP"}
        sampler |= {"rescale_schedule": 1.0, "schedule_shifted": False}
    else:
        sampler |= {"rescale_signal": 1, "schedule_shifted": True}
        diffusion |= {"use_double_loss": True, "no_use_residual": True}
    if levels == 3:
        sampler["schedule_shifted_power"] = 2
    table: dict[str, Any] = {
        "name": f"cc12m_{name}",
        "dataset_config": "configs/datasets/cc12m.yaml",
        "min_examples": 10000,
        "sample-dir" if levels == 2 else "sample_dir": "/mnt/data/samples",
        "sample_image_size": side,
        "test_file_list": "validation.tsv",
        "output_dir": "/mnt/data/outputs",
        "diffusion_config": {"sampler_config": sampler, **diffusion},
        "prediction_length": 129,
        "num_training_steps": 5000 if levels == 1 else 1_000_000,
        "avg_lm_steps": 0,
        "categorical_conditioning": 0,
        "vocab_file": "data/t5.vocab",
        "text_model": "google/flan-t5-xl",
        "model": MODELS[levels],
        "vision_model": MODELS[levels],
        "unet_config": unet,
        "reader_config": {
            "image_size": side,
            "smaller_side_size": side,
            "random_crop": False,
            "max_caption_length": 512,
            "max_token_length": 128,
            "reader_buffer_size": 64,
            "shuffle_buffer_size": 9600,
        },
        "use_lm_mask": 1,
        "metrics": "fid,clip",
        "use_precomputed_text_embeddings": 0,
        "gradient_clip_norm": 2,
        "loss_factor": 1,
        "num_gradient_accumulations": 1,
        "warmup_steps": 10000,
        "log_freq": 50,
        "save_freq": 5000,
        "lr": 5.0e-05,
        "fp16": int(levels == 3),
    }
    # at a level where the released code never looks
    table |= {1: {"use_adamw": True, "seed": -1}, 2: {"mixed_ratio": "2:1"}, 3: {}}[levels]
    return table | ({"multi_res_weights": "16:4:1", "batch_size": 4} if levels == 3 else {})


def write_yaml(path: Path, table: dict[str, Any], twice: str = "") -> Path:
    """The table as YAML; `twice` is text in front of it, which may hold keys that stand again below."""
    path.write_text(twice + yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return path


def tiny_config(text: bool = False) -> dict[str, Any]:
    """A nest of 8 and 16 pixels with all else as in the config for 256 pixels."""
    table = copy.deepcopy(config("256x256"))
    core = table["unet_config"]["inner_config"]
    shell = table["unet_config"]
    for unet, side in ((core, 8), (shell, 16)):
        unet |= {"resolution_channels": [32, 32], "num_resnets_per_resolution": [1, 1]}
        unet |= {"micro_conditioning": f"scale:{side}", "num_attention_layers": [0, int(unet is core)]}
    core |= {"attention_levels": [1], "conditioning_feature_proj_dim": 16 if text else -1}
    shell["temporal_dim"] = 128
    table["reader_config"] |= {"image_size": 16, "smaller_side_size": 16}
    return table | {"sample_image_size": 16}


def checkpoint(path: Path, table: dict[str, Any], width: int | None, **said: Any) -> dict[str, torch.Tensor]:
    """Write a .pth as the released code does, its parameters random; these by their released names."""
    unet = copy.deepcopy(table["unet_config"])
    core = unet
    while "inner_config" in core:
        core = core["inner_config"]
    core.setdefault("temporal_dim", None)
    nest = build_nest(unet, width, device="meta").to_empty(device="cpu")
    torch.manual_seed(7)
    with torch.no_grad():
        for p in nest.parameters():
            p.normal_(std=0.05)
    state = to_released(nest.state_dict(), nest)
    torch.save({"state_dict": state, "batch_num": 3} | said, path)
    return state
