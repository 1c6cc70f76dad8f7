"""SIGINT and SIGTERM: a training saves before it ends, everything else ends at once; the exit code is 130."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mdmkit.errors import MdmkitError

__all__ = ["Interrupted", "stop_signals", "terminate_as_interrupt"]


class Interrupted(MdmkitError):
    """SIGINT or SIGTERM arrived; the run is saved and can be resumed."""

    exit_code = 130


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one of a kind acts as it did before."""
    asked = False
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])

    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does: files are closed, workers ended, locks let go of."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Any = None
    with contextlib.suppress(ValueError):
        before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
