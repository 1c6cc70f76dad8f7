"""The report of a run: one self-contained page from what lies in the run folder, whole or not."""

from __future__ import annotations

import base64
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from mdmkit.errors import MdmkitError
from mdmkit.train.logs import LOG_NAME, clock, read_log

from .report_style import STYLE

__all__ = ["write_report"]

STRIP = 8  # grids of earlier steps that are shown, at most
Entry = dict[str, Any]


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html into the run folder and returns its path.

    Reads run.toml, recipe.resolved.toml (or recipe.toml), log.jsonl, samples/*.png and metrics.json, as far as they
    are there; what cannot be read is named on the page. Nothing on it is loaded from elsewhere. Without matplotlib a
    line that says how to install it stands in the place of the curves.
    """
    run_dir = Path(run_dir)
    notes: list[str] = []
    run = _toml(run_dir / "run.toml", notes)
    resolved = run_dir / "recipe.resolved.toml"
    recipe_path = resolved if resolved.exists() else run_dir / "recipe.toml"
    recipe = _toml(recipe_path, notes)
    try:
        log = read_log(run_dir / LOG_NAME)
    except MdmkitError as error:
        log = []
        notes.append(str(error))
    lines = [entry for entry in log if "event" not in entry and "step" in entry]
    events = [entry for entry in log if "event" in entry]

    summary = str(recipe.get("summary") or run_dir.resolve().name)
    state, state_class = _state(lines, events, recipe)
    body = [
        f'<header><p class="path">{escape(run_dir.resolve().name)}</p><h1>{escape(summary)}</h1>'
        f'<p><span class="state {state_class}">{escape(state)}</span></p></header>',
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        _facts(lines, events, run, recipe),
        _section("Pictures", _pictures(run_dir / "samples", recipe)),
        _section("Curves", _curves(lines)),
        _section("Metrics", _metrics(run_dir / "metrics.json")),
        _section("Levels", _levels(recipe, lines)),
        _section("Timings", _timings(lines, events)),
        _section("Events", _events(events)),
        _section("Run", _table(_flat(run))),
        _section("Recipe", _recipe(recipe_path)),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(summary)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )
    path = run_dir / "report.html"
    aside = path.with_name(path.name + ".tmp")
    # a caption may hold half a surrogate pair, which no encoding takes
    aside.write_text(page, encoding="utf-8", errors="replace")
    aside.replace(path)
    return path


def _toml(path: Path, notes: list[str]) -> Entry:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}


def _state(lines: Sequence[Entry], events: Sequence[Entry], recipe: Entry) -> tuple[str, str]:
    step, total = _last(lines, "step"), recipe.get("train", {}).get("steps")
    ends = [entry["event"] for entry in events if entry["event"] in ("finished", "interrupted", "failed", "resumed")]
    if (ends and ends[-1] == "finished") or (total and step and step >= total):
        return "finished", "good"
    if ends and ends[-1] in ("interrupted", "failed"):
        return f"{ends[-1]} at step {_count(step or 0)}", "bad"
    return (f"step {_count(step)}" + (f" of {_count(total)}" if total else "") if step else "not a step yet"), "open"


def _facts(lines: Sequence[Entry], events: Sequence[Entry], run: Entry, recipe: Entry) -> str:
    happened = Counter(entry["event"] for entry in events)
    train = recipe.get("train", {})
    step, seconds = _last(lines, "step"), _values(lines, "seconds")
    pictures = _last(lines, "pictures") or (step * train["batch"] if step and "batch" in train else None)
    flat = {key.rsplit(".", 1)[-1]: value for key, value in _flat(run).items()}
    times = [str(entry["time"]) for entry in events if "time" in entry]
    skipped = _last(lines, "skipped")
    spent = _seconds_trained(lines)
    facts: dict[str, Any] = {
        "steps": step and _count(step) + (f" of {_count(train['steps'])}" if "steps" in train else ""),
        "pictures seen": pictures and _count(pictures),
        "loss, last lines": (last := _values(lines, "loss")[-20:]) and f"{sum(last) / len(last):.4g}",
        "seconds a step, median": seconds and f"{median(seconds):.3g}",
        "pictures a second, median": (rates := _values(lines, "pictures_per_second")) and f"{median(rates):.3g}",
        "time in training": spent and clock(spent),
        "started": flat.get("start") or flat.get("started"),
        "last event": times[-1] if times else None,
        "device": flat.get("device"),
        "mdmkit": flat.get("mdmkit"),
        "torch": flat.get("torch"),
        "seed": recipe.get("run", {}).get("seed"),
        "resumed": _count(happened["resumed"]) if lines else None,
        "skipped samples": _count(skipped if skipped is not None else happened["skipped_sample"]) if lines else None,
        "bad steps": _count(happened["bad_step"]) if lines else None,
    }  # fmt: skip
    shown = {name: value for name, value in facts.items() if value not in (None, [], "")}
    return "<dl class=facts>" + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in shown.items()
    ) + "</dl>"  # fmt: skip


def _curves(lines: Sequence[Entry]) -> str:
    levels = sorted((n for n in {n for e in lines for n in e} if re.fullmatch(r"loss\.\d+", n)), key=_level_of)
    losses = {"total": _series(lines, "loss"), **{f"level {_level_of(n)}": _series(lines, n) for n in levels}}
    losses = {name: series for name, series in losses.items() if series[0]}
    if not losses:
        return ""
    try:
        from .curves import curve

        if len(losses) == 2:  # one level: its curve is the total's
            losses.pop("total", None)
        charts = [_chart("loss", "wide", curve(losses, size=(9.2, 3.4), log=True, first_in_ink=len(losses) > 1))]
        small = {"lr": "learning rate", "grad_norm": "gradient norm", "pictures_per_second": "pictures a second"}
        for name, title in small.items():
            if (series := _series(lines, name))[0]:
                chart = curve({title: series}, size=(3.1, 1.9), log=name == "grad_norm")
                charts.append(_chart(title, "small", chart))
    except ImportError:
        return '<p class="note">curves need matplotlib: <code>pip install \'mdmkit[report]\'</code></p>'
    return f'<div class="charts">{"".join(charts)}</div>'


def _chart(title: str, kind: str, svg: str) -> str:
    return f'<figure class="chart {kind}"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def _pictures(folder: Path, recipe: Entry) -> str:
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
        side = f", {_resolution(resolutions[level])}" if level < len(resolutions) else ""
        name = f"level {level}{side}"
        strip = "".join(
            f"<figure>{_image(path, f'{name}, step {_count(s)}', widest=340)}"
            f"<figcaption>step {_count(s)}</figcaption></figure>"
            for s, path in _spread(grids[:-1])
        )
        parts.append(
            f'<figure class="grid"><figcaption>{escape(name)} <span>step {_count(step)}</span></figcaption>'
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


def _metrics(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return _table(_flat(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, AttributeError) as error:
        return f'<p class="note">metrics.json cannot be read: {escape(str(error))}</p>'


def _levels(recipe: Entry, lines: Sequence[Entry]) -> str:
    levels = recipe.get("model", {}).get("levels", [])
    if not levels:
        return ""
    rows = []
    for number, level in enumerate(levels):
        losses = _values(lines, f"loss.{number}")[-20:]
        cells = (
            str(number), _resolution(level.get("resolution")), str(level.get("use", "")),
            *(_plain(level.get(key, "")) for key in ("channels", "blocks", "attention")),
            f"{sum(losses) / len(losses):.4g}" if losses else "",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("level", "resolution", "network", "channels", "blocks", "attention", "loss, last lines")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _timings(lines: Sequence[Entry], events: Sequence[Entry]) -> str:
    seconds = sorted(_values(lines, "seconds"))
    rows: dict[str, str] = {}
    if seconds:
        rows["training"] = clock(_seconds_trained(lines))
        rows["seconds a step"] = (
            f"median {median(seconds):.3g}, fastest {seconds[0]:.3g}, slowest {seconds[-1]:.3g}, means between log lines"
        )
    for name in dict.fromkeys(entry["event"] for entry in events):
        spent = _values([entry for entry in events if entry["event"] == name], "seconds")
        if spent:
            rows[name] = f"{clock(sum(spent))}, {_count(len(spent))} times"
    return _table(rows)


def _seconds_trained(lines: Sequence[Entry]) -> float:
    """Seconds a step is a mean since the line before: times the steps since then."""
    total, before = 0.0, 0
    for entry in lines:
        seconds = _values([entry], "seconds")
        total += (entry["step"] - before) * seconds[0] if seconds else 0.0
        before = entry["step"]
    return total


def _events(events: Sequence[Entry], most: int = 200) -> str:
    if not events:
        return ""
    rows = []
    for entry in events[-most:]:
        rest = {key: value for key, value in entry.items() if key not in ("step", "event", "time")}
        details = ", ".join(f"{key} {_plain(value)}" for key, value in rest.items())
        cells = (_count(entry.get("step", 0)), entry["event"], details, entry.get("time", ""))
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    table = f"<table><tr><th>step</th><th>event</th><th></th><th>time</th></tr>{''.join(rows)}</table>"
    return f"<details{' open' if len(rows) <= 8 else ''}><summary>{_count(len(events))} events</summary>{table}</details>"


def _recipe(path: Path) -> str:
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"<details><summary>{escape(path.name)}</summary><pre>{escape(text)}</pre></details>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(_plain(value))}</td></tr>" for name, value in rows.items())
    return f'<table class="pairs">{"".join(cells)}</table>'


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _resolution(value: Any) -> str:
    height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
    return f"{height} × {width}"


def _count(number: float) -> str:
    return f"{int(number):,}".replace(",", "\u202f")


def _level_of(name: str) -> int:
    return int(name.partition(".")[2])


def _numbers(lines: Iterable[Entry], name: str) -> Iterator[tuple[float, float]]:
    for entry in lines:
        if isinstance(entry.get(name), int | float | str):
            yield entry["step"], float(entry[name])


def _series(lines: Iterable[Entry], name: str) -> tuple[list[float], list[float]]:
    points = list(_numbers(lines, name))
    return [p[0] for p in points], [p[1] for p in points]


def _values(lines: Iterable[Entry], name: str) -> list[float]:
    return [value for _, value in _numbers(lines, name) if math.isfinite(value)]


def _last(lines: Sequence[Entry], name: str) -> int | None:
    return next((int(entry[name]) for entry in reversed(lines) if name in entry), None)
