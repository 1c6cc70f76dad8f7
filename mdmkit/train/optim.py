"""The optimiser, and its state under the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

__all__ = ["adamw", "load_named_state", "named_state", "set_apart"]


def adamw(
    params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_vectors: bool = False,
) -> AdamW:
    """AdamW in its fused form, on the CPU too.

    `params` are tensors or (name, tensor) pairs, taken in their order. Weight decay leaves biases and the
    gains of norms alone (parameters of fewer than two axes), unless `decay_vectors`; the two then stand in
    two groups.

    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """
    given: list[Any] = list(params)
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": True}
    if weight_decay == 0.0 or decay_vectors:
        return AdamW(given, weight_decay=weight_decay, **options)
    is_matrix = [(item[1] if isinstance(item, tuple) else item).ndim >= 2 for item in given]
    matrices = [item for item, matrix in zip(given, is_matrix, strict=True) if matrix]
    vectors = [item for item, matrix in zip(given, is_matrix, strict=True) if not matrix]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], **options)


def named_state(optimizer: Optimizer, names: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What the optimiser keeps of each parameter, flat: `exp_avg/levels.0.conv.weight` -> tensor (no copy).

    `names` are `module.named_parameters()`. Numbers that are not tensors come as 0-d tensors under
    `step:int/...`, `step:float/...`. Options of the groups (lr, betas) are the recipe's and not in it.
    ValueError for a parameter of the optimiser without a name, and for state that is neither tensor nor
    number.
    """
    name_of = {id(p): name for name, p in names}
    flat: dict[str, Tensor] = {}
    for p in _parameters(optimizer):
        if id(p) not in name_of:
            raise ValueError(
                f"expected a name for each parameter of the optimizer, got none for a {tuple(p.shape)}; "
                "give the named_parameters() of all modules that it trains"
            )
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                flat[f"{key}/{name_of[id(p)]}"] = value.detach().contiguous()
            elif type(value) in _NUMBERS:
                kind = type(value).__name__
                flat[f"{key}:{kind}/{name_of[id(p)]}"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
            elif value is not None:
                raise ValueError(
                    f"expected tensors and numbers in the state of {type(optimizer).__name__}, "
                    f"got {type(value).__name__} under {key!r}; it cannot be written to a checkpoint"
                )
    return flat


def load_named_state(
    optimizer: Optimizer, names: Iterable[tuple[str, Tensor]], state: Mapping[str, Tensor]
) -> None:
    """Replaces the optimiser's state by what `named_state` gave, exactly; a parameter without starts afresh.

    A parameter that is not in `state` is new (a grown level) or was never updated. ValueError, before
    anything is changed, for state of an unknown parameter, and for a shape that differs.
    """
    parameters = {id(p): p for p in _parameters(optimizer)}
    by_name = {name: p for name, p in names if id(p) in parameters}
    fused = {
        id(p): bool(group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for p in group["params"]
    }
    loaded: dict[str, dict[str, Any]] = {}
    for flat_key, value in state.items():
        key, _, name = flat_key.partition("/")
        if name not in by_name:
            raise ValueError(
                f"optimizer state {flat_key!r} belongs to no parameter that is trained here; "
                "was it saved from another model?"
            )
        p = by_name[name]
        key, _, kind = key.partition(":")
        if kind:
            loaded.setdefault(name, {})[key] = value.item()
        elif value.ndim == 0:
            # plain implementations keep step counts on the CPU, fused ones beside the parameter
            device = p.device if fused[id(p)] or key != "step" else "cpu"
            loaded.setdefault(name, {})[key] = value.to(device=device, copy=True)
        elif value.shape != p.shape and key in ("exp_avg", "exp_avg_sq"):
            raise ValueError(
                f"optimizer state {flat_key!r}: expected shape {tuple(p.shape)}, "
                f"got {tuple(value.shape)}; was it saved from another model?"
            )
        elif value.shape == p.shape:
            # the parameter's own strides: fused kernels walk both buffers side by side
            loaded.setdefault(name, {})[key] = torch.empty_like(p, dtype=value.dtype).copy_(value).detach()
        else:
            loaded.setdefault(name, {})[key] = value.to(device=p.device, copy=True)
    optimizer.state.clear()
    for name, entry in loaded.items():
        optimizer.state[by_name[name]] = entry


def set_apart(optimizer: Optimizer, new: Iterable[Tensor]) -> None:
    """Gives the parameters in `new` groups of their own, marked `new`, with the options of those they leave.

    Their learning rate can then warm up by itself. For optimisers without state: only groups are changed.
    """
    chosen = {id(p) for p in new}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        apart = [p for p in group["params"] if id(p) in chosen]
        stay = [p for p in group["params"] if id(p) not in chosen]
        groups += [{**group, "params": stay, "new": False}] if stay else []
        groups += [{**group, "params": apart, "new": True}] if apart else []
    optimizer.param_groups[:] = groups


_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
