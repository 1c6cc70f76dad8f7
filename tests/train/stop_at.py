"""A plugin that ends the process at a step, the hard way or the soft way, once: named by STOP_AT and STOP_BY."""

from __future__ import annotations

import os
import signal
from typing import Any

from mdmkit.plugins import hookimpl


@hookimpl
def mdmkit_step_end(step: int, **_: Any) -> None:
    """Send the signal at the step."""
    if step == int(os.environ.get("STOP_AT", "-1")) and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), getattr(signal, os.environ.get("STOP_BY", "SIGKILL")))
