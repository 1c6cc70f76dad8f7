"""The registry: components by kind and name, from the built-ins and from installed plugins."""

from .component import Component, hookimpl
from .discovery import load_registry
from .kinds import KINDS, Kind
from .registry import Entry, Plugin, Registry

__all__ = ["KINDS", "Component", "Entry", "Kind", "Plugin", "Registry", "hookimpl", "load_registry"]
