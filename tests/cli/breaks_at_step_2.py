"""A plugin with a bug."""

from __future__ import annotations

from typing import Any

from mdmkit.plugins import hookimpl


@hookimpl
def mdmkit_step_end(step: int, **_: Any) -> None:
    """Break at the second step."""
    assert 1 / (step - 2)
