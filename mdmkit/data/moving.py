"""Scenes of coloured shapes that move: what happens in them, and where every object is when. No torch.

A clip lasts from time 0 to time 1. Places are in units of the picture's shorter side, in a box of (width,
height) such sides, so that a motion has one speed along both axes. Every object's course is a chain of
straight pieces, which is the exact truth behind the frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import attrs
import numpy as np

from .scene_drawing import OUTLINES
from .scenes import GAP, LAYOUTS, MARGIN, Background, SceneObject, Stated

__all__ = [
    "DIRECTIONS",
    "GROWTH",
    "MEETINGS",
    "MOTIONS",
    "ROUND",
    "SPEEDS",
    "TURN",
    "Course",
    "Happening",
    "MotionStatement",
    "MovingScene",
    "Pose",
    "courses",
    "shows",
]

DIAGONAL = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    # y points down
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-DIAGONAL, -DIAGONAL),
    "up right": (DIAGONAL, -DIAGONAL),
    "down left": (-DIAGONAL, DIAGONAL),
    "down right": (DIAGONAL, DIAGONAL),
}
GROWTH = {"grow": 1.6, "shrink": 1 / 1.6}  # of the radius, from a motion's begin to its end
TURN = {"clockwise": math.radians(100), "anticlockwise": -math.radians(100)}
MEETINGS = ("bounce", "stop")  # what two objects do that run into each other
MOTIONS = (*DIRECTIONS, *GROWTH, *TURN, "still", *MEETINGS)
SPEEDS = {"slow": 0.17, "medium": 0.34, "fast": 0.5}  # shorter sides a clip
SPEED_JITTER = 0.1
ROUND = ("circle", "ring")  # shapes that look the same however they are turned
MEET = (0.1, 0.22)  # shorter sides that each of two objects goes until they touch


@attrs.frozen
class Happening:
    """Object number `thing` makes a motion, at a speed where one is said; a meeting is of objects 0 and 1."""

    thing: int
    motion: str
    speed: str | None = None


@attrs.frozen
class MotionStatement:
    """All that a caption of a clip says: its objects, and what happens.

    `ordered`: two things happen, one after the other, in the halves of the clip; else everything happens
    all along. Objects come in the order in which something happens to them. Without events, the caption is
    one of a picture.
    """

    objects: tuple[Stated, ...]
    events: tuple[Happening, ...] = ()
    ordered: bool = False

    def spans(self) -> tuple[tuple[float, float], ...]:
        """From when to when each event lasts."""
        return ((0.0, 0.5), (0.5, 1.0)) if self.ordered else ((0.0, 1.0),) * len(self.events)


@attrs.frozen
class Pose:
    """Where an object is at a time: its centre and radius in shorter sides, turned clockwise by `angle`."""

    time: float
    x: float
    y: float
    radius: float
    angle: float = 0.0


@attrs.frozen
class Course:
    """An object's poses by time, the first at 0 and the last at 1, with straight pieces between."""

    poses: tuple[Pose, ...]

    def at(self, time: float) -> Pose:
        """The pose at a time."""
        times = [pose.time for pose in self.poses]
        values = np.array([[p.x, p.y, p.radius, p.angle] for p in self.poses])
        return Pose(time, *(float(np.interp(time, times, column)) for column in values.T))

    def moved(self, x: float, y: float) -> Course:
        """The same course from another place."""
        return Course(tuple(attrs.evolve(pose, x=pose.x + x, y=pose.y + y) for pose in self.poses))


@attrs.frozen
class MovingScene:
    """A clip before it is drawn: its objects as they begin, the course of each, and its caption."""

    objects: tuple[SceneObject, ...]
    courses: tuple[Course, ...]
    stated: MotionStatement
    caption: str
    background: Background
    box: tuple[float, float]

    def at(self, time: float) -> tuple[SceneObject, ...]:
        """The objects at a time in [0, 1]."""
        return tuple(
            placed(thing, course.at(time), self.box)
            for thing, course in zip(self.objects, self.courses, strict=True)
        )


def placed(thing: SceneObject, pose: Pose, box: tuple[float, float]) -> SceneObject:
    """An object at a pose."""
    return attrs.evolve(
        thing,
        x=pose.x / box[0],
        y=pose.y / box[1],
        radius=pose.radius,
        angle=math.remainder(pose.angle, math.tau),
    )


def shows(motion: str, shape: str) -> bool:
    """Whether a motion of a shape can be seen at all: a circle that turns looks like one that does not."""
    return not (motion in TURN and shape in ROUND)


def courses(
    rng: np.random.Generator,
    stated: MotionStatement,
    shapes: Sequence[str],
    radii: Sequence[float],
    speeds: Sequence[str],
    box: tuple[float, float],
) -> tuple[Course, ...]:
    """Courses of one or two objects that do what is stated, inside the box and apart from each other.

    speeds: of each event. Raises ValueError where that cannot be found, e.g. for two large objects that
    cross the picture fast.
    """
    if stated.events and stated.events[0].motion in MEETINGS:
        return _meeting(rng, stated.events[0].motion, shapes, radii, box)
    paths = [_path(rng, stated, thing, radius, speeds) for thing, radius in enumerate(radii)]
    lows, highs = [], []
    for path in paths:
        room = [(p.x - p.radius, p.x + p.radius, p.y - p.radius, p.y + p.radius) for p in path.poses]
        left, right, top, bottom = (
            f(c) for f, c in zip((min, max, min, max), zip(*room, strict=True), strict=True)
        )
        lows.append((MARGIN - left, MARGIN - top))
        highs.append((box[0] - MARGIN - right, box[1] - MARGIN - bottom))
    low, high = np.array(lows), np.array(highs)
    if (low > high).any():
        raise ValueError(f"no room for objects of radii {list(radii)} that do what {stated} says")
    times = sorted({*np.linspace(0, 1, 17).tolist(), *(pose.time for path in paths for pose in path.poses)})
    along = [[path.at(time) for time in times] for path in paths]
    for _ in range(8):
        starts = low + (high - low) * rng.random((LAYOUTS, len(paths), 2))
        fits = np.ones(LAYOUTS, dtype=bool)
        for i in range(len(paths)):
            for j in range(i):
                apart = np.array([(a.x - b.x, a.y - b.y) for a, b in zip(along[i], along[j], strict=True)])
                least = np.array([a.radius + b.radius + GAP for a, b in zip(along[i], along[j], strict=True)])
                between = starts[:, None, i] - starts[:, None, j] + apart
                fits &= ((between * between).sum(-1) >= least**2).all(-1)
        if fits.any():
            chosen = starts[int(fits.argmax())]
            return tuple(path.moved(float(x), float(y)) for path, (x, y) in zip(paths, chosen, strict=True))
    raise ValueError(f"no room for objects of radii {list(radii)} that do what {stated} says")


def _path(
    rng: np.random.Generator, stated: MotionStatement, thing: int, radius: float, speeds: Sequence[str]
) -> Course:
    """The course of an object that begins at (0, 0)."""
    poses = [Pose(0.0, 0.0, 0.0, radius)]
    for event, (start, stop), speed in zip(stated.events, stated.spans(), speeds, strict=True):
        jitter = 1 + SPEED_JITTER * (2 * rng.random() - 1)
        if event.thing != thing:
            continue
        if start > poses[-1].time:
            poses.append(attrs.evolve(poses[-1], time=start))
        last = attrs.evolve(poses[-1], time=stop)
        if event.motion in DIRECTIONS:
            x, y = DIRECTIONS[event.motion]
            way = SPEEDS[speed] * jitter * (stop - start)
            last = attrs.evolve(last, x=last.x + way * x, y=last.y + way * y)
        elif event.motion in GROWTH:
            last = attrs.evolve(last, radius=last.radius * GROWTH[event.motion])
        elif event.motion in TURN:
            last = attrs.evolve(last, angle=last.angle + TURN[event.motion] * jitter)
        poses.append(last)
    if poses[-1].time < 1:
        poses.append(attrs.evolve(poses[-1], time=1.0))
    return Course(tuple(poses))


def _meeting(
    rng: np.random.Generator,
    motion: str,
    shapes: Sequence[str],
    radii: Sequence[float],
    box: tuple[float, float],
) -> tuple[Course, ...]:
    """Two objects run into each other at half-time, along a row or a column, and bounce or stop."""
    u = rng.random(5).tolist()
    axis = int(u[0] * 2)
    sign = 1 if u[1] < 0.5 else -1
    toward = np.array([sign, 0.0] if axis == 0 else [0.0, sign])
    touch = radii[0] * _reach(shapes[0], *toward.tolist()) + radii[1] * _reach(shapes[1], *(-toward).tolist())
    room = box[axis] - 2 * MARGIN - radii[0] - radii[1] - touch
    if room < 2 * MEET[0]:
        raise ValueError(f"no room for objects of radii {list(radii)} to run into each other")
    way = MEET[0] + (min(MEET[1], room / 2) - MEET[0]) * u[2]
    wide, across = max(radii), box[1 - axis] - 2 * MARGIN
    # along the axis, the first object stands at 0 and the second at touch + 2 way; signs come last
    first = MARGIN + radii[0] + (room - 2 * way) * u[3]
    if sign < 0:
        first = box[axis] - first
    beside = MARGIN + wide + (across - 2 * wide) * u[4]
    start = np.full(2, beside)
    start[axis] = first
    found = []
    for thing, here, step in (
        (0, start, way * toward),
        (1, start + (touch + 2 * way) * toward, -way * toward),
    ):
        after = here if motion == "bounce" else here + step
        places = ((0.0, here), (0.5, here + step), (1.0, after))
        found.append(Course(tuple(Pose(t, float(p[0]), float(p[1]), radii[thing]) for t, p in places)))
    return tuple(found)


@lru_cache(maxsize=64)
def _reach(shape: str, x: float, y: float) -> float:
    """How far a shape of radius 1 reaches in a direction (x, y)."""
    u, v = np.meshgrid(np.linspace(-1.1, 1.1, 441), np.linspace(-1.1, 1.1, 441))
    return float((u * x + v * y)[OUTLINES[shape](u, v) <= 0].max())
