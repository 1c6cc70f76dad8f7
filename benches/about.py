"""What every answer is of: the machine, the versions, the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["about"]


def about(bench: str, *, machine: str | None = None) -> dict[str, Any]:
    """The first fields of a bench's JSON line; `machine`: another than this CPU, as a CUDA device's name."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "bench": bench,
        "machine": machine or platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": done.stdout.strip(),
    }
