"""What mdmkit finds at the entry point `xformers`. Neither torch nor xformers is imported here."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mdmkit.plugins import Component, hookimpl
from mdmkit.recipe import opt

__all__ = ["AttentionSettings", "mdmkit_components"]


@attrs.frozen
class AttentionSettings:
    """xformers' memory-efficient attention, on CUDA."""

    otherwise: str = opt(
        "sdpa",
        "where xformers cannot serve: take PyTorch's SDPA and say why, or stop",
        choices=("sdpa", "refuse"),
    )


@hookimpl
def mdmkit_components() -> Iterable[Component]:
    target = "mdmkit_xformers.attention:attend"
    return [Component("attention", "xformers.attention", AttentionSettings, target)]
