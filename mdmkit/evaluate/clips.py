"""Clips for people: mp4, GIF or PNG frames, and a contact sheet with captions under rows of frames.

A clip is (3, F, H, W) in [-1, 1], as it is drawn, or uint8 (F, H, W, 3), as data have it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mdmkit.errors import MdmkitError

from .grid import BORDER, FAINT, INK, PAPER, WrappedText, save_image, to_uint8

__all__ = [
    "CLIP_FORMATS",
    "clip_bytes",
    "contact_sheet",
    "save_clip",
    "save_contact_sheet",
    "save_frames",
    "save_gif",
    "save_mp4",
]

CLIP_FORMATS = ("mp4", "gif", "png")
SMALLEST = 96  # a frame's longer side in a contact sheet, in pixels, at least
MOST = 16  # frames of a clip in a contact sheet
CRF = 12  # of x264: near to lossless, for small clips
Clip = Tensor | np.ndarray


def clip_bytes(clip: Clip) -> np.ndarray:
    """The frames of a clip as bytes, uint8 (F, H, W, 3). Raises ValueError for what is no clip."""
    if isinstance(clip, Tensor) and clip.is_floating_point() and clip.ndim == 4 and clip.shape[0] == 3:
        clip = to_uint8(clip.movedim(1, 0))
    array = clip.numpy() if isinstance(clip, Tensor) and clip.dtype == torch.uint8 else clip
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.uint8
        or array.ndim != 4
        or array.shape[-1] != 3
    ):
        raise ValueError(
            f"expected a clip (3, F, H, W) in [-1, 1] or uint8 (F, H, W, 3), came {clip.dtype} "
            f"{tuple(clip.shape)}"
        )
    if not len(array):
        raise ValueError("expected a clip of at least one frame, came none")
    return array


def save_clip(path: str | Path, clip: Clip, *, fps: float, format: str, scale: int = 1) -> Path:
    """Writes a clip as `path` with the format's suffix: mp4, gif, or png, which is a folder of frames."""
    path = Path(path)
    if format == "mp4":
        return save_mp4(path.with_name(path.name + ".mp4"), clip, fps=fps, scale=scale)
    if format == "gif":
        return save_gif(path.with_name(path.name + ".gif"), clip, fps=fps, scale=scale)
    if format == "png":
        return save_frames(path, clip, scale=scale)
    raise ValueError(f"expected a clip format of {', '.join(CLIP_FORMATS)}, came {format!r}")


def save_mp4(path: str | Path, clip: Clip, *, fps: float, scale: int = 1) -> Path:
    """Writes a clip as H.264 (MPEG-4 where there is no such encoder), whole or not at all.

    Colours are kept at half resolution, as players want it; an odd side repeats its last line. `scale`
    enlarges pixels. Raises MdmkitError without PyAV (extra `video`).
    """
    frames = _enlarged(clip_bytes(clip), scale)
    _check_rate(fps)
    av = _av()
    bottom, right = (side % 2 for side in frames.shape[1:3])
    frames = np.pad(frames, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
    codec, options = "libx264", {"crf": str(CRF), "preset": "medium"}
    if "libx264" not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))
    return _write(Path(path), buffer.getvalue())


def save_gif(path: str | Path, clip: Clip, *, fps: float, scale: int = 1) -> Path:
    """Writes a clip as a GIF that repeats for ever, in 256 colours.

    A frame lasts whole hundredths of a second, at least two: browsers show faster ones slowly.
    """
    frames = _enlarged(clip_bytes(clip), scale)
    _check_rate(fps)
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    buffer = BytesIO()
    lasts = max(20, 10 * round(100 / fps))
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=lasts, loop=0, disposal=1
    )
    return _write(Path(path), buffer.getvalue())


def save_frames(folder: str | Path, clip: Clip, *, scale: int = 1) -> Path:
    """Writes the frames of a clip as folder/0000.png, 0001.png ..., pixel for pixel.

    Raises MdmkitError where the folder holds frames of a longer clip, which would go on behind these.
    """
    folder = Path(folder)
    frames = _enlarged(clip_bytes(clip), scale)
    if (behind := folder / f"{len(frames):04d}.png").exists():
        raise MdmkitError(f"{behind}: is there already, of a longer clip; remove it, or say another folder")
    for number, frame in enumerate(frames):
        save_image(folder / f"{number:04d}.png", Image.fromarray(frame))
    return folder


def contact_sheet(
    clips: Sequence[Clip],
    captions: Sequence[str],
    *,
    title: str | None = None,
    most: int = MOST,
    scale: int | None = None,
) -> Image.Image:
    """A row of frames for each clip, from left to right in time, with its caption under it.

    Of longer clips `most` frames are shown, evenly spaced with the first and the last. Small frames are
    enlarged `scale` times (pixels stay pixels): where not given, so that the longer side is at least 96.
    """
    if len(clips) != len(captions) or not len(clips):
        raise ValueError(
            f"expected clips with a caption each, came {len(clips)} and {len(captions)} captions"
        )
    if most < 1:
        raise ValueError(f"expected most >= 1 frames, came {most}")
    rows = [_picked(clip_bytes(clip), most) for clip in clips]
    longest = max(max(frames.shape[1:3]) for frames in rows)
    rows = [_enlarged(frames, scale or max(1, -(-SMALLEST // longest))) for frames in rows]
    gap, margin, between = 6, 20, 22
    widths = [len(frames) * (frames.shape[2] + gap) - gap for frames in rows]
    width = max(480, *widths)
    texts = [WrappedText(caption, 15, width, balanced=False) for caption in captions]
    heading = WrappedText(title or "", 17, width, balanced=False)
    top = margin + (heading.height + between if title else 0)
    heights = [frames.shape[1] + 6 + text.height for frames, text in zip(rows, texts, strict=True)]
    page = Image.new(
        "RGB", (width + 2 * margin, top + sum(heights) + between * (len(rows) - 1) + margin), PAPER
    )
    draw = ImageDraw.Draw(page)
    heading.draw(draw, margin, margin, fill=FAINT, anchor="la")
    y = top
    for frames, text, height in zip(rows, texts, heights, strict=True):
        for number, frame in enumerate(frames):
            x = margin + number * (frames.shape[2] + gap)
            draw.rectangle((x - 1, y - 1, x + frame.shape[1], y + frame.shape[0]), outline=BORDER)
            page.paste(Image.fromarray(frame), (x, y))
        text.draw(draw, margin, y + frames.shape[1] + 6, fill=INK, anchor="la")
        y += height + between
    return page


def save_contact_sheet(
    path: str | Path,
    clips: Sequence[Clip],
    captions: Sequence[str],
    *,
    title: str | None = None,
    most: int = MOST,
    scale: int | None = None,
) -> Path:
    """Writes `contact_sheet(...)` as a PNG, whole or not at all."""
    return save_image(path, contact_sheet(clips, captions, title=title, most=most, scale=scale))


def _picked(frames: np.ndarray, most: int) -> np.ndarray:
    if len(frames) <= most:
        return frames
    return frames[np.rint(np.linspace(0, len(frames) - 1, most)).astype(int)]


def _enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    if scale < 1:
        raise ValueError(f"expected scale >= 1, came {scale}")
    return frames.repeat(scale, 1).repeat(scale, 2) if scale > 1 else frames


def _check_rate(fps: float) -> None:
    if not 0 < fps < 1000:
        raise ValueError(f"expected fps between 0 and 1000, came {fps}")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MdmkitError(
            f"writing mp4 needs PyAV ({error}); pip install 'mdmkit[video]', or take gif"
        ) from error
    return av


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(data)
    aside.replace(path)
    return path
