"""Components that each break one promise; the class names say which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from mdmkit.recipe import opt
from mdmkit.text import TextEncoder


@attrs.frozen
class Heavy:
    """Settings beside torch."""

    scale: float = opt(2.0, "some factor")


class Schedule:
    """A good noise schedule, the base of the broken ones."""

    def logsnr(self, t: Tensor) -> Tensor:
        return 8 - 16 * t

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma_at(self.logsnr(t))
        return torch.where(t == 0, 1.0, alpha), torch.where(t == 0, 0.0, sigma)

    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


class OtherDefault(Schedule):
    def __init__(self, *, scale: float = 3.0) -> None: ...


class OtherType(Schedule):
    def __init__(self, *, scale: int = 2) -> None: ...


class TakesMore(Schedule):
    def __init__(self, *, scale: float = 2.0, width: int = 1) -> None: ...


class RisingSchedule(Schedule):
    def logsnr(self, t: Tensor) -> Tensor:
        return 16 * t - 8


class StandingSchedule(Schedule):
    def logsnr(self, t: Tensor) -> Tensor:
        return 0 * t


class SquaredSchedule(Schedule):
    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return logsnr.sigmoid(), (-logsnr).sigmoid()


class NoisyAtZero(Schedule):
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha_sigma_at(self.logsnr(t))


class InfiniteEnds(Schedule):
    def logsnr(self, t: Tensor) -> Tensor:
        return (1 - t).log() - t.log()


class DropsTheShift(Schedule):
    def alpha_sigma_at(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return super().alpha_sigma_at(logsnr.clamp(-2, 2))


class NoScales:
    def logsnr(self, t: Tensor) -> Tensor:
        return 8 - 16 * t


class NegativeWeight:
    space = "eps"

    def weight(self, logsnr: Tensor) -> Tensor:
        return logsnr


class SpacelessWeight:
    space = "velocity"

    def weight(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)


class NormalisedWeight:
    space = "eps"

    def weight(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp() / logsnr.exp().sum()


class Times:
    """Good uniform times, the base of the broken ones."""

    def __init__(self, *, schedule: object) -> None:
        self.schedule = schedule

    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        draws = np.random.Generator(np.random.Philox(key=1000 * seed + step)).random(batch)
        return torch.from_numpy(draws)[list(positions)]

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class OtherDensity(Times):
    def density(self, t: Tensor) -> Tensor:
        return 2 * t


class UnnormalisedDensity(Times):
    def density(self, t: Tensor) -> Tensor:
        return 2 + 0 * t


class LooksAtNeighbours(Times):
    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        return super().draw(seed, step, range(len(positions)), batch)


class RemembersDraws(Times):
    def draw(self, seed: int, step: int, positions: Sequence[int], batch: int) -> Tensor:
        return torch.rand(batch, dtype=torch.float64)[list(positions)]


def never_zero(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square() + 1


def mean_only(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean()


def root_loss(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().sqrt()


class MoreThanAll:
    def __init__(self, *, levels: int) -> None:
        self.levels = levels

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        return (0.5,) * self.levels


class ForgetfulShares(MoreThanAll):
    calls = 0

    def shares(self, seed: int, step: int) -> tuple[float, ...]:
        self.calls += 1
        return (1.0, 0.0, 0.0) if self.calls == 1 else (0.0, 1.0, 0.0)


@attrs.frozen
class BareStage:
    levels: int


class ShrinkingGrowth(MoreThanAll):
    preserves = True
    stages = (BareStage(2), BareStage(1))

    def network(self, settings: Any, stage: int, level: int) -> Any:
        return settings

    def carry(self, old: Any, shapes: Any, *, moment: int = 0) -> Any:
        return dict(old)


class SplitGrowth(ShrinkingGrowth):
    """Says that its stages are models of their own, and that nothing changes at growth."""

    apart = True


class ClingingGrowth(SplitGrowth):
    """Says that its stages are models of their own, and carries everything."""

    preserves = False
    stages = (BareStage(1), BareStage(3))


class LosingGrowth(ClingingGrowth):
    """Carries nothing, and does not say so."""

    apart = False

    def carry(self, old: Any, shapes: Any, *, moment: int = 0) -> Any:
        return {}


class RandomBlock(nn.Module):
    """A block that is not the identity at its start."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        norm_groups: int = 8,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, device=device, dtype=dtype)
        self.emb = nn.Linear(emb_dim, out_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x) + self.emb(emb)[..., None, None]


class DeafBlock(RandomBlock):
    """A block that does not listen to the embedding."""

    __init__ = RandomBlock.__init__

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x


def ignores_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


def unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def nothing_is_nan(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ v


def stays(denoise: Any, z: Any, path: Any, noise: Any) -> Any:
    return z


def averages(denoise: Any, z: Any, path: Any, noise: Any) -> Any:
    return tuple(
        x.mean(0, keepdim=True).expand_as(x) * 1e-7 + y
        for x, y in zip(z, denoise(z, path[0]).x0, strict=True)
    )


def misses_the_end(steps: int, diffusion: Any) -> list[float]:
    return [1 - i / (steps + 1) for i in range(steps + 1)]


def rises(steps: int, diffusion: Any) -> list[float]:
    return [*(0.5 + i / (2 * steps) for i in range(steps)), 0.0]


class OffsetGuidance:
    """Guides although both predictions agree."""

    def __init__(self, *, scale: float = 2.0) -> None:
        self.scale = scale

    def wrap(self, denoise: Any) -> Any:
        class Guided:
            def __call__(self, z: Any, at: Any) -> Any:
                said = denoise(z, at)
                return type(said)(tuple(x + 0.1 for x in said.x0), said.eps)

            def both(self, z: Any, at: Any) -> Any:
                return denoise.both(z, at)

        return Guided()


class OneTooMuch:
    """Guides at scale 1."""

    def __init__(self, *, scale: float = 2.0) -> None:
        self.scale = scale

    def wrap(self, denoise: Any) -> Any:
        scale = self.scale

        class Guided:
            def __call__(self, z: Any, at: Any) -> Any:
                cond, uncond = denoise.both(z, at)
                x0 = tuple(c + scale * (c - u) for c, u in zip(cond.x0, uncond.x0, strict=True))
                eps = tuple(c + scale * (c - u) for c, u in zip(cond.eps, uncond.eps, strict=True))
                return type(cond)(x0, eps)

            def both(self, z: Any, at: Any) -> Any:
                return self(z, at), denoise.both(z, at)[1]

        return Guided()


def squashes(x0: Tensor) -> Tensor:
    return x0.tanh()


def over_the_batch(x0: Tensor) -> Tensor:
    return x0 / x0.abs().max().clamp_min(1)


@attrs.frozen(eq=False)
class Picture:
    image: np.ndarray
    caption: str = "a circle"
    key: str = "0"
    size: tuple[int, int] = (8, 8)


class ForgetfulDataset:
    """Gives another picture every time."""

    def __init__(self, *, seed: int, resolution: tuple[int, int]) -> None:
        self.seed, self.resolution, self.calls = seed, resolution, 0

    def sample(self, position: int) -> Picture:
        self.calls += 1
        return Picture(np.full((*self.resolution, 3), self.calls % 256, np.uint8))


class FloatDataset(ForgetfulDataset):
    def sample(self, position: int) -> Picture:
        return Picture(np.zeros((*self.resolution, 3), np.float32))


class NaNMetric:
    def __init__(self, *, device: Any = "cpu") -> None: ...

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None: ...

    def result(self) -> dict[str, float]:
        return {"score": float("nan")}


class LastBatchMetric(NaNMetric):
    last = 0.0

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        self.last = float(pictures.mean())

    def result(self) -> dict[str, float]:
        return {"mean": self.last}


class BlindMetric:
    def __init__(self, *, device: Any = "cpu") -> None: ...

    def result(self) -> dict[str, float]:
        return {"score": 1.0}


class SilentLogger:
    def __init__(self, *, run_dir: str | Path) -> None: ...

    def log(self, step: int, metrics: Any) -> None: ...

    def images(self, step: int, name: str, picture: Any) -> None: ...

    def close(self) -> None: ...


class ClosesOnce(SilentLogger):
    def __init__(self, *, run_dir: str | Path) -> None:
        self.file = (Path(run_dir) / "log.txt").open("w")

    def log(self, step: int, metrics: Any) -> None:
        self.file.write(f"{step}\n")

    def close(self) -> None:
        self.file.flush()
        self.file.close()


class Ascent(torch.optim.SGD):
    def __init__(self, params: Any, *, scale: float = 2.0) -> None:
        super().__init__(params, lr=0.01, maximize=True)


class TooMuch:
    def factor(self, step: int) -> float:
        return 1.0 + step


class ZeroFirst:
    def factor(self, step: int) -> float:
        return min(1.0, step / 10)


class BatchWideText(TextEncoder):
    """Features that depend on the captions beside."""

    width, trainable = 4, False

    def __init__(self, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(captions), 3, dtype=torch.bool)
        return torch.full((len(captions), 3, 4), float(len(captions))), mask
