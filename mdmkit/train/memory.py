"""Whether a training fits into the machine, said before it starts, and in one line where it does not."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.nn import NestedUNet
from mdmkit.nn.cost import COPIES, inputs, saved_bytes

__all__ = ["check_fits", "free_memory", "keep_large_buffers", "one_line_memory_errors", "training_memory"]

ADVICE = "raise train.accumulate, set model.use_checkpoint = true, or lower train.batch"


def training_memory(
    nest: NestedUNet,
    resolutions: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    tokens: int = 0,
    cond_dim: int | None = None,
) -> tuple[int, int]:
    """Bytes that training takes at least: the model (with gradients, moments, averages), the activations.

    nest is on the meta device; rows: those of one micro-batch that reach each level. Workspaces, the data and
    a frozen text encoder come on top.
    """
    model = sum(COPIES * p.numel() * p.element_size() for p in nest.parameters())
    return model, saved_bytes(nest, inputs(nest, resolutions[: len(rows)], rows, tokens, cond_dim))


def check_fits(model: int, activations: int, *, device: torch.device, bf16: bool, pictures: int) -> None:
    """Refuse a training that cannot fit into what is free on the device, where that is known.

    Raises:
        WrongInput: more is needed than there is.
    """
    free = free_memory(device)
    # autocast halves what the backward pass keeps, at most
    need = model + (activations // 2 if bf16 and device.type == "cuda" else activations)
    if device.type == "cpu":
        need *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if free is not None and need > free:
        raise WrongInput(
            f"too little memory: training takes at least {need / 2**30:.1f} GiB (model "
            f"{model / 2**30:.1f} GiB, activations of {pictures} pictures at a time), but {device} has "
            f"{free / 2**30:.1f} GiB free; {ADVICE}"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device; of the machine, or of this container. None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no limit is the word "max", or a huge number
            limit, taken = (
                int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")) for name in (most, used)
            )
            folder = Path("/sys/fs/cgroup", most).parent
            cached = [
                int(line.split()[1])
                for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                if line.split()[0] in ("inactive_file", "total_inactive_file")
            ]
            free = min(free, limit - taken + max(cached, default=0))
    return free


def keep_large_buffers() -> None:
    """Tell glibc to keep large freed buffers: giving them back after every use takes 5-15 % of a CPU step."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


@contextlib.contextmanager
def one_line_memory_errors(advice: str = ADVICE) -> Iterator[None]:
    """Turn "out of memory" of any allocator into one line that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
            said in text
            for said in ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")
        )
        if not out:
            raise
        said = text.splitlines()[0][:200] if text else "the allocator gave none"
        raise MdmkitError(f"too little memory: {said}; {advice}") from error
