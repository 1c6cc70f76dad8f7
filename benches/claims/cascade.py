"""The control of claim (b): a low model, and a model that makes its pictures large, trained apart.

The second is a nest whose inner level is not noisy as the outer one is: it is always the low picture with a
little noise (noise augmentation, *Cascaded Diffusion Models*, arXiv 2106.15282), and what it predicts there
counts nothing. Drawn in sequence, the low model's picture takes the place of the data's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mdmkit import assemble
from mdmkit.diffusion import Diffusion, mixed
from mdmkit.plugins import Registry
from mdmkit.pyramid import Pyramid
from mdmkit.recipe import Recipe
from mdmkit.sampling.draw import Drawing, draw
from mdmkit.streams import normal
from mdmkit.train.ema import EMA
from mdmkit.train.loop import train
from mdmkit.train.parallel import world
from mdmkit.train.plan import Parts

__all__ = ["draw_large", "train_high"]

LOGSNR = 4.0  # of the low picture that the second model is shown: a noise of 0.13


@attrs.frozen
class Still:
    """A schedule that is at one noise level at all times."""

    value: float

    def logsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.value)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha_sigma_at(self.logsnr(t))

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


def train_high(recipe: Recipe, registry: Registry, folder: Path) -> tuple[Parts, EMA]:
    """Train the second model; its parts and the averages of its weights."""
    device = torch.device("cpu")
    parts = assemble.parts(recipe, registry, device=device)
    noise = parts.objective.diffusion
    parts.objective.diffusion = attrs.evolve(noise, schedules=(Still(LOGSNR), *noise.schedules[1:]))
    with world(device) as ranks:
        ema = train(parts, assemble.plan(recipe), device=device, world=ranks, run_dir=folder)
    return parts, ema


class Enlarging(nn.Module):
    """The second model as a network of its top level alone; `low` are the pictures that it enlarges."""

    def __init__(self, nest: nn.Module) -> None:
        super().__init__()
        self.nest = nest
        self.low = torch.zeros(0)

    def forward(
        self,
        z: Pyramid,
        t: Tensor,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        micros: Mapping[str, Tensor] | None = None,
    ) -> Pyramid:
        rows = len(z[0]) // len(self.low)  # guidance asks with and without the caption at once
        return self.nest((self.low.repeat(rows, 1, 1, 1), z[0]), t, cond, cond_mask, micros)[1:]


def draw_large(
    parts: Parts,
    diffusion: Diffusion,
    drawing: Drawing,
    low: Sequence[Tensor],
    captions: Sequence[str],
    *,
    seed: int,
    batch: int = 64,
) -> Tensor:
    """Pictures (B, 3, H, W) of the second model for low ones and their captions; picture i has seed + i."""
    model = Enlarging(parts.nest)
    top = Diffusion(schedules=diffusion.schedules[1:], prediction=diffusion.prediction)
    alpha, sigma = (x.item() for x in Still(LOGSNR).alpha_sigma(torch.zeros(())))
    pictures: list[Any] = []
    for first in range(0, len(captions), batch):
        some = range(first, min(first + batch, len(captions)))
        noise = [normal(tuple(low[i].shape), seed + i, "cascade") for i in some]
        pairs = zip(some, noise, strict=True)
        model.low = torch.stack([mixed(low[i], eps, alpha, sigma) for i, eps in pairs])
        part = [captions[i] for i in some]
        drawn = draw(
            model,
            parts.text,  # pyright: ignore[reportArgumentType]
            top,
            drawing,
            resolutions=parts.resolutions[1:],
            captions=part,
            seed=seed + first,
            batch=batch,
        )
        pictures += [picture for (picture,) in drawn]
    return torch.stack(pictures)
