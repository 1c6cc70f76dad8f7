"""What a core and a shell have in common: the way down, the way up, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdmkit.divisors import check_divides, triples

from .attention import Attend, ImageAttention, KeysValues, sdpa
from .blocks import Downsample, Upsample
from .embed import Embedding
from .frames import FrameDownsample, FrameUpsample
from .zero import zeroed

__all__ = ["Running", "Stage", "Text", "UNet"]


class Text(NamedTuple):
    """What the core made of the text: features (B, L, D), their mask (B, L), a vector for the embedding.

    `kept`: keys and values of attention layers, computed before; by the layer.
    """

    features: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    kept: Mapping[nn.Module, KeysValues] | None = None

    def rows(self, count: int) -> Text:
        """Of the first `count` rows of the batch."""
        if count == len(self.features):
            return self
        mask, pooled = (None if part is None else part[:count] for part in (self.mask, self.pooled))
        kept = self.kept and {layer: (k[:count], v[:count]) for layer, (k, v) in self.kept.items()}
        return Text(self.features[:count], mask, pooled, kept)

    def of(self, layer: nn.Module, frames: int = 1) -> tuple[Tensor | KeysValues, Tensor | None]:
        """What a layer attends to, its keys and values where they are kept, else the features; and the mask.

        frames: of each clip, whose rows the layer works on.
        """
        known = self.features if self.kept is None else self.kept.get(layer, self.features)
        if frames == 1:
            return known, self.mask
        parts = (known, self.mask) if isinstance(known, Tensor) else (*known, self.mask)
        *told, mask = (None if part is None else part.repeat_interleave(frames, 0) for part in parts)
        return (told[0] if len(told) == 1 else tuple(told)), mask  # type: ignore[return-value]


class Running(NamedTuple):
    """How blocks are run: by which attention, and whether again in the backward pass to save memory."""

    attend: Attend = sdpa
    use_checkpoint: bool = False

    def __call__(self, module: nn.Module, *args: Any) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return module(*args)


def per_stage(name: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    values = (value,) * stages if isinstance(value, int) else tuple(value)
    if len(values) != stages:
        raise ValueError(f"expected one entry a stage in {name}, {stages}, got {len(values)}")
    return values


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by its attention layers; then the way to the next.

    `joined` blocks leave a skip on the way down, or read one on the way up; those behind them do not. The
    frames of clips are rows of x that follow each other, with one row of emb a clip: blocks and attention
    work frame by frame, and temporal layers, behind those of each block, along time.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[nn.Module],
        attention: Sequence[Sequence[nn.Module]],
        temporal: Sequence[Sequence[nn.Module]] = (),
        resample: nn.Module | None = None,
        resample_time: FrameDownsample | FrameUpsample | None = None,
    ) -> None:
        super().__init__()
        self.joined = len(attention)
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(nn.ModuleList(layers) for layers in attention)
        self.temporal = nn.ModuleList(nn.ModuleList(layers) for layers in temporal)
        self.resample, self.resample_time = resample, resample_time

    def step(self, j: int, x: Tensor, emb: Tensor, text: Text | None, run: Running) -> Tensor:
        """The j-th residual block, and the attention and temporal layers behind it."""
        frames = len(x) // len(emb)
        x = run(self.blocks[j], x, each_frame(emb, frames))
        for layer in self.attention[j]:  # pyright: ignore[reportGeneralTypeIssues]
            seen, mask = (None, None) if text is None else text.of(layer, frames)
            x = run(layer, x, seen, mask, run.attend)
        for layer in self.temporal[j] if self.temporal else ():  # pyright: ignore[reportGeneralTypeIssues]
            x = run(layer, x, emb, frames, run.attend)
        return x

    def extra(self, x: Tensor, emb: Tensor, run: Running) -> Tensor:
        """The blocks behind those that are joined to the other way."""
        emb = each_frame(emb, len(x) // len(emb))
        for block in list(self.blocks)[self.joined :]:
            x = run(block, x, emb)
        return x

    def inward(self, x: Tensor, clips: int) -> Tensor:
        """What the next stage on the way down is given; x has the frames of so many clips."""
        x = x if self.resample is None else self.resample(x)
        return x if self.resample_time is None else self.resample_time(x, len(x) // clips)

    def outward(self, x: Tensor, clips: int, frames: int) -> Tensor:
        """What the next stage on the way up is given, which has so many frames a clip."""
        if self.resample_time is not None:
            assert isinstance(self.resample_time, FrameUpsample)
            x = self.resample_time(x, len(x) // clips, frames)
        return x if self.resample is None else self.resample(x)

    def layers(self) -> list[nn.Module]:
        """What `step` runs, one by one."""
        behind = [*self.attention, *self.temporal]
        return [*self.blocks, *(layer for layers in behind for layer in layers.children())]


def each_frame(rows: Tensor, frames: int) -> Tensor:
    """A row for each frame, from one a clip."""
    return rows if frames == 1 else rows.repeat_interleave(frames, 0)


def picture_stage(
    i: int,
    width: int,
    *,
    blocks: Sequence[nn.Module],
    attention: Sequence[Sequence[nn.Module]],
    temporal: Sequence[Sequence[nn.Module]],
    resample: type[Downsample] | type[Upsample],
    stride: tuple[int, int, int] | None,
    **where: Any,
) -> Stage:
    """The i-th stage from high resolution to low; stride: to the next one on its way, None: there is none."""
    between = in_time = None
    if stride is not None:
        along = FrameDownsample if resample is Downsample else FrameUpsample
        # a stride in time alone still has its convolution over pixels: clips and pictures have the same names
        between = resample(width, stride[1:], **where)
        in_time = along(width, stride[0], **where) if stride[0] > 1 else None
    return Stage(
        blocks=blocks, attention=attention, temporal=temporal, resample=between, resample_time=in_time
    )


class UNet(nn.Module):
    """What a core and a shell share; stages are numbered from high resolution to low, both ways."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        blocks: int | Sequence[int],
        attention: int | Sequence[int],
        strides: Sequence[int | Sequence[int]] | None,
        extra_blocks: int | Sequence[int],
        in_channels: int,
        emb_dim: int | None,
        heads: int,
        norm_groups: int,
        ffn: bool,
        masked_cross_attention: bool,
        micro_conditioning: Mapping[str, float] | None,
        block: Callable[..., nn.Module],
        middle: bool,
        cond_width: int | None,
        self_conditioning: bool,
        frames: int,
        temporal: Callable[..., nn.Module] | None,
        temporal_layers: int | Sequence[int],
        stage: Callable[..., Stage] = picture_stage,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        if not channels:
            raise ValueError("expected at least one stage in channels, got none")
        self.channels = tuple(channels)
        stages = len(self.channels)
        counts, layers = per_stage("blocks", blocks, stages), per_stage("attention", attention, stages)
        extra = per_stage("extra_blocks", extra_blocks, stages)
        self.strides = tuple(triples(strides if strides is not None else (2,) * (stages - 1)))
        if len(self.strides) != stages - 1:
            raise ValueError(
                f"expected one stride between each two stages, {stages - 1}, got {len(self.strides)}"
            )
        # to the level inside; and what divides the sides of a picture, and the frames of a clip
        self.frame_ratio, *sides = (prod(stride[axis] for stride in self.strides) for axis in range(3))
        self.ratio = self.multiple = (sides[0], sides[1])
        if frames < 1 or frames % self.frame_ratio:
            raise ValueError(
                f"expected frames that the strides divide, a multiple of {self.frame_ratio}, got {frames}"
            )
        over_time = per_stage("temporal_layers", temporal_layers, stages) if temporal else (0,) * stages
        if min(counts) < 1:
            raise ValueError(f"expected at least one residual block a stage, got {list(counts)}")
        for width in self.channels:
            check_divides("norm_groups", norm_groups, "channels", width)
        self.in_channels = in_channels
        self.masked_cross_attention = masked_cross_attention
        self.emb_dim = emb_dim = emb_dim or 4 * self.channels[0]

        def residual(inside: int, outside: int) -> nn.Module:
            return block(
                in_channels=inside, out_channels=outside, emb_dim=emb_dim, norm_groups=norm_groups, **where
            )

        def attentions(width: int, count: int) -> list[nn.Module]:
            options = {"heads": heads, "norm_groups": norm_groups, "cond_width": cond_width, "ffn": ffn}
            return [ImageAttention(width, **options, **where) for _ in range(count)]

        def temporals(i: int, width: int) -> list[nn.Module]:
            assert temporal is not None or not over_time[i]
            return [temporal(channels=width, emb_dim=emb_dim, **where) for _ in range(over_time[i])]  # type: ignore[misc]

        self.micro_conditioning = dict(micro_conditioning or {})
        self.embedding = Embedding(emb_dim, micro_conditioning=micro_conditioning, **where)
        self.conv_in = nn.Conv2d(in_channels, self.channels[0], 3, padding=1, **where)

        self.down = nn.ModuleList()
        skips, width = [self.channels[0]], self.channels[0]
        for i, (outside, count) in enumerate(zip(self.channels, counts, strict=True)):
            inside = [width, *[outside] * (count - 1)]
            last = i == stages - 1
            self.down.append(
                stage(
                    i,
                    outside,
                    blocks=[residual(c, outside) for c in [*inside, *[outside] * extra[i]]],
                    attention=[attentions(outside, layers[i]) for _ in range(count)],
                    temporal=[temporals(i, outside) for _ in range(count)],
                    resample=Downsample,
                    stride=None if last else self.strides[i],
                    **where,
                )
            )
            width = outside
            skips += [outside] * (count + (not last))

        self.middle = None
        if middle:
            self.middle = Stage(
                blocks=[residual(width, width), residual(width, width)], attention=[attentions(width, 1), []]
            )

        ups: list[nn.Module] = []
        for i in reversed(range(stages)):
            outside, widths = self.channels[i], []
            for _ in range(counts[i] + 1):
                widths.append(width + skips.pop())
                width = outside
            ups.append(
                stage(
                    i,
                    outside,
                    blocks=[residual(c, outside) for c in [*widths, *[outside] * extra[i]]],
                    attention=[attentions(outside, layers[i]) for _ in widths],
                    temporal=[temporals(i, outside) for _ in widths],
                    resample=Upsample,
                    stride=self.strides[i - 1] if i else None,
                    **where,
                )
            )
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out = nn.GroupNorm(norm_groups, self.channels[0], **where)
        self.conv_out = zeroed(nn.Conv2d(self.channels[0], in_channels, 3, padding=1, **where))

        self.self_conditioning = self_conditioning
        self.conv_self = None
        if self_conditioning:
            # made without a random draw: the seed gives the same network as without it. No bias: without an
            # estimate it is left out, which is what it says of zeros
            conv = nn.Conv2d(
                in_channels, self.channels[0], 3, padding=1, bias=False, device="meta", dtype=dtype
            )
            self.conv_self = zeroed(conv.to_empty(device=device or torch.get_default_device()))

    def go_down(
        self,
        z: Tensor,
        emb: Tensor,
        carried: Tensor | None,
        text: Text | None,
        run: Running,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """From a picture to the features of the lowest stage, and what each step leaves for the way up.

        z: pictures, or the frames of clips as rows, with one row of emb a clip; so carried and previous.
        `carried` are the features of the shell around it, of the first rows of the batch only where it has
        fewer. `previous`: the level's own estimate of the picture, like z; zero for rows without one.
        """
        x = self.conv_in(z)
        if previous is not None:
            if self.conv_self is None:
                raise ValueError("an estimate is given, but the level is built without self_conditioning")
            x = x + self.conv_self(previous.to(z.dtype))
        if carried is not None:
            few = len(carried)
            x = x + carried if few == len(x) else torch.cat([x[:few] + carried, x[few:]])
        text = self.seen(text)
        skips = [x]
        for stage in self.down:
            assert isinstance(stage, Stage)
            for j in range(stage.joined):
                x = stage.step(j, x, emb, text, run)
                skips.append(x)
            x = stage.extra(x, emb, run)
            if stage.resample is not None:
                x = stage.inward(x, len(emb))
                skips.append(x)
        return x, skips

    def go_up(self, x: Tensor, emb: Tensor, skips: list[Tensor], text: Text | None, run: Running) -> Tensor:
        """From the features of the lowest stage to those of the highest."""
        text = self.seen(text)
        skips = list(skips)
        for stage in reversed(self.up):  # pyright: ignore[reportArgumentType, reportCallIssue]
            assert isinstance(stage, Stage)
            for j in range(stage.joined):
                x = stage.step(j, torch.cat([x, skips.pop()], 1), emb, text, run)
            x = stage.extra(x, emb, run)
            x = stage.outward(x, len(emb), len(skips[-1] if skips else x) // len(emb))
        return x

    def head(self, x: Tensor) -> Tensor:
        """The prediction that a level makes of its features."""
        return self.conv_out(F.silu(self.norm_out(x)))

    def seen(self, text: Text | None) -> Text | None:
        """The text as the cross-attention of this level sees it."""
        return text if text is None or self.masked_cross_attention else text._replace(mask=None)

    def check_size(self, z: Tensor) -> None:
        """ValueError where the strides (or frames in a grid) do not divide a picture's sides."""
        frames = z.shape[2] if z.ndim == 5 else 1
        if frames != 1 and frames % self.frame_ratio:
            raise ValueError(
                f"expected frames that the strides divide, a multiple of {self.frame_ratio} or 1, "
                f"got {frames}"
            )
        for name, side, factor in zip(("height", "width"), z.shape[-2:], self.multiple, strict=True):
            if side % factor:
                raise ValueError(
                    f"expected a {name} that the strides divide, a multiple of {factor}, got {side}"
                )
