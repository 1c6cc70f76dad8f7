"""Where the recorded reference numbers lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("MDMKIT_GOLDEN") or Path(__file__).parents[2].parent / "shared" / "golden")


@pytest.fixture
def golden_folder() -> Path:
    """The folder of recorded cases; tests that need it are skipped where it is not there."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no recorded numbers at {GOLDEN}; set MDMKIT_GOLDEN")
    return GOLDEN
