"""The registry: components by kind and name, from the built-ins and from installed plugins."""

from .component import Component, hookimpl
from .kinds import KINDS, Kind

__all__ = ["KINDS", "Component", "Kind", "hookimpl"]
