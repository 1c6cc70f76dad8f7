"""How long does a verb that imports no torch keep a person waiting?

    python benches/startup.py [--quick] [recipe.toml]

Each of `list explain plugins show schema check` is run as a process of its own, in turn with `python -c pass`
on the same interpreter, so that what else the machine does hits both alike. The answer is the median time,
and its difference to Python's own start; well under half a second is what was promised.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from about import about

ROOT = Path(__file__).resolve().parents[1]


def seconds(command: list[str]) -> float:
    """Wall-clock time of one run, start to exit."""
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"{' '.join(command[1:])}: exit {result.returncode}\n{result.stderr.strip()}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.toml", help="for show and check")
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 20")
    options = parser.parse_args()

    mdmkit = [sys.executable, "-m", "mdmkit"]
    verbs = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "list": [*mdmkit, "list"],
        "explain": [*mdmkit, "explain", "noise_schedule/cosine"],
        "plugins": [*mdmkit, "plugins"],
        "show": [*mdmkit, "show", options.recipe],
        "schema": [*mdmkit, "schema"],
        "check": [*mdmkit, "check", options.recipe],
    }
    rounds = 5 if options.quick else 20
    for command in verbs.values():
        seconds(command)  # compiles what is not compiled yet, and fills the disk's cache
    times: dict[str, list[float]] = {name: [] for name in verbs}
    for _ in range(rounds):
        for name, command in verbs.items():
            times[name].append(seconds(command))

    medians = {name: statistics.median(taken) for name, taken in times.items()}
    start = medians["python -c pass"]
    print(f"{'verb':<16}{'median ms':>10}{'fastest':>9}{'slowest':>9}{'beyond python':>15}")
    for name, taken in times.items():
        median, fastest, slowest = (1000 * x for x in (medians[name], min(taken), max(taken)))
        print(f"{name:<16}{median:>10.0f}{fastest:>9.0f}{slowest:>9.0f}{median - 1000 * start:>15.0f}")
    answer = {
        **about("startup", machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"),
        "median_ms": {name: round(1000 * median, 1) for name, median in medians.items()},
        "rounds": rounds,
        "typer": version("typer"),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
