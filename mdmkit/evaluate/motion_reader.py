"""Reads clips of coloured shapes: which objects they show, and where each of them is in every frame.

The first frame is read as a picture is (`shapes_reader`). Its objects are then followed: a pixel that differs
from the background belongs to the object whose colours explain it best, of two alike to the nearer one. What
they do is fitted to their places: a straight way, a growth and a turn, each over a span of time. No caption
is looked at.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from mdmkit.data.moving import DIRECTIONS, GROWTH, SPEEDS, TURN
from mdmkit.data.moving_shapes import times
from mdmkit.data.scene_drawing import FINE, cover
from mdmkit.data.scenes import COLOURS

from .shapes_reader import MOMENTS, FoundObject, background_of, pixels_of, read

__all__ = ["SEVERAL", "STILL", "Change", "Track", "change", "follow", "motion_of"]

Array = np.ndarray

STILL, SEVERAL = "still", "several"  # what an object does that does nothing, or more than one thing at once
PERIOD = {"circle": 0, "ring": 0, "square": 90, "cross": 90, "star": 72, "diamond": 180, "triangle": 120}
STEPS = 15  # angles tried on either side of the last one
WIDEST = 44.0  # degrees that an object turns from frame to frame, at most
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a texture's two tones
STRAY = 40.0  # how much farther off in RGB a pixel may be for each radius that it is nearer to an object
SURE = 0.5  # of the least motion that is ever drawn, from which a motion counts


@attrs.frozen(eq=False)
class Track:
    """An object and its poses: x, y in shorter sides, radius in shorter sides, angle in radians, by frame.

    `seen` says in which frames it is there; poses of the others are between those beside them.
    """

    thing: FoundObject
    times: Array
    poses: Array  # (F, 4)
    seen: Array


@attrs.frozen
class Change:
    """How an object changes over a span of time: its way, growth of the radius (a factor) and turn."""

    x: float
    y: float
    growth: float
    turn: float
    span: float


def follow(clip: Array) -> tuple[Track, ...]:
    """The objects of a clip's first frame through all of its frames, uint8 (F, H, W, 3)."""
    frames = [pixels_of(frame) for frame in clip]
    found = read(clip[0])
    height, width, _ = frames[0].shape
    side = min(height, width)
    poses = np.zeros((len(found), len(frames), 4))
    seen = np.zeros((len(found), len(frames)), dtype=bool)
    last = np.array([[f.x * width, f.y * height, f.radius * side, 0.0] for f in found]).reshape(-1, 4)
    for i, frame in enumerate(frames):
        for k, (soft, thing) in enumerate(zip(_shares(frame, found, last), found, strict=True)):
            area = float(soft.sum())
            if area >= max(2.0, 0.1 * math.pi * last[k, 2] ** 2):
                pose = _pose(soft, thing.shape, float(last[k, 3]), turns=i > 0)
                last[k], seen[k, i] = pose, True
            poses[k, i] = last[k]
    poses[..., :3] /= side
    return tuple(
        Track(thing, np.array(times(len(frames))), poses[k], seen[k]) for k, thing in enumerate(found)
    )


def change(track: Track, start: float, stop: float) -> Change:
    """The straight change that comes nearest to an object's poses from `start` to `stop`, over all of it."""
    inside = (track.times >= start - 1e-9) & (track.times <= stop + 1e-9)
    if inside.sum() < 2:
        return Change(0.0, 0.0, 1.0, 0.0, stop - start)
    t = track.times[inside] - track.times[inside].mean()
    values = track.poses[inside].copy()
    values[:, 2] = np.log(np.maximum(values[:, 2], 1e-6))
    slopes = (t[:, None] * (values - values.mean(0))).sum(0) / (t * t).sum()
    x, y, growth, turn = (slopes * (stop - start)).tolist()
    return Change(x, y, math.exp(growth), turn, stop - start)


def motion_of(moved: Change) -> tuple[str, str | None]:
    """The motion that a change is, STILL or SEVERAL, and the speed where it is one of place."""
    way = math.hypot(moved.x, moved.y)
    strength = {
        "move": way / (SPEEDS["slow"] * moved.span),
        "growth": abs(math.log(moved.growth)) / math.log(GROWTH["grow"]),
        "turn": abs(moved.turn) / TURN["clockwise"],
    }
    kinds = [kind for kind, much in strength.items() if much >= SURE]
    if not kinds:
        return STILL, None
    if len(kinds) > 1:
        return SEVERAL, None
    if kinds == ["growth"]:
        return ("grow" if moved.growth > 1 else "shrink"), None
    if kinds == ["turn"]:
        return ("clockwise" if moved.turn > 0 else "anticlockwise"), None
    direction = max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], (moved.x, moved.y))))
    rate = way / moved.span
    return direction, min(SPEEDS, key=lambda name: abs(math.log(rate / SPEEDS[name])))


def _shares(frame: Array, found: tuple[FoundObject, ...], last: Array) -> list[Array]:
    """How much of each pixel belongs to each object."""
    height, width, _ = frame.shape
    difference = frame - background_of(frame)
    distance = np.sqrt((difference * difference).sum(-1))
    threshold = float(np.clip(0.25 * distance.max(), 18.0, 45.0))
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    costs, soft = [], []
    for thing, (cx, cy, radius, _) in zip(found, last.tolist(), strict=True):
        away = np.maximum(np.hypot(x - cx, y - cy) / max(radius, 1.0) - 1.0, 0.0)
        misfit, full = _misfit(frame, difference, thing.colour)
        costs.append(misfit + STRAY * away)
        soft.append(np.where(distance > threshold, np.minimum(distance / full, 1.0), 0.0))
    if not found:
        return []
    mine = np.argmin(costs, axis=0)
    return [np.where(mine == k, share, 0.0) for k, share in enumerate(soft)]


def _misfit(frame: Array, difference: Array, colour: str) -> tuple[Array, float]:
    """How far each pixel is from a mix of a colour's tones and the background, and the tones' distance."""
    if colour not in COLOURS:
        return np.full(frame.shape[:2], 60.0), 190.0
    first, second = (np.array(tone, dtype=float) for tone in COLOURS[colour])
    behind = (frame - difference).mean((0, 1))
    best = np.full(frame.shape[:2], np.inf)
    for mix in MIXES:
        tone = (1 - mix) * first + mix * second - behind
        share = np.clip(difference @ tone / (tone @ tone), 0.0, 1.0)
        best = np.minimum(best, np.linalg.norm(difference - share[..., None] * tone, axis=-1))
    return best, float(min(np.linalg.norm(tone - behind) for tone in (first, second)))


def _pose(soft: Array, shape: str, angle: float, turns: bool) -> Array:
    """Centre and radius in pixels by area and centre of mass, and the angle that fits best near `angle`."""
    unit, offset_x, offset_y = MOMENTS.get(shape, (math.pi * 0.85, 0.0, 0.0))
    area = float(soft.sum())
    radius = math.sqrt(area / unit)
    mass_x = float((soft.sum(0) * (np.arange(soft.shape[1]) + 0.5)).sum()) / area
    mass_y = float((soft.sum(1) * (np.arange(soft.shape[0]) + 0.5)).sum()) / area

    def centre(turned: float) -> tuple[float, float]:
        cos, sin = math.cos(turned), math.sin(turned)
        return (
            mass_x - (cos * offset_x - sin * offset_y) * radius,
            mass_y - (sin * offset_x + cos * offset_y) * radius,
        )

    period = PERIOD.get(shape, 360)
    if turns and period and shape in MOMENTS:
        widest = math.radians(min(WIDEST, period / 2 - 1))
        tried = angle + widest * np.arange(-STEPS, STEPS + 1) / STEPS
        rows, columns = np.nonzero(soft)
        window = (
            max(int(rows.min()) - 2, 0), min(int(rows.max()) + 3, soft.shape[0]),
            max(int(columns.min()) - 2, 0), min(int(columns.max()) + 3, soft.shape[1]),
        )  # fmt: skip
        patch = soft[window[0] : window[1], window[2] : window[3]]
        factor = -(-FINE // (2 * min(soft.shape)))
        errors = [
            float(((patch - cover(shape, "solid", centre(a), radius, window, factor, a)[0]) ** 2).sum())
            for a in tried.tolist()
        ]
        best = int(np.argmin(errors))
        angle = float(tried[best])
        if 0 < best < len(errors) - 1:  # between the angles tried: a parabola through three
            left, middle, right = errors[best - 1 : best + 2]
            bend = left - 2 * middle + right
            angle += 0.5 * (left - right) / bend * widest / STEPS if bend > 0 else 0.0
    return np.array([*centre(angle), radius, angle])
