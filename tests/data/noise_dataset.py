"""A dataset that tests can send to worker processes: test modules themselves cannot be imported there."""

from __future__ import annotations

import os
import signal

import numpy as np

from mdmkit.data import Sample
from mdmkit.errors import WrongInput
from mdmkit.streams import stream


class Noise:
    """Endless pictures of noise with captions of 0 to 3 words; some positions from 100 on are trouble."""

    resolution = (12, 8)

    def __init__(self) -> None:
        self.read: list[int] = []

    def sample(self, position: int) -> Sample:
        self.read.append(position)
        if position == 100:
            raise WrongInput("nothing here; look elsewhere")
        if position == 101:
            raise KeyError("two\nlines")
        if position == 102:
            os.kill(os.getpid(), signal.SIGKILL)
        if position == 103:
            signal.raise_signal(signal.SIGINT)
        image = stream(position).integers(0, 256, (*self.resolution, 3), dtype=np.uint8)
        skipped = (("bad", "why"),) if position == 33 else ()
        caption = " ".join(["größe"] * (position % 4))
        return Sample(image, caption, f"n{position}", (100 + position, 7), skipped=skipped)
