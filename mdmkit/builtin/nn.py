"""Settings and registrations of the built-in components: networks, their blocks and attention. No torch."""

from __future__ import annotations

import attrs

from mdmkit.divisors import divides_problem
from mdmkit.plugins.component import Component
from mdmkit.recipe.options import Use, opt, slot

from .unet_checks import (
    HEAD_DIM,
    Found,
    frame_problems,
    in_grid,
    layout_problems,
    level_problems,
    unet_problems,
)

__all__ = ["COMPONENTS", "SDPA", "FrameAttention", "FrameConv", "FrameShift", "PooledAttention"]
__all__ += ["ResNet", "UNetCore", "UNetShell"]

SELF = "it is shown its own last estimate of the picture"


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
        "rotary: turned by the frame; relative: learned for each distance; sinusoidal: by its number, so "
        "that a still clip is not its picture; none: frames may be permuted",
        choices=("rotary", "relative", "sinusoidal", "none"),
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
        if self.positions == "sinusoidal" and channels % 2:
            return f"sinusoidal positions come in pairs: expected even channels, got {channels}"
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
