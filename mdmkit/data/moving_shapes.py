"""Captioned clips of coloured shapes that move, at any resolution and number of frames. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs
import numpy as np

from mdmkit.streams import stream

from .moving import (
    DIRECTIONS,
    GROWTH,
    MEETINGS,
    MOTIONS,
    SPEEDS,
    TURN,
    Happening,
    MotionStatement,
    MovingScene,
    courses,
    placed,
    shows,
)
from .moving_captions import write
from .sample import Sample
from .scene_drawing import paint
from .scenes import COLOURS, RADII, RADIUS_JITTER, SHAPES, SIZES, TEXTURES, SceneObject, Stated
from .shapes import PLAIN

T = TypeVar("T")

__all__ = ["MovingShapes", "film", "held_out_motions", "moving_scene_of", "times"]

SECONDS = 2.0  # that a clip lasts, whatever its frames
ATTEMPTS = 200
# a growing object begins small, whatever its caption could say
BEGINS = {"grow": "small", "shrink": "large"}
# one object makes two motions only where the second does not undo or cover the first
FAMILY = {
    **{name: frozenset("h" * (x != 0) + "v" * (y != 0)) for name, (x, y) in DIRECTIONS.items()},
    **dict.fromkeys(GROWTH, frozenset("g")),
    **dict.fromkeys(TURN, frozenset("t")),
}


class MovingShapes:
    """Procedural clips of one or two shapes: "a red circle moves left slowly, then a blue square falls".

    A sample is a function of (seed, position) alone. Neither what happens nor where depends on the
    resolution (only on its aspect) or on the frames: frame i of F shows time i / F, so that a clip of F
    frames is every n-th frame of one of n F.

    seed: of the whole dataset.
    resolution: (height, width) of the frames.
    frames: of each clip; None gives pictures, each of a moment of its clip, and so do clips of one frame.
    objects: (least, most) objects a clip, within 1 to 2; two have different colours.
    motions: to draw from. "bounce" and "stop" are what two objects do that run into each other; shapes that
        look the same turned do not turn.
    speeds: of objects that move; all but "medium" can be said.
    sequences: some clips show two motions, one after the other, each for half of the time.
    shapes, colours, sizes, textures: the words to draw from.
    split: "train" leaves out the pairs of `held_out_motions(motions, shapes)`, "held_out" makes the first
        motion of each clip one of them, "all" takes everything.
    background: "light" is plain, "varied" draws pale tints with a gradient.
    wording: "plain" says every attribute that varies in always the same words (of textures all but "solid");
        "varied" leaves some out and changes the words. Motions are always said.

    Raises ValueError for a word that is not known, and where too little is left to draw from.
    """

    def __init__(
        self,
        *,
        seed: int,
        resolution: tuple[int, int],
        frames: int | None = None,
        objects: tuple[int, int] = (1, 2),
        motions: tuple[str, ...] = MOTIONS,
        speeds: tuple[str, ...] = tuple(SPEEDS),
        sequences: bool = True,
        shapes: tuple[str, ...] = SHAPES,
        colours: tuple[str, ...] = tuple(COLOURS),
        sizes: tuple[str, ...] = SIZES,
        textures: tuple[str, ...] = TEXTURES,
        split: str = "train",
        background: str = "light",
        wording: str = "varied",
    ) -> None:
        for what, words, known in (
            ("motions", motions, MOTIONS),
            ("speeds", speeds, SPEEDS),
            ("shapes", shapes, SHAPES),
            ("colours", colours, COLOURS),
            ("sizes", sizes, SIZES),
            ("textures", textures, TEXTURES),
        ):
            if not words or len(set(words)) < len(words) or not set(words) <= set(known):
                raise ValueError(f"expected {what} out of {', '.join(known)}, each once, came {list(words)}")
        for what, word, known in (
            ("split", split, ("train", "held_out", "all")),
            ("background", background, ("light", "varied")),
            ("wording", wording, ("plain", "varied")),
        ):
            if word not in known:
                raise ValueError(f"expected {what} to be one of {', '.join(known)}, came {word!r}")
        if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= 2:
            raise ValueError(f"expected objects = (least, most) within 1 to 2, came {tuple(objects)}")
        if min(resolution) < 1 or (frames is not None and frames < 1):
            raise ValueError(
                f"expected a resolution of at least 1 x 1 and frames >= 1, came {resolution} and {frames}"
            )
        if objects[1] == 2 and len(colours) < 2:
            raise ValueError(f"two objects have different colours, came {list(colours)}; list more")
        self.seed, self.resolution, self.frames = seed, (int(resolution[0]), int(resolution[1])), frames
        self.objects, self.sequences = tuple(objects), sequences
        self.colours, self.sizes, self.textures = tuple(colours), tuple(sizes), tuple(textures)
        self.speeds, self.split, self.background, self.wording = tuple(speeds), split, background, wording
        self.motions = tuple(motions)
        self.meetings = tuple(motion for motion in motions if motion in MEETINGS)
        self.shapes = tuple(shapes)
        alone = [motion for motion in motions if motion not in MEETINGS]
        self.every_pair = tuple((m, shape) for m in alone for shape in shapes if shows(m, shape))
        held_out = held_out_motions(motions, shapes)
        self.held_out = tuple(pair for pair in self.every_pair if pair in held_out)
        self.seen = tuple(pair for pair in self.every_pair if pair not in held_out)
        self._check()

    def _check(self) -> None:
        least, most = self.objects
        options = {"train": self.seen, "held_out": self.held_out, "all": self.every_pair}[self.split]
        if not options and (self.split == "held_out" or most < 2 or least < 2 or not self.meetings):
            raise ValueError(
                f"no pair of motion and shape is left to draw from (of {', '.join(self.motions)} and "
                f'{", ".join(self.shapes)}, split = "{self.split}"); list more, or take split = "all"'
            )

    def sample(self, position: int) -> Sample:
        """The clip, uint8 (F, h, w, 3), or picture (h, w, 3), and caption at this position."""
        return self.drawn(position, self.resolution)

    def drawn(self, position: int, resolution: tuple[int, int]) -> Sample:
        """The sample at this position, drawn at any resolution of this aspect."""
        return self.filmed(position, resolution, self.frames)

    def filmed(self, position: int, resolution: tuple[int, int], frames: int | None) -> Sample:
        """The sample at this position, at any resolution of this aspect and of any number of frames."""
        scene = self.scene(position)
        when = times(frames or 1)
        if len(when) == 1:  # else all pictures would be of the beginning
            when = [float(stream(self.seed, position, "moving shapes", "moment").random())]
        clip = film(scene, resolution, when)
        return Sample(
            image=clip[0] if frames is None else clip,
            caption=scene.caption,
            key=f"{position:09d}",
            size=resolution,
            fps=None if frames is None else frames / SECONDS,
        )

    def scene(self, position: int) -> MovingScene:
        """The exact truth behind the clip at this position."""
        return self._scene(stream(self.seed, position, "moving shapes"), self.split)

    def captions(self, count: int, held_out: bool = False) -> list[str]:
        """Captions of clips that are at no position, of this split's pairs or of the held-out ones."""
        split = "held_out" if held_out else self.split
        if split == "held_out" and not self.held_out:
            raise ValueError("these motions and shapes leave no pair to hold out; list more")
        key = (self.seed, "moving shapes", "captions")
        return [self._scene(stream(*key, i), split).caption for i in range(count)]

    def _scene(self, rng: np.random.Generator, split: str) -> MovingScene:
        cause = None
        for _ in range(ATTEMPTS):  # some choices have no room, as two large objects that cross fast
            try:
                return self._attempt(rng, split)
            except ValueError as error:
                cause = error
        raise ValueError(f"found no clip of these settings: {cause}")

    def _attempt(self, rng: np.random.Generator, split: str) -> MovingScene:
        # plain uniform numbers: the generator's own choice methods may change between versions
        u = iter(rng.random(64).tolist())
        least, most = self.objects
        count = least + int(next(u) * (most - least + 1))
        things, events, ordered = self._plan(count, split, u)
        varied = self.wording == "varied"
        texture = [_pick(self.textures, next(u)) for _ in things]
        colours: list[str] = []
        for _ in things:
            colours.append(_pick([colour for colour in self.colours if colour not in colours], next(u)))
        sizes = [_pick(self.sizes, next(u)) for _ in things]
        resized = [[e.motion for e in events if e.thing == i and e.motion in GROWTH] for i in range(count)]
        say_size, say_texture, say_speed = ([next(u) for _ in range(2)] for _ in range(3))
        stated = tuple(
            Stated(
                shape=shape,
                colour=colours[i],
                size=sizes[i]
                if len(self.sizes) > 1 and not resized[i] and say_size[i] < (0.6 if varied else 1.0)
                else None,
                texture=texture[i] if say_texture[i] < _say_texture(texture[i], varied) else None,
            )
            for i, shape in enumerate(things)
        )
        speeds = [_pick(self.speeds, next(u)) for _ in events]
        events = [
            attrs.evolve(event, speed=speed)
            if event.motion in DIRECTIONS
            and speed != "medium"
            and len(self.speeds) > 1
            and say_speed[i] < (0.8 if varied else 1.0)
            else event
            for i, (event, speed) in enumerate(zip(events, speeds, strict=True))
        ]
        sizes = [BEGINS[found[0]] if found else size for found, size in zip(resized, sizes, strict=True)]
        statement = MotionStatement(stated, tuple(events), ordered)
        caption = write(statement, list(u) if varied else None)
        attributes = [(c, s, t) for c, s, t in zip(colours, sizes, texture, strict=True)]
        return _composed(rng, statement, caption, attributes, speeds, self._box(), self._background(u))

    def _plan(self, count: int, split: str, u: Iterator[float]) -> tuple[list[str], list[Happening], bool]:
        """Shapes, what happens, and whether one after the other."""
        pairs = self.seen if split == "train" else self.every_pair
        first = self.held_out if split == "held_out" else pairs
        active = [pair for pair in pairs if pair[0] != "still"]
        if count == 2 and self.meetings and split != "held_out" and (not pairs or next(u) < 0.2):
            shapes = [_pick(self.shapes, next(u)) for _ in range(2)]
            return shapes, [Happening(0, _pick(self.meetings, next(u)))], False
        motion, shape = _pick(first, next(u))
        in_turn = self.sequences and motion != "still" and next(u) < (0.35 if count == 1 else 0.5)
        if count == 1:
            more = [
                m for m, s in active if s == shape and not FAMILY[m] & FAMILY.get(motion, frozenset("hvgt"))
            ]
            if in_turn and more:
                return [shape], [Happening(0, motion), Happening(0, _pick(more, next(u)))], True
            return [shape], [Happening(0, motion)], False
        still = [pair for pair in pairs if pair[0] == "still"]
        # half of the others stay still: else a model need not learn whose motion is whose
        others = active if in_turn else still if still and next(u) < 0.5 else pairs
        second, other = _pick(others or pairs, next(u))
        events = [Happening(0, motion), Happening(1, second)]
        return [shape, other], events, in_turn and bool(active)

    def _box(self) -> tuple[float, float]:
        height, width = self.resolution
        return width / min(height, width), height / min(height, width)

    def _background(
        self, u: Iterator[float]
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, float]]:
        if self.background == "light":
            return PLAIN, PLAIN, (0.0, 0.0)
        tints = [tuple(round(218 + 36 * next(u, 0.5), 3) for _ in range(3)) for _ in range(2)]
        angle = math.tau * next(u, 0.5)
        return tints[0], tints[1], (round(math.cos(angle), 6), round(math.sin(angle), 6))


def times(frames: int) -> list[float]:
    """The time of each frame of a clip that lasts from 0 to 1."""
    return [i / frames for i in range(frames)]


def film(scene: MovingScene, resolution: tuple[int, int], when: Sequence[float]) -> np.ndarray:
    """The clip of a scene at these times, uint8 (F, h, w, 3)."""
    return np.stack([paint(scene.at(time), scene.background, resolution) for time in when])


def held_out_motions(motions: Sequence[str], shapes: Sequence[str]) -> frozenset[tuple[str, str]]:
    """The (motion, shape) pairs kept for testing: for each shape one motion that it can show."""
    kept = set()
    for i, shape in enumerate(shapes):
        seen = [m for m in motions if m not in (*MEETINGS, "still") and shows(m, shape)]
        if len(seen) > 1:
            kept.add((seen[(3 * i + 1) % len(seen)], shape))
    return frozenset(kept)


def moving_scene_of(
    rng: np.random.Generator, statement: MotionStatement, caption: str = "", *, aspect: float = 1.0
) -> MovingScene:
    """A scene of which a statement is true; aspect: width / height.

    A colour left open is drawn, sizes and speeds are medium, a texture is solid. Raises ValueError where no
    scene fits, or two objects are of one colour.
    """
    if len(statement.objects) not in (1, 2):
        raise ValueError(f"expected 1 or 2 objects, came {len(statement.objects)}")
    named = [thing.colour for thing in statement.objects if thing.colour]
    if len(set(named)) < len(named):
        raise ValueError(f"expected objects of different colours, came {' and '.join(named)}")
    attributes = []
    for i, thing in enumerate(statement.objects):
        free = [colour for colour in COLOURS if colour not in named]
        colour = thing.colour or _pick(free, rng.random())
        named.append(colour)
        grown = [BEGINS[e.motion] for e in statement.events if e.thing == i and e.motion in GROWTH]
        attributes.append((colour, thing.size or next(iter(grown), "medium"), thing.texture or "solid"))
    speeds = [event.speed or "medium" for event in statement.events]
    box = (max(aspect, 1.0), max(1 / aspect, 1.0))
    plain = PLAIN, PLAIN, (0.0, 0.0)
    caption = caption or write(statement)
    return _composed(rng, statement, caption, attributes, speeds, box, plain)


def _composed(rng, statement, caption, attributes, speeds, box, background) -> MovingScene:
    radii = [
        RADII[len(attributes) + 1][size] * (1 + RADIUS_JITTER * (2 * rng.random() - 1))
        for _, size, _ in attributes
    ]
    shapes = [thing.shape for thing in statement.objects]
    found = courses(rng, statement, shapes, radii, speeds, box)
    objects = [
        SceneObject(shape, colour, size, texture, 0.0, 0.0, 0.0)
        for shape, (colour, size, texture) in zip(shapes, attributes, strict=True)
    ]
    begun = tuple(placed(thing, course.at(0.0), box) for thing, course in zip(objects, found, strict=True))
    return MovingScene(begun, found, statement, caption, background, box)


def _pick(words: Sequence[T], u: float) -> T:
    return words[int(u * len(words))]


def _say_texture(texture: str, varied: bool) -> float:
    if texture == "solid":
        return 0.1 if varied else 0.0
    return 0.7 if varied else 1.0
