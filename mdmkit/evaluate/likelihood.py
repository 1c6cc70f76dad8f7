"""Likelihood: variational bounds of pictures at every level of a nest, in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel, mixed
from mdmkit.pyramid import Pyramid
from mdmkit.sampling.denoise import Denoise
from mdmkit.schedules import time_at
from mdmkit.streams import normal

__all__ = ["Likelihood", "Terms", "bound", "midpoints", "noise_errors", "prior_nats", "reading_nats", "terms"]

SHADES = 256  # of an 8-bit pixel: k / 127.5 - 1


class Terms(NamedTuple):
    """What a bound is the sum of: nats of each picture at each level, float64 (levels, B), low to high."""

    prior: Tensor
    diffusion: Tensor
    reading: Tensor


@torch.no_grad()
def terms(
    denoise: Denoise,
    diffusion: Diffusion,
    pictures: Sequence[Tensor],
    *,
    positions: Sequence[int],
    seed: int = 0,
    draws: int = 16,
    logsnr_max: float = 12.0,
) -> Terms:
    """The parts of a nest's variational bound, for 8-bit pictures at its innermost `len(pictures)` levels.

    `pictures`: a pyramid in [-1, 1]; the top level has 8 bits, those below are its averages. The process runs
    from t = 1 to where the top level's logsnr is `logsnr_max`, or as near as its schedule comes. Of level r:

    prior      KL(q(z_r(1) | x_r) || N), N the noise that sampling begins with
    diffusion  1/2 times the integral of |eps_r - eps_r(z)|^2 over logsnr_r, where z is every level's noisy
               picture; one draw of noise in the middle of each of `draws` parts of equal logsnr
    reading    -ln p(x_r | z_r) at the end, each pixel rounded to one of 256 values by what the noise allows

    **A bound.** With top level r, `sum of prior and diffusion over levels 0 .. r, + reading of r` is at least
    -ln P(x_r), in expectation over the noise: the noisy pictures of all levels are the latent variables, of
    which the last one of level r is read as pixels. It holds for the inner r + 1 levels run alone, as they
    are sampled alone.

    **Not a bound.** A level's own `prior + diffusion + reading` in a larger nest. Its denoiser sees the noisy
    pictures of the other levels, those above it too, which tell what this level is an average of; so that is
    a bound on the nats that a level takes *given* them, smaller than -ln P(x_r) as a rule. Nor is a sum that
    leaves out levels below: what they tell a level has its price there.

    `logsnr_max`: any gives a bound. At 12 the last noise is a third of a step of 8 bits, and a model that
    knows nothing of such steps loses 0.02 bits a pixel; at 13.3, where VDM ends, 0.6, which models that know
    them get back. What noisy levels below still tell of the last one is not used in reading: that costs, for
    each of their pixels, 1/2 ln(1 + SNR_low / (n SNR_r)) with n pixels of level r in one: 0.35 nats at shift
    power 2, and less below.

    Noise depends on (`seed`, position, level) alone. *Variational Diffusion Models*, arXiv 2107.00630, eq. 8,
    12 and 19, and appendix E, here for a pyramid. Raises ValueError for draws below 1 or positions that are
    not one a picture.
    """
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    if len(positions) != len(pictures[0]):
        raise ValueError(f"expected a position for each of {len(pictures[0])} pictures, got {len(positions)}")
    x = diffusion.scaled(pictures)
    ends = torch.tensor([logsnr_max], dtype=torch.float64)
    # the clean picture itself, at t = 0, has no noise to read it through
    last = max(time_at(diffusion.schedules[len(x) - 1], ends).item(), torch.finfo(torch.float64).tiny)
    times, widths = midpoints(diffusion, last, levels=len(x), draws=draws)
    prior = torch.stack([prior_nats(clean, diffusion.at(1.0).logsnr[r]) for r, clean in enumerate(x)])
    integral = torch.zeros_like(prior)
    for draw, t in enumerate(times.tolist()):
        noise = _noise(x, seed, positions, draw)
        errors = noise_errors(denoise, x, noise, diffusion.at(t))
        integral += torch.stack(errors) * widths[:, draw, None].to(prior) / 2
    end, noise = diffusion.at(last), _noise(x, seed, positions, draws)
    z = [mixed(clean, noise[r], end.alpha[r], end.sigma[r]) for r, clean in enumerate(x)]
    scales = diffusion.scales or (1.0,) * len(x)
    reading = [
        reading_nats(pictures[r], noisy, end.alpha[r] * scales[r], end.sigma[r]) for r, noisy in enumerate(z)
    ]
    return Terms(prior, integral, torch.stack(reading))


def bound(of: Terms) -> Tensor:
    """What -ln P of the top level's pictures is at most, in expectation, (B,): see `terms`."""
    return of.prior.sum(0) + of.diffusion.sum(0) + of.reading[-1]


def noise_errors(denoise: Denoise, x: Sequence[Tensor], noise: Pyramid, at: NoiseLevel) -> list[Tensor]:
    """|eps_r - eps_r(z)|^2 of each picture at each level, float64 (B,), where z is `x` in this noise."""
    z = tuple(mixed(clean, noise[r], at.alpha[r], at.sigma[r]) for r, clean in enumerate(x))
    said = denoise(z, at)
    pairs = zip(noise, said.eps, strict=True)
    return [(eps - told).double().square().flatten(1).sum(1) for eps, told in pairs]


def midpoints(diffusion: Diffusion, last: float, *, levels: int, draws: int) -> tuple[Tensor, Tensor]:
    """The middle of each of `draws` parts of [last, 1] of equal logsnr of level 0, and how wide each part is.

    Times (draws,); widths (levels, draws) in each level's own logsnr; float64. The middle, and no random time
    in each part (as *Variational Diffusion Models*, arXiv 2107.00630, appendix I.1, draws for training): what
    is integrated is smooth in logsnr and flat at both ends, so that 16 middles are right to 0.002 bits for
    normal pixels, where random times leave a deviation of 0.25.
    """
    schedule = diffusion.schedules[0]
    clean, noisy = schedule.logsnr(torch.tensor([last, 1.0], dtype=torch.float64))
    share = torch.arange(2 * draws + 1, dtype=torch.float64) / (2 * draws)
    times = time_at(schedule, torch.lerp(clean, noisy, share))
    times[0], times[-1] = last, 1.0  # where a curve is flat, many times have one logsnr
    widths = torch.stack([-diffusion.logsnr(times[::2], level).diff() for level in range(levels)])
    return times[1::2], widths


def prior_nats(x: Tensor, logsnr: float) -> Tensor:
    """KL of z = alpha x + sigma eps from the noise of z's own scale that sampling begins with, (B,) float64.

    With s^2 = alpha^2 + sigma^2, which is 1 for variance-preserving schedules, the sum of
    1/2 (alpha^2 / s^2 (x^2 - 1) + ln(s^2 / sigma^2)). *Variational Diffusion Models*, arXiv 2107.00630,
    eq. 8.
    """
    at = torch.tensor(logsnr, dtype=torch.float64, device=x.device)
    pixels = at.sigmoid() * (x.double().square() - 1) + torch.nn.functional.softplus(at)
    return pixels.flatten(1).sum(1) / 2


def reading_nats(picture: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """-ln of the probability that each pixel of `z` is read as what it is in 8 bits, (B,) float64.

    Of the 256 values, each has probability in proportion to the density of `z` given it. *Variational
    Diffusion Models*, arXiv 2107.00630, eq. 8 and appendix E.
    """
    z = z.double()
    shades = torch.arange(SHADES, dtype=torch.float64, device=z.device) / 127.5 - 1
    index = ((picture.double() + 1) * 127.5).round().clamp(0, SHADES - 1)

    def likeness(shade: Tensor) -> Tensor:
        return -((z - alpha * shade) / sigma).square() / 2

    total = likeness(shades[0])
    for shade in shades[1:]:  # one after another: 256 of a large picture at once would fill the memory
        total = torch.logaddexp(total, likeness(shade))
    return (total - likeness(index / 127.5 - 1)).flatten(1).sum(1)


def _noise(x: Sequence[Tensor], seed: int, positions: Sequence[int], draw: int) -> Pyramid:
    def row(level: int, position: int) -> Tensor:
        key = (seed, position, level, draw, "likelihood")
        return normal(tuple(x[level].shape[1:]), *key, device=x[level].device, dtype=x[level].dtype)

    return tuple(torch.stack([row(r, position) for position in positions]) for r in range(len(x)))


class Likelihood:
    """Bits per dimension of the data's own pictures, by the variational bounds of `terms`.

    `draws`, `logsnr_max` and `seed` as there. device: taken as every metric does; pictures bring their own.

    `result` holds, for each level r, in bits per number of its pictures (height x width x 3):
    `bits.r`, a bound on -log2 P(x_r | caption) where the nest runs up to level r alone; and `given.r`, what
    level r takes in the whole nest, given every other level's noisy picture (no bound on its probability).
    `pictures`: how many were seen. Raises ValueError where none was.
    """

    def __init__(
        self, *, draws: int = 16, logsnr_max: float = 12.0, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        if draws < 1:
            raise ValueError(f"expected draws >= 1, got {draws}")
        self.draws, self.logsnr_max, self.seed, self.device = draws, logsnr_max, seed, device
        self.sums: dict[str, float] = {}
        self.pictures = 0

    def examine(
        self,
        denoise: Denoise,
        diffusion: Diffusion,
        pictures: Sequence[Tensor],
        positions: Sequence[int],
    ) -> None:
        """Takes 8-bit pictures of the data, a pyramid in [-1, 1], and the denoiser of their captions."""
        for level in range(len(pictures)):
            seen = terms(
                denoise,
                diffusion,
                pictures[: level + 1],
                positions=positions,
                seed=self.seed,
                draws=self.draws,
                logsnr_max=self.logsnr_max,
            )
            self._add("bits", level, bound(seen), pictures)
            if level == len(pictures) - 1:  # the whole nest
                for r, own in enumerate(seen.prior + seen.diffusion + seen.reading):
                    self._add("given", r, own, pictures)
        self.pictures += len(positions)

    def result(self) -> dict[str, float]:
        """Means over all pictures so far."""
        if not self.pictures:
            raise ValueError("expected pictures, came none")
        means = {name: total / self.pictures for name, total in sorted(self.sums.items())}
        return {**means, "pictures": float(self.pictures)}

    def _add(self, name: str, level: int, nats: Tensor, pictures: Sequence[Tensor]) -> None:
        bits = nats.sum().item() / (pictures[level][0].numel() * math.log(2))
        self.sums[f"{name}.{level}"] = self.sums.get(f"{name}.{level}", 0.0) + bits
