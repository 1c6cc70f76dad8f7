"""What does not fit among the settings of the built-in U-Nets, and between them and their level. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from math import gcd, isqrt, prod
from typing import TYPE_CHECKING, cast

from mdmkit.divisors import divides_problem, grid_multiple, grid_problems, triples

if TYPE_CHECKING:
    from .nn import UNetCore, UNetShell

__all__ = [
    "HEAD_DIM",
    "Found",
    "frame_problems",
    "in_grid",
    "layout_problems",
    "level_problems",
    "multiple",
    "temporal_layers",
    "unet_problems",
]

Found = Iterator[tuple[str, str]]
# of the attention over time
HEAD_DIM = 32


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
        layers = each_stage(unet.attention, len(unet.channels))
    middle = len(unet.channels) - 1 if getattr(unet, "middle", False) else None
    counted = zip(unet.channels, layers, strict=False)
    return {i: width for i, (width, count) in enumerate(counted) if count or i == middle}


def each_stage(value: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    """One entry a stage, where one number may stand for all."""
    return value if isinstance(value, tuple) else (value,) * stages


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
        per_stage = each_stage(layers, stages)
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
    if not in_grid(unet):
        return ratio(unet)
    shell = cast("UNetShell", unet)  # a core has no layout
    return grid_multiple(shell.frames, strides_of(shell), temporal_layers(shell))


def toml(value: object) -> str:
    """A number, truth value or list of numbers as a recipe has it."""
    return str(list(value)) if isinstance(value, tuple) else str(value).lower()


def temporal_layers(unet: UNetShell) -> tuple[int, ...]:
    """Temporal attention layers, one entry a stage."""
    return each_stage(unet.temporal_attention, len(unet.channels))


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
