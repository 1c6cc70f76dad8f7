"""The sizes of pictures, read from their headers once and kept in the cache."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mdmkit.errors import MdmkitError

from .fetch import locked
from .pictures import size_of

__all__ = ["header_size", "kept", "kept_at"]


def header_size(file: Path | BinaryIO) -> tuple[int, int]:
    """(height, width) of an encoded picture as it stands upright; (0, 0) where it cannot be opened.

    Of a PNG only what stands in front of its pixels is read, an orientation behind them is not seen.
    """
    try:
        with Image.open(file) as picture:
            # Pillow decodes all of a PNG to look for an orientation behind the pixels
            w, h = picture.size
            return (h, w) if _is_plain_png(picture) else size_of(picture)
    except Exception:  # decoders raise what they like on broken data
        return 0, 0


def _is_plain_png(picture: Image.Image) -> bool:
    return picture.format == "PNG" and "exif" not in picture.info


def kept_at(source: str, cache: Path) -> Path:
    """Where the sizes of a source's pictures are kept."""
    return cache / "sizes" / f"{blake2b(source.encode(), digest_size=12).hexdigest()}.npz"


def kept(where: Path, stamp: str, read: Callable[[], Sequence[tuple[int, int]]]) -> np.ndarray:
    """Sizes (pictures, 2) as kept under this stamp, else as `read` finds them, which are then kept."""
    with locked(where):  # another rank may be first
        try:
            with open(where, "rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["stamp"]) == stamp:
                    return data["sizes"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # not there, or half a file
        found = np.asarray(read(), dtype=np.int64).reshape(-1, 2)
        aside = where.with_name(f"{where.name}.{os.getpid()}.tmp")
        try:
            with open(aside, "wb") as file:
                np.savez(file, stamp=np.array(stamp), sizes=found)
            os.replace(aside, where)
        except OSError as error:
            raise MdmkitError(f"{where}: sizes cannot be written: {error.strerror or error}") from error
        return found
