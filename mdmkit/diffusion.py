"""The diffusion process over a pyramid: schedules of levels, the prediction space, noise levels as values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mdmkit.pyramid import Pyramid, normalize_resolution
from mdmkit.schedules import NoiseSchedule
from mdmkit.targets import SPACES, to_x0

__all__ = ["Diffusion", "NoiseLevel", "mixed", "signal_scales"]


def mixed(x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The forward process: `z = alpha x0 + sigma eps`."""
    return alpha * x0 + sigma * eps


@attrs.frozen
class NoiseLevel:
    """Signal and noise scale of every level, low to high, at one time `t`."""

    t: float
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    @property
    def logsnr(self) -> tuple[float, ...]:
        """ln(alpha^2 / sigma^2) of every level; infinite where one of them is 0."""
        return tuple(
            2 * (log(alpha) - log(sigma)) for alpha, sigma in zip(self.alpha, self.sigma, strict=True)
        )


@attrs.frozen
class Diffusion:
    """`z_r(t) = alpha_r(t) x_r + sigma_r(t) eps_r` at every level r, noise independent per level.

    `schedules`: one a level, low to high (`mdmkit.schedules.shift_levels`). `prediction`: the space of the
    network's output, one of x0, eps, v, flow. *Matryoshka Diffusion Models*, arXiv 2310.15111, section 3.1.

    `scales`: what the pictures of each level are multiplied by to be the x_r of the process (`scaled`), and
    divided by again to be seen (`pictures`); all 1 where not given. It is the other way to shift a level's
    noise: *On the Importance of Noise Scheduling for Diffusion Models*, arXiv 2301.10972, section 2.2.

    `given`: so many inner levels are no part of what is denoised, but what the network is told of the rest:
    at every time it sees them with the little noise `given_noise`, sqrt(1 - s^2) x_r + s eps_r, so that it
    does not take what another model drew for more than it is. *Cascaded Diffusion Models*, arXiv 2106.15282,
    section 4.2, with one strength that the network needs not be told.
    """

    schedules: tuple[NoiseSchedule, ...] = attrs.field(converter=tuple)
    prediction: str = "v"
    scales: tuple[float, ...] | None = None
    given: int = 0
    given_noise: float = 0.1

    def __attrs_post_init__(self) -> None:
        if self.scales is not None and (len(self.scales) != len(self.schedules) or min(self.scales) <= 0):
            raise ValueError(
                f"expected a scale > 0 for each of {len(self.schedules)} levels, got {list(self.scales)}"
            )
        if not self.schedules:
            raise ValueError("expected one schedule a level, got none")
        if not 0 <= self.given < len(self.schedules) or not 0 <= self.given_noise < 1:
            raise ValueError(
                f"expected 0 <= given < {len(self.schedules)} levels and 0 <= given_noise < 1, got "
                f"{self.given} and {self.given_noise}"
            )
        if self.prediction not in SPACES:
            raise ValueError(f"unknown prediction {self.prediction!r}; expected one of {', '.join(SPACES)}")

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return len(self.schedules)

    def at(self, t: float) -> NoiseLevel:
        """The noise level at time `t` in [0, 1], computed in float64."""
        time = torch.tensor(t, dtype=torch.float64)
        scales = [schedule.alpha_sigma(time) for schedule in self.schedules]
        return NoiseLevel(
            t=float(t),
            alpha=tuple(alpha.item() for alpha, _ in scales),
            sigma=tuple(sigma.item() for _, sigma in scales),
        )

    def scaled(self, pictures: Sequence[Tensor]) -> Pyramid:
        """Pictures as the process has them."""
        return tuple(x * scale if scale != 1 else x for x, scale in self.by_level(pictures))

    def pictures(self, x: Sequence[Tensor]) -> Pyramid:
        """The inverse of `scaled`."""
        return tuple(x / scale if scale != 1 else x for x, scale in self.by_level(x))

    def estimates(
        self,
        said: Sequence[Tensor],
        z: Sequence[Tensor],
        scales: Sequence[tuple[Tensor | float, Tensor | float]],
    ) -> Pyramid:
        """x0 of predictions at z, at these (alpha, sigma), cut to the range of pictures.

        What a network with self-conditioning is shown of its own: *Analog Bits*, arXiv 2208.04202, section 3,
        where it is not cut; cut, it is bounded also where alpha is nearly 0 and the prediction is eps. Of a
        given level it is what is seen there.
        """
        found = tuple(
            noisy if level < self.given else to_x0(value.to(noisy.dtype), noisy, *scale, self.prediction)
            for level, (value, noisy, scale) in enumerate(zip(said, z, scales, strict=True))
        )
        return tuple(x0.clamp(-scale, scale) for x0, scale in self.by_level(found))

    def by_level(self, x: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        scales = self.scales or (1.0,) * len(x)
        return list(zip(x, scales[: len(x)], strict=True))

    def logsnr(self, t: Tensor, level: int) -> Tensor:
        """logsnr of one level at times `t`, of t's shape and dtype; finite."""
        return self.schedules[level].logsnr(t)

    def alpha_sigma(self, t: Tensor, level: int, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Signal and noise scale of one level at times `t (B,)`.

        With `like` (rows, C, ...) they are those of the first `len(like)` rows, shaped to broadcast against
        it, in its dtype and on its device; without, they are like `t`.
        """
        if like is None:
            return self.schedules[level].alpha_sigma(t)
        alpha, sigma = self.schedules[level].alpha_sigma(t[: len(like)])
        shape = (-1,) + (1,) * (like.ndim - 1)
        return alpha.view(shape).to(like), sigma.view(shape).to(like)

    def noisy(self, x0: Sequence[Tensor], eps: Sequence[Tensor], t: Tensor) -> Pyramid:
        """The noisy pyramid of `x0` at times `t (B,)`; level r has the batch's first `len(x0[r])` rows."""
        noisy = []
        for level, (clean, noise) in enumerate(zip(x0, eps, strict=True)):
            if level < self.given:
                noisy.append(self.shown(clean, noise))
                continue
            alpha, sigma = self.alpha_sigma(t, level, like=clean)
            noisy.append(mixed(clean, noise, alpha, sigma))
        return tuple(noisy)

    def shown(self, x0: Tensor, eps: Tensor) -> Tensor:
        """What a network sees of a level that is given, at every time."""
        return mixed(x0, eps, math.sqrt(1 - self.given_noise**2), self.given_noise)


def signal_scales(
    resolutions: Sequence[int | Sequence[int]], *, scale: float = 1.0, power: float = 0.0
) -> tuple[float, ...] | None:
    """`scales` of a diffusion: level r has scale / (side_r / side_0)^power; None where all are 1.

    At power 1 the scale is the released models' without a shift (`schedule_shifted: false`). Sides that are
    not equal count by their geometric mean.
    """
    area = [math.prod(normalize_resolution(size)[-2:]) for size in resolutions]
    scales = tuple(scale * (own / area[0]) ** (-power / 2) for own in area)
    return None if all(value == 1 for value in scales) else scales


def log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
