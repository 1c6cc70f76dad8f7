"""The tables of `benches/README.md`, made of `results.jsonl`: arms with their spreads, and the claims.

    python benches/claims/table.py [--check]

Medians over seeds, with the lowest and the highest. A claim is a comparison of two arms with the same seed,
which is the same data, captions and noise: a claim is said to hold by a measure where every seed says so,
and to be refuted where every seed says the opposite. Lines of recipes that have changed since are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run import ARMS, DATA, RESULTS, digest, of_data

from mdmkit.plugins import load_registry

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- claims: made by benches/claims/table.py -->", "<!-- /claims -->"
# name in the results, heading, digits, whether more is better
MEASURES = (
    ("fidelity.frechet", "Fréchet", 1, False),
    ("fidelity.kernel", "kernel", 2, False),
    ("prompt_accuracy.all", "all right", 2, True),
    ("prompt_accuracy.colour", "colour right", 2, True),
)
WHAT = {
    "plain": "plain U-Net at 32",
    "nest2": "nest 16 -> 32, mixed batches",
    "nest2_lr": "as nest2, learning rate raised half-way",
    "nest2_full": "nest 16 -> 32, full batches",
    "nest3": "nest 8 -> 16 -> 32, mixed batches",
    "cascade": "16, then 16 -> 32, trained apart",
    "grow25": "nest grown, 25 % of the compute at 16 first",
    "grow50": "nest grown, 50 % at 16 first",
    "grow75": "nest grown, 75 % at 16 first",
    "grow50_lr": "as grow50, learning rate raised at growth",
    "grow75_lr": "as grow75, learning rate raised at growth",
}
SEEDS = 3  # fewer decide nothing
# what the paper would have: which arm is better than which
BETTER = (
    ("a", "a nest is better than a plain U-Net", "nest2", "plain"),
    ("a", "the same, without mixed batches", "nest2_full", "plain"),
    ("b", "a nest is better than a cascade", "nest2", "cascade"),
    ("c", "grown is better than all at once", "grow50", "nest2"),
    ("c", "the same, the learning rate of both raised half-way", "grow50_lr", "nest2_lr"),
    ("c", "raising it half-way is better than not", "nest2_lr", "nest2"),
    ("d", "two levels are better than one", "nest2", "plain"),
    ("d", "three levels are better than two", "nest3", "nest2"),
    ("e", "25 % at low resolution is better than none", "grow25", "nest2"),
    ("e", "50 % is better than 25 %", "grow50", "grow25"),
    ("e", "75 % is better than 50 %", "grow75", "grow50"),
    ("e", "50 % is better than 25 %, learning rate raised", "grow50_lr", "grow25"),
    ("e", "75 % is better than 50 %, learning rate raised", "grow75_lr", "grow50_lr"),
    ("f", "mixed batches are better than full ones", "nest2", "nest2_full"),
)

Lines = dict[str, dict[int, dict[str, Any]]]


def read(data: str) -> Lines:
    """The results on some data by arm and seed."""
    registry = load_registry()
    now = {arm: digest(arm, registry, data) for arm in ARMS}
    lines: Lines = {arm: {} for arm in ARMS}
    for line in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines()):
        if of_data(line) == data and line["recipe"] == now.get(line["arm"]):
            lines[line["arm"]][line["seed"]] = line
    return lines


def measures(lines: Lines) -> list[tuple[str, str, int, bool]]:
    """Those that were taken: not every prompt can be read off a picture."""
    seen = {key for seeds in lines.values() for line in seeds.values() for key in line["metrics"]}
    return [one for one in MEASURES if one[0] in seen]


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and from where to where."""
    if not values:
        return "-"
    low, middle, high = (f"{x:.{digits}f}" for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def arms(lines: Lines) -> list[str]:
    taken = measures(lines)
    head = ["arm", "what", "seeds", *(name for _, name, _, _ in taken)]
    head += ["training, TFLOP", "CPU s", "drawing, GFLOP"]
    rows = [head, ["---"] * len(head)]
    for arm, seeds in lines.items():
        if not seeds:
            continue
        one = next(iter(seeds.values()))
        told = [
            spread([line["metrics"][key] for line in seeds.values()], digits)
            for key, _, digits, _ in taken
        ]
        seconds = spread([line["cpu_seconds"] for line in seeds.values()], 0)
        cost = [f"{one['training_tflop']:.2f}", seconds, f"{one['drawing_gflop']:.1f}"]
        rows.append([f"`{arm}`", WHAT[arm], str(len(seeds)), *told, *cost])
    return [f"| {' | '.join(row)} |" for row in rows]


def claims(lines: Lines) -> list[str]:
    taken = [one for one in measures(lines) if one[0] != "prompt_accuracy.colour"]  # all right has it
    head = ["", "claim, at equal training compute", "arms", *(name for _, name, _, _ in taken), "so"]
    rows = [head, ["---"] * len(head)]
    for letter, claim, better, worse in BETTER:
        if not lines[better] and not lines[worse]:
            continue
        both = sorted(lines[better].keys() & lines[worse].keys())
        cells, verdicts = [], []
        for key, _, digits, more in taken:
            sign = 1 if more else -1
            gains = [
                sign * (lines[better][seed]["metrics"][key] - lines[worse][seed]["metrics"][key])
                for seed in both
            ]
            good = sum(gain > 0 for gain in gains)
            shown = spread([sign * gain for gain in gains], digits)
            cells.append(f"{good} of {len(both)} seeds; {shown}")
            verdicts.append(verdict(good, len(both)))
        said = verdicts[0] if len(set(verdicts)) == 1 else "mixed: " + ", ".join(verdicts)
        if len(both) < SEEDS:
            said += f" (by {len(both)} of {SEEDS} seeds)"
        rows.append([f"({letter})", claim, f"`{better}` - `{worse}`", *cells, said if both else "not run"])
    return [f"| {' | '.join(row)} |" for row in rows]


def verdict(good: int, seeds: int) -> str:
    if good == seeds:
        return "holds"
    return "does not" if good == 0 else "undecided"


def section() -> str:
    parts = [BEGIN]
    for data in DATA:
        lines = read(data)
        if any(lines.values()):
            parts += ["", f"**{data.capitalize()}.**", "", *arms(lines), "", *claims(lines)]
    return "\n".join([*parts, "", END])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where README.md has another table")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = before + section() + after
    if options.check and new != text:
        raise SystemExit(f"{README} has another table than {RESULTS} gives; run benches/claims/table.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
