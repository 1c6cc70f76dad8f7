"""A plugin that sends its process a signal, at a step (STOP_AT) or inside a checkpoint (STOP_IN).

Also just behind one (STOP_SAVED, its step). GROW_AT: at that step somebody says --grow-now in another shell.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from mdmkit.plugins import hookimpl


def stop() -> None:
    """The signal that STOP_BY names."""
    os.kill(os.getpid(), getattr(signal, os.environ.get("STOP_BY", "SIGKILL")))


@hookimpl
def mdmkit_run_start(**_: Any) -> None:
    """From step STOP_IN on, the first checkpoint is never renamed: the process dies just before."""
    if "STOP_IN" not in os.environ:
        return
    from mdmkit.train import state

    rename = os.rename

    def dying(source: Any, target: Any) -> None:
        if int(str(target).rpartition("-")[2]) >= int(os.environ["STOP_IN"]):
            stop()
        rename(source, target)

    state.os = type("Os", (), {**vars(os), "rename": staticmethod(dying)})()  # type: ignore[attr-defined]


@hookimpl
def mdmkit_step_end(step: int, **_: Any) -> None:
    """Send the signal at the step; on the first rank only."""
    if step == int(os.environ.get("STOP_AT", "-1")) and os.environ.get("RANK", "0") == "0":
        stop()
    if step == int(os.environ.get("GROW_AT", "-1")):
        from . import tiny

        asked = tiny.here("run", "--resume", os.environ["GROW_RUN"], "--grow-now")
        assert (asked.code, asked.out) == (0, "")
        assert asked.err.endswith("ends its stage at its next step\n"), asked.err


@hookimpl
def mdmkit_checkpoint_saved(step: int, **_: Any) -> None:
    """Nothing else has happened since the checkpoint was whole."""
    if step == int(os.environ.get("STOP_SAVED", "-1")):
        stop()
