"""What each level of a nest knows when: its loss and the share of its picture that it explains, over t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.pyramid import Pyramid, ratio
from mdmkit.sampling.denoise import Denoise
from mdmkit.streams import normal
from mdmkit.targets import from_x0_eps
from mdmkit.train.objective import pyramid_loss
from mdmkit.weighting import Weighting

__all__ = ["Inspection", "Knowledge"]


class Knowledge(NamedTuple):
    """Means over pictures at each level and time, float64 (levels, times), low to high.

    `loss`: the training loss. The others are shares of the variance of x_r that a prediction explains, 1 -
    E|x - x0|^2 / E|x - mean|^2 with one mean a channel: `whole`, level r's prediction in the whole nest;
    `inner`, in a nest that ends with level r; `below`, the prediction of a nest that ends with level r - 1,
    enlarged (NaN for level 0, and where pictures are grids of frames); `pixel`, what the best straight line
    from a noisy pixel to the clean one explains, which sees no other pixel, no other level and no caption.
    """

    loss: Tensor
    whole: Tensor
    inner: Tensor
    below: Tensor
    pixel: Tensor


class Inspection:
    """Shows a nest noisy pictures at `times`, and keeps what it says of them.

    `loss_space`, `pixel_loss` and `weighting` as in training (`mdmkit.train.objective`); `enlarge`: whether a
    level's picture is the one below, enlarged, which grids of frames are not. Noise depends on (`seed`,
    position, level), and is the same at every time, for curves that are smooth.
    """

    def __init__(
        self,
        times: Sequence[float],
        *,
        loss_space: str,
        pixel_loss: Callable[[Tensor, Tensor], Tensor],
        weighting: Weighting,
        enlarge: bool = True,
        seed: int = 0,
    ) -> None:
        self.times, self.loss_space, self.pixel_loss = list(times), loss_space, pixel_loss
        self.weighting, self.enlarge, self.seed = weighting, enlarge, seed
        self.pictures = 0
        self.sums: dict[str, Tensor] = {}
        self.snr = torch.zeros(0, 0)  # (levels, times)

    @torch.no_grad()
    def examine(
        self, denoise: Denoise, diffusion: Diffusion, pictures: Sequence[Tensor], positions: Sequence[int]
    ) -> None:
        """Takes a pyramid of pictures in [-1, 1] and the denoiser that knows their captions."""
        x = diffusion.scaled(pictures)
        for level, clean in enumerate(x):
            by_channel = clean.double().movedim(1, 0).flatten(1)
            self._add(f"sum.{level}", by_channel.sum(1))
            self._add(f"squares.{level}", by_channel.square().sum())
            self._add(f"numbers.{level}", torch.tensor(float(clean.numel())))
        eps = tuple(
            torch.stack([
                normal(tuple(clean.shape[1:]), self.seed, position, level, "inspection",
                       device=clean.device, dtype=clean.dtype)
                for position in positions
            ])
            for level, clean in enumerate(x)
        )  # fmt: skip
        rows = [self._at(t, denoise, diffusion, x, eps) for t in self.times]
        for name in ("loss", "whole", "inner", "below"):
            self._add(name, torch.stack([row[name] for row in rows], 1))
        logsnr = [diffusion.at(t).logsnr[: len(x)] for t in self.times]
        self.snr = torch.tensor(logsnr, dtype=torch.float64).T.exp()
        self.pictures += len(positions)

    def _at(
        self, t: float, denoise: Denoise, diffusion: Diffusion, x: Pyramid, eps: Pyramid
    ) -> dict[str, Tensor]:
        """Sums over pictures at one time, a number a level."""
        at, times = diffusion.at(t), torch.full((len(x[0]),), t, dtype=torch.float64)
        z = diffusion.noisy(x, eps, times)
        said = [denoise(z[: level + 1], at) for level in range(len(x))]
        whole = said[-1]
        predicted = tuple(
            from_x0_eps(clean, noise, at.alpha[r], at.sigma[r], self.loss_space)
            for r, (clean, noise) in enumerate(zip(whole.x0, whole.eps, strict=True))
        )
        loss = pyramid_loss(
            predicted,
            z,
            x,
            eps,
            times,
            diffusion=attrs.evolve(diffusion, prediction=self.loss_space),
            loss_space=self.loss_space,
            pixel_loss=self.pixel_loss,
            weighting=self.weighting,
        )
        scales = diffusion.scales or (1.0,) * len(x)
        below = [torch.tensor(torch.nan, dtype=torch.float64)]
        for r in range(1, len(x)):
            if not self.enlarge:
                below.append(below[0])
                continue
            guess = said[r - 1].x0[r - 1] * (scales[r] / scales[r - 1])
            factors = [float(factor) for factor in ratio(x[r].shape[2:], guess.shape[2:])]
            below.append(_distance(F.interpolate(guess, scale_factor=factors, mode="nearest"), x[r]))
        return {
            "loss": loss.plain.double().cpu() * len(x[0]),
            "whole": torch.stack([_distance(whole.x0[r], clean) for r, clean in enumerate(x)]),
            "inner": torch.stack([_distance(said[r].x0[r], clean) for r, clean in enumerate(x)]),
            "below": torch.stack(below),
        }

    def result(self) -> Knowledge:
        """Over all pictures so far. Raises ValueError where none was seen."""
        if not self.pictures:
            raise ValueError("expected pictures, came none")
        levels = len(self.sums["loss"])
        squares = torch.stack([self.sums[f"squares.{r}"] for r in range(levels)])
        numbers = torch.stack([self.sums[f"numbers.{r}"] for r in range(levels)])
        sums = torch.stack([self.sums[f"sum.{r}"] for r in range(levels)])
        about_mean = (squares - (sums.square().sum(1) / (numbers / sums.shape[1])))[:, None]
        told = self.snr * (about_mean / numbers[:, None])
        return Knowledge(
            loss=self.sums["loss"] / self.pictures,
            whole=1 - self.sums["whole"] / about_mean,
            inner=1 - self.sums["inner"] / about_mean,
            below=1 - self.sums["below"] / about_mean,
            # of a pixel of variance v: E[x | z] explains SNR v / (1 + SNR v)
            pixel=told / (1 + told),
        )

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double().cpu()
        self.sums[name] = self.sums[name] + value if name in self.sums else value


def _distance(guess: Tensor, clean: Tensor) -> Tensor:
    return (guess - clean).double().square().sum().cpu()
