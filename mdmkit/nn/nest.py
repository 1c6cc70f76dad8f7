"""A nest of networks that denoises a picture at several resolutions at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from .attention import Attend, ImageAttention, sdpa
from .core import TextPath
from .shell import Encoded
from .unet import Running, Stage, Text

__all__ = ["Core", "NestedUNet", "Shell"]


class Core(Protocol):
    """Level 0 of a nest; it owns the text. `channels[0]` is the width of its features.

    cond_width is the width of the text features that it gives to the shells, None where it reads no text;
    pooled_text: it also gives a vector (B, emb_dim) that is added to every level's embedding. `read` takes
    weights (B, L) of the tokens behind `run`, where they are given.
    """

    channels: tuple[int, ...]
    in_channels: int
    emb_dim: int
    micro_conditioning: Mapping[str, float]
    cond_width: int | None
    pooled_text: bool

    def read(
        self, cond: Tensor | None, mask: Tensor | None, run: Running, weights: Tensor | None = None, /
    ) -> Text | None: ...

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        /,
        *,
        text: Text | None,
        micros: Mapping[str, Tensor] | None,
        carried: Tensor | None,
        run: Running,
    ) -> tuple[Tensor, Tensor]: ...


class Shell(Protocol):
    """Level r >= 1 of a nest; `ratio` is how much higher and wider its pictures are than those inside."""

    channels: tuple[int, ...]
    in_channels: int
    inner_channels: int
    emb_dim: int
    micro_conditioning: Mapping[str, float]
    ratio: tuple[int, int]

    def encode(
        self,
        z: Tensor,
        t: Tensor,
        /,
        *,
        text: Text | None,
        micros: Mapping[str, Tensor] | None,
        carried: Tensor | None,
        run: Running,
    ) -> Encoded: ...

    def decode(self, encoded: Encoded, inner: Tensor, run: Running, /) -> tuple[Tensor, Tensor]: ...


class NestedUNet(nn.Module):
    """A core and the shells around it; parameters are `levels.0.*` (core) and `levels.r.*` (shells).

    use_checkpoint: blocks are run again in the backward pass, which trades time for memory. attend: the
    attention of every level. lift: the prediction of level r adds lift[r - 1] times that of the level inside,
    each pixel repeated: where x0 is predicted, a new level then starts from the picture inside and not from
    grey. `gains` can be set: what shell r hands inwards is multiplied by gains[r - 1].

    Source: Gu et al. 2024 (2310.15111), section 3.2.
    """

    def __init__(
        self,
        core: nn.Module,
        shells: Iterable[nn.Module] = (),
        *,
        use_checkpoint: bool = False,
        attend: Attend = sdpa,
        lift: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList([core, *shells])
        self.use_checkpoint = use_checkpoint
        self.attend = attend
        innermost, outer = self.parts()
        if lift is not None and len(lift) != len(outer):
            raise ValueError(f"expected one number in lift a shell, {len(outer)}, got {len(lift)}")
        self.lift = None if lift is None else tuple(lift)
        self.gains = (1.0,) * len(outer)
        inside, emb_dim = innermost.channels[0], innermost.emb_dim
        for r, shell in enumerate(outer, 1):
            if shell.inner_channels != inside:
                raise ValueError(
                    f"expected level {r} built with inner_channels={inside}, got {shell.inner_channels}"
                )
            inside = shell.channels[0]
            if innermost.pooled_text and shell.emb_dim != emb_dim:
                raise ValueError(
                    f"expected level {r} built with emb_dim={emb_dim}, the core's, as its pooled text is "
                    f"added to every embedding, got {shell.emb_dim}"
                )

    def extra_repr(self) -> str:
        return f"use_checkpoint={self.use_checkpoint}"

    def forward(
        self,
        z: Sequence[Tensor],
        t: Tensor,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        micros: Mapping[str, Tensor] | None = None,
        *,
        text: Text | None = None,
        cond_weights: Tensor | None = None,
        previous: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Predictions of the first len(z) levels, low resolution to high.

        z[r] (B_r, 3, H_r, W_r) with B = B_0 >= B_1 >= ...: the first B_r rows of the batch; or clips
        (B_r, 3, F_r, H_r, W_r), of which those with one frame at each level are pictures. t (B,) in [0, 1];
        cond (B, L, D), cond_mask (B, L) bool, True: a token; micros: (B,) each. text: what `read` made of
        cond, in its place. cond_weights (B, L): see `read`. previous: for levels with self_conditioning,
        their last estimates of x0, shaped like z, zero for rows without one; None: for no row. Returns
        tensors shaped like z.

        Levels that read the micro-conditioning "frames" are told how many a row's clip has, at its top level;
        "fps" is 0 where that is one.

        Raises ValueError for more levels than there are, more rows outside than inside, resolutions that do
        not fit the shells' ratios, text of a wrong width, or micro-conditioning that no level reads.
        """
        self._check(z, micros)
        micros = self._counted(z, t, micros)
        if previous is not None and len(previous) != len(z):
            raise ValueError(f"expected an estimate or None for each of {len(z)} levels, got {len(previous)}")
        core, shells = self.parts()
        shells = shells[: len(z) - 1]
        run = Running(self.attend, self.use_checkpoint)
        if text is None and cond_weights is None:
            text = core.read(cond, cond_mask, run)
        elif text is None:
            text = self.read(cond, cond_mask, cond_weights)

        def rows(level: int) -> dict:
            count = len(z[level])
            few = None if micros is None else {key: value[:count] for key, value in micros.items()}
            told = {"text": None if text is None else text.rows(count), "micros": few, "run": run}
            if previous is not None and getattr(self.levels[level], "self_conditioning", False):
                told["previous"] = previous[level]
            return told

        carried: Tensor | None = None
        encoded = []
        for r, shell in reversed(list(enumerate(shells, 1))):
            encoded.append(shell.encode(z[r], t[: len(z[r])], carried=carried, **rows(r)))
            carried = encoded[-1].inwards
            if carried is not None and self.gains[r - 1] != 1.0:
                carried = self.gains[r - 1] * carried

        prediction, features = core(z[0], t, carried=carried, **rows(0))
        predictions = [prediction]
        for shell, z_r in zip(shells, z[1:], strict=True):
            prediction, features = shell.decode(encoded.pop(), features[: len(z_r)], run)
            if self.lift is not None:
                inside, factor = predictions[-1][: len(z_r)], self.lift[len(predictions) - 1]
                (rh, rw) = shell.ratio
                inside = inside.repeat_interleave(rh, -2).repeat_interleave(rw, -1)
                if z_r.ndim == 5:
                    inside = inside.repeat_interleave(z_r.shape[2] // inside.shape[2], 2)
                prediction = prediction + factor * inside
            predictions.append(prediction)
        return tuple(predictions)

    def read(
        self, cond: Tensor | None, cond_mask: Tensor | None = None, weights: Tensor | None = None
    ) -> Text | None:
        """What does not change over the steps of sampling: the prepared text, its keys and values.

        To be given to `forward` as `text`, for the same rows; the numbers are those of giving it cond.

        weights (B, L): token j counts w_j times: pixels are told `sum_j softmax_j w_j v_j`, and the pooled
        text is `sum_j w_j x_j` over the number of tokens; where a pixel looks stays as it was. At 1 that is
        the plain text, bit for bit. *Prompt-to-Prompt*, arXiv 2208.01626, section 3.2 (re-weighting).
        ValueError where they are not (B, L).
        """
        core, _ = self.parts()
        run = Running(self.attend)
        if weights is None:
            text = core.read(cond, cond_mask, run)
        elif cond is None or weights.shape != cond.shape[:2]:
            came = "no text" if cond is None else f"text of {tuple(cond.shape[:2])}"
            raise ValueError(f"expected a weight for each token, got {tuple(weights.shape)} and {came}")
        else:
            text = core.read(cond, cond_mask, run, weights)
        if text is None:
            return None
        layers = [module for module in self.modules() if isinstance(module, ImageAttention)]
        known = {layer: layer.keys_values(text.features) for layer in layers}
        kept = {layer: kv for layer, kv in known.items() if kv is not None}
        if weights is not None:  # of values, so that every attention backend weighs
            each = weights[:, None, :, None]
            kept = {layer: (k, v * each.to(v)) for layer, (k, v) in kept.items()}
        return text._replace(kept=kept)

    def parts(self) -> tuple[Core, list[Shell]]:
        """The core and the shells around it."""
        core, *shells = self.levels
        return cast(Core, core), cast("list[Shell]", shells)

    @property
    def self_conditioning(self) -> bool:
        """Whether a level is shown its own last estimate."""
        return any(getattr(level, "self_conditioning", False) for level in self.levels)

    @property
    def sees_padding(self) -> bool:
        """Whether a level looks at padding, so that the padded length of the text changes predictions."""
        return any(not getattr(level, "masked_cross_attention", True) for level in self.levels)

    @property
    def micro_conditioning(self) -> dict[str, float]:
        """The numbers about a picture that a level reads, by name, and their defaults."""
        return {key: value for level in self.all_parts() for key, value in level.micro_conditioning.items()}

    def blocks(self) -> Iterator[nn.Module]:
        """The modules that are run again by use_checkpoint, and are worth compiling, one by one."""
        for module in self.modules():
            if isinstance(module, Stage):
                yield from module.layers()
            elif isinstance(module, TextPath):
                yield from module.layers

    def _counted(
        self, z: Sequence[Tensor], t: Tensor, micros: Mapping[str, Tensor] | None
    ) -> Mapping[str, Tensor] | None:
        read = self.micro_conditioning
        if not read.keys() & {"frames", "fps"}:
            return micros
        told = dict(micros or {})
        frames = torch.ones_like(t)
        for level in z:
            frames[: len(level)] = level.shape[2] if level.ndim == 5 else 1
        frames = told.get("frames", frames)
        if "frames" in read:
            told["frames"] = frames
        if "fps" in read:  # of a frame alone there is none
            rate = told.get("fps", torch.full_like(t, read["fps"]))
            told["fps"] = torch.where(frames == 1, torch.zeros_like(rate), rate)
        return told

    def all_parts(self) -> list[Core | Shell]:
        """The levels, low to high."""
        core, shells = self.parts()
        return [core, *shells]

    def _check(self, z: Sequence[Tensor], micros: Mapping[str, Tensor] | None) -> None:
        _, shells = self.parts()
        if not 1 <= len(z) <= len(self.levels):
            raise ValueError(f"expected pictures of 1 to {len(self.levels)} levels, got {len(z)}")
        if len({level.ndim for level in z}) > 1:
            raise ValueError(
                f"expected pictures at all levels or clips at all, got {[tuple(x.shape) for x in z]}"
            )
        clips = z[0].ndim == 5
        lone = clips and all(level.shape[2] == 1 for level in z)
        for r in range(1, len(z)):
            if len(z[r]) > len(z[r - 1]):
                raise ValueError(
                    f"expected at most the {len(z[r - 1])} rows of level {r - 1} at level {r}, "
                    f"got {len(z[r])}"
                )
            (h, w), (rh, rw) = z[r - 1].shape[-2:], shells[r - 1].ratio
            if z[r].shape[-2:] != (h * rh, w * rw):
                came = " x ".join(map(str, z[r].shape[-2:]))
                raise ValueError(f"expected {h * rh} x {w * rw} pixels at level {r}, got {came}")
            frames = z[r - 1].shape[2] * getattr(shells[r - 1], "frame_ratio", 1) if clips else 1
            if clips and not lone and z[r].shape[2] != frames:
                raise ValueError(
                    f"expected {frames} frames at level {r}, or one at every level, got {z[r].shape[2]}"
                )
        for key in micros or {}:
            if key not in (known := self.micro_conditioning):
                raise ValueError(
                    f"no level reads the micro-conditioning {key!r} (known: {', '.join(sorted(known))})"
                )
