"""The exponential moving average of the weights, with a warmup from the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMA"]

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class EMA:
    """Averages of named parameters, `a <- lerp(a, p, 1 - min(decay, (1 + n) / (10 + n)))`.

    n counts the updates of that parameter before this one: at a fixed decay of 0.9999 an average would still
    be 99 % of its random start after 100 steps. Each parameter has its own n, so that those which join later
    (`add`: a grown level) warm up by themselves and leave the others as they are. Averages are float32
    (float64 for float64). Buffers are not averaged: the current values are kept.

    `parameters` are what `module.named_parameters()` gives; `EMA.of(module, decay=...)` takes a module whole.
    """

    def __init__(self, parameters: Named, *, decay: float, buffers: Named = ()) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected 0 <= decay < 1, got {decay}; 0.999 to 0.9999 are usual")
        self.decay = decay
        self._live: dict[str, Tensor] = {}
        self._live_buffers: dict[str, Tensor] = {}
        self.averages: dict[str, Tensor] = {}
        self.updates: dict[str, int] = {}
        self.add(parameters, buffers=buffers)

    @classmethod
    def of(cls, module: nn.Module, *, decay: float) -> EMA:
        """The averages of a whole module, its persistent buffers with them."""
        return cls(module.named_parameters(), decay=decay, buffers=_persistent_buffers(module))

    def add(self, parameters: Named, *, buffers: Named = ()) -> None:
        """Takes in new parameters at their live values. ValueError for a name in use."""
        fresh, fresh_buffers = dict(parameters), dict(buffers)
        for name in (*fresh, *fresh_buffers):
            if name in self._live or name in self._live_buffers:
                raise ValueError(f"expected new names, got {name!r}, which is averaged already")
        self._live.update(fresh)
        self._live_buffers.update(fresh_buffers)
        for name, p in fresh.items():
            self.averages[name] = p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            self.updates[name] = 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves every average towards its live parameter; call once after each optimiser step."""
        by_count: dict[int, list[str]] = {}
        for name, n in self.updates.items():
            by_count.setdefault(n, []).append(name)
        for n, names in by_count.items():
            averages = [self.averages[name] for name in names]
            live = [self._live[name].to(self.averages[name].dtype) for name in names]
            weight = 1.0 - min(self.decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(averages, live, weight)  # pyright: ignore[reportPrivateImportUsage]
            self.updates.update(dict.fromkeys(names, n + 1))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`averages`: name -> tensor, with the buffers as they are (flat, for safetensors; no copies);
        `updates`: name -> count (plain ints, for JSON)."""
        buffers = {name: b.detach() for name, b in self._live_buffers.items()}
        return {"averages": {**self.averages, **buffers}, "updates": dict(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], *, new: Iterable[str] = ()) -> None:
        """Takes over saved averages and counts exactly.

        Names in `new` (a level grown since) need not be in `state`: they stay at the live value with a count
        of 0. Buffers are the module's business and only checked for their names. ValueError, before anything
        is changed, for other names that are missing, unknown ones, and shapes that differ.
        """
        averages, updates = state["averages"], state["updates"]
        expected = set(self._live) | set(self._live_buffers)
        if unknown := sorted(set(averages) - expected):
            raise ValueError(
                f"averages of unknown parameters: {_few(unknown)}; were they saved from another model?"
            )
        if missing := sorted(expected - set(averages) - set(new)):
            raise ValueError(
                f"averages are missing for {_few(missing)}; if they were grown, name them in `new`"
            )
        loadable = [name for name in self._live if name in averages]
        for name in loadable:
            if averages[name].shape != self._live[name].shape:
                raise ValueError(
                    f"average of {name}: expected shape {tuple(self._live[name].shape)}, "
                    f"got {tuple(averages[name].shape)}; was it saved from another model?"
                )
            if name not in updates:
                raise ValueError(f"the count of updates is missing for {name}; the checkpoint is incomplete")
        for name in loadable:
            self.averages[name].copy_(averages[name])
            self.updates[name] = int(updates[name])

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Within the block the parameters hold the averages; after it their own values again, bit for bit."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in self._live.items()}
            for name, p in self._live.items():
                p.copy_(self.averages[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(own[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Writes averages and buffers into another module. ValueError where its names differ."""
        source = {**self.averages, **self._live_buffers}
        target = {**dict(module.named_parameters()), **_persistent_buffers(module)}
        if odd := sorted(source.keys() ^ target.keys()):
            raise ValueError(f"expected a module with the averaged names, which differ in {_few(odd)}")
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _few(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
