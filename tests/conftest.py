"""One hypothesis profile for all tests: no deadline (torch's first call is slow), few examples, reproducible."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("MDMKIT_HYPOTHESIS", "default"))
