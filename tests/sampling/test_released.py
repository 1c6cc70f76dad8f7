"""Trajectories of the released sampler, whole and step by step, with the released networks' weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import Pyramid
from mdmkit.sampling import CFG, Denoiser, clip, ddim, ddpm, dynamic, dynamic_if, none, released, thresholded
from mdmkit.sampling.denoise import Denoise, Denoised
from mdmkit.targets import to_eps
from tests.golden import golden_case, network, off, process, read, released_sizes, tolerance

THRESHOLDS: dict[str, Callable[..., Tensor]] = {
    "NONE": none,
    "CLIP": clip,
    "DYNAMIC": dynamic,
    "DYNAMIC_IF": dynamic_if,
}
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
        "ddim_clip_g1_unshifted",
        "ddim_dynamic_g1",
        "ddim_dynamic_g7.5",
        "ddim_dynamic_if_g1",
        "ddim_dynamic_if_g7.5",
        "eta0.5_clip_g1",
        "eta1_dynamic_g7.5",
        "ancestral_clip_g1",
    ],
}
VARIANTS = [(case, variant) for case, variants in SAMPLES.items() for variant in variants]
every = pytest.mark.parametrize(("case", "variant"), VARIANTS)


@attrs.frozen
class Sampled:
    """A recorded trajectory in our terms: levels run from low resolution to high."""

    recorded: dict[str, Tensor]
    meta: dict[str, Any]
    diffusion: Diffusion
    denoise: Denoise
    rule: Callable[..., Pyramid]
    path: list[NoiseLevel]

    def pyramid(self, name: str) -> Pyramid:
        return tuple(self.recorded[f"{name}.{self.top - r}"] for r in range(self.top + 1))

    @property
    def top(self) -> int:
        return self.diffusion.levels - 1

    def noise(self, step: int, level: int) -> Tensor:
        # drawn step by step, high level first
        return self.recorded[f"noise.{step * (self.top + 1) + self.top - level}"]


def sampled(case: str, variant: str, dtype: torch.dtype = torch.float32) -> Sampled:
    folder = golden_case(case)
    meta = read(folder, "meta.json")["variants"][variant]
    recorded = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(folder / f"{variant}.safetensors").items()
    }
    settings = read(folder, "config.json")["diffusion_config"]["sampler_config"] | meta["sampler_overrides"]
    diffusion = process(settings, released_sizes(recorded, "x_T"))
    text, mask = recorded["conditioning"], recorded["cond_mask"].bool()
    guided = meta["guidance"] != 1
    half = len(text) // 2 if guided else 0  # the unconditional rows come first
    denoise = Denoiser(
        network(folder, dtype),
        diffusion,
        cond=text[half:],
        cond_mask=mask[half:],
        uncond=text[:half] if guided else None,
        uncond_mask=mask[:half] if guided else None,
    )
    guided_denoise = CFG(scale=meta["guidance"]).wrap(denoise)
    times = released(meta["steps"], diffusion)
    assert times == [index / 1000 for index in recorded["timesteps"].tolist()]
    return Sampled(
        recorded,
        meta,
        diffusion,
        thresholded(guided_denoise, THRESHOLDS[settings["threshold_function"]], diffusion),
        ddpm if meta["ddim_eta"] is None else partial(ddim, eta=meta["ddim_eta"]),
        [diffusion.at(t) for t in times],
    )


@pytest.mark.golden
def test_every_recorded_trajectory_is_compared():
    for case, variants in SAMPLES.items():
        files = {file.stem for file in golden_case(case).glob("*.safetensors")} - {"weights"}
        assert files == set(variants)


@pytest.mark.golden
@every
@torch.no_grad()
def test_trajectories_are_the_recorded_ones(case: str, variant: str):
    # in float64: guidance makes so much of rounding that two float32 runs are twice as far off as one
    it = sampled(case, variant, torch.float64)
    z = it.rule(it.denoise, it.pyramid("x_T"), it.path, it.noise)
    floor = it.meta["fp32_vs_fp64_final"]
    within = tolerance(floor)
    for ours, theirs in zip(z, it.pyramid(f"x_t.{len(it.path) - 2}"), strict=True):
        # the floor is that of the final picture, in its own numbers
        assert off(ours, theirs) <= tolerance(floor / theirs.std().item())
    pictures = [level.clamp(-1, 1) for level in it.diffusion.pictures(z)]
    assert off(pictures[-1], it.recorded["final"]) <= within
    if "final_output_inner" in it.recorded:
        size = it.recorded["final"].shape[-2:]
        wide = [torch.nn.functional.interpolate(level, size, mode="bilinear") for level in pictures]
        theirs = it.recorded["final_output_inner"]
        assert off(torch.cat(wide, -1), theirs) <= tolerance(floor / theirs.std().item())


@pytest.mark.golden
@every
@torch.no_grad()
def test_each_step_is_the_recorded_one(case: str, variant: str):
    """From the recorded pyramid in front of each step, and what is taken for the picture at the ends."""
    it = sampled(case, variant)
    floor, last = it.meta["fp32_vs_fp64_first_step"], len(it.path) - 2
    within = tolerance(floor)
    for step in range(last + 1):
        before = it.pyramid("x_T" if step == 0 else f"x_t.{step - 1}")
        after = it.rule(
            it.denoise, before, it.path[step : step + 2], lambda _, level, step=step: it.noise(step, level)
        )
        for r, (ours, theirs) in enumerate(zip(after, it.pyramid(f"x_t.{step}"), strict=True)):
            assert off(ours, theirs) <= within, (step, r)
        if step in (0, last):
            x0 = it.denoise(before, it.path[step]).x0
            shares = share_of_x0(it, step)
            for r, (ours, theirs) in enumerate(zip(x0, it.pyramid(f"x0.{step}"), strict=True)):
                assert off(ours, theirs) <= tolerance(floor / shares[r] / theirs.std().item()), (step, r)


def share_of_x0(it: Sampled, step: int) -> list[float]:
    """How much of an error in x0 reaches the next pyramid, which is what the floor was measured on."""
    nothing = tuple(torch.zeros(1, 1) for _ in range(it.top + 1))

    def wrong_by_one(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        one = tuple(torch.ones_like(level) for level in z)
        eps = (to_eps(x0, z[r], at.alpha[r], at.sigma[r], "x0") for r, x0 in enumerate(one))
        return Denoised(one, tuple(eps))

    moved = it.rule(wrong_by_one, nothing, it.path[step : step + 2], lambda _, level: nothing[level])
    return [level.item() for level in moved]
