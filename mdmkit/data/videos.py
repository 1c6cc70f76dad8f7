"""Encoded videos to clips: seek, pick frames by time, and make each small as soon as it is decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
from PIL import Image

from mdmkit.errors import MdmkitError
from mdmkit.streams import stream

from .pictures import fit

__all__ = ["VIDEO_EXTENSIONS", "Clip", "Cut", "Part", "read_clip", "read_whole", "require_av"]

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "m4v", "avi")
EARLY = 0.1  # a frame that starts this share of a frame too late still counts: containers round times


@attrs.frozen
class Cut:
    """Which part of a video is taken: `frames` frames, `fps` a second (None: as the video has them).

    start: "random": drawn by the sample's position; "first": the beginning; "center": the middle. short:
    what becomes of videos that are too short: "skip" refuses them, "hold" repeats the last frame.
    """

    frames: int
    fps: float | None = None
    start: str = "random"
    short: str = "skip"

    def __attrs_post_init__(self) -> None:
        for what, word, known in (
            ("start", self.start, ("random", "first", "center")),
            ("short", self.short, ("skip", "hold")),
        ):
            if word not in known:
                raise ValueError(f"expected {what} to be one of {', '.join(known)}, got {word!r}")
        if self.frames < 1 or (self.fps is not None and not self.fps > 0):
            raise ValueError(f"expected frames >= 1 and fps > 0, got {self.frames} and {self.fps}")

    def times(self, duration: float, rate: float, key: tuple[int | str, ...]) -> np.ndarray:
        """When the frames are taken, in seconds, of a video that has `rate` frames a second.

        Raises ValueError where the video is too short and short is "skip".
        """
        fps = self.fps or rate
        last = duration - 1 / rate  # when the last frame comes
        room = last - (self.frames - 1) / fps
        if room < -EARLY / rate:
            if self.short == "skip":
                needs = (self.frames - 1) / fps + 1 / rate
                raise ValueError(
                    f"it lasts {duration:.2f} s, but {self.frames} frames at {fps:g} a second need "
                    f'{needs:.2f} s; lower fps, or say short = "hold"'
                )
            return np.minimum(np.arange(self.frames) / fps, max(last, 0.0))
        share = {"first": 0.0, "center": 0.5}.get(self.start)
        if share is None:
            share = float(stream(*key, "start").random())
        return max(room, 0.0) * share + np.arange(self.frames) / fps


@attrs.frozen(eq=False)
class Clip:
    """Frames, uint8 (F, H, W, 3), `fps` a second, of a video of `size` (height, width).

    `decoded` says how many frames of it were decoded for them.
    """

    image: np.ndarray
    size: tuple[int, int]
    fps: float
    decoded: int


class Part:
    """A part of an open file as a file of its own for PyAV; nothing but what is asked for is read."""

    def __init__(self, file: int, at: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, at, size, 0

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.at, 0)
        # no shared file position: safe in forked processes and threads
        data = os.pread(self.file, left if count < 0 else min(count, left), self.start + self.at)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at


def require_av() -> None:
    """MdmkitError, in one line, where PyAV is not installed."""
    try:
        import av  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MdmkitError(f"reading videos needs PyAV ({error}); pip install 'mdmkit[video]'") from error


def read_clip(
    file: Path | BinaryIO | Part,
    resolution: tuple[int, int],
    cut: Cut,
    *,
    crop: str = "center",
    flip: bool = False,
    key: tuple[int | str, ...] = (),
) -> Clip:
    """The frames that a player shows at the cut's times, cropped and resized as `pictures.fit` does.

    It seeks to the last key frame before them and decodes from there to the last of them, no further. All
    frames have one crop, drawn from `key`; rotation as phones write it and pixels that are not square are
    seen to. Raises ValueError or av.FFmpegError where frames are missing or damaged.
    """
    import av

    with av.open(str(file) if isinstance(file, Path) else file) as container:  # type: ignore[arg-type]
        video, rate = _video(container)
        times = cut.times(_duration(container, video), rate, key).tolist()
        frames: list[np.ndarray] = []
        slack, decoded, end = EARLY / rate, 0, 0.0
        aspect = video.sample_aspect_ratio
        # else a frame may be told the time that another one lasts
        steady = video.base_rate == video.average_rate
        held = made = made_of = None

        def show(frame: Any, until: float) -> None:
            """Take a frame for every time that comes before `until`."""
            nonlocal made, made_of
            while len(frames) < len(times) and times[len(frames)] + slack < until:
                if made is None or made_of is not frame:
                    made, made_of = (
                        fit(_picture(frame, aspect, resolution), resolution, crop=crop, flip=flip, key=key),
                        frame,
                    )
                frames.append(made)

        for frame, time in _from(container, video, times[0] + slack, seek=times[0] > 0):
            decoded += 1
            _check(frame, time)
            if held is not None:
                show(held, until=time)
            lasts = float((frame.duration or 0) * video.time_base) if steady else 0.0
            show(frame, until=time + lasts)  # so that the frame behind the last one need not be decoded
            held, end = frame, time + max(lasts, 1 / rate)
            if len(frames) == len(times):
                break
        if held is not None:
            show(held, until=end)
        if len(frames) < len(times):
            missing = times[len(frames)]
            raise ValueError(f"its frames end at {end:.2f} s, there is none for {missing:.2f} s")
        return Clip(np.stack(frames), _size(held, aspect), cut.fps or rate, decoded)


def read_whole(file: Path, resolution: tuple[int, int] | None = None, *, most: int | None = None) -> Clip:
    """Every frame of a video, once, cropped and resized as `pictures.fit` does; as they are where not given.

    Of a longer one only the first `most`. Raises as `read_clip` does, and for a video that ends too early.
    """
    import av

    with av.open(str(file)) as container:
        video, rate = _video(container)
        aspect, frames, size = video.sample_aspect_ratio, [], (0, 0)
        lasts, last = _duration(container, video), 0.0
        for frame, time in _timed(container, video, video.start_time or 0):
            _check(frame, time)
            size, last = _size(frame, aspect), time
            wanted = resolution or size
            frames.append(fit(_picture(frame, aspect, wanted), wanted))
            if len(frames) == most:
                break
        else:  # the last frame may last long where the rate varies
            if not frames or (video.base_rate == video.average_rate and lasts - last > 2.5 / rate):
                raise ValueError(f"its {len(frames)} frames end at {last:.2f} s, and it lasts {lasts:.2f} s")
        return Clip(np.stack(frames), size, rate, len(frames))


def _video(container: Any) -> tuple[Any, float]:
    """The video in an open file, and how many frames a second it has."""
    if not container.streams.video:
        raise ValueError("it has no video")
    video = container.streams.video[0]
    video.codec_context.thread_count = 1  # workers are the parallel ones, and threads decode ahead
    rate = float(video.average_rate or video.guessed_rate or 0)
    if not rate > 0:
        raise ValueError("it does not say how many frames a second it has")
    return video, rate


def _check(frame: Any, time: float) -> None:
    if frame.is_corrupt:
        raise ValueError(f"its frame at {time:.2f} s is damaged")


def _from(container: Any, video: Any, first: float, seek: bool) -> Iterator[tuple[Any, float]]:
    """Frames with their times, from the last key frame up to time `first` on."""
    begin, second = video.start_time or 0, video.time_base
    if seek:
        container.seek(begin + int(first / second), stream=video)
    for frame, time in _timed(container, video, begin):
        if seek and time > first:
            break  # some containers seek too far: then from the beginning
        seek = False
        yield frame, time
    else:
        return
    container.seek(begin, stream=video)
    yield from _timed(container, video, begin)


def _timed(container: Any, video: Any, begin: int) -> Iterator[tuple[Any, float]]:
    for frame in container.decode(video):
        if frame.pts is None:
            raise ValueError("its frames have no times")
        yield frame, float((frame.pts - begin) * video.time_base)


def _size(frame: Any, aspect: Any) -> tuple[int, int]:
    """(height, width) of a frame as it stands upright; aspect: of its pixels."""
    height, width = frame.height, frame.width
    if aspect:
        width = max(round(width * float(aspect)), 1)
    return (width, height) if frame.rotation % 180 else (height, width)


def _picture(frame: Any, aspect: Any, resolution: tuple[int, int]) -> Image.Image:
    """A frame upright, made smaller by a whole number where twice the sides that are needed are left."""
    height, width = _size(frame, aspect)
    shrink = max(min(height, width) // (2 * max(resolution)), 1)
    height, width = -(-height // shrink), -(-width // shrink)
    if frame.rotation % 180:
        height, width = width, height
    scaled = frame.reformat(width, height, "rgb24", interpolation="AREA" if shrink > 1 else "BICUBIC")
    return Image.fromarray(np.ascontiguousarray(np.rot90(scaled.to_ndarray(), round(frame.rotation / 90))))


def _duration(container: Any, video: Any) -> float:
    """How long a video lasts, in seconds, without decoding it."""
    if video.duration:
        return float(video.duration * video.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.metadata.get("DURATION", ""))
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    begin, end = video.start_time or 0, 0.0
    for packet in container.demux(video):
        if packet.pts is not None:
            end = max(end, float((packet.pts - begin + (packet.duration or 0)) * video.time_base))
    container.seek(0)
    return end
