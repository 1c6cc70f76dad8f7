"""Pictures from captions: batches, guidance rows and seeds around one update rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion, NoiseLevel

from .denoise import Denoised, Denoiser
from .guidance import Guidance
from .rules import Rule
from .sample import sample_pyramid
from .spacing import Spacing
from .threshold import Threshold

__all__ = ["Drawing", "draw"]


@attrs.frozen
class Drawing:
    """How pictures are drawn: the update rule, its steps and what wraps the denoiser."""

    rule: Rule
    spacing: Spacing
    threshold: Threshold
    guidance: tuple[Guidance, ...] = ()
    steps: int = 50


@torch.no_grad()
def draw(
    nest: nn.Module,
    text: Callable[[Sequence[str]], tuple[Tensor, Tensor]] | None,
    diffusion: Diffusion,
    drawing: Drawing,
    *,
    resolutions: Sequence[tuple[int, int]],
    captions: Sequence[str],
    seed: int = 0,
    batch: int = 16,
    device: torch.device | str = "cpu",
    noise_device: torch.device | str | None = None,
    callback: Callable[[int, int, NoiseLevel, Denoised], None] | None = None,
) -> list[tuple[Tensor, ...]]:
    """One pyramid of pictures (3, H_r, W_r) in [-1, 1], low to high, a caption; picture i has seed + i.

    `resolutions` are those of the inner levels to run (all of them for full pictures). `callback(first, step,
    at, denoised)` sees the predictions on the way for the pictures from index `first` on. A picture depends
    on its caption and seed only, not on `batch` or on its neighbours.
    """
    pictures: list[tuple[Tensor, ...]] = []
    training = nest.training
    nest.eval()
    try:
        for first in range(0, len(captions), batch):
            part = list(captions[first : first + batch])
            cond = uncond = (None, None)
            if text is not None:
                cond, uncond = text(part), text([""] * len(part))
            denoise = Denoiser(
                nest, diffusion, cond=cond[0], cond_mask=cond[1], uncond=uncond[0], uncond_mask=uncond[1]
            )
            wrapped: Any = denoise
            for guidance in drawing.guidance:
                wrapped = guidance.wrap(wrapped)
            z = sample_pyramid(
                wrapped,
                diffusion,
                shapes=[(3, *size) for size in resolutions],
                seeds=[seed + first + i for i in range(len(part))],
                rule=drawing.rule,
                steps=drawing.steps,
                spacing=drawing.spacing,
                threshold=drawing.threshold,
                device=device,
                noise_device=noise_device,
                callback=None if callback is None else partial(callback, first),
            )
            pictures += [tuple(level[i] for level in z) for i in range(len(part))]
    finally:
        nest.train(training)
    return pictures
