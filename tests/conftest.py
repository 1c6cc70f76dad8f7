"""One hypothesis profile for all tests: no deadline (torch's first call is slow), few examples."""

from __future__ import annotations

import importlib.metadata
import os

# before torch is imported: on small tensors a second thread only waits, and on a shared machine it waits long
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("MDMKIT_HYPOTHESIS", "default"))


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the plugins that are really installed, so that a test sees only those that it installs itself."""
    found = importlib.metadata.entry_points
    real = {point.value for point in found(group="mdmkit")}
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **wanted: [point for point in found(**wanted) if point.value not in real],
    )
