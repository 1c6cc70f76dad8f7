"""Encoded videos whose frames carry their number, so that a test can tell which ones came out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["encode", "number_of", "numbers_of", "pattern"]

BITS = 6


def pattern(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame that shows its number in black and white: 2 rows of 3 bits."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8).reshape(2, 3)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 3 // width
    return np.repeat((40 + 180 * bits)[rows][:, columns, None], 3, -1).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number of a frame as it was decoded and resized."""
    height, width = frame.shape[:2]
    found = 0
    for bit in range(BITS):
        row, column = int((bit // 3 + 0.5) * height / 2), int((bit % 3 + 0.5) * width / 3)
        found |= int(frame[row, column].mean() > 130) << bit
    return found


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def encode(
    count: int = 30,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 10,
    size: tuple[int, int] = (48, 64),
    times: Sequence[float] | None = None,
    keys: int = 10,
    pixels: str = "yuv420p",
    numbers: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    noise: bool = False,
) -> bytes:
    """A video of `count` frames: of one rate, or each at its own time; a key frame every `keys` frames."""
    import av

    buffer = io.BytesIO()
    tick = Fraction(1, 1000) if times else Fraction(1, rate)
    with av.open(buffer, "w", format=container) as output:
        video: Any = output.add_stream(codec, rate=rate)
        video.height, video.width, video.pix_fmt = *size, pixels
        video.codec_context.time_base = tick
        video.gop_size = keys
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if codec == "libx264":
            video.options = {"crf": "18", "sc_threshold": "0"}
        elif codec in ("mpeg4", "mjpeg"):
            video.options = {"qscale": "2"}
        else:
            video.bit_rate = 2_000_000
        for i in range(count):
            shown = pattern(numbers[i] if numbers else i, *size)
            if noise:
                shown = shown + np.random.default_rng(i).integers(-30, 31, shown.shape).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = (round(times[i] * 1000) if times else i), tick
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return buffer.getvalue()
