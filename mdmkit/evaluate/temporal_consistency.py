"""Temporal consistency: what changes in a clip of moving shapes besides what moves.

Every object is a rigid thing that moves, grows and turns by its poses. A point inside it is therefore known
in the next frame: the warping error is the mean absolute difference of the two colours, as a share of the
full range (0 to 1), over all pixels at least one pixel inside of an object. Beside it stand the same pixels
compared in place, without the motion, and the background, which should not change at all.

The poses are the exact ones where the scene is known (`known_poses`), else those that are read off the clip:
the caption says what kind of motion there is, not where. A flickering colour, a texture that swims and a
shape that changes raise the warping error, a motion that is even does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmkit.data.moving import MovingScene
from mdmkit.data.moving_captions import parse
from mdmkit.data.moving_shapes import times
from mdmkit.data.scene_drawing import OUTLINES

from .motion_accuracy import clips_of, true_clip
from .motion_reader import follow

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TemporalConsistency", "known_poses", "warping_error"]

INSIDE, OUTSIDE = 1.0, 2.0  # pixels from an outline that are neither the object's nor the background's

Posed = tuple[str, np.ndarray]  # a shape and its poses (F, 4): x, y, radius in shorter sides, angle


class TemporalConsistency:
    """Warping error of clips of moving shapes, by the motion that is read off them, beside true ones'.

    true_clips: for so many of the captions (the first ones) a true clip is drawn too and measured alike, as
        `true_*`: pixels and the reader have an error of their own, the least that clips can reach.
    device: taken as every metric does; clips are read on the CPU.

    `result` holds `warped`, `in_place`, `background` (shares of the full range, as `warping_error` has them),
    `lost` (share of objects of the first frame that are not found in a later one), the same with `true_`,
    `clips` and `unread`, the captions that are not about moving shapes. Errors are absent where no clip has
    two frames, or nothing to measure. Raises ValueError where nothing was read.
    """

    def __init__(self, *, true_clips: int = 64, device: Any = "cpu") -> None:
        if true_clips < 0:
            raise ValueError(f"expected true_clips >= 0, came {true_clips}")
        self.true_clips, self.device = true_clips, device
        self.clips, self.unread, self.drawn = 0, 0, 0
        self.sums: dict[str, np.ndarray] = {}

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        """Takes clips (B, 3, F, H, W) in [-1, 1] with a caption each; pictures are clips of one frame."""
        for clip, caption in zip(clips_of(pictures, captions), captions, strict=True):
            try:
                stated = parse(caption)
            except ValueError:
                self.unread += 1
                continue
            self.clips += 1
            self._measure("", clip)
            if self.drawn < self.true_clips:
                true = true_clip(stated, clip.shape[:3], self.drawn)
                if true is not None:
                    self.drawn += 1
                    self._measure("true_", true)

    def result(self) -> dict[str, float]:
        """Mean errors by name, and the counts `clips` and `unread`."""
        if not self.clips:
            raise ValueError(
                f"expected captions about moving shapes, came {self.unread} others; use moving_shapes"
            )
        means = {name: float(total / count) for name, (total, count) in self.sums.items() if count}
        return {**means, "clips": float(self.clips), "unread": float(self.unread)}

    def _measure(self, prefix: str, clip: np.ndarray) -> None:
        tracks = follow(clip)
        found = warping_error(clip, [(track.thing.shape, track.poses) for track in tracks])
        if len(clip) > 1:
            later = [track.seen[1:] for track in tracks]
            lost = sum(int((~seen).sum()) for seen in later)
            found["lost"] = np.array([lost, sum(len(seen) for seen in later)], dtype=float)
        for name, (total, count) in found.items():
            before = self.sums.setdefault(prefix + name, np.zeros(2))
            before += (total, count)


def known_poses(scene: MovingScene, frames: int) -> list[Posed]:
    """The exact poses of a scene's objects in each of its frames."""
    posed = []
    for thing, course in zip(scene.objects, scene.courses, strict=True):
        poses = [course.at(time) for time in times(frames)]
        posed.append((thing.shape, np.array([[p.x, p.y, p.radius, p.angle] for p in poses])))
    return posed


def warping_error(clip: np.ndarray, objects: Sequence[Posed]) -> dict[str, np.ndarray]:
    """The sum of errors and the number of pixels of a clip, uint8 (F, H, W, 3), by name.

    "warped": inside of objects, each point compared with where the next frame has it (bilinear). "in_place":
    the same pixels, compared with the next frame's at the same place. "background": what no object covers in
    either frame. Where objects overlap, the later one is in front.
    """
    found = {name: np.zeros(2) for name in ("warped", "in_place", "background")}
    frames = clip.astype(np.float64) / 255
    height, width = clip.shape[1:3]
    side = min(height, width)
    known = [(shape, poses) for shape, poses in objects if shape in OUTLINES]
    for i in range(len(clip) - 1):
        now, then = frames[i], frames[i + 1]
        free = np.ones((height, width), dtype=bool)
        for _, poses in objects:  # those of no known shape too
            for pose in poses[i : i + 2]:
                free &= _away(pose, (height, width), side) > OUTSIDE
        _add(found["background"], np.abs(now - then)[free])
        depths = [_depth(shape, poses[i], (height, width), side) for shape, poses in known]
        after = [_depth(shape, poses[i + 1], (height, width), side) for shape, poses in known]
        for k, (_, poses) in enumerate(known):
            inside = depths[k] > INSIDE
            for in_front in (*depths[k + 1 :], *after[k + 1 :]):
                inside &= in_front < -OUTSIDE
            y, x = np.nonzero(inside)
            if len(x):
                warped = _sampled(then, *_moved(x + 0.5, y + 0.5, poses[i], poses[i + 1], side))
                _add(found["warped"], np.abs(now[y, x] - warped))
                _add(found["in_place"], np.abs(now[y, x] - then[y, x]))
    return found


def _add(sums: np.ndarray, errors: np.ndarray) -> None:
    sums += (float(errors.mean(-1).sum()), len(errors))


def _away(pose: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Pixels between each pixel and an object's circle."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot(x - pose[0] * side, y - pose[1] * side) - 1.06 * pose[2] * side


def _depth(shape: str, pose: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Pixels that each pixel lies inside of an outline, negative outside."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    cx, cy, radius = pose[:3] * side
    u, v = (x - cx) / radius, (y - cy) / radius
    cos, sin = np.cos(pose[3]), np.sin(pose[3])
    return -OUTLINES[shape](cos * u + sin * v, cos * v - sin * u) * radius


def _moved(
    x: np.ndarray, y: np.ndarray, before: np.ndarray, after: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of an object, in pixels, are in the next frame."""
    grown, turn = after[2] / before[2], after[3] - before[3]
    cos, sin = np.cos(turn) * grown, np.sin(turn) * grown
    u, v = x - before[0] * side, y - before[1] * side
    return after[0] * side + cos * u - sin * v, after[1] * side + sin * u + cos * v


def _sampled(frame: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Colours at points (x, y) in pixels, whose centres are at halves; bilinear."""
    height, width = frame.shape[:2]
    x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), max(width - 2, 0)), np.minimum(y.astype(int), max(height - 2, 0))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - a) * frame[top, left] + a * frame[top, right]
    lower = (1 - a) * frame[bottom, left] + a * frame[bottom, right]
    return (1 - b) * upper + b * lower
