"""A plugin that writes down, after each update, what the parameters of this rank are: a digest a line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mdmkit.plugins import hookimpl
from mdmkit.train.ema import EMA


@hookimpl
def mdmkit_components() -> list[Any]:
    """None; but every rank comes by here, and hooks of a run are the first rank's."""
    folder, rank = os.environ.get("DIGESTS"), os.environ.get("RANK", "0")
    if folder is None or hasattr(EMA.update, "digests"):
        return []
    update = EMA.update

    def noted(self: EMA) -> None:
        update(self)
        digest = hashlib.sha256()
        for name, p in sorted(self._live.items()):
            digest.update(name.encode() + p.detach().numpy().tobytes())
        with (Path(folder) / f"rank-{rank}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{digest.hexdigest()}\n")

    noted.digests = True  # type: ignore[attr-defined]
    EMA.update = noted
    return []
