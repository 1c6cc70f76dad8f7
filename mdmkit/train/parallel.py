"""Ranks, devices, precision and compilation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdmkit.errors import WrongInput

__all__ = ["World", "autocast", "compile_blocks", "pick_device", "world"]


@attrs.frozen
class World:
    """This process among those of a run, as `torchrun` started them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files and talks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks."""
        return self.total(values) / self.size if self.size > 1 else values

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool | Tensor, device: torch.device) -> list[bool]:
        """Each flag as true as on any rank, in one exchange."""
        joined = torch.stack([torch.as_tensor(flag, device=device).to(torch.int32) for flag in flags])
        if self.size > 1:
            dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in joined.tolist()]

    def sum(self, *counts: int, device: torch.device) -> list[int]:
        """The sum of each over ranks, in one exchange."""
        total = torch.tensor(counts, device=device)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, said: list[Any]) -> list[Any]:
        """What all ranks say, on each of them, in their order; the objects travel pickled."""
        if self.size == 1:
            return said
        from_ranks: list[Any] = [None] * self.size
        dist.all_gather_object(from_ranks, said)
        return [one for from_rank in from_ranks for one in from_rank]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over ranks (DDP); itself where there is one rank."""
        if self.size == 1:
            return module
        # a step that stops at an inner level leaves the shells without gradients. Looking for them also keeps
        # DDP's first buckets, which it else rearranges after a step: a resumed run would add in another order
        return DistributedDataParallel(
            _WithSpare(module), find_unused_parameters=True, gradient_as_bucket_view=True
        )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


class _WithSpare(nn.Module):
    """A module and a parameter that nobody uses: DDP writes a long warning where it finds none such."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.spare = nn.Parameter(torch.zeros((), device=next(module.parameters()).device))

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.module(*args, **given)


@contextlib.contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The ranks that `torchrun` started (one where it did not), connected by gloo on CPU and nccl on CUDA."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


def pick_device(wanted: str) -> torch.device:
    """The device of this rank for "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        WrongInput: the device is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise WrongInput(f"run.device: expected auto, cpu, cuda or cuda:<number>, got '{wanted}'") from None
    if device.type not in ("cpu", "cuda"):
        raise WrongInput(f"run.device: expected auto, cpu, cuda or cuda:<number>, got '{wanted}'")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise WrongInput(
                "run.device: 'cuda' is asked for, but torch sees no CUDA device; say run.device=\"cpu\""
            )
        if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise WrongInput(f'run.device: {wanted} is one device for several ranks; say run.device="cuda"')
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise WrongInput(
                f"run.device: cuda:{index} is asked for, but there are {torch.cuda.device_count()} "
                "CUDA devices"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Low precision inside the network where the device is made for it; a CPU stays in float32."""
    if precision == "bf16" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compile_blocks(blocks: Iterable[nn.Module]) -> int:
    """Compile each of the modules in place, and say how many; parameter names stay as they are."""
    from torch._dynamo import config

    found = list(blocks)
    for module in found:
        module.compile()
    # blocks of one class share one list of compiled variants, by shape; past its limit they run uncompiled
    config.recompile_limit = max(config.recompile_limit, 4 * len(found))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * len(found))
    return len(found)
