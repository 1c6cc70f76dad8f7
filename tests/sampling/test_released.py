"""Whole trajectories of the released sampler, with the released networks' weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.interop.apple_keys import build_nest, from_released
from mdmkit.sampling import CFG, Denoiser, clip, ddim, ddpm, dynamic, dynamic_if, none, released, thresholded
from mdmkit.schedules import DDPM, Cosine, shift_levels
from tests.golden import golden_case

THRESHOLDS: dict[str, Callable[..., Tensor]] = {
    "NONE": none,
    "CLIP": clip,
    "DYNAMIC": dynamic,
    "DYNAMIC_IF": dynamic_if,
}
# without its shift, the released sampler divides a level's picture by its ratio to level 0 instead; not ours
SAMPLES = {
    "sample_unet": [
        "ddim_clip_g1",
        "ddim_clip_g7.5",
        "ddim_dynamic_g1",
        "ddim_dynamic_g7.5",
        "ddim_dynamic_if_g1",
        "ddim_dynamic_if_g7.5",
        "ddim_clip_g1_epspred_ddpm",
        "ddim_clip_g1_rescale2",
        "ancestral_clip_g1",
    ],
    "sample_nested2": [
        "ddim_none_g1",
        "ddim_clip_g1",
        "ddim_clip_g7.5",
        "ddim_clip_g1_power2",
        "ddim_dynamic_g1",
        "ddim_dynamic_g7.5",
        "ddim_dynamic_if_g1",
        "ddim_dynamic_if_g7.5",
        "eta0.5_clip_g1",
        "eta1_dynamic_g7.5",
        "ancestral_clip_g1",
    ],
}


def network(folder: Path, config: dict[str, Any]) -> torch.nn.Module:
    nest = build_nest(config["unet_config"], config["lm_embed_dim"])
    nest.load_state_dict(from_released(load_file(folder / "weights.safetensors"), nest))
    return nest


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "variant"), [(case, variant) for case, variants in SAMPLES.items() for variant in variants]
)
@torch.no_grad()
def test_trajectories_are_the_recorded_ones(case: str, variant: str):
    folder = golden_case(case)
    config = json.loads((folder / "config.json").read_text())
    meta = json.loads((folder / "meta.json").read_text())["variants"][variant]
    recorded = load_file(folder / f"{variant}.safetensors")
    settings = config["diffusion_config"]["sampler_config"] | meta["sampler_overrides"]
    levels = 2 if case == "sample_nested2" else 1

    power = settings["schedule_shifted_power"] * settings["schedule_shifted"]
    schedule = DDPM() if settings["schedule_type"] == "DDPM" else Cosine()
    prediction = "eps" if settings["prediction_type"] == "DDPM" else "v"
    diffusion = Diffusion(shift_levels(schedule, [16, 32][:levels], shift_power=power), prediction=prediction)

    text, mask = recorded["conditioning"], recorded["cond_mask"].bool()
    guided = meta["guidance"] != 1
    half = len(text) // 2 if guided else 0  # the unconditional rows come first
    denoise = Denoiser(
        network(folder, config),
        diffusion,
        cond=text[half:],
        cond_mask=mask[half:],
        uncond=text[:half] if guided else None,
        uncond_mask=mask[:half] if guided else None,
    )
    threshold = THRESHOLDS[settings["threshold_function"]]
    scale = settings["rescale_signal"] or 1
    if threshold is not none:
        threshold = partial(threshold, limit=1 / scale)
    rule = ddpm if meta["ddim_eta"] is None else partial(ddim, eta=meta["ddim_eta"])

    times = released(meta["steps"], diffusion)
    assert times == [index / 1000 for index in recorded["timesteps"].tolist()]
    z = rule(
        thresholded(CFG(scale=meta["guidance"]).wrap(denoise), threshold),
        tuple(recorded[f"x_T.{levels - 1 - level}"] for level in range(levels)),
        [diffusion.at(t) for t in times],
        # drawn step by step, high level first
        lambda step, level: recorded[f"noise.{step * levels + levels - 1 - level}"],
    )
    last, floor = len(times) - 2, 1e-5 + 4 * meta["fp32_vs_fp64_final"]
    for level, ours in enumerate(z):
        theirs = recorded[f"x_t.{last}.{levels - 1 - level}"]
        # both are float32: each may be as far off as float32 was from float64 there
        assert (ours - theirs).abs().max() <= floor
    assert (z[-1].clamp(-1 / scale, 1 / scale) * scale - recorded["final"]).abs().max() <= scale * floor
