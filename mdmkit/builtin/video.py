"""Settings and registrations of the built-in components: clips, captioned shapes that move. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

from .shapes import COLOURS, SHAPES, SIZES, TEXTURES

__all__ = ["COMPONENTS", "MovingShapes"]

DIRECTIONS = ("left", "right", "up", "down", "up left", "up right", "down left", "down right")
MOTIONS = (*DIRECTIONS, "grow", "shrink", "clockwise", "anticlockwise", "still", "bounce", "stop")
SPEEDS = ("slow", "medium", "fast")


@attrs.frozen
class MovingShapes:
    """Procedural clips of one or two coloured shapes that move, with captions, endless, no files."""

    objects: tuple[int, int] = opt((1, 2), "least and most objects a clip", ge=1, le=2)
    motions: tuple[str, ...] = opt(
        MOTIONS, "motions to draw from; bounce, stop: two objects run into each other", choices=MOTIONS
    )
    speeds: tuple[str, ...] = opt(SPEEDS, "speeds of objects that move", choices=SPEEDS)
    sequences: bool = opt(True, "some clips show two motions, one after the other")
    shapes: tuple[str, ...] = opt(SHAPES, "shapes to draw from", choices=SHAPES)
    colours: tuple[str, ...] = opt(COLOURS, "colours to draw from", choices=COLOURS)
    sizes: tuple[str, ...] = opt(SIZES, "sizes to draw from", choices=SIZES)
    textures: tuple[str, ...] = opt(TEXTURES, "textures to draw from", choices=TEXTURES)
    split: str = opt(
        "train",
        "held_out: the pairs of motion and shape that train never shows",
        choices=("train", "held_out", "all"),
    )
    background: str = opt("light", "varied: pale tints with a gradient", choices=("light", "varied"))
    wording: str = opt(
        "varied", "plain: every attribute that varies, always in the same words", choices=("plain", "varied")
    )


COMPONENTS: list[Component] = [
    Component("dataset", "moving_shapes", MovingShapes, "mdmkit.data.moving_shapes:MovingShapes"),
]
