"""Loss weights over logsnr, each in the space it is defined in, and the same weight in the other spaces."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor, nn

from mdmkit.targets import SPACES

__all__ = [
    "P2",
    "EDMWeight",
    "Learned",
    "MinSNR",
    "SigmoidWeight",
    "SoftMinSNR",
    "Uncertainty",
    "Uniform",
    "Weighting",
    "weight_in",
]


@runtime_checkable
class Weighting(Protocol):
    """A weight over logsnr, on the squared loss in `space`; `space` None: in whichever the loss is taken.

    logsnr is that of the level, after its shift, and all that a weight sees. The released code's VDM weights
    are not of this kind: SNR(i - 1) / SNR(i) - 1 at the row's index i of the table, which tells how fast the
    schedule falls there, before any shift, the same at every level, divided by the sum over the batch. Their
    continuous form, d(-logsnr)/dt on the eps loss, is a density of t and not a weight: `Uniform("eps")` with
    times of a uniform logsnr (`mdmkit.times.UniformLogSNR`) is the ELBO of *Variational Diffusion Models*,
    arXiv 2107.00630, up to a constant, at every level at once.
    """

    @property
    def space(self) -> str | None: ...

    def weight(self, logsnr: Tensor) -> Tensor:
        """The weight, >= 0, of the same shape as `logsnr`."""
        ...


@attrs.frozen
class Uniform:
    """Weight 1 on the loss in `space`; where not given, in the space the loss is taken in."""

    space: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.space is not None and self.space not in SPACES:
            raise ValueError(f"unknown space {self.space!r}; expected one of {', '.join(SPACES)}")

    def weight(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


@attrs.frozen
class MinSNR:
    """min(SNR, gamma) on the x0 loss: clean pictures count no more than those at SNR = gamma.

    The same is min(1, gamma / SNR) on the eps loss, min(SNR, gamma) / (1 + sqrt(SNR))^2 on flow and, where
    alpha^2 + sigma^2 = 1, min(SNR, gamma) / (1 + SNR) on v. *Min-SNR*, arXiv 2303.09556.
    """

    gamma: float = 5.0

    def __attrs_post_init__(self) -> None:
        check_positive(gamma=self.gamma)

    @property
    def space(self) -> str:
        return "x0"

    def weight(self, logsnr: Tensor) -> Tensor:
        return logsnr.clamp(max=math.log(self.gamma)).exp()


@attrs.frozen
class SoftMinSNR:
    """SNR gamma / (SNR + gamma) on the x0 loss: half the harmonic mean of SNR and gamma, without a corner.

    The same is gamma / (SNR + gamma) on the eps loss, which is `SigmoidWeight(b=ln gamma)`; with
    alpha^2 + sigma^2 = 1 it is SNR gamma / ((SNR + gamma) (1 + SNR)) on v. In sigma_edm:
    1 / (sigma^2 + 1 / gamma). *HDiT*, arXiv 2401.11605, with gamma = 4 there.
    """

    gamma: float = 4.0

    def __attrs_post_init__(self) -> None:
        check_positive(gamma=self.gamma)

    @property
    def space(self) -> str:
        return "x0"

    def weight(self, logsnr: Tensor) -> Tensor:
        return self.gamma * (logsnr - math.log(self.gamma)).sigmoid()


@attrs.frozen
class SigmoidWeight:
    """sigmoid(b - logsnr) on the eps loss: what is noisier than b counts alike, what is cleaner less.

    The same is e^b sigmoid(logsnr - b) on the x0 loss, which is `SoftMinSNR(gamma=e^b)`; with
    alpha^2 + sigma^2 = 1 it is sigmoid(b - logsnr) sigmoid(logsnr) on v. The papers weight an integral over
    logsnr: take times of a uniform logsnr (`mdmkit.times.UniformLogSNR`) for just that; uniform t counts
    more where the schedule falls slowly. *VDM++*, arXiv 2303.00848; *Simpler Diffusion*, arXiv 2410.19324.
    """

    b: float = 0.0

    @property
    def space(self) -> str:
        return "eps"

    def weight(self, logsnr: Tensor) -> Tensor:
        return (self.b - logsnr).sigmoid()


@attrs.frozen
class EDMWeight:
    """SNR + 1 / sigma_data^2 on the x0 loss, which is EDM's (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    The same is 1 + 1 / (SNR sigma_data^2) on the eps loss; with alpha^2 + sigma^2 = 1 it is
    (SNR + 1 / sigma_data^2) / (1 + SNR) on v, so that sigma_data = 1 is weight 1 on v. `sigma_data`: the
    standard deviation of the pictures' pixels, EDM's is 0.5. *EDM*, arXiv 2206.00364, table 1.
    """

    sigma_data: float = 0.5

    def __attrs_post_init__(self) -> None:
        check_positive(sigma_data=self.sigma_data)

    @property
    def space(self) -> str:
        return "x0"

    def weight(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp() + self.sigma_data**-2


@attrs.frozen
class P2:
    """1 / (k + SNR)^gamma on the eps loss: clean pictures, whose noise is easily seen, count less.

    The same is SNR / (k + SNR)^gamma on the x0 loss and, with alpha^2 + sigma^2 = 1,
    SNR / ((1 + SNR) (k + SNR)^gamma) on v. k = 1, gamma = 1 is `SoftMinSNR(gamma=1)`. *P2*, arXiv 2204.00227.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __attrs_post_init__(self) -> None:
        check_positive(k=self.k, gamma=self.gamma)

    @property
    def space(self) -> str:
        return "eps"

    def weight(self, logsnr: Tensor) -> Tensor:
        return (self.k + logsnr.exp()) ** -self.gamma


@attrs.frozen
class Learned:
    """Weights that are learned with the network: loss / e^u + u, with u(logsnr) a head for each level.

    For each noise level e^u comes to the mean loss there, so that all noise levels count alike, in whichever
    space the loss is taken: the constant is 1 / E[loss] in each. `heads` makes what learns; `weight` is that
    of the loss before anything is learned. *EDM2*, arXiv 2312.02696.
    """

    channels: int = 128

    def __attrs_post_init__(self) -> None:
        check_positive(channels=self.channels)

    @property
    def space(self) -> None:
        return None

    def weight(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)

    def heads(self, levels: int) -> Uncertainty:
        """A head for each level; u is 0 everywhere at the start."""
        return Uncertainty(levels, channels=self.channels)


class Uncertainty(nn.Module):
    """u of each level: one linear layer over Fourier features sqrt(2) cos(2 pi (f c + phase)).

    c = ln(sigma_edm) / 4 = -logsnr / 8, EDM's c_noise, of the level's own logsnr. The frequencies f are
    spread as a standard normal, the phases over a turn, as in EDM2; both by a rule, so that nothing is drawn.
    A level more leaves the heads of the others as they are.
    """

    def __init__(self, levels: int, *, channels: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Head(channels) for _ in range(levels))
        order = torch.arange(channels, dtype=torch.float64)
        frequencies = torch.special.ndtri((order + 0.5) / channels)
        phases = (order * (math.sqrt(5) - 1) / 2) % 1  # golden ratio: even at any number of channels
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.register_buffer("phases", phases.float(), persistent=False)

    def forward(self, logsnr: Tensor, level: int) -> Tensor:
        """u at these noise levels (B,) of a level, float32."""
        noise = -logsnr.float() / 8
        angle = noise[:, None] * self.get_buffer("frequencies") + self.get_buffer("phases")
        return self.levels[level](math.sqrt(2) * torch.cos(2 * math.pi * angle))


class Head(nn.Module):
    """A linear layer to one number, at zero; its weight is a vector, which weight decay leaves alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight / math.sqrt(len(self.weight)) + self.bias


def check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"expected {name} > 0, got {value}")


def weight_in(weighting: Weighting, logsnr: Tensor, alpha: Tensor, sigma: Tensor, loss_space: str) -> Tensor:
    """The weight that gives, on the squared loss in `loss_space`, what `weighting` means in its own space.

    At a given z the errors are proportional: with d that of x0, eps has -(alpha / sigma) d,
    v has -((alpha^2 + sigma^2) / sigma) d and flow has -((alpha + sigma) / sigma) d, so that the factor is
    the squared ratio of these. It follows from the definitions in `mdmkit.targets`. All tensors broadcast;
    infinite where `loss_space` sees nothing of the error (eps at alpha = 0, x0 at sigma = 0).
    """
    weight = weighting.weight(logsnr)
    if weighting.space is None or weighting.space == loss_space:
        return weight
    error = {"x0": sigma, "eps": alpha, "v": alpha**2 + sigma**2, "flow": alpha + sigma}
    return weight * (error[weighting.space] / error[loss_space]) ** 2
