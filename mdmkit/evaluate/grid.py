"""Pictures for people: the conversion to bytes, and a grid with captions under the pictures."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["WrappedText", "grid", "grid_path", "save_grid", "save_image", "save_picture", "to_uint8"]

SMALLEST = 128  # a picture's longer side in a grid, in pixels, at least
PAPER, INK, FAINT, BORDER = (250, 250, 248), (38, 38, 42), (120, 120, 126), (216, 216, 212)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
BROKEN = (255, 0, 255)
FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
)  # where Pillow's own has no glyph


def to_uint8(x: Tensor) -> np.ndarray:
    """Pictures (..., 3, H, W) in [-1, 1] as bytes (..., H, W, 3): -1 is 0, 1 is 255, rounded, clipped.

    The inverse of `bytes / 127.5 - 1`. Pixels that are not finite come out magenta, so that nobody overlooks
    them.
    """
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"expected pictures (..., 3, height, width), got shape {tuple(x.shape)}")
    x = x.detach().to(device="cpu", dtype=torch.float32).movedim(-3, -1)
    broken = ~x.isfinite().all(dim=-1)
    pixels = ((x.nan_to_num() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
    if broken.any():
        pixels[broken.numpy()] = BROKEN
    return pixels


def grid(
    pictures: Sequence[Tensor] | Tensor,
    captions: Sequence[str],
    *,
    columns: int | None = None,
    title: str | None = None,
    scale: int | None = None,
) -> Image.Image:
    """The pictures, (3, H, W) each in [-1, 1], side by side with their captions wrapped under them.

    Small pictures are enlarged `scale` times (nearest neighbour, so that their pixels stay pixels): where not
    given, the smallest integer that makes the longer side 128. `columns` follows from the number of pictures.
    """
    if len(pictures) != len(captions):
        raise ValueError(
            f"expected a caption for each picture, got {len(pictures)} pictures, {len(captions)} captions"
        )
    if not len(pictures):
        raise ValueError("expected at least one picture, got none")
    images = [Image.fromarray(to_uint8(picture)) for picture in pictures]
    longest = max(max(image.size) for image in images)
    scale = scale or max(1, -(-SMALLEST // longest))
    images = [
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        for image in images
    ]
    # a caption needs some width even under a tall, narrow picture
    width = max(SMALLEST, *(image.width for image in images))
    height = max(image.height for image in images)
    columns = min(columns or _columns(len(images)), len(images))

    size = max(12, min(28, width // 11))
    gap, margin = max(10, width // 14), max(16, width // 8)
    texts = [WrappedText(caption, size, width) for caption in captions]
    heading = WrappedText(title or "", round(size * 1.15), columns * (width + gap) - gap, balanced=False)
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    below = [round(size * 0.4) + max(texts[i].height for i in row) for row in rows]
    top = margin + (heading.height + gap if title else 0)

    total = (
        2 * margin + columns * (width + gap) - gap,
        top + sum(height + b + gap for b in below) - gap + margin,
    )
    page = Image.new("RGB", total, PAPER)
    draw = ImageDraw.Draw(page)
    heading.draw(draw, margin, margin, fill=FAINT, anchor="la")
    y = top
    for row, space in zip(rows, below, strict=True):
        for column, i in enumerate(row):
            left = margin + column * (width + gap)
            x = left + (width - images[i].width) // 2
            # a hairline around the picture: white pictures would have no edge on the page
            draw.rectangle((x - 1, y - 1, x + images[i].width, y + images[i].height), outline=BORDER)
            page.paste(images[i], (x, y))
            middle, under = left + width / 2, y + images[i].height + round(size * 0.4)
            texts[i].draw(draw, middle, under, fill=INK, anchor="ma")
        y += height + space + gap
    return page


def save_grid(
    path: str | Path,
    pictures: Sequence[Tensor] | Tensor,
    captions: Sequence[str],
    *,
    columns: int | None = None,
    title: str | None = None,
    scale: int | None = None,
) -> Path:
    """Writes `grid(...)` as a PNG, aside first and then renamed; makes the folder where it is missing."""
    return save_image(path, grid(pictures, captions, columns=columns, title=title, scale=scale))


def save_picture(path: str | Path, picture: Tensor) -> Path:
    """Writes one picture (3, H, W) in [-1, 1] as a PNG, pixel for pixel."""
    return save_image(path, Image.fromarray(to_uint8(picture)))


def grid_path(run_dir: str | Path, *, step: int, level: int) -> Path:
    """Where a run keeps the grid of a level: samples/step-0005000-level-0.png."""
    return Path(run_dir) / "samples" / f"step-{step:07d}-level-{level}.png"


def save_image(path: str | Path, image: Image.Image) -> Path:
    """Writes an image as a PNG, whole or not at all; its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    aside.write_bytes(buffer.getvalue())
    aside.replace(path)
    return path


def _columns(count: int) -> int:
    """Near a square, a little wide, with a full last row where that is near too: 4, 8, 12 and 16 -> 4."""
    if count <= 5:
        return count
    root = -(-int(count**0.5 * 1000) // 1000)
    return next((c for c in (root, root + 1, root + 2) if count % c == 0), root)


def _clean(text: str) -> str:
    """One line of drawable characters: no controls, no lone surrogates (no font takes them)."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    kept = (c if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs") else "" for c in text)
    return " ".join("".join(kept).split())


@lru_cache(maxsize=64)
def _loaded(name: str | None, size: int) -> Font | None:
    if name is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _font(text: str, size: int) -> Font:
    """Pillow's own font, or the font of this machine that has more of the text's characters."""
    own = _loaded(None, size)
    assert own is not None
    if text.isascii():
        return own
    fonts = [font for name in (None, *FONTS) if (font := _loaded(name, size)) is not None]
    return min(fonts, key=lambda font: sum(_lacks(font, c) for c in set(text)))


@lru_cache(maxsize=4096)
def _lacks(font: Font, character: str) -> bool:
    glyph: Any = font.getmask(character)
    missing: Any = font.getmask("\U0010fffe")
    return not character.isspace() and bytes(glyph) == bytes(missing)


class WrappedText:
    """A text wrapped to `width` pixels in one font, `most` lines at most; `balanced`: of about one length."""

    def __init__(self, text: str, size: int, width: int, *, most: int = 5, balanced: bool = True) -> None:
        text = _clean(text)
        self.font, self.line = _font(text, size), round(size * 1.28)
        self.lines = _wrap(text, self.font, width)
        if len(self.lines) > most:
            last = self.lines[most - 1]
            while last and self.font.getlength(last + "…") > width:
                last = last[:-1]
            self.lines = [*self.lines[: most - 1], last.rstrip() + "…"]
        elif balanced and len(self.lines) > 1:
            narrower = (_wrap(text, self.font, width * part // 20) for part in range(10, 20))
            self.lines = next((lines for lines in narrower if len(lines) == len(self.lines)), self.lines)

    @property
    def height(self) -> int:
        return self.line * len(self.lines)

    def draw(
        self, draw: ImageDraw.ImageDraw, x: float, y: float, *, fill: tuple[int, int, int], anchor: str
    ) -> None:
        for number, text in enumerate(self.lines):
            draw.text((x, y + number * self.line), text, fill=fill, font=self.font, anchor=anchor)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width` pixels, cut at spaces, inside a word only where it fills a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        while len(word) > 1 and font.getlength(word) > width:
            fits = max(n for n in range(1, len(word)) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
