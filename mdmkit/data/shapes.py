"""Captioned scenes of coloured shapes at any resolution: an endless dataset without files. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mdmkit.streams import stream

from .sample import Sample
from .scene_captions import write
from .scene_drawing import draw
from .scenes import (
    COLOURS,
    POSITIONS,
    RADII,
    RADIUS_JITTER,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    Stated,
    Statement,
    any_layout,
    compose,
)

__all__ = ["Shapes", "held_out_pairs", "scene_of"]

PLAIN = (243.0, 243.0, 240.0)
PLACES = tuple(POSITIONS)


class Shapes:
    """Procedural scenes of one to three shapes: "a small red star left of a large striped blue circle".

    A sample is a function of (seed, position) alone, and the scene under it does not depend on the
    resolution.

    seed: of the whole dataset.
    resolution: (height, width) of the pictures; any, not only squares.
    objects: (least, most) objects a scene, within 1 to 3.
    shapes, colours, sizes, textures: the words to draw from.
    relations: say how two or three objects stand to each other.
    positions: say where in the picture a single object stands.
    split: "train" leaves out the pairs of `held_out_pairs(colours, shapes)`, "held_out" makes the first
        object of each scene one of them, "all" takes everything.
    background: "light" is plain, "varied" draws pale tints with a gradient.
    wording: "plain" says every attribute that varies in always the same words (of textures all but "solid");
        "varied" leaves some out and changes the words.

    Raises ValueError for a word that is not known, and for a split with too few pairs.
    """

    def __init__(
        self,
        *,
        seed: int,
        resolution: tuple[int, int],
        objects: tuple[int, int] = (1, 3),
        shapes: tuple[str, ...] = SHAPES,
        colours: tuple[str, ...] = tuple(COLOURS),
        sizes: tuple[str, ...] = SIZES,
        textures: tuple[str, ...] = TEXTURES,
        relations: bool = True,
        positions: bool = True,
        split: str = "train",
        background: str = "light",
        wording: str = "varied",
    ) -> None:
        vocabulary = {"shapes": SHAPES, "colours": COLOURS, "sizes": SIZES, "textures": TEXTURES}
        for what, words in (
            ("shapes", shapes),
            ("colours", colours),
            ("sizes", sizes),
            ("textures", textures),
        ):
            known = vocabulary[what]
            wrong = [word for word in words if word not in known]
            if wrong or not words or len(set(words)) < len(words):
                raise ValueError(f"expected {what} out of {', '.join(known)}, each once, came {list(words)}")
        choices = {
            "split": ("train", "held_out", "all"),
            "background": ("light", "varied"),
            "wording": ("plain", "varied"),
        }
        for what, word in (("split", split), ("background", background), ("wording", wording)):
            if word not in choices[what]:
                raise ValueError(f"expected {what} to be one of {', '.join(choices[what])}, came {word!r}")
        if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= max(RADII):
            raise ValueError(
                f"expected objects = (least, most) within 1 to {max(RADII)}, came {tuple(objects)}"
            )
        if min(resolution) < 1:
            raise ValueError(f"expected a resolution of at least 1 x 1, came {resolution}")
        self.seed, self.resolution = seed, (int(resolution[0]), int(resolution[1]))
        self.objects, self.sizes, self.textures = tuple(objects), tuple(sizes), tuple(textures)
        self.relations, self.positions = relations, positions
        self.split, self.background, self.wording = split, background, wording
        self.every_pair = tuple((colour, shape) for colour in colours for shape in shapes)
        held_out = held_out_pairs(colours, shapes)
        self.held_out = tuple(pair for pair in self.every_pair if pair in held_out)
        self.seen = tuple(pair for pair in self.every_pair if pair not in held_out)
        others = self.seen if split == "train" else self.every_pair
        if len(others) < objects[1]:
            raise ValueError(
                f"expected at least {objects[1]} pairs of colour and shape, came {len(others)} (of "
                f'{len(colours)} colours and {len(shapes)} shapes, split = "{split}"); list more, '
                'or take split = "all"'
            )

    def sample(self, position: int) -> Sample:
        """The picture, uint8 (h, w, 3), and caption at this position."""
        return self.drawn(position, self.resolution)

    def drawn(self, position: int, resolution: tuple[int, int]) -> Sample:
        """The sample at this position, drawn at any resolution."""
        scene = self.scene(position)
        return Sample(
            image=draw(scene, resolution),
            caption=scene.caption,
            key=f"{position:09d}",
            size=resolution,
        )

    def scene(self, position: int) -> Scene:
        """The exact scene behind the picture at this position."""
        return self._scene(stream(self.seed, position, "shapes"), self.split)

    def captions(self, count: int, held_out: bool = False) -> list[str]:
        """Captions of scenes that are at no position, of this split's pairs or of the held-out ones."""
        split = "held_out" if held_out else self.split
        return [self._scene(stream(self.seed, i, "shapes", "captions"), split).caption for i in range(count)]

    def _scene(self, rng: np.random.Generator, split: str) -> Scene:
        # one block of uniform numbers: the generator's own integer and choice methods may change between
        # versions
        u = iter(rng.random(40).tolist())
        least, most = self.objects
        count = least + int(next(u) * (most - least + 1))
        varied = self.wording == "varied"
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            options = self.seen if split == "train" else self.every_pair
            if split == "held_out" and not pairs:
                options = self.held_out
            options = [pair for pair in options if pair not in pairs]  # no two things of one description
            pairs.append(options[int(next(u) * len(options))])
        sizes = [_pick(self.sizes, next(u)) for _ in pairs]
        textures = [_pick(self.textures, next(u)) for _ in pairs]
        radii = [_radius(count, size, next(u)) for size in sizes]
        say_place = next(u) < (0.5 if varied else 1.0)
        place = _pick(PLACES, next(u)) if count == 1 and self.positions and say_place else None
        stated = tuple(
            Stated(
                shape=shape,
                colour=colour,
                size=size if len(self.sizes) > 1 and next(u) < (0.7 if varied else 1.0) else None,
                texture=texture if next(u) < _say_texture(texture, varied) else None,
                position=place,
            )
            for (colour, shape), size, texture in zip(pairs, sizes, textures, strict=True)
        )
        say_relation = self.relations and next(u) < (0.8 if varied else 1.0)
        if count == 1:
            statement = Statement(stated)
            centres = compose(rng, statement, radii)
        else:
            centres, relations = any_layout(rng, radii, say_relation)
            statement = Statement(stated, relations)
        objects = tuple(
            SceneObject(shape, colour, size, texture, x, y, radius)
            for (colour, shape), size, texture, (x, y), radius in zip(
                pairs, sizes, textures, centres, radii, strict=True
            )
        )
        caption = write(statement, list(u) if varied else None)
        return Scene(objects, statement, caption, self._background(rng))

    def _background(
        self, rng: np.random.Generator
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]:
        if self.background == "light":
            return PLAIN, PLAIN, (0.0, 0.0)
        u = rng.random(7).tolist()
        angle = 2 * math.pi * u[6]
        start, end = (tuple(round(218 + 36 * c, 3) for c in u[i : i + 3]) for i in (0, 3))
        return start, end, (round(math.cos(angle), 6), round(math.sin(angle), 6))


def held_out_pairs(colours: Sequence[str], shapes: Sequence[str]) -> frozenset[tuple[str, str]]:
    """The (colour, shape) pairs kept for testing: for each shape one colour, spread over the colours."""
    return frozenset((colours[(3 * i + 1) % len(colours)], shape) for i, shape in enumerate(shapes))


def scene_of(rng: np.random.Generator, statement: Statement, caption: str = "") -> Scene:
    """A scene of which a statement is true.

    A colour left open is drawn, a size is medium, a texture solid. Raises ValueError where no scene fits.
    """
    count = len(statement.objects)
    if count not in RADII:
        raise ValueError(f"expected 1 to {max(RADII)} objects, came {count}")
    names = list(COLOURS)
    colours = [thing.colour or names[int(rng.random() * len(names))] for thing in statement.objects]
    sizes = [thing.size or "medium" for thing in statement.objects]
    radii = [_radius(count, size, rng.random()) for size in sizes]
    centres = compose(rng, statement, radii)
    objects = tuple(
        SceneObject(thing.shape, colour, size, thing.texture or "solid", x, y, radius)
        for thing, colour, size, radius, (x, y) in zip(
            statement.objects, colours, sizes, radii, centres, strict=True
        )
    )
    return Scene(objects, statement, caption or write(statement), (PLAIN, PLAIN, (0.0, 0.0)))


def _radius(count: int, size: str, u: float) -> float:
    return RADII[count][size] * (1 + RADIUS_JITTER * (2 * u - 1))


def _pick(words: tuple[str, ...], u: float) -> str:
    return words[int(u * len(words))]


def _say_texture(texture: str, varied: bool) -> float:
    if texture == "solid":
        return 0.1 if varied else 0.0
    return 0.8 if varied else 1.0
