"""The training loss: one diffusion process over a pyramid, a per-pixel mean at each level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion
from mdmkit.pyramid import Pyramid
from mdmkit.targets import convert, from_x0_eps
from mdmkit.weighting import Weighting, weight_in

__all__ = ["Objective", "pyramid_loss"]


def pyramid_loss(
    prediction: Pyramid,
    z: Pyramid,
    x: Pyramid,
    eps: Pyramid,
    t: Tensor,
    *,
    diffusion: Diffusion,
    loss_space: str,
    pixel_loss: Callable[[Tensor, Tensor], Tensor],
    weighting: Weighting,
) -> Tensor:
    """The loss of each level, (R,) low to high: E[w(logsnr_r) * mean over pixels of (prediction - target)].

    `prediction` at `z`, `x` and `eps` hold for level r the first B_r rows of the batch, `t` (B,) is in
    [0, 1]. Each level's mean runs over its own rows only, which is what dividing by its share of the batch
    does (Gu et al. 2024, mixed batches): fewer rows make the estimate noisier, not smaller.
    """
    losses = []
    for level, (said, noisy, clean, noise) in enumerate(zip(prediction, z, x, eps, strict=True)):
        alpha, sigma = diffusion.alpha_sigma(t, level, like=clean)
        said = convert(
            said.to(clean.dtype), noisy, alpha, sigma, source=diffusion.prediction, target=loss_space
        )
        wanted = from_x0_eps(clean, noise, alpha, sigma, loss_space)
        rows = pixel_loss(said, wanted).flatten(1).mean(1)
        times = t[: len(clean)]
        weight = weight_in(
            weighting, diffusion.logsnr(times, level), *diffusion.alpha_sigma(times, level), loss_space
        )
        losses.append((weight.to(rows) * rows).mean())
    return torch.stack(losses)


class Objective(nn.Module):
    """What is trained, with its loss: a nest and, where it learns too, the text encoder.

    One module, so that distributed training sees every forward pass; its names never reach a checkpoint.
    """

    def __init__(
        self,
        nest: nn.Module,
        text: nn.Module | None,
        *,
        diffusion: Diffusion,
        loss_space: str,
        pixel_loss: Callable[[Tensor, Tensor], Tensor],
        weighting: Weighting,
    ) -> None:
        super().__init__()
        self.nest, self.text = nest, text
        self.diffusion, self.loss_space = diffusion, loss_space
        self.pixel_loss, self.weighting = pixel_loss, weighting

    def forward(
        self,
        x: Pyramid,
        eps: Pyramid,
        t: Tensor,
        *,
        captions: Sequence[str] | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        micros: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Losses by level (R,) of the pictures `x`, with the noise and times that they are given.

        Text comes as captions (encoded here) or as features `cond`, never both.
        """
        if self.text is not None and captions is not None:
            cond, cond_mask = self.text(captions)
        x = self.diffusion.scaled(x)
        z = self.diffusion.noisy(x, eps, t)
        prediction = self.nest(z, t, cond, cond_mask, micros)
        # autocast ends here: losses are taken in float32
        with torch.autocast(t.device.type, enabled=False):
            return pyramid_loss(
                prediction,
                z,
                x,
                eps,
                t,
                diffusion=self.diffusion,
                loss_space=self.loss_space,
                pixel_loss=self.pixel_loss,
                weighting=self.weighting,
            )
