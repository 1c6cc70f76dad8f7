"""One hypothesis profile for all tests: no deadline (torch's first call is slow), few examples."""

from __future__ import annotations

import os

# before torch is imported: on small tensors a second thread only waits, and on a shared machine it waits long
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("MDMKIT_HYPOTHESIS", "default"))
