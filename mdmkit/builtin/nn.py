"""Settings and registrations of the built-in components: networks, their blocks and attention. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from math import gcd, isqrt, prod

import attrs

from mdmkit.divisors import divides_problem, grid_multiple, grid_problems, triples
from mdmkit.plugins.component import Component
from mdmkit.recipe.options import Use, opt, slot

__all__ = ["COMPONENTS", "SDPA", "FrameAttention", "FrameConv", "FrameShift", "PooledAttention"]
__all__ += ["ResNet", "UNetCore", "UNetShell"]

Found = Iterator[tuple[str, str]]
# of the attention over time
HEAD_DIM = 32
SELF = "it is shown its own last estimate of the picture"


def unet_problems(unet: UNetCore | UNetShell) -> Found:
    """What does not fit among the settings of a core or shell, as (path, message)."""
    stages = len(unet.channels)
    if not stages:
        yield "channels", "expected at least one stage, got an empty list"
        return
    for name in ("blocks", "attention", "extra_blocks"):
        value = getattr(unet, name)
        if isinstance(value, tuple) and len(value) != stages:
            yield name, f"expected one entry a stage, {stages}, got {len(value)}"
    if unet.strides is not None:
        if len(unet.strides) != stages - 1:
            yield (
                "strides",
                f"expected one entry between each two stages, {stages - 1}, got {len(unet.strides)}",
            )
        for i, stride in enumerate(unet.strides):
            if isinstance(stride, tuple) and len(stride) not in (2, 3):
                wanted = "one number or [height, width], or with frames in front"
                yield f"strides[{i}]", f"expected {wanted}, got {list(stride)}"
    together = reduce(gcd, unet.channels)
    for i, width in enumerate(unet.channels):
        problem = divides_problem("norm_groups", unet.norm_groups, "channels", width, all_of=together)
        if problem:
            yield f"channels[{i}]", problem
    attended = attended_channels(unet)
    together = reduce(gcd, attended.values(), 0)
    for i, width in attended.items():
        problem = divides_problem("heads", unet.heads, "channels", width, all_of=together)
        if problem:
            yield f"channels[{i}]", problem
    yield from clip_problems(unet)
    for key in unet.micro_conditioning or ():
        if not key.isidentifier():
            yield "micro_conditioning", f"expected a name, got {key!r}"


def attended_channels(unet: UNetCore | UNetShell) -> dict[int, int]:
    """The widths that attention works on, by stage."""
    layers: tuple[int, ...]
    if unet.attention is None:
        layers = (*(0,) * (len(unet.channels) - 1), 1)
    else:
        layers = (
            unet.attention if isinstance(unet.attention, tuple) else (unet.attention,) * len(unet.channels)
        )
    middle = len(unet.channels) - 1 if getattr(unet, "middle", False) else None
    counted = zip(unet.channels, layers, strict=False)
    return {i: width for i, (width, count) in enumerate(counted) if count or i == middle}


def clip_problems(unet: UNetCore | UNetShell) -> Found:
    """What does not fit in the settings of a level of clips, or in those of a level of pictures."""
    layers, stages = unet.temporal_layers, len(unet.channels)
    if isinstance(layers, tuple) and len(layers) != stages:
        yield "temporal_layers", f"expected one entry a stage, {stages}, got {len(layers)}"
        return
    if unet.temporal is not None and (in_grid(unet) or unet.frames == 1):
        instead = "has temporal_attention" if in_grid(unet) else "are for clips; say frames"
        yield "temporal", f"layers along time {instead}, or leave temporal out"
    if unet.temporal is not None:
        per_stage = layers if isinstance(layers, tuple) else (layers,) * stages
        told = getattr(unet.temporal.settings, "width_problem", None)
        for i, (width, count) in enumerate(zip(unet.channels, per_stage, strict=True)):
            problem = told(width) if told is not None and count else None
            if problem:
                yield f"channels[{i}]", problem
    strides = () if unet.strides is None else unet.strides
    if not in_grid(unet) and all(isinstance(s, int) or len(s) in (2, 3) for s in strides):
        step = prod(f for f, _, _ in strides_of(unet))
        if unet.frames % step:
            yield "frames", f"the strides divide by {step}, which does not divide {unet.frames}"


def in_grid(unet: UNetCore | UNetShell) -> bool:
    """Whether the pictures of a level are grids of frames."""
    return getattr(unet, "layout", None) == "grid"


def strides_of(unet: UNetCore | UNetShell) -> list[tuple[int, int, int]]:
    """The strides as (frames, height, width)."""
    return triples(unet.strides if unet.strides is not None else (2,) * (len(unet.channels) - 1))


def ratio(unet: UNetCore | UNetShell) -> tuple[int, int]:
    """How many times higher and wider a level's pictures are than those inside."""
    strides = strides_of(unet)
    # of a grid: frames go in rows and columns
    side = isqrt(prod(f for f, _, _ in strides)) if in_grid(unet) else 1
    return side * prod(h for _, h, _ in strides), side * prod(w for _, _, w in strides)


def multiple(unet: UNetCore | UNetShell) -> tuple[int, int]:
    """What divides the height and width of a level's pictures."""
    if not isinstance(unet, UNetShell) or not in_grid(unet):
        return ratio(unet)
    return grid_multiple(unet.frames, strides_of(unet), temporal_layers(unet))


def toml(value: object) -> str:
    """A number, truth value or list of numbers as a recipe has it."""
    return str(list(value)) if isinstance(value, tuple) else str(value).lower()


def temporal_layers(unet: UNetShell) -> tuple[int, ...]:
    """Temporal attention layers, one entry a stage."""
    layers = unet.temporal_attention
    return layers if isinstance(layers, tuple) else (layers,) * len(unet.channels)


def layout_problems(unet: UNetShell) -> Found:
    """What does not fit in the settings of a level whose pictures are grids of frames."""
    if not in_grid(unet):
        for name, off in (("temporal_attention", 0), ("rotary", False)):
            value = getattr(unet, name)
            if value != off:
                yield name, f'expected {toml(off)} without layout = "grid", got {toml(value)}'
        return
    if all(isinstance(stride, int) or len(stride) in (2, 3) for stride in unet.strides or ()):
        yield from grid_problems(unet.frames, strides_of(unet))
    if any(unet.attention) if isinstance(unet.attention, tuple) else unet.attention:
        yield "attention", 'layout = "grid" has attention over time only; say attention = 0'
    if any(unet.extra_blocks) if isinstance(unet.extra_blocks, tuple) else unet.extra_blocks:
        yield "extra_blocks", 'layout = "grid" is for imported models, which have none; say extra_blocks = 0'
    if len(temporal_layers(unet)) != len(unet.channels):
        yield (
            "temporal_attention",
            f"expected one entry a stage, {len(unet.channels)}, got {len(temporal_layers(unet))}",
        )
    for i, (width, count) in enumerate(zip(unet.channels, temporal_layers(unet), strict=False)):
        problem = divides_problem("head_dim", HEAD_DIM, "channels", width) if count else None
        if problem:
            yield f"channels[{i}]", problem


def text_of(resolution: tuple[int, int]) -> str:
    """A resolution as a recipe has it."""
    h, w = resolution
    return str(h) if h == w else f"[{h}, {w}]"


def level_problems(
    unet: UNetCore | UNetShell, resolution: tuple[int, int], inner: tuple[int, int] | None, index: int
) -> Found:
    """What does not fit between a core or shell, its resolution and the level inside, as (path, message)."""
    factors, parts = ratio(unet), multiple(unet)
    if any(side % factor for side, factor in zip(resolution, parts, strict=True)):
        what = "the strides and frames divide" if in_grid(unet) else "the strides divide"
        yield "resolution", f"{what} by {text_of(parts)}, which does not divide {text_of(resolution)}"
        return
    low = resolution[0] // factors[0], resolution[1] // factors[1]
    if inner is not None and low != inner:
        stages = "1 stage takes" if len(unet.channels) == 1 else f"{len(unet.channels)} stages take"
        yield (
            "resolution",
            (
                f"{stages} {text_of(resolution)} down to {text_of(low)}, "
                f"but levels[{index - 1}] works at {text_of(inner)}"
            ),
        )


def frame_problems(unet: UNetCore | UNetShell, inner: int | None, index: int) -> Found:
    """What does not fit between the frames of a level and those of the level inside, as (path, message)."""
    step = prod(f for f, _, _ in strides_of(unet))
    if inner is not None and unet.frames != step * inner:
        yield (
            "frames",
            f"the strides take {unet.frames} down to {unet.frames / step:g}, "
            f"but levels[{index - 1}] has {inner}; say strides = [[frames, height, width], ...]",
        )


@attrs.frozen
class ResNet:
    """Two 3x3 convolutions with group norm, scaled and shifted by the embedding."""

    dropout: float = opt(0.0, "share of values dropped before the second convolution", ge=0.0, lt=1.0)


@attrs.frozen
class SDPA:
    """PyTorch's scaled_dot_product_attention, which picks a kernel for the device."""


@attrs.frozen
class UNetCore:
    """A U-Net with cross-attention to the text."""

    channels: tuple[int, ...] = opt((64, 128, 256), "width of each stage, high resolution to low", ge=1)
    blocks: int | tuple[int, ...] = opt(2, "residual blocks a stage, one more on the way up", ge=1)
    attention: int | tuple[int, ...] | None = opt(
        None, "attention layers behind each residual block of a stage; one at the lowest if not given", ge=0
    )
    strides: tuple[int | tuple[int, ...], ...] | None = opt(
        None, "between the stages, an int, [height, width] or [frames, h, w] each; 2 where not given", ge=1
    )
    extra_blocks: int | tuple[int, ...] = opt(
        0, "residual blocks behind those of a stage, without skips: what deepening adds", ge=0
    )
    in_channels: int = opt(3, "channels of a picture", ge=1)
    emb_dim: int | None = opt(None, "width of the time embedding; 4 * channels[0] where not given", ge=8)
    heads: int = opt(8, "attention heads", ge=1)
    norm_groups: int = opt(32, "groups of every group norm", ge=1)
    ffn: bool = opt(True, "an MLP in each attention layer")
    middle: bool = opt(True, "two residual blocks and an attention layer at the bottom")
    cond_width: int | None = opt(
        None, "width that text features are projected to; as they come if not given", ge=1
    )
    text_layers: int = opt(0, "self-attention layers over the text", ge=0)
    pooled_text: bool = opt(True, "the mean of the text goes into the embedding")
    masked_cross_attention: bool = opt(True, "padding of the text is not looked at")
    micro_conditioning: dict[str, float] | None = opt(
        None, "numbers about a picture and their defaults, such as scale, its side"
    )
    output_limit: float | None = opt(None, "predictions are squeezed into +-this by tanh", gt=0.0)
    self_conditioning: bool = opt(False, SELF)
    frames: int = opt(1, "frames of the clips of this level; 1: pictures", ge=1)
    temporal: Use | None = slot("temporal_layer", None, "layers along the frames of clips")
    temporal_layers: int | tuple[int, ...] = opt(
        1, "temporal layers behind each residual block of a stage, where temporal says which", ge=0
    )
    block: Use = slot("block", "resnet", "the residual block")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from unet_problems(self)
        if self.emb_dim is not None and self.emb_dim % 8:
            yield (
                "emb_dim",
                f"expected a multiple of 8, got {self.emb_dim}; try {self.emb_dim + -self.emb_dim % 8}",
            )
        elif self.emb_dim is None and self.channels and self.channels[0] % 2:
            yield (
                "channels[0]",
                f"expected an even number, as emb_dim is 4 * channels[0], got {self.channels[0]}",
            )
        if self.text_layers and self.cond_width is not None and self.cond_width % self.heads:
            yield "cond_width", divides_problem("heads", self.heads, "cond_width", self.cond_width) or ""

    def level_problems(
        self, *, resolution: tuple[int, int], inner: tuple[int, int] | None, index: int
    ) -> Found:
        """What does not fit the resolution."""
        return level_problems(self, resolution, inner, index)

    def frame_problems(self, *, inner: int | None, index: int) -> Found:
        """What does not fit the frames."""
        return frame_problems(self, inner, index)


@attrs.frozen
class UNetShell:
    """The outer part of a U-Net around another level."""

    channels: tuple[int, ...] = opt((32, 64), "width of each stage, high resolution to low", ge=1)
    blocks: int | tuple[int, ...] = opt(2, "residual blocks a stage, one more on the way up", ge=1)
    attention: int | tuple[int, ...] = opt(0, "attention layers behind each residual block of a stage", ge=0)
    strides: tuple[int | tuple[int, ...], ...] | None = opt(
        None, "between the stages, an int, [height, width] or [frames, h, w] each; 2 where not given", ge=1
    )
    extra_blocks: int | tuple[int, ...] = opt(
        0, "residual blocks behind those of a stage, without skips: what deepening adds", ge=0
    )
    in_channels: int = opt(3, "channels of a picture", ge=1)
    heads: int = opt(8, "attention heads", ge=1)
    norm_groups: int = opt(32, "groups of every group norm", ge=1)
    ffn: bool = opt(True, "an MLP in each attention layer")
    masked_cross_attention: bool = opt(True, "padding of the text is not looked at")
    micro_conditioning: dict[str, float] | None = opt(
        None, "numbers about a picture and their defaults, such as scale, its side"
    )
    inner_input: bool = opt(True, "the level inside sees this one's features")
    normalize_input: bool = opt(False, "divide the noisy picture by its own standard deviation")
    layout: str | None = opt(
        None, "grid: pictures are square grids of frames; for imported models", choices=("grid",)
    )
    frames: int = opt(
        1, "frames of the clips of this level; of a picture of layout grid, a square; 1: pictures", ge=1
    )
    temporal: Use | None = slot("temporal_layer", None, "layers along the frames of clips")
    temporal_layers: int | tuple[int, ...] = opt(
        1, "temporal layers behind each residual block of a stage, where temporal says which", ge=0
    )
    temporal_attention: int | tuple[int, ...] = opt(
        0, "layers over the frames behind each residual block of a stage, in layout grid", ge=0
    )
    rotary: bool = opt(False, "attention over the frames knows their order")
    self_conditioning: bool = opt(False, SELF)
    block: Use = slot("block", "resnet", "the residual block")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        yield from unet_problems(self)
        if self.channels:
            yield from layout_problems(self)

    def level_problems(
        self, *, resolution: tuple[int, int], inner: tuple[int, int] | None, index: int
    ) -> Found:
        """What does not fit the resolution and the level inside."""
        return level_problems(self, resolution, inner, index)

    def frame_problems(self, *, inner: int | None, index: int) -> Found:
        """What does not fit the frames and those of the level inside; of a grid the resolution tells it."""
        return () if in_grid(self) else frame_problems(self, inner, index)  # type: ignore[return-value]


@attrs.frozen
class FrameAttention:
    """Attention over the frames at each place, and an MLP."""

    head_dim: int = opt(HEAD_DIM, "channels a head", ge=1)
    positions: str = opt(
        "rotary",
        "rotary: turned by the frame; relative: learned for each distance; none: frames may be permuted",
        choices=("rotary", "relative", "none"),
    )
    causal: bool = opt(False, "a frame sees itself and those before")
    spatial_heads: int = opt(0, "heads that attend over the places of their own frame instead", ge=0)
    max_distance: int = opt(32, "frames from which on relative positions stay the same", ge=1)
    ffn: bool = opt(True, "an MLP behind the attention")
    chunk: int | None = opt(None, "places at a time: less memory, the same numbers; all if not given", ge=1)

    def problems(self) -> Found:
        """What does not fit among these settings."""
        if self.positions == "rotary" and self.head_dim % 2:
            yield "head_dim", f"rotary positions turn pairs: expected an even number, got {self.head_dim}"

    def width_problem(self, channels: int) -> str | None:
        """Why it cannot work on so many channels."""
        heads = channels // self.head_dim
        if channels % self.head_dim == 0 and self.spatial_heads >= heads:
            return f"temporal.spatial_heads={self.spatial_heads} leaves none of the {heads} heads for time"
        return divides_problem("head_dim", self.head_dim, "channels", channels)


@attrs.frozen
class PooledAttention:
    """Attention over the frames at half the resolution, between two convolutions (the released block)."""

    head_dim: int = opt(HEAD_DIM, "channels a head", ge=1)
    rotary: bool = opt(False, "it knows the order of frames")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        if self.rotary and self.head_dim % 2:
            yield "head_dim", f"rotary positions turn pairs: expected an even number, got {self.head_dim}"

    def width_problem(self, channels: int) -> str | None:
        """Why it cannot work on so many channels."""
        return divides_problem("head_dim", self.head_dim, "channels", channels)


@attrs.frozen
class FrameConv:
    """A convolution along the frames at each place, told the time of the diffusion."""

    kernel: int = opt(3, "frames that it sees, odd", ge=1)
    depthwise: bool = opt(False, "each channel on its own")
    causal: bool = opt(False, "a frame sees itself and those before")

    def problems(self) -> Found:
        """What does not fit among these settings."""
        if self.kernel % 2 == 0:
            yield "kernel", f"expected an odd number, got {self.kernel}; try {self.kernel + 1}"


@attrs.frozen
class FrameShift:
    """Some channels come from the frames beside, faded in by a gate: no weights else."""

    share: float = opt(0.125, "part of the channels that comes from each side", gt=0.0, le=1.0)
    causal: bool = opt(False, "from the frame before only")

    def width_problem(self, channels: int) -> str | None:
        """Why it cannot work on so many channels."""
        moved, sides = round(self.share * channels), 1 if self.causal else 2
        if 1 <= sides * moved <= channels:
            return None
        moves = f"temporal.share={self.share:g} moves {moved} channels"
        return f"{moves} from each of {sides} sides of {channels}"


COMPONENTS: list[Component] = [
    Component("block", "resnet", ResNet, "mdmkit.nn.blocks:ResBlock"),
    Component("attention", "sdpa", SDPA, "mdmkit.nn.attention:sdpa"),
    Component("core", "unet", UNetCore, "mdmkit.nn.core:UNetCore"),
    Component("temporal_layer", "attention", FrameAttention, "mdmkit.nn.temporal:FrameAttention"),
    Component("temporal_layer", "attention_pooled", PooledAttention, "mdmkit.nn.video:TemporalAttention"),
    Component("temporal_layer", "conv", FrameConv, "mdmkit.nn.temporal:FrameConv"),
    Component("temporal_layer", "shift", FrameShift, "mdmkit.nn.temporal:FrameShift"),
    Component("shell", "unet", UNetShell, "mdmkit.nn.shell:UNetShell"),
]
