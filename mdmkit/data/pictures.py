"""Encoded pictures to uint8 arrays: decode, crop, antialiased resize."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from mdmkit.streams import stream

__all__ = ["EXTENSIONS", "animation", "as_size", "decode", "fit", "shrink", "size_of", "square_name"]

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
ORIENTATION = 0x0112


def as_size(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """A side or (height, width), as (height, width)."""
    h, w = (resolution, resolution) if isinstance(resolution, int) else resolution
    if h < 1 or w < 1:
        raise ValueError(f"expected a resolution of at least 1 pixel, got {resolution}")
    return int(h), int(w)


def square_name(resolution: tuple[int, int]) -> str:
    """What a resolution is called in a file name: "64", or "48x64" (height x width)."""
    h, w = resolution
    return str(h) if h == w else f"{h}x{w}"


def size_of(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened picture as it stands upright; only its header is read."""
    w, h = picture.size
    turned = picture.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (w, h) if turned else (h, w)


def decode(data: bytes, *, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """An encoded picture as upright RGB, and the (height, width) of the original.

    Transparency is laid on white, 16 bits a channel become 8, EXIF orientation is applied, of an animation
    the first frame is taken. Where only `at_least` pixels a side are needed, a JPEG may be decoded at 1/2,
    1/4 or 1/8 of its size. ValueError or OSError where the data cannot be decoded.
    """
    picture = Image.open(io.BytesIO(data))
    size = size_of(picture)
    if at_least is not None:
        picture.draft(None, (at_least, at_least))
    picture = ImageOps.exif_transpose(picture)
    return _rgb(picture), size


def animation(data: bytes) -> tuple[list[Image.Image], float | None]:
    """All frames of an encoded picture as upright RGB, and how many a second; of one frame alone: None.

    A frame that lasts longer than the shortest one is repeated: writers of GIFs keep equal frames as one.
    ValueError or OSError where the data cannot be decoded.
    """
    picture = Image.open(io.BytesIO(data))
    if getattr(picture, "n_frames", 1) == 1:
        return [decode(data)[0]], None
    shown, lasts = [], []
    for frame in ImageSequence.Iterator(picture):
        frame.load()  # only then it says how long it lasts
        shown.append(_rgb(ImageOps.exif_transpose(frame)))
        lasts.append(frame.info.get("duration") or 100.0)  # milliseconds, those that browsers take for 0
    shortest = min(lasts)
    counts = [round(time / shortest) for time in lasts]
    return [frame for frame, n in zip(shown, counts, strict=True) for _ in range(n)], 1000 / shortest


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("a floating-point picture has no known range; convert it to 8 or 16 bits")
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.float64)
        # 65535 / 257 = 255
        return Image.fromarray(np.rint(wide / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def fit(
    picture: Image.Image,
    resolution: tuple[int, int],
    *,
    crop: str = "center",
    flip: bool = False,
    key: tuple[int | str, ...] = (),
) -> np.ndarray:
    """The largest part of a picture with the aspect of `resolution` (h, w), resized to it: uint8 (H, W, 3).

    `crop`: "center", or "random": drawn from the stream of `key`, like the horizontal flip, which half of
    the pictures get. Resizing is bicubic over the whole area that a new pixel covers (antialiased); at the
    right size pixels stay.
    """
    h, w = resolution
    width, height = picture.size
    scale = min(width / w, height / h)
    box_w, box_h = min(width, w * scale), min(height, h * scale)
    if crop not in ("center", "random"):
        raise ValueError(f'expected crop "center" or "random", got {crop!r}')
    down = right = 0.5
    mirrored = False
    if crop == "random" or flip:
        draws = stream(*key, "crop").random(3)
        mirrored = flip and draws[0] < 0.5
        if crop == "random":
            down, right = float(draws[1]), float(draws[2])
    # whole pixels: a crop that needs no resizing must not blur
    left, top = round((width - box_w) * right), round((height - box_h) * down)
    left, top = min(left, width - box_w), min(top, height - box_h)
    resized = picture.resize((w, h), Image.Resampling.BICUBIC, box=(left, top, left + box_w, top + box_h))
    if mirrored:
        resized = ImageOps.mirror(resized)
    return np.array(resized)


def shrink(image: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """A uint8 picture (H, W, 3) at a lower resolution: the mean over the area of each new pixel.

    At integer ratios this is the pyramid's average pooling, rounded to 8 bits.
    """
    h, w = resolution
    height, width = image.shape[:2]
    if height % h or width % w:
        return np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BOX))
    # Pillow rounds after each axis
    blocks = image.reshape(h, height // h, w, width // w, 3)
    return np.rint(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint8)
