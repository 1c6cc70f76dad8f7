"""The grids of a run as pictures inside its report."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from .report_values import Entry, count, resolution

__all__ = ["picture_grids"]

STRIP = 8  # grids of earlier steps that are shown, at most


def picture_grids(folder: Path, recipe: Entry) -> str:
    """The latest grid of each level, a strip of earlier ones under it, and pictures of other names."""
    by_level: dict[int, list[tuple[int, Path]]] = {}
    others = []
    for path in sorted(folder.glob("*.png")):
        if found := re.search(r"step-?(\d+).*level-?(\d+)", path.stem):
            by_level.setdefault(int(found[2]), []).append((int(found[1]), path))
        else:
            others.append(path)
    parts = []
    resolutions = [level.get("resolution") for level in recipe.get("model", {}).get("levels", [])]
    for level, grids in sorted(by_level.items()):
        grids.sort()
        step, latest = grids[-1]
        side = f", {resolution(resolutions[level])}" if level < len(resolutions) else ""
        name = f"level {level}{side}"
        strip = "".join(
            f"<figure>{_image(path, f'{name}, step {count(s)}', widest=340)}"
            f"<figcaption>step {count(s)}</figcaption></figure>"
            for s, path in _spread(grids[:-1])
        )
        parts.append(
            f'<figure class="grid"><figcaption>{escape(name)} <span>step {count(step)}</span></figcaption>'
            f"{_image(latest, name)}</figure>" + (f'<div class="strip">{strip}</div>' if strip else "")
        )
    parts += [
        f'<figure class="grid"><figcaption>{escape(path.stem)}</figcaption>{_image(path, path.stem)}</figure>'
        for path in others
    ]
    return f'<div class="grids">{"".join(f"<div>{part}</div>" for part in parts)}</div>' if parts else ""


def _spread(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    if len(grids) <= STRIP:
        return list(grids)
    return [grids[round(i * (len(grids) - 1) / (STRIP - 1))] for i in range(STRIP)]


def _image(path: Path, alt: str, *, widest: int = 1600, most_bytes: int = 1_500_000) -> str:
    """A picture as a data URI; scaled down where it is wider than `widest`, JPEG where it is big."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        return f'<p class="note">{escape(path.name)} cannot be read: {escape(str(error))}</p>'
    data, kind = path.read_bytes(), "png"
    if image.width > widest or len(data) > most_bytes:
        image.thumbnail((widest, widest * 4), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=86)
        data, kind = buffer.getvalue(), "jpeg"
    encoded = base64.b64encode(data).decode()
    return (f'<img alt="{escape(alt)}" width="{image.width}" height="{image.height}" '
            f'src="data:image/{kind};base64,{encoded}">')  # fmt: skip
