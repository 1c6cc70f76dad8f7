"""Ranks, devices, precision and compilation."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdmkit.errors import MdmkitError, WrongInput

__all__ = ["World", "autocast", "compile_blocks", "keep_large_buffers", "one_line_memory_errors", "pick_device", "world"]


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
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, *flags: bool | Tensor, device: torch.device) -> list[bool]:
        """Each flag as true as on any rank, in one exchange."""
        joined = torch.stack([torch.as_tensor(flag, device=device).to(torch.int32) for flag in flags])
        if self.size > 1:
            dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in joined.tolist()]

    def sum(self, count: int, device: torch.device) -> int:
        """The sum over ranks."""
        if self.size == 1:
            return count
        total = torch.tensor(count, device=device)
        dist.all_reduce(total)
        return int(total)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


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
            raise WrongInput("run.device: 'cuda' is asked for, but torch sees no CUDA device; say run.device=\"cpu\"")
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise WrongInput(
                f"run.device: cuda:{index} is asked for, but there are {torch.cuda.device_count()} CUDA devices"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Low precision inside the network where the device is made for it; a CPU stays in float32."""
    if precision == "bf16" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compile_blocks(nest: nn.Module, block: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    """Compile each block of a network in place, and say how many; parameter names stay as they are."""
    blocks = [module for module in nest.modules() if isinstance(module, block)]
    for module in blocks:
        module.compile()
    return len(blocks)


def keep_large_buffers() -> None:
    """Tell glibc to keep large freed buffers instead of giving them back after every use (5-15 % of a CPU step)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


@contextlib.contextmanager
def one_line_memory_errors() -> Iterator[None]:
    """Turn "out of memory" of any allocator into one line that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
        if not out:
            raise
        said = text.splitlines()[0][:200] if text else "the allocator gave none"
        raise MdmkitError(
            f"too little memory: {said}; raise train.accumulate, set model.use_checkpoint = true, or lower train.batch"
        ) from error
