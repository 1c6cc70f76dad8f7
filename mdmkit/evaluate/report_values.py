"""Reading values out of a run's log and recipe, and writing them as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

__all__ = [
    "Entry",
    "count",
    "finite",
    "flat",
    "grown_at",
    "last",
    "level_of",
    "moment",
    "plain",
    "resolution",
    "series",
    "steps_of",
    "table",
]

Entry = dict[str, Any]


def table(rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    cells = (
        f"<tr><th>{escape(name)}</th><td>{escape(plain(value))}</td></tr>" for name, value in rows.items()
    )
    return f'<table class="pairs">{"".join(cells)}</table>'


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables inside tables as one, keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def plain(value: Any) -> str:
    if isinstance(value, float):
        whole = math.isfinite(value) and 1000 <= abs(value) < 1e9
        return count(round(value)) if whole else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def moment(value: Any) -> str | None:
    """A time to the minute, as written where it is no ISO time."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip() if value else None
    except ValueError:
        return str(value)


def resolution(value: Any) -> str:
    height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
    return f"{height} × {width}"


def count(number: float) -> str:
    return f"{int(number):,}".replace(",", "\u202f")


def level_of(name: str) -> int:
    return int(name.partition(".")[2])


def steps_of(recipe: Entry) -> int | None:
    """The steps that a recipe says, of all its stages of growth where it has them; None: it does not."""
    train = recipe.get("train", {})
    stages = recipe.get("growth", {}).get("stages", []) if isinstance(recipe.get("growth"), dict) else []
    total = 0
    for stage in stages:
        steps, images = stage.get("steps"), stage.get("images")
        batch = stage.get("batch") if isinstance(stage.get("batch"), int) else train.get("batch")
        if isinstance(images, int) and isinstance(batch, int):
            steps = -(-images // batch)
        total += steps if isinstance(steps, int) else 0
    said = total or train.get("steps")
    return said if isinstance(said, int) else None


def grown_at(events: Iterable[Entry]) -> list[int]:
    """Steps at which a run grew."""
    return sorted({entry["step"] for entry in events if entry["event"] == "grown"})


def _numbers(lines: Iterable[Entry], name: str) -> Iterator[tuple[float, float]]:
    for entry in lines:
        value = entry.get(name)
        if isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
            yield entry.get("step", 0), float(value)


def series(lines: Iterable[Entry], name: str) -> tuple[list[float], list[float]]:
    points = list(_numbers(lines, name))
    return [p[0] for p in points], [p[1] for p in points]


def finite(lines: Iterable[Entry], name: str) -> list[float]:
    return [value for _, value in _numbers(lines, name) if math.isfinite(value)]


def last(lines: Sequence[Entry], name: str) -> int | None:
    return next((int(entry[name]) for entry in reversed(lines) if name in entry), None)
