"""What the author of a plugin runs: a battery for every kind; hypothesis strategies in `strategies`."""

from .conformance import BATTERIES, check_component
from .subject import ConformanceError

__all__ = ["BATTERIES", "ConformanceError", "check_component"]
