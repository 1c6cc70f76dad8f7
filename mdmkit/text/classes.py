"""One learned vector a class, for data whose captions are class names or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from .encoder import TextEncoder

__all__ = ["ClassEncoder"]


class ClassEncoder(TextEncoder):
    """A single token a caption: the learned vector of its class; the empty caption has one of its own.

    The classes are given by exactly one of `names`, `file` (a name a line, UTF-8) and `count` (numbers
    only). A caption is a class's name, or its number counted from 0; a name wins over a number.
    `classes.weight` is (classes + 1, width), the empty caption's row the last.

    ValueError for a caption that is neither, and for classes that are given twice or not at all.
    """

    trainable = True

    def __init__(
        self,
        *,
        width: int = 64,
        names: tuple[str, ...] = (),
        file: str | None = None,
        count: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.names = _class_names(names=names, file=file, count=count)
        self.classes = nn.Embedding(len(self.names) + 1, width, device=device, dtype=dtype)
        self._index = {name: index for index, name in enumerate(self.names)}

    def index(self, caption: str) -> int:
        """The row of this caption's vector."""
        caption = caption.strip()
        if not caption:
            return len(self.names)
        if caption in self._index:
            return self._index[caption]
        if caption.isdecimal():
            if int(caption) < len(self.names):
                return int(caption)
            raise ValueError(f"unknown class {caption}; expected a number from 0 to {len(self.names) - 1}")
        near = get_close_matches(caption, self.names, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        raise ValueError(f"unknown class {caption!r}{meant} ({len(self.names)} classes: {known})")

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([self.index(caption) for caption in captions], dtype=torch.int64)
        features = self.classes(rows.to(self.classes.weight.device)).unsqueeze(1)
        return features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)

    def spans(self, caption: str) -> list[tuple[int, int]]:
        return [(0, len(caption))]

    def extra_repr(self) -> str:
        return f"width={self.width}, classes={len(self.names)}"


def _class_names(*, names: Sequence[str], file: str | None, count: int | None) -> tuple[str, ...]:
    given = [
        key
        for key, value in (("names", names or None), ("file", file), ("count", count))
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of names, file and count, got {', '.join(given) or 'none'}")
    if count is not None:
        if count < 1:
            raise ValueError(f"expected count >= 1, got {count}")
        return tuple(map(str, range(count)))
    where = "names"
    if file is not None:
        where, names = file, _lines(file)
    names = [name.strip() for name in names]
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"{where}: class {index} has no name; the empty caption is no class")
        if name in first:
            raise ValueError(
                f"{where}: classes {first[name]} and {index} are both named {name!r}; make the names distinct"
            )
        first[name] = index
    return tuple(names)


def _lines(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(
            f"{file}: cannot read class names: {error.strerror}; expected one name a line"
        ) from error
    if not lines:
        raise ValueError(f"{file}: no class names; expected one name a line")
    return lines
