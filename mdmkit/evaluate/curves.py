"""Curves of a run as inline SVG that follows the page's text colour. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["curve"]

COLOURS = ("#e4572e", "#2e86ab", "#3aa655", "#a05cc6", "#c9971c", "#d6498f")
INK = "#010203"  # stands for currentColor: matplotlib takes only real colours


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    size: tuple[float, float],
    log: bool = False,
    first_in_ink: bool = False,
) -> str:
    """An SVG of named (steps, values): raw values faint, smoothed values over them; what is not finite is left out.

    `size` in inches, as the ratio and the size of the text go. `log` is taken only where every value is positive. The
    first series is drawn in the text's colour if `first_in_ink`, and the names stand in a legend where there are
    several. ImportError without matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    rc: dict[str, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "mdmkit", "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with mpl.rc_context(rc):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        colours = [INK, *COLOURS] if first_in_ink else list(COLOURS)
        drawn: list[float] = []
        for number, (name, (steps, values)) in enumerate(series.items()):
            points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
            if not points:
                continue
            colour = colours[number % len(colours)]
            xs, raw = [p[0] for p in points], [p[1] for p in points]
            drawn += raw
            if len(points) == 1:
                axes.plot(xs, raw, "o", color=colour, markersize=4, label=name)
                continue
            smooth = _smooth(raw)
            axes.plot(*_extremes(xs, raw), color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(*_thin(xs, smooth), color=colour, linewidth=1.5, label=name)
        if log and drawn and min(drawn) > 0:
            axes.set_yscale("log")
            narrow = max(drawn) < 4 * min(drawn)
            axes.yaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.xaxis.set_major_locator(MaxNLocator(max(2, round(size[0] * 0.9)), integer=True))
        axes.grid(True, color=INK, alpha=0.1, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_alpha(0.4)
        axes.margins(x=0.01)
        if len(series) > 1 and drawn:
            axes.legend(frameon=False, ncols=min(len(series), 6), loc="upper right")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True,
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1).strip()


def _smooth(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a fortieth of the values, without the bias of its start."""
    decay = 1.0 - 1.0 / max(1.0, len(values) / 40)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def _thin(xs: Sequence[float], ys: Sequence[float], most: int = 600) -> tuple[list[float], list[float]]:
    stride = -(-len(xs) // most)
    picked = sorted({*range(0, len(xs), stride), len(xs) - 1})
    return [xs[i] for i in picked], [ys[i] for i in picked]


def _extremes(xs: Sequence[float], ys: Sequence[float], most: int = 1200) -> tuple[list[float], list[float]]:
    """The smallest and largest value of each stretch, so that no spike is lost with the points left out."""
    stride = -(-2 * len(xs) // most)
    if stride <= 2:
        return list(xs), list(ys)
    picked: list[int] = []
    for start in range(0, len(xs), stride):
        stretch = range(start, min(start + stride, len(xs)))
        picked += sorted({min(stretch, key=ys.__getitem__), max(stretch, key=ys.__getitem__)})
    return [xs[i] for i in picked], [ys[i] for i in picked]
