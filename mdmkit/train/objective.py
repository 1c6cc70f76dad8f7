"""The training loss: one diffusion process over a pyramid, a per-pixel mean at each level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion
from mdmkit.pyramid import Pyramid
from mdmkit.targets import convert, from_x0_eps
from mdmkit.weighting import Weighting, weight_in

__all__ = ["Losses", "Objective", "pyramid_loss", "row_losses"]


class Losses(NamedTuple):
    """The losses of a pyramid: `trained` (R,), whose gradients count, and what is told of them, without.

    `plain` (R,): the same before a learned weighting changes it, for the log. `rows`: at each level, what its
    rows (B_r,) have in `trained`, before importance weights and without the u of a learned weighting.
    """

    trained: Tensor
    plain: Tensor
    rows: tuple[Tensor, ...]


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
    uncertainty: Callable[[Tensor, int], Tensor] | None = None,
    importance: Tensor | None = None,
) -> Losses:
    """The loss of each level, (R,) low to high: E[w(logsnr_r) * mean over pixels of (prediction - target)].

    `prediction` at `z`, `x` and `eps` hold for level r the first B_r rows of the batch, `t` (B,) is in
    [0, 1]. Each level's mean runs over its own rows only, which is what dividing by its share of the batch
    does (Gu et al. 2024, mixed batches): fewer rows make the estimate noisier, not smaller.

    `uncertainty`: u(logsnr_r, r) of a learned weighting; what is trained is loss / e^u + u of each row
    (*EDM2*, arXiv 2312.02696). `importance` (B,): weights of rows whose times are not drawn as they count.
    A level that is given (`Diffusion`) has the loss 0, whatever is said of it.
    """
    trained, plain, by_row = [], [], []
    for level, (said, noisy, clean, noise) in enumerate(zip(prediction, z, x, eps, strict=True)):
        if level < diffusion.given:
            nothing = torch.zeros(len(clean), dtype=clean.dtype, device=clean.device)
            for kept, value in ((trained, nothing.sum()), (plain, nothing.sum()), (by_row, nothing)):
                kept.append(value)
            continue
        alpha, sigma = diffusion.alpha_sigma(t, level, like=clean)
        said = convert(
            said.to(clean.dtype), noisy, alpha, sigma, source=diffusion.prediction, target=loss_space
        )
        wanted = from_x0_eps(clean, noise, alpha, sigma, loss_space)
        rows = pixel_loss(said, wanted).flatten(1).mean(1)
        times = t[: len(clean)]
        logsnr = diffusion.logsnr(times, level)
        weight = weight_in(weighting, logsnr, *diffusion.alpha_sigma(times, level), loss_space)
        rows = weight.to(rows) * rows
        counted = 1.0 if importance is None else importance[: len(rows)].to(rows)
        plain.append((counted * rows).mean().detach())
        if uncertainty is None:
            trained.append((counted * rows).mean())
        else:
            u = uncertainty(logsnr, level).to(rows)
            rows = rows * torch.exp(-u)
            trained.append((counted * (rows + u)).mean())
        by_row.append(rows.detach())
    return Losses(torch.stack(trained), torch.stack(plain), tuple(by_row))


def row_losses(rows: Sequence[Tensor], level_weights: Tensor) -> Tensor:
    """What each row (B,) adds to the loss of all levels, on average over the rows that stop early or do not.

    A level's mean runs over its own rows, so that each of them counts for B / B_r.
    """
    total = torch.zeros_like(rows[0])
    for own, weight in zip(rows, level_weights, strict=False):
        total[: len(own)] += weight * len(total) / len(own) * own
    return total


class Objective(nn.Module):
    """What is trained, with its loss: a nest and, where it learns too, the text encoder.

    One module, so that distributed training sees every forward pass; its names never reach a checkpoint.
    `uncertainty`: the heads of a learned weighting.
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
        uncertainty: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.uncertainty = uncertainty
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
        importance: Tensor | None = None,
        estimated: Sequence[bool] | None = None,
    ) -> Losses:
        """Losses by level of the pictures `x`, with the noise and times that they are given.

        Text comes as captions (encoded here) or as features `cond`, never both. `importance` (B,) as for
        `pyramid_loss`. `estimated` (B,): rows for which the network is shown its own estimate, of a forward
        pass of these rows before; None: it is built without self-conditioning.
        """
        if self.text is not None and captions is not None:
            cond, cond_mask = self.text(captions)
        x = self.diffusion.scaled(x)
        z = self.diffusion.noisy(x, eps, t)
        told: dict[str, Any] = {}
        if estimated is not None and any(estimated):
            told["previous"] = self.estimates(z, t, estimated, cond, cond_mask, micros)
        prediction = self.nest(z, t, cond, cond_mask, micros, **told)
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
                uncertainty=self.uncertainty,
                importance=importance,
            )

    @torch.no_grad()
    def estimates(
        self,
        z: Pyramid,
        t: Tensor,
        estimated: Sequence[bool],
        cond: Tensor | None,
        cond_mask: Tensor | None,
        micros: Mapping[str, Tensor] | None,
    ) -> list[Tensor | None]:
        """What the network says of some rows without an estimate, at each level, zero for the others."""
        picked = [row for row, yes in enumerate(estimated) if yes]

        def some(x: Tensor) -> Tensor:
            return x[[row for row in picked if row < len(x)]]

        levels = sum(picked[0] < len(level) for level in z)
        seen, at = [some(level) for level in z[:levels]], some(t)
        text = [None if x is None else some(x) for x in (cond, cond_mask)]
        said = self.nest(seen, at, *text, micros and {key: some(value) for key, value in micros.items()})
        # older versions of torch hand the weights that autocast has cast here, which know no gradient, to the
        # pass that needs them (pytorch issue 112583)
        torch.clear_autocast_cache()
        scales = [self.diffusion.alpha_sigma(at, r, like=level) for r, level in enumerate(seen)]
        previous: list[Tensor | None] = [None] * len(z)
        for r, x0 in enumerate(self.diffusion.estimates(said, seen, scales)):
            whole = torch.zeros_like(z[r])
            whole[[row for row in picked if row < len(z[r])]] = x0
            previous[r] = whole
        return previous
