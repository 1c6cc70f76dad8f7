"""Motion accuracy: how often clips of moving shapes show what their captions say happens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mdmkit.data.moving import MotionStatement
from mdmkit.data.moving_captions import parse
from mdmkit.data.moving_shapes import film, moving_scene_of, times
from mdmkit.streams import stream

from .clips import clip_bytes
from .motion_checker import MotionVerdict, judge
from .motion_reader import follow

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MotionAccuracy", "clips_of", "true_clip"]


class MotionAccuracy:
    """Shares of prompts whose objects, motions, order and all is right in the clip, by `motion_checker`.

    true_clips: for so many of the captions (the first ones) a true clip is drawn too, of the same size and
        frames, and read by the same checker; its accuracy there is given as `checker_*`, the most that clips
        can reach.
    device: taken as every metric does; clips are read on the CPU.

    `result` holds `objects`, `direction`, `speed`, `growth`, `turn`, `still`, `meeting`, `order`, `motion`
    (everything that happens), `all` (each over the prompts that say it, absent where none does), the same
    with `checker_` where true clips were drawn, `clips` (read) and `unread` (left out, since their captions
    are not about moving shapes). Raises ValueError where nothing was read.
    """

    def __init__(self, *, true_clips: int = 64, device: Any = "cpu") -> None:
        if true_clips < 0:
            raise ValueError(f"expected true_clips >= 0, came {true_clips}")
        self.true_clips, self.device = true_clips, device
        self.clips, self.unread, self.drawn = 0, 0, 0
        self.verdicts: dict[str, list[bool]] = defaultdict(list)

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        """Reads clips (B, 3, F, H, W) in [-1, 1] with a caption each; pictures are clips of one frame."""
        for clip, caption in zip(clips_of(pictures, captions), captions, strict=True):
            try:
                stated = parse(caption)
            except ValueError:
                self.unread += 1
                continue
            self.clips += 1
            self._count("", judge(follow(clip), stated))
            if self.drawn < self.true_clips:
                true = true_clip(stated, clip.shape[:3], self.drawn)
                if true is not None:
                    self.drawn += 1
                    self._count("checker_", judge(follow(true), stated))

    def result(self) -> dict[str, float]:
        """Shares in [0, 1] by name, and the counts `clips` and `unread`."""
        if not self.clips:
            raise ValueError(
                f"expected captions about moving shapes, came {self.unread} others; use moving_shapes"
            )
        shares = {name: sum(right) / len(right) for name, right in self.verdicts.items()}
        return {**shares, "clips": float(self.clips), "unread": float(self.unread)}

    def _count(self, prefix: str, verdict: MotionVerdict) -> None:
        whole = {"motion": verdict.motion, "all": verdict.objects and verdict.motion is not False}
        for name, right in {**attrs.asdict(verdict), **whole}.items():
            if right is not None:
                self.verdicts[prefix + name].append(right)


def clips_of(pictures: Tensor, captions: Sequence[str]) -> list[np.ndarray]:
    """Drawn clips as bytes (F, H, W, 3); ValueError where they do not go with the captions."""
    if pictures.ndim == 4:
        pictures = pictures.unsqueeze(2)
    if pictures.ndim != 5 or pictures.shape[1] != 3 or len(pictures) != len(captions):
        raise ValueError(
            f"expected (B, 3, F, H, W) and B captions, came {tuple(pictures.shape)} and {len(captions)}"
        )
    return [clip_bytes(clip) for clip in pictures.detach().float().cpu()]


def true_clip(stated: MotionStatement, size: tuple[int, ...], number: int) -> np.ndarray | None:
    """A clip (frames, height, width) of which a statement is true; None where there is none."""
    frames, height, width = size
    try:
        scene = moving_scene_of(stream(number, "motion accuracy"), stated, aspect=width / height)
    except ValueError:  # a prompt of which no clip can be true, such as two objects of one colour
        return None
    return film(scene, (height, width), times(frames))
