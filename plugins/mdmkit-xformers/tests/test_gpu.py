"""On a CUDA device with xformers: the same numbers as SDPA, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mdmkit_xformers import attention

from mdmkit.nn.attention import sdpa

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(attention.backend is None, reason=attention.not_loaded or "xformers is there"),
]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("keys", [64, 77, 5])
@pytest.mark.parametrize("masked", ["none", "keys", "pairs"])
def test_agrees_with_sdpa_forward_and_backward(dtype: torch.dtype, keys: int, masked: str) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn((3, 4, tokens, 32), generator=generator, device="cuda", dtype=dtype)

    inputs = [draw(64), draw(keys), draw(keys)]
    mask = None
    if masked != "none":
        shape = (3, keys) if masked == "keys" else (3, 1, 64, keys)
        mask = torch.rand(shape, generator=generator, device="cuda") < 0.6
        mask[-1] = False
    weight = draw(64)
    results = []
    for function in (partial(attention.attend, otherwise="refuse"), sdpa):
        q, k, v = leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(q, k, v, mask)
        (out * weight).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if mask is not None:
        assert results[0][0][-1].eq(0).all()
