"""Settings and registrations of the built-in components: values. No torch."""

from __future__ import annotations

from mdmkit.plugins.component import Component

__all__ = ["COMPONENTS"]

COMPONENTS: list[Component] = []
