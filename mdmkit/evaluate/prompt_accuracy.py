"""Prompt accuracy: how often pictures of shapes show what their captions ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mdmkit.data.scene_captions import parse
from mdmkit.data.scene_drawing import draw
from mdmkit.data.scenes import Statement
from mdmkit.data.shapes import scene_of
from mdmkit.streams import stream

from .shapes_checker import Verdict, judge
from .shapes_reader import read

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PromptAccuracy"]


class PromptAccuracy:
    """Shares of prompts whose colour, shape, relation and all is right in the picture, by `shapes_checker`.

    true_scenes: for so many of the captions (the first ones) the true scene is drawn too, at the pictures'
        resolution, and read by the same checker; its accuracy there is given as `checker_*`, the most that
        pictures can reach.
    device: taken as every metric does; pictures are read on the CPU.

    `result` holds `colour`, `shape`, `relation`, `size`, `texture`, `position` (each over the prompts that
    say it, absent where none does), `count`, `all`, the same with `checker_` where true scenes were drawn,
    `pictures` (read) and `unread` (left out, since their captions are not about shapes). Raises ValueError
    where nothing was read.
    """

    def __init__(self, *, true_scenes: int = 128, device: Any = "cpu") -> None:
        if true_scenes < 0:
            raise ValueError(f"expected true_scenes >= 0, came {true_scenes}")
        self.true_scenes, self.device = true_scenes, device
        self.pictures, self.unread, self.drawn = 0, 0, 0
        self.verdicts: dict[str, list[bool]] = defaultdict(list)

    def update(self, pictures: Tensor, captions: Sequence[str]) -> None:
        """Reads pictures (B, 3, H, W) in [-1, 1] and compares them with one caption each."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or len(pictures) != len(captions):
            raise ValueError(
                f"expected (B, 3, H, W) and B captions, came {tuple(pictures.shape)} and {len(captions)}"
            )
        for picture, caption in zip(pictures.detach().float().cpu().numpy(), captions, strict=True):
            try:
                stated = parse(caption)
            except ValueError:
                self.unread += 1
                continue
            self.pictures += 1
            self._count("", judge(read(picture), stated))
            if self.drawn < self.true_scenes:
                self._check_checker(stated, (picture.shape[1], picture.shape[2]))

    def result(self) -> dict[str, float]:
        """Shares in [0, 1] by name, and the counts `pictures` and `unread`."""
        if not self.pictures:
            raise ValueError(
                f"expected captions about shapes, came {self.unread} others; use the shapes dataset"
            )
        shares = {name: sum(right) / len(right) for name, right in self.verdicts.items()}
        return {**shares, "pictures": float(self.pictures), "unread": float(self.unread)}

    def _check_checker(self, stated: Statement, resolution: tuple[int, int]) -> None:
        try:
            scene = scene_of(stream(self.drawn, "prompt accuracy"), stated)
        except ValueError:  # a prompt of which no picture can be true, such as three large things in a row
            return
        self.drawn += 1
        self._count("checker_", judge(read(draw(scene, resolution)), stated))

    def _count(self, prefix: str, verdict: Verdict) -> None:
        for name, right in {**attrs.asdict(verdict), "all": verdict.right}.items():
            if right is not None:
                self.verdicts[prefix + name].append(right)
