"""Curves of a run as inline SVG that follows the page's text colour. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

__all__ = ["curve"]

COLOURS = ("#e4572e", "#2e86ab", "#3aa655", "#a05cc6", "#c9971c", "#d6498f")
INK = "#010203"  # stands for currentColor: matplotlib takes only real colours


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    size: tuple[float, float],
    log: bool = False,
    smooth: bool = True,
    first_in_ink: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """An SVG of named (steps, values); values that are not finite are left out.

    `size` is in inches; it sets the ratio and how large the text is. `smooth`: values faint, their running
    mean over them. `log` holds only where every value is positive. `first_in_ink` draws the first series in
    the text's colour. `marks`: steps at which a dotted line stands. A legend stands where there are several.
    ImportError without matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    rc: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "mdmkit", "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
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
            if smooth:
                axes.plot(*_extremes(xs, raw), color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(*_thin(xs, _smooth(raw) if smooth else raw), color=colour, linewidth=1.5, label=name)
        for step in marks:
            axes.axvline(step, color=INK, alpha=0.5, linewidth=0.9, linestyle=":")
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
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1).strip()


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean over about a fortieth of the values around each, fewer towards the ends: no lag, no shift."""
    sums = [0.0, *accumulate(values)]
    out = []
    for i in range(len(values)):
        reach = min(len(values) // 80, i, len(values) - 1 - i)
        out.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
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
