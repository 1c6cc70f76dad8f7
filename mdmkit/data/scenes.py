"""Scenes of coloured shapes: their words, their objects, and where objects can stand. No torch.

A scene knows no resolution: x and y are shares of the picture's width and height, radii are shares of its
shorter side. All draws are plain uniform numbers, so that a scene is the same on every platform.
"""

from __future__ import annotations

import attrs
import numpy as np

__all__ = [
    "COLOURS",
    "POSITIONS",
    "RADII",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Background",
    "Relation",
    "Scene",
    "SceneObject",
    "Stated",
    "Statement",
    "any_layout",
    "compose",
    "holds",
    "stands",
]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "ring", "cross")
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")

COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    # the colour itself, and the second tone of its textures
    "red": ((226, 36, 44), (112, 10, 22)),
    "orange": ((255, 138, 10), (150, 70, 0)),
    "yellow": ((250, 214, 24), (150, 120, 0)),
    "green": ((46, 168, 62), (12, 78, 28)),
    "cyan": ((34, 196, 220), (8, 104, 122)),
    "blue": ((38, 76, 226), (12, 24, 112)),
    "purple": ((150, 58, 196), (72, 16, 104)),
    "black": ((28, 28, 32), (128, 128, 132)),
}

RELATIONS: dict[str, tuple[int, int]] = {
    # the direction from the second object to the first; y points down
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "centre": (0, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}

# radius by the number of objects in the scene: crowded scenes hold smaller things
RADII: dict[int, dict[str, float]] = {
    1: {"small": 0.16, "medium": 0.235, "large": 0.335},
    2: {"small": 0.11, "medium": 0.15, "large": 0.2},
    3: {"small": 0.095, "medium": 0.13, "large": 0.17},
}
RADIUS_JITTER = 0.05
MARGIN = 0.02  # between an object and the picture's edge
GAP = 0.06  # between two objects
ASIDE = 0.06  # an object farther than this from the middle stands at a side
CLEAR = 0.7  # a relation is said only where the offset across it is at most this share of the offset along it
LAYOUTS = 64  # tried at once

Background = tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]


@attrs.frozen
class SceneObject:
    """One thing in a picture: its attributes, its centre (x, y) in [0, 1] and its radius in shorter sides.

    `angle`: how far it is turned, clockwise, in radians.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


@attrs.frozen
class Stated:
    """What a caption says of one object; None where it says nothing."""

    shape: str
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    position: str | None = None


@attrs.frozen
class Relation:
    """Object `first` is `name` (e.g. "left of") object `second`; both are indices."""

    first: int
    name: str
    second: int


@attrs.frozen
class Statement:
    """All that a caption says."""

    objects: tuple[Stated, ...]
    relations: tuple[Relation, ...] = ()


@attrs.frozen
class Scene:
    """A picture before it is drawn: its objects, what its caption says of them, and the background.

    `background` holds two RGB colours and the direction (x, y) from the first to the second.
    """

    objects: tuple[SceneObject, ...]
    stated: Statement
    caption: str
    background: Background


def holds(
    relation: str, first: tuple[float, float], second: tuple[float, float], across: float = CLEAR
) -> bool:
    """Whether an object at `first` (x, y) stands in `relation` to one at `second`.

    `across` is the largest offset across the relation's direction, as a share of the offset along it.
    """
    along_x, along_y = RELATIONS[relation]
    dx, dy = first[0] - second[0], first[1] - second[1]
    along = dx * along_x + dy * along_y
    return along > 0 and abs(dx * along_y) + abs(dy * along_x) <= across * along


def stands(position: str, centre: tuple[float, float], slack: float = 0.0) -> bool:
    """Whether an object at `centre` (x, y) stands at a position; a negative `slack` asks for a clear case."""

    def fits(side: int, coordinate: float) -> bool:
        offset = coordinate - 0.5
        return side * offset > ASIDE - slack if side else abs(offset) <= ASIDE + slack

    side_x, side_y = POSITIONS[position]
    return fits(side_x, centre[0]) and fits(side_y, centre[1])


def compose(rng: np.random.Generator, stated: Statement, radii: list[float]) -> list[tuple[float, float]]:
    """Centres (x, y) for objects of these radii that do not overlap and stand as stated.

    Raises ValueError where that cannot be found (e.g. three large objects in one row).
    """
    if len(radii) == 1:
        return [_place_one(rng, stated.objects[0].position, radii[0])]
    for _ in range(32):
        layouts = list(_layouts(rng, radii))
        for relation in stated.relations:
            layouts = [c for c in layouts if holds(relation.name, c[relation.first], c[relation.second])]
        for i, thing in enumerate(stated.objects):
            if thing.position:
                layouts = [c for c in layouts if stands(thing.position, c[i], slack=-0.02)]
        if len(layouts):
            return [(float(x), float(y)) for x, y in layouts[0]]
    raise ValueError(f"no room for objects of radii {radii} that stand as {stated} says")


def any_layout(
    rng: np.random.Generator, radii: list[float], relate: bool
) -> tuple[list[tuple[float, float]], tuple[Relation, ...]]:
    """Centres (x, y) that do not overlap, and how object 0 stands to each other one.

    With `relate`, layouts in which that is clear come first; no relations are returned without it, or where
    no such layout is found.
    """
    layouts = _layouts(rng, radii)
    while not len(layouts):
        layouts = _layouts(rng, radii)
    if not relate:
        return [(float(x), float(y)) for x, y in layouts[0]], ()
    away = np.abs(layouts[:, :1] - layouts[:, 1:])  # (n, others, 2)
    clear = (away.min(-1) <= CLEAR * away.max(-1)).all(-1)
    pick = int(clear.argmax())  # the first clear one; 0 where there is none
    centres = [(float(x), float(y)) for x, y in layouts[pick]]
    if not clear[pick]:
        return centres, ()
    relations = []
    for second in range(1, len(radii)):
        name = next(name for name in RELATIONS if holds(name, centres[0], centres[second]))
        relations.append(Relation(0, name, second))
    return centres, tuple(relations)


def _place_one(rng: np.random.Generator, position: str | None, radius: float) -> tuple[float, float]:
    reach = max(0.5 - MARGIN - radius, 0.0)
    u = rng.random(2)
    if position is None:
        return float(0.5 + reach * (2 * u[0] - 1)), float(0.5 + reach * (2 * u[1] - 1))
    least = ASIDE + 0.05
    if position != "centre" and reach < least:
        raise ValueError(
            f"an object of radius {radius:.3f} cannot stand at the {position}; say a smaller size"
        )
    x, y = (
        0.5 + side * (least + (reach - least) * share) if side else 0.5 + 0.03 * (2 * share - 1)
        for side, share in zip(POSITIONS[position], u, strict=True)
    )
    return float(x), float(y)


def _layouts(rng: np.random.Generator, radii: list[float]) -> np.ndarray:
    """Those of LAYOUTS random layouts (n, objects, 2) in which nothing overlaps."""
    reach = 0.5 - MARGIN - np.array(radii)
    centres = 0.5 + reach[:, None] * (2 * rng.random((LAYOUTS, len(radii), 2)) - 1)
    fits = np.ones(LAYOUTS, dtype=bool)
    for i in range(len(radii)):
        for j in range(i):
            apart = centres[:, i] - centres[:, j]
            fits &= (apart * apart).sum(-1) >= (radii[i] + radii[j] + GAP) ** 2
    return centres[fits]
