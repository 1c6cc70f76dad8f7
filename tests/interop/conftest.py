"""Where the recorded reference numbers lie; small tensors, so one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GOLDEN = Path(os.environ.get("MDMKIT_GOLDEN") or Path(__file__).parents[2].parent / "shared" / "golden")


@pytest.fixture
def golden_folder() -> Path:
    """The folder of recorded cases; tests that need it are skipped where it is not there."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no recorded numbers at {GOLDEN}; set MDMKIT_GOLDEN")
    return GOLDEN


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
