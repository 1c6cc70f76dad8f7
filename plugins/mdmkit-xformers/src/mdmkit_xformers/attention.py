"""Attention through xformers.ops.memory_efficient_attention, and what to do where it cannot serve."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdmkit.nn.attention import sdpa

__all__ = ["attend", "load_backend", "what_fails"]

log = logging.getLogger("mdmkit_xformers")

DEVICES = ("cuda",)
# head sizes come in units of 16 bytes
HEAD_UNITS = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
KEY_UNIT = 8

Backend = Callable[..., Tensor]


def load_backend() -> tuple[Backend | None, str]:
    """xformers' function, or None and why it cannot be had."""
    try:
        return importlib.import_module("xformers.ops").memory_efficient_attention, ""
    except ModuleNotFoundError as error:
        if error.name in ("xformers", "xformers.ops"):
            return None, "xformers is not installed (pip install 'mdmkit-xformers[cuda]')"
        return None, f"xformers cannot be imported: {_first_line(error)}"
    except Exception as error:  # a wheel for another torch fails in many ways
        return None, f"xformers cannot be imported: {_first_line(error)}"


# looked up when the component is built: nothing is left to import inside a compiled forward pass
backend, not_loaded = load_backend()
# what xformers itself has refused, by what it was asked for, so that it is asked once
refused: dict[tuple[Any, ...], str] = {}
said: set[str] = set()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, otherwise: str = "sdpa") -> Tensor:
    """softmax(q k' / sqrt(D)) v by xformers where it can serve; attention over nothing gives zero.

    q (B, N, L, D), k and v (B, N, S, D); mask bool, True: attend, (B, S) or (B, 1, L, S). Returns the
    shape of q.
    otherwise: what to do where xformers cannot serve. "sdpa" takes PyTorch's attention and logs once why,
    "refuse" raises ValueError with every condition that fails.
    """
    if q.is_meta:
        return sdpa(q, k, v, mask)
    if torch.is_autocast_enabled(q.device.type):  # the kernels stand outside autocast
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    failed = what_fails(q, k, v)
    asked = (q.device, q.dtype, q.shape[-1], mask is None, torch.is_grad_enabled() and q.requires_grad)
    if not failed and asked not in refused:
        assert backend is not None
        try:
            return _through_xformers(backend, q, k, v, mask)
        except NotImplementedError as error:  # no kernel of this build takes these inputs
            refused[asked] = f"xformers has no kernel for this: {_kernel_reasons(error)}"
    failed = failed or [refused[asked]]
    if otherwise == "refuse":
        raise ValueError(
            f"xformers.attention cannot serve: {'; '.join(failed)}; mend this or set otherwise = \"sdpa\""
        )
    for reason in failed:
        _say_once(reason)
    return sdpa(q, k, v, mask)


def what_fails(q: Tensor, k: Tensor, v: Tensor) -> list[str]:
    """The conditions that these tensors fail, with what was found; empty where xformers can serve."""
    failed = []
    if backend is None:
        failed.append(not_loaded)
    if q.device.type not in DEVICES:
        failed.append(f"device is {q.device.type}, expected cuda")
    elif q.dtype == torch.bfloat16 and q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        failed.append("bfloat16 needs compute capability 8.0 or newer")
    if q.dtype not in HEAD_UNITS:
        failed.append(f"dtype is {q.dtype}, expected float32, float16 or bfloat16")
    elif q.shape[-1] % HEAD_UNITS[q.dtype]:
        unit = HEAD_UNITS[q.dtype]
        failed.append(f"head size {q.shape[-1]} is not a multiple of {unit}, which {q.dtype} needs")
    if not (q.dtype == k.dtype == v.dtype):
        failed.append(f"q, k and v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    return failed


def _through_xformers(function: Backend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q_BLND, k_BSND, v_BSND = (_tokens_first(x) for x in (q, k, v))
    if mask is None:
        return function(q_BLND, k_BSND, v_BSND).transpose(1, 2)
    if mask.ndim == 2:
        mask = mask[:, None, None]
    bias = _bias(mask, q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out = function(q_BLND, k_BSND, v_BSND, attn_bias=bias).transpose(1, 2)
    return out.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _tokens_first(x: Tensor) -> Tensor:
    """[B, M, H, K] as xformers takes it; of the strides it fixes only the last, to 1."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, L or 1, S) as numbers to add; its rows start at multiples of `KEY_UNIT` in memory."""
    keys = mask.shape[-1]
    padded = -(-keys // KEY_UNIT) * KEY_UNIT
    # finite: a row, or a tile of keys, that is masked throughout must not give inf - inf
    low = torch.finfo(dtype).min / 2
    bias = torch.full((*mask.shape[:-1], padded), low, dtype=dtype, device=mask.device)[..., :keys]
    return bias.masked_fill_(mask, 0.0)


def _kernel_reasons(error: Exception) -> str:
    """xformers' own reasons in one line: "`op` is not supported because:" is followed by them, indented."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.endswith("not supported because:")), 0)
    return ", ".join(lines[start : start + 12]).replace("because:,", "because:")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# torch.compile calls it while it traces; a log record inside the graph would break the graph
@torch.compiler.assume_constant_result
def _say_once(reason: str) -> None:
    if reason not in said:
        said.add(reason)
        log.warning("xformers.attention falls back to SDPA: %s", reason)
