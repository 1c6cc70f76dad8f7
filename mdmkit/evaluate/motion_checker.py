"""Says whether a clip of moving shapes shows what a caption asks for.

The clip is read first, without the caption (`motion_reader`). Measured on 100 true clips of 8 frames a row,
of all motions, shapes, sizes and textures, in per cent of the captions that say it. "soft": blurred by 0.7
pixels, with noise of 0.08 in [-1, 1]; "motion": all that happens; "all": the objects too.

    pixels    direction  speed  growth  turn  still  meeting  order  motion  objects  all
    16           100     100      95.8  100   100     100      97.1    98      81     81
    16, soft      85.9    80.5    83.3   50    81     100      55.9    70      23     21
    32           100     100     100    100   100     100     100     100      99     99
    32, soft     100     100     100    100   100     100     100     100      63     63
    64, soft     100     100     100    100   100     100     100     100     100    100

What is misread of objects is mostly textures and small sizes, in the first frame. Turns need 8 frames: of a
star that turns by more than 36 degrees from frame to frame nobody can say which way.
"""

from __future__ import annotations

import math
from itertools import permutations

import attrs
import numpy as np

from mdmkit.data.moving import DIRECTIONS, GROWTH, MEETINGS, TURN, MotionStatement
from mdmkit.data.moving_captions import parse
from mdmkit.data.scenes import RADII, Statement

from .motion_reader import STILL, Track, change, follow, motion_of
from .shapes_checker import judge as judge_picture

__all__ = ["MotionVerdict", "check", "judge"]

NEARER = 0.06  # shorter sides by which two objects come nearer, or part again, at least
TOUCH = 1.3  # sums of radii that objects which run into each other are apart, at most

PARTS = {
    **dict.fromkeys(DIRECTIONS, "direction"),
    **dict.fromkeys(GROWTH, "growth"),
    **dict.fromkeys(TURN, "turn"),
    STILL: "still",
    **dict.fromkeys(MEETINGS, "meeting"),
}


@attrs.frozen
class MotionVerdict:
    """What of a caption is true in a clip; None where the caption does not say it.

    `objects`: the first frame shows what is said of the objects, and no others. `direction`, `growth`,
    `turn`, `still`, `meeting`: objects make the motions of that kind. `speed`: those that move are as fast
    as is said. `order`: one thing happens after the other, in the order that is said.
    """

    objects: bool
    direction: bool | None = None
    speed: bool | None = None
    growth: bool | None = None
    turn: bool | None = None
    still: bool | None = None
    meeting: bool | None = None
    order: bool | None = None

    @property
    def motion(self) -> bool | None:
        """All that happens is right; None of a caption in which nothing does."""
        parts = (
            self.direction, self.speed, self.growth, self.turn, self.still, self.meeting, self.order
        )  # fmt: skip
        said = [part for part in parts if part is not None]
        return all(said) if said else None


def check(clip: np.ndarray, caption: str) -> MotionVerdict:
    """Whether a clip, uint8 (F, H, W, 3), shows what a caption asks for.

    Raises ValueError for a caption that `moving_captions.parse` cannot read.
    """
    return judge(follow(clip), parse(caption))


def judge(tracks: tuple[Track, ...], stated: MotionStatement) -> MotionVerdict:
    """Compares objects that were followed with those of a statement.

    A clip of one frame is judged by its objects alone.
    """
    # objects that move are smaller than those of pictures, to have room
    sizes = RADII[min(len(tracks) + 1, max(RADII))]
    things = tuple(
        attrs.evolve(t.thing, size=min(sizes, key=lambda word: abs(math.log(t.thing.radius / sizes[word]))))
        for t in tracks
    )
    objects = judge_picture(things, Statement(stated.objects)).right
    if not stated.events or (tracks and len(tracks[0].times) < 2):
        return MotionVerdict(objects)
    mine = _assigned(tracks, stated)
    if stated.events[0].motion in MEETINGS:
        return MotionVerdict(objects, meeting=_meet(mine) == stated.events[0].motion)
    parts: dict[str, list[bool]] = {}
    in_turn = []
    for event, span in zip(stated.events, stated.spans(), strict=True):
        track = mine[event.thing]
        spans = [span] if not stated.ordered else [span, (0.0, 0.5), (0.5, 1.0), (0.0, 1.0)]
        shown = [motion_of(change(track, *s)) for s in spans] if track is not None else []
        right = [motion == event.motion for motion, _ in shown]
        parts.setdefault(PARTS[event.motion], []).append(any(right))
        in_turn.append(bool(right) and right[0])
        if event.speed:
            parts.setdefault("speed", []).append(any(s == (event.motion, event.speed) for s in shown))
    if stated.ordered and len(stated.objects) == 2:
        for track, waits in zip(mine, ((0.5, 1.0), (0.0, 0.5)), strict=True):
            in_turn.append(track is not None and motion_of(change(track, *waits))[0] == STILL)
    order = all(in_turn) if stated.ordered else None
    return MotionVerdict(objects, order=order, **{name: all(right) for name, right in parts.items()})


def _assigned(tracks: tuple[Track, ...], stated: MotionStatement) -> list[Track | None]:
    """The track of each object, in the assignment that favours colours and shapes most."""
    padded: list[Track | None] = [*tracks, *[None] * len(stated.objects)]

    def alike(chosen: tuple[Track | None, ...]) -> int:
        pairs = [
            (track, said) for track, said in zip(chosen, stated.objects, strict=True) if track is not None
        ]
        return sum(
            1 + 4 * (said.colour in (None, track.thing.colour)) + 2 * (track.thing.shape == said.shape)
            for track, said in pairs
        )

    largest = sorted(padded, key=lambda track: -track.thing.area if track is not None else 1.0)
    return list(max(permutations(largest[:4], len(stated.objects)), key=alike))


def _meet(tracks: list[Track | None]) -> str | None:
    """Whether two objects bounce or stop where they touch; None where they do not touch at all."""
    first, second = tracks
    if first is None or second is None:
        return None
    apart = np.hypot(*(first.poses[:, :2] - second.poses[:, :2]).T)
    nearest = int(apart.argmin())
    if apart[0] - apart[nearest] < NEARER or apart[nearest] > TOUCH * (
        first.thing.radius + second.thing.radius
    ):
        return None
    return "bounce" if apart[-1] - apart[nearest] >= NEARER else "stop"
