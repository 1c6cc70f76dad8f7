"""A network as a denoiser: from a noisy pyramid and its noise level to x0 and eps at every level."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.nn import NestedUNet
from mdmkit.nn.unet import Text
from mdmkit.pyramid import Pyramid
from mdmkit.targets import divide, to_eps, to_x0

__all__ = ["Answers", "Denoise", "Denoised", "Denoiser", "PairedDenoise", "from_space", "with_x0"]


Recalled = list[Tensor | None]


class Denoised(NamedTuple):
    """What a denoiser says about a noisy pyramid: picture, and noise to go on with, at every level."""

    x0: Pyramid
    eps: Pyramid


class Denoise(Protocol):
    """A denoiser: a noisy pyramid (the innermost `len(z)` levels) and its noise level in, x0 and eps out."""

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised: ...


class Answers(NamedTuple):
    """What a denoiser was asked, and what is gone on with.

    `uncond` is what guidance led away from: the unconditional answer, or a weaker model's; None where nothing
    was asked for.
    """

    cond: Denoised
    uncond: Denoised | None
    said: Denoised


class PairedDenoise(Denoise, Protocol):
    """A denoiser that also knows the unconditional answer; called, it gives `answers(z, at).said`."""

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """What is asked to say what it says."""
        ...

    def plain(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The conditional answer alone, unguided."""
        ...

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The conditional and the unconditional answer."""
        ...


class Denoiser:
    """A nest and its conditioning as a denoiser.

    `nest(z, t, cond, cond_mask, micros)` predicts in `diffusion.prediction` (`mdmkit.nn.NestedUNet`).
    `cond (B, L, D)`, `cond_mask (B, L)`: the text of the B pictures; `uncond`, `uncond_mask`: of the empty
    text, B rows or one for all, any length; `cond_weights (B, L)`, `uncond_weights`: how much each token
    counts, for a network that takes `cond_weights` (`NestedUNet.read` says how); `micros`: values of shape
    (B,) by name. Predictions are turned into x0 and eps in the dtype of `z`, whatever precision the network
    ran in. Of a `NestedUNet` the weights must stay as they are while it is used: what it makes of the text is
    kept. Each answer is about its `z` alone; `carrying` gives a denoiser for a trajectory, along which a nest
    with self-conditioning is shown what it said last.
    """

    def __init__(
        self,
        nest: Callable[..., Sequence[Tensor]],
        diffusion: Diffusion,
        *,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        uncond: Tensor | None = None,
        uncond_mask: Tensor | None = None,
        cond_weights: Tensor | None = None,
        uncond_weights: Tensor | None = None,
        micros: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.nest = nest
        self.diffusion = diffusion
        self.cond, self.cond_mask = cond, cond_mask
        self.uncond, self.uncond_mask = uncond, uncond_mask
        self.cond_weights, self.uncond_weights = cond_weights, uncond_weights
        self.micros = micros
        self.readings: dict[str, Text | None] = {}
        self.memory: Memory | None = None

    def carrying(self) -> Denoiser:
        """The same for one trajectory after another; what was made of the text is shared.

        A nest with self-conditioning is shown what it said last of each row, before guidance and thresholds;
        where it was not asked for the unconditional answer, the conditional one.
        """
        other = copy.copy(self)
        other.memory = Memory() if getattr(self.nest, "self_conditioning", False) else None
        return other

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The conditional answer."""
        t = times(at, len(z[0]), z[0].device)
        told = self.text("cond", self.cond, self.cond_mask, self.cond_weights)
        if self.memory is not None:
            told["previous"] = self.memory.recalled(z, at)[0]
        predictions = self.nest(tuple(z), t, micros=self.micros, **told)
        if self.memory is not None:
            said = self.estimates(predictions, z, at)
            self.memory.keep(said, said)
        return self.denoised(predictions, z, at)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        """The conditional and the unconditional answer, from one batch of both (conditional rows first).

        Raises ValueError where the denoiser has no `uncond`.
        """
        if self.cond is None or self.uncond is None:
            raise ValueError(
                "guidance needs both a condition and its absence: give the denoiser cond and uncond"
            )
        rows = len(z[0])
        texts = (self.cond, self.cond_mask), expand_rows(self.uncond, self.uncond_mask, rows=rows)
        weights = stack_weights(
            (self.cond, self.cond_weights), expand_rows(self.uncond, self.uncond_weights, rows=rows)
        )
        twice = tuple(torch.cat([level, level]) for level in z)
        t = times(at, 2 * rows, z[0].device)
        micros = self.micros and {key: torch.cat([value, value]) for key, value in self.micros.items()}
        told = self.text("both", *stack_texts(*texts), weights)
        if self.memory is not None:
            told["previous"] = stacked(*self.memory.recalled(z, at))
        predictions = self.nest(twice, t, micros=micros, **told)
        halves = [prediction[:rows] for prediction in predictions], [p[rows:] for p in predictions]
        if self.memory is not None:
            self.memory.keep(*(self.estimates(half, z, at) for half in halves))
        cond, uncond = (self.denoised(half, z, at) for half in halves)
        return cond, uncond

    def denoised(self, said: Sequence[Tensor], z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """What the network predicts as x0 and eps; of given levels, that nothing is to be taken away."""
        told = from_space(said, z, at, self.diffusion.prediction)
        given = self.diffusion.given
        return with_x0(told, (*z[:given], *told.x0[given:]), at) if given else told

    def estimates(self, said: Sequence[Tensor], z: Sequence[Tensor], at: NoiseLevel) -> Pyramid:
        scales = list(zip(at.alpha, at.sigma, strict=True))[: len(z)]
        return self.diffusion.estimates(said, z, scales)

    def text(
        self, name: str, cond: Tensor | None, cond_mask: Tensor | None, weights: Tensor | None
    ) -> dict[str, Any]:
        """The text as the network is told it; a nest reads it once, and not at every step.

        Where gradients are wanted, it reads anew.
        """
        if not isinstance(self.nest, NestedUNet) or torch.is_grad_enabled():
            told = {"cond": cond, "cond_mask": cond_mask}
            return told if weights is None else told | {"cond_weights": weights}
        if name not in self.readings:
            self.readings[name] = self.nest.read(cond, cond_mask, weights)
        return {"text": self.readings[name]}

    def plain(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        """The conditional answer."""
        return self(z, at)

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        """The conditional answer, which is gone on with."""
        cond = self(z, at)
        return Answers(cond, None, cond)


class Memory:
    """What a network with self-conditioning said last of each row, conditional and unconditional."""

    def __init__(self) -> None:
        self.known: tuple[Pyramid, Pyramid] = (), ()
        self.began = self.last = -1.0

    def recalled(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Recalled, Recalled]:
        """The last estimates of both kinds at the levels of z, None where a level has none.

        They end with their trajectory: going back to more noise begins a new one, unless a level has joined.
        """
        joined = 0 < len(self.known[0]) < len(z)
        other = any(x.shape != level.shape for x, level in zip(self.known[0], z, strict=False))
        if other or at.t >= self.began or (at.t > self.last and not joined):
            self.known, self.began = ((), ()), at.t
        self.last = at.t
        cond, uncond = ([*x0[: len(z)], *[None] * (len(z) - len(x0))] for x0 in self.known)
        return cond, uncond

    def keep(self, cond: Pyramid, uncond: Pyramid) -> None:
        self.known = cond, uncond


def stacked(cond: Recalled, uncond: Recalled) -> Recalled:
    """Both as one batch, at each level."""
    pairs = zip(cond, uncond, strict=True)
    return [None if c is None or u is None else torch.cat([c, u]) for c, u in pairs]


def from_space(said: Sequence[Tensor], z: Sequence[Tensor], at: NoiseLevel, space: str) -> Denoised:
    """x0 and eps of what is said in a prediction space about `z`."""
    levels = [
        (value.to(noisy.dtype), noisy, at.alpha[level], at.sigma[level], space)
        for level, (value, noisy) in enumerate(zip(said, z, strict=True))
    ]
    return Denoised(tuple(to_x0(*level) for level in levels), tuple(to_eps(*level) for level in levels))


def with_x0(said: Denoised, x0: Pyramid, at: NoiseLevel) -> Denoised:
    """What is said with another picture, and eps moved along, so that both still lead to the same z.

    An eps that belongs to another x0 (CFG++ renoises with the unconditional one) is moved by as much.
    """
    levels = enumerate(zip(said.x0, x0, said.eps, strict=True))
    eps = tuple(
        eps + divide(at.alpha[r] * (before - after), at.sigma[r]) for r, (before, after, eps) in levels
    )
    return Denoised(x0, eps)


def times(at: NoiseLevel, rows: int, device: torch.device) -> Tensor:
    """The time of every row: `1000 t - 1` has to come out whole again."""
    return filled(at.t, rows, device)


def filled(value: float, rows: int, device: torch.device) -> Tensor:
    """A number for every row; float64 where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.full((rows,), value, dtype=dtype, device=device)


def expand_rows(text: Tensor, mask: Tensor | None, *, rows: int) -> tuple[Tensor, Tensor | None]:
    """One row's text for all rows."""
    if len(text) == rows:
        return text, mask
    return text.expand(rows, -1, -1), None if mask is None else mask.expand(rows, -1)


def stack_weights(*texts: tuple[Tensor, Tensor | None]) -> Tensor | None:
    """The tokens' weights of texts of different lengths as one batch; 1 where none are given, and behind."""
    if all(weights is None for _, weights in texts):
        return None
    length = max(features.shape[1] for features, _ in texts)
    given = [
        features.new_ones(features.shape[:2]) if weights is None else weights.to(features)
        for features, weights in texts
    ]
    return torch.cat([F.pad(weights, (0, length - weights.shape[1]), value=1.0) for weights in given])


def stack_texts(*texts: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Texts of different lengths as one batch: shorter ones are padded, and masked there."""
    length = max(features.shape[1] for features, _ in texts)
    ragged = any(features.shape[1] != length for features, _ in texts)
    padded = torch.cat([F.pad(features, (0, 0, 0, length - features.shape[1])) for features, _ in texts])
    if not ragged and all(mask is None for _, mask in texts):
        return padded, None
    masks = [
        torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if mask is None
        else mask.bool()
        for features, mask in texts
    ]
    return padded, torch.cat([F.pad(mask, (0, length - mask.shape[1])) for mask in masks])
