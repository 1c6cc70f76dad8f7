"""Where the recorded reference numbers lie: MDMKIT_GOLDEN, or ../shared/golden beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["golden_case"]


def golden_case(name: str) -> Path:
    """The folder of a case; the test is skipped where the numbers are not there."""
    root = Path(os.environ.get("MDMKIT_GOLDEN") or Path(__file__).parents[1] / ".." / "shared" / "golden")
    if not (root / name).is_dir():
        pytest.skip(f"no reference numbers at {root / name} (set MDMKIT_GOLDEN)")
    return root / name
