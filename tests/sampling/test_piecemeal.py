"""Rules, guidance and schedules in other people's code: no recipe, no registry, no nest."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import (
    CFG,
    Answers,
    Denoised,
    Denoiser,
    Interval,
    Rescale,
    clip,
    dpmpp_2m,
    sample_pyramid,
    thresholded,
    uniform_t,
    unipc,
)
from mdmkit.schedules import DDPM
from mdmkit.targets import to_eps, to_x0
from mdmkit.torchvision_ops import declare

declare()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs: of what they import
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    UNet2DModel: Any = diffusers.UNet2DModel

PROCESS = Diffusion([DDPM()], prediction="eps")  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=4,
    ).eval()


def test_a_network_of_diffusers_with_our_sampler(unet: Any) -> None:
    labels = torch.tensor([1, 2])
    denoise = Denoiser(lambda z, t, **_: [unet(z[0], 1000 * t - 1, labels).sample], PROCESS)
    drawn = sample_pyramid(denoise, PROCESS, [(3, 16, 16)], seeds=[3, 4], rule=dpmpp_2m, steps=6)
    assert drawn[0].shape == (2, 3, 16, 16)
    # the same by their scheduler, from the same noise: trailing steps of its table, and zero at the end
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", clip_sample=True, set_alpha_to_one=True
    )
    scheduler.set_timesteps(5)
    (ours,) = sample_pyramid(denoise, PROCESS, [(3, 16, 16)], seeds=[3, 4], steps=5, spacing=uniform_t)
    start: list[Tensor] = []
    sample_pyramid(
        denoise, PROCESS, [(3, 16, 16)], [3, 4], rule=lambda denoise, z, path, noise: start.extend(z) or z
    )
    z = start[0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(unet(z, t, labels).sample, t, z, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-4)


class Labelled:
    """A hand-written denoiser: class 0 is the absence of a class."""

    def __init__(self, unet: Any, labels: Tensor) -> None:
        self.unet, self.labels, self.rows = unet, labels, 0

    def said(self, z: Tensor, at: NoiseLevel, labels: Tensor) -> list[Denoised]:
        self.rows += len(labels)
        repeated = z.repeat(len(labels) // len(z), 1, 1, 1)
        eps = self.unet(repeated, torch.tensor(1000 * at.t - 1), labels).sample
        alpha, sigma = at.alpha[0], at.sigma[0]
        return [
            Denoised((to_x0(part, z, alpha, sigma, "eps"),), (to_eps(part, z, alpha, sigma, "eps"),))
            for part in eps.split(len(z))
        ]

    def __call__(self, z: Any, at: NoiseLevel) -> Denoised:
        return self.plain(z, at)

    def plain(self, z: Any, at: NoiseLevel) -> Denoised:
        return self.said(z[0], at, self.labels)[0]

    def both(self, z: Any, at: NoiseLevel) -> tuple[Denoised, Denoised]:
        cond, uncond = self.said(z[0], at, torch.cat([self.labels, 0 * self.labels]))
        return cond, uncond

    def answers(self, z: Any, at: NoiseLevel) -> Answers:
        cond = self.plain(z, at)
        return Answers(cond, None, cond)


@torch.no_grad()
def test_a_loop_by_hand_with_our_guidance_and_rule(unet: Any) -> None:
    denoise = Labelled(unet, torch.tensor([1, 2]))
    guided = thresholded(Interval((-4.0, 4.0)).wrap(Rescale().wrap(CFG(3.0).wrap(denoise))), clip, PROCESS)
    path = [PROCESS.at(t) for t in uniform_t(6, PROCESS)]
    within = sum(-4 <= at.logsnr[0] <= 4 for at in path[:-1])
    z = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
    (whole,) = unipc(guided, z, path, lambda step, level: torch.zeros(()))
    assert whole.isfinite().all()
    assert 0 < within < 6
    assert denoise.rows == 2 * 6 + 2 * within  # a second row only inside of the interval


def test_none_of_the_registry_is_imported() -> None:
    code = (
        "import sys, mdmkit.schedules, mdmkit.targets, mdmkit.weighting, mdmkit.sampling\n"
        "heavy = {'pluggy', 'cattrs', 'tomli', 'transformers', 'mdmkit.recipe', 'mdmkit.plugins'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
