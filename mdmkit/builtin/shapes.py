"""Settings and registrations of the built-in components: captioned shapes and their metric. No torch."""

from __future__ import annotations

import attrs

from mdmkit.plugins.component import Component
from mdmkit.recipe.options import opt

__all__ = ["COMPONENTS", "PromptAccuracy", "Shapes"]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")


@attrs.frozen
class Shapes:
    """Procedural scenes of one to three coloured shapes with captions, endless, no files."""

    objects: tuple[int, int] = opt((1, 3), "least and most objects a scene", ge=1, le=3)
    shapes: tuple[str, ...] = opt(SHAPES, "shapes to draw from", choices=SHAPES)
    colours: tuple[str, ...] = opt(COLOURS, "colours to draw from", choices=COLOURS)
    sizes: tuple[str, ...] = opt(SIZES, "sizes to draw from", choices=SIZES)
    textures: tuple[str, ...] = opt(TEXTURES, "textures to draw from", choices=TEXTURES)
    relations: bool = opt(True, "say how two or three objects stand to each other")
    positions: bool = opt(True, "say where in the picture a single object stands")
    split: str = opt(
        "train",
        "held_out: the pairs of colour and shape that train never shows",
        choices=("train", "held_out", "all"),
    )
    background: str = opt("light", "varied: pale tints with a gradient", choices=("light", "varied"))
    wording: str = opt(
        "varied", "plain: every attribute that varies, always in the same words", choices=("plain", "varied")
    )


@attrs.frozen
class PromptAccuracy:
    """Shares of shapes prompts with colour, shape, relation right, beside the checker's own accuracy."""

    true_scenes: int = opt(128, "captions whose true scene is read too, for the checker's own accuracy", ge=0)


COMPONENTS: list[Component] = [
    Component("dataset", "shapes", Shapes, "mdmkit.data.shapes:Shapes"),
    Component("metric", "prompt_accuracy", PromptAccuracy, "mdmkit.evaluate.prompt_accuracy:PromptAccuracy"),
]
