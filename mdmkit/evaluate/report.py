"""The report of a run: one self-contained page from what lies in the run folder, whole or not."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from mdmkit.errors import MdmkitError
from mdmkit.train.logs import LOG_NAME, clock, read_log

from .report_pictures import picture_grids
from .report_style import STYLE
from .report_values import (
    Entry,
    count,
    finite,
    flat,
    grown_at,
    last,
    level_of,
    moment,
    plain,
    resolution,
    series,
    steps_of,
    table,
)

__all__ = ["write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html into the run folder and returns its path.

    Reads run.toml, recipe.resolved.toml (or recipe.toml), log.jsonl, samples/*.png and metrics.json, as far
    as they are there; what cannot be read is named on the page. Nothing on it is loaded from elsewhere.
    Without matplotlib a line that says how to install it stands in the place of the curves.
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
        _section("Pictures", picture_grids(run_dir / "samples", recipe)),
        _section("Curves", _curves(lines, grown_at(events))),
        _section("Metrics", _metrics(run_dir / "metrics.json")),
        _section("Levels", _levels(recipe, lines)),
        _section("Timings", _timings(lines, events)),
        _section("Events", _events(events)),
        _section("Run", table(flat(run))),
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
    step, total = last(lines, "step"), steps_of(recipe)
    ends = [
        entry["event"]
        for entry in events
        if entry["event"] in ("finished", "interrupted", "failed", "resumed")
    ]
    if (ends and ends[-1] == "finished") or (total and step and step >= total):
        return "finished", "good"
    if ends and ends[-1] in ("interrupted", "failed"):
        return f"{ends[-1]} at step {count(step or 0)}", "bad"
    return (
        f"step {count(step)}" + (f" of {count(total)}" if total else "") if step else "not a step yet"
    ), "open"


def _facts(lines: Sequence[Entry], events: Sequence[Entry], run: Entry, recipe: Entry) -> str:
    happened = Counter(entry["event"] for entry in events)
    train = recipe.get("train", {})
    step, seconds = last(lines, "step"), finite(lines, "seconds")
    total, grew = steps_of(recipe), grown_at(events)
    known = step and isinstance(train.get("batch"), int)
    pictures = last(lines, "pictures") or (step * train["batch"] if known else None)
    about = {key.rsplit(".", 1)[-1]: value for key, value in flat(run).items()}
    times = [str(entry["time"]) for entry in events if "time" in entry]
    skipped = last(lines, "skipped")
    skipped = happened["skipped_sample"] if skipped is None else skipped
    spent = _seconds_trained(lines)
    facts: dict[str, Any] = {
        "steps": step and count(step) + (f" of {count(total)}" if total else ""),
        "stages": grew and f"{len(grew) + 1}, grown at step {', '.join(map(count, grew))}",
        "pictures seen": pictures and count(pictures),
        "loss, last lines": (loss := finite(lines, "loss")[-20:]) and plain(sum(loss) / len(loss)),
        "seconds a step, median": seconds and plain(median(seconds)),
        "pictures a second, median": (rates := finite(lines, "pictures_per_second")) and plain(median(rates)),
        "time in training": spent and clock(spent),
        "started": moment(about.get("start") or about.get("started")),
        "last event": moment(times[-1] if times else None),
        "device": about.get("device"),
        "mdmkit": about.get("mdmkit"),
        "torch": about.get("torch"),
        "seed": recipe.get("run", {}).get("seed"),
        "resumed": count(happened["resumed"]) if lines else None,
        "skipped samples": count(skipped) if lines else None,
        "bad steps": count(happened["bad_step"]) if lines else None,
    }  # fmt: skip
    shown = {name: value for name, value in facts.items() if value not in (None, [], "")}
    return "<dl class=facts>" + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in shown.items()
    ) + "</dl>"  # fmt: skip


def _curves(lines: Sequence[Entry], grew: Sequence[int]) -> str:
    levels = sorted((n for n in {n for e in lines for n in e} if re.fullmatch(r"loss\.\d+", n)), key=level_of)
    losses = {"total": series(lines, "loss"), **{f"level {level_of(n)}": series(lines, n) for n in levels}}
    losses = {name: points for name, points in losses.items() if points[0]}
    if not losses:
        return ""
    try:
        from .curves import curve

        if len(losses) == 2:  # one level: its curve is the total's
            losses.pop("total", None)
        charts = [
            _chart(
                "loss; dotted: a stage of growth begins" if grew else "loss",
                "wide",
                curve(losses, size=(9.2, 3.4), log=True, first_in_ink=len(losses) > 1, marks=grew),
            )
        ]
        small = {
            "lr": "learning rate",
            "grad_norm": "gradient norm",
            "pictures_per_second": "pictures a second",
        }
        for name, title in small.items():
            if (points := series(lines, name))[0]:
                chart = curve(
                    {title: points}, size=(3.1, 1.9), log=name == "grad_norm", smooth=name != "lr", marks=grew
                )
                charts.append(_chart(title, "small", chart))
    except ImportError:
        return "<p class=\"note\">curves need matplotlib: <code>pip install 'mdmkit[report]'</code></p>"
    return f'<div class="charts">{"".join(charts)}</div>'


def _chart(title: str, kind: str, svg: str) -> str:
    return f'<figure class="chart {kind}"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def _metrics(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return table(flat(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, AttributeError) as error:
        return f'<p class="note">metrics.json cannot be read: {escape(str(error))}</p>'


def _levels(recipe: Entry, lines: Sequence[Entry]) -> str:
    levels = recipe.get("model", {}).get("levels", [])
    if not levels:
        return ""
    rows = []
    for number, level in enumerate(levels):
        losses = finite(lines, f"loss.{number}")[-20:]
        cells = (
            str(number), resolution(level.get("resolution")), str(level.get("use", "")),
            *(plain(level.get(key, "")) for key in ("channels", "blocks", "attention")),
            plain(sum(losses) / len(losses)) if losses else "",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("level", "resolution", "network", "channels", "blocks", "attention", "loss, last lines")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _timings(lines: Sequence[Entry], events: Sequence[Entry]) -> str:
    seconds = sorted(finite(lines, "seconds"))
    rows: dict[str, str] = {}
    if seconds:
        rows["training"] = clock(_seconds_trained(lines))
        rows["seconds a step"] = (
            f"median {plain(median(seconds))}, fastest {plain(seconds[0])}, slowest {plain(seconds[-1])} "
            "(means between two log lines)"
        )
    for name in dict.fromkeys(entry["event"] for entry in events):
        spent = finite([entry for entry in events if entry["event"] == name], "seconds")
        if spent:
            rows[name] = f"{clock(sum(spent))}, {count(len(spent))} {'time' if len(spent) == 1 else 'times'}"
    return table(rows)


def _seconds_trained(lines: Sequence[Entry]) -> float:
    """Seconds a step is a mean since the line before: times the steps since then."""
    total, before = 0.0, 0
    for entry in lines:
        seconds = finite([entry], "seconds")
        total += (entry["step"] - before) * seconds[0] if seconds else 0.0
        before = entry["step"]
    return total


def _events(events: Sequence[Entry], most: int = 200) -> str:
    if not events:
        return ""
    rows = []
    for entry in events[-most:]:
        rest = {key: value for key, value in entry.items() if key not in ("step", "event", "time")}
        details = ", ".join(f"{key} {plain(value)}" for key, value in rest.items())
        cells = (count(entry.get("step", 0)), entry["event"], details, moment(entry.get("time")) or "")
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    heads = "<tr><th>step</th><th>event</th><th></th><th>time</th></tr>"
    return (
        f"<details{' open' if len(rows) <= 8 else ''}><summary>{count(len(events))} events</summary>"
        f"<table>{heads}{''.join(rows)}</table></details>"
    )


def _recipe(path: Path) -> str:
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"<details><summary>{escape(path.name)}</summary><pre>{escape(text)}</pre></details>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""
