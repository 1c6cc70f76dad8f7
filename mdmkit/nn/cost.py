"""What a nest takes, level by level: parameters, FLOPs, memory of training; found on the meta device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from .blocks import ResBlock
from .nest import Core, NestedUNet, Shell

__all__ = ["LevelCost", "level_costs", "training_rate"]

# of each parameter while it trains: weight, gradient, two moments of AdamW, EMA
COPIES = 5


@attrs.frozen
class LevelCost:
    """What one level adds to those inside it.

    shape: of one picture, (channels, height, width), or clip, with frames behind the channels. flops: of one
    picture's forward pass, a multiply-add counts two. memory: bytes in training, of weights, gradients,
    AdamW's moments and an EMA copy, and of the activations that the backward pass needs (`activations`, at
    the rows asked for); with use_checkpoint these are the blocks' inputs and the largest block. Not counted:
    workspaces of kernels, the data, autocast's smaller activations.
    """

    shape: tuple[int, ...]
    parameters: int
    flops: int
    activations: int
    memory: int


def level_costs(
    nest: NestedUNet,
    resolutions: Sequence[Sequence[int]],
    batch: int | Sequence[int],
    tokens: int = 0,
    cond_dim: int | None = None,
) -> list[LevelCost]:
    """The cost of each level, low to high: of k + 1 levels less that of k.

    resolutions: (height, width) of each level, of clips (frames, height, width); batch: rows at every level,
    or one number a level; tokens, cond_dim: text tokens of a row and their width. Raises ValueError where
    resolutions do not fit the nest.
    """
    if len(resolutions) != len(nest.levels):
        raise ValueError(
            f"expected a resolution for each of {len(nest.levels)} levels, got {len(resolutions)}"
        )
    rows = (batch,) * len(nest.levels) if isinstance(batch, int) else tuple(batch)
    if len(rows) != len(nest.levels):
        raise ValueError(f"expected rows for each of {len(nest.levels)} levels, got {len(rows)}")
    meta = on_meta(nest)
    costs, flops, activations = [], 0, 0
    for r, size in enumerate(resolutions):
        flops_inside, activations_inside = flops, activations
        upto = tuple(resolutions[: r + 1])
        flops = forward_flops(meta, inputs(meta, upto, (1,) * (r + 1), tokens, cond_dim))
        activations = saved_bytes(meta, inputs(meta, upto, rows, tokens, cond_dim))
        own = list(nest.levels[r].parameters())
        kept = sum(COPIES * p.numel() * p.element_size() for p in own if p.requires_grad)
        kept += sum(p.numel() * p.element_size() for p in own if not p.requires_grad)
        added = activations - activations_inside
        costs.append(
            LevelCost(
                shape=(levels(nest)[r].in_channels, *size),
                parameters=sum(p.numel() for p in own),
                flops=flops - flops_inside,
                activations=added,
                memory=kept + added,
            )
        )
    return costs


def training_rate(
    device: torch.device, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> float:
    """FLOP/s that a residual block reaches on this device, forward and backward; measured, the best of five.

    autocast: what the forward pass runs in. A whole nest comes near it: it has wider layers at lower
    resolutions and narrower ones at higher.
    """
    channels, rows = (64, 8) if device.type == "cpu" else (256, 64)
    block = ResBlock(in_channels=channels, out_channels=channels, emb_dim=channels, device=device)
    x = torch.randn(rows, channels, 32, 32, device=device, requires_grad=True)
    emb = torch.randn(rows, channels, device=device)

    def passes() -> None:
        with autocast():
            out = block(x, emb)
        out.float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with FlopCounterMode(display=False) as counter:
        passes()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        passes()
        times.append(time.perf_counter() - started)
    return counter.get_total_flops() / min(times)


def levels(nest: NestedUNet) -> list[Core | Shell]:
    core, shells = nest.parts()
    return [core, *shells]


def on_meta(nest: NestedUNet) -> NestedUNet:
    """A copy on the meta device; no weight is copied on the way."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in nest.parameters()
    }
    memo |= {id(b): b.to("meta") for b in nest.buffers()}
    return copy.deepcopy(nest, memo)


def inputs(
    nest: NestedUNet, sizes: Sequence[Sequence[int]], rows: Sequence[int], tokens: int, cond_dim: int | None
) -> dict[str, Any]:
    """Arguments of the nest's forward, on the meta device."""
    dtype = next(nest.parameters()).dtype
    made = {"dtype": dtype, "device": "meta"}
    z = [
        torch.empty(count, level.in_channels, *size, **made)
        for level, count, size in zip(levels(nest), rows, sizes, strict=False)
    ]
    text: dict[str, Tensor] = {}
    if cond_dim is not None:
        text["cond"] = torch.empty(rows[0], max(tokens, 1), cond_dim, **made)
        text["cond_mask"] = torch.empty(rows[0], max(tokens, 1), dtype=torch.bool, device="meta")
    previous = [torch.empty_like(level) for level in z] if nest.self_conditioning else None
    return {"z": z, "t": torch.empty(rows[0], **made), "previous": previous, **text}


class Fused(torch.autograd.Function):
    """Stands for a fused attention kernel: it keeps q, k, v, the output and one number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("only the forward pass is looked at")


class CountedAttention:
    """An `Attend` that counts its FLOPs and computes nothing: two products of L x S x D a head."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, /) -> Tensor:
        self.flops += 2 * 2 * q.numel() * k.shape[-2]
        return Fused.apply(q, k, v)  # pyright: ignore[reportReturnType]


@contextmanager
def running(nest: NestedUNet, *, use_checkpoint: bool) -> Iterator[CountedAttention]:
    """The nest with counted attention, in training mode."""
    attend, checkpoint, training = nest.attend, nest.use_checkpoint, nest.training
    counted = CountedAttention()
    nest.attend, nest.use_checkpoint = counted, use_checkpoint
    nest.train()
    try:
        yield counted
    finally:
        nest.attend, nest.use_checkpoint = attend, checkpoint
        nest.train(training)


def forward_flops(nest: NestedUNet, given: dict[str, Any]) -> int:
    """FLOPs of one forward pass."""
    with (
        running(nest, use_checkpoint=False) as counted,
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        nest(**given)
    return counter.get_total_flops() + counted.flops


def saved_bytes(nest: NestedUNet, given: dict[str, Any]) -> int:
    """Bytes of the activations that the backward pass needs; with use_checkpoint, at its largest block."""
    parameters = {key_of(p) for p in nest.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by identity; held, so that no identity is given out twice
    inside: dict[int, torch.UntypedStorage] | None = None
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        if key_of(tensor) not in parameters:
            (kept if inside is None else inside)[key_of(tensor)] = tensor.untyped_storage()
        return tensor

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal inside
        for value in args:
            if isinstance(value, Tensor):
                kept[key_of(value)] = value.untyped_storage()
        inside = {}

    def leave(*_: Any) -> None:
        nonlocal inside, largest
        assert inside is not None
        largest = max(largest, sum(s.nbytes() for key, s in inside.items() if key not in kept))
        inside = None

    hooks = []
    if nest.use_checkpoint:
        for block in nest.blocks():
            hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    try:
        with running(nest, use_checkpoint=False), torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
            nest(**given)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(storage.nbytes() for storage in kept.values()) + largest


def key_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
