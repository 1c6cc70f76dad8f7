"""All frames of what a path names: a picture, an animation, a video, a folder of numbered frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from .clips import numbered_frames
from .pictures import animation, decode, fit
from .videos import VIDEO_EXTENSIONS, read_whole, require_av

__all__ = ["Frames", "read_frames"]


@attrs.frozen(eq=False)
class Frames:
    """Frames, uint8 (F, H, W, 3), of a source of `size` (height, width); `fps` a second where known."""

    image: np.ndarray
    size: tuple[int, int]
    fps: float | None = None


def read_frames(
    path: Path, resolution: tuple[int, int] | None = None, *, most: int | None = None
) -> Frames:
    """Every frame as it stands, cropped and resized as `pictures.fit` does; as they are where not given.

    Of a longer source only the first `most`. Raises ValueError, OSError or what decoders raise for what
    cannot be read, MdmkitError for a video where PyAV is not installed.
    """
    if path.is_dir():
        names = numbered_frames(path)[:most]
        if not names:
            raise ValueError("the folder has no pictures")
        return _fitted((decode((path / name).read_bytes())[0] for name in names), resolution)
    if path.suffix[1:].lower() in VIDEO_EXTENSIONS:
        require_av()
        clip = read_whole(path, resolution, most=most)
        return Frames(clip.image, clip.size, clip.fps)
    pictures, fps = animation(path.read_bytes())
    return attrs.evolve(_fitted(pictures[:most], resolution), fps=fps)


def _fitted(pictures: Iterable[Image.Image], resolution: tuple[int, int] | None) -> Frames:
    frames: list[np.ndarray] = []
    size = (0, 0)
    for picture in pictures:
        own = picture.height, picture.width
        if frames and own != size:
            raise ValueError(f"its frames have different sizes, {size[0]}x{size[1]} and {own[0]}x{own[1]}")
        size = own
        frames.append(fit(picture, resolution or own))
    return Frames(np.stack(frames), size)
