"""Dispatch, on the CPU: a stand-in for xformers checks what it is given and computes plain attention."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mdmkit_xformers import attention
from torch import Tensor

from mdmkit.nn.attention import sdpa


def plain(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(K) + bias) v in xformers' layout."""
    logits = torch.einsum("bmhk,bshk->bhms", query, key).double() / query.shape[-1] ** 0.5
    if attn_bias is not None:
        logits = logits + attn_bias
    return torch.einsum("bhms,bshk->bmhk", logits.softmax(-1), value.double()).to(query.dtype)


def stand_in(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None) -> Tensor:
    """The same, as strict as xformers about shapes and alignment."""
    batch, tokens, heads, _ = query.shape
    assert key.shape[:1] + key.shape[2:] == (batch, heads, query.shape[-1])
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    if attn_bias is not None:
        assert attn_bias.shape == (batch, heads, tokens, key.shape[1])
        assert attn_bias.dtype == query.dtype
        assert attn_bias.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        assert attn_bias.isfinite().all()
    return plain(query, key, value, attn_bias)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of what was said or refused before."""
    monkeypatch.setattr(attention, "said", set())
    monkeypatch.setattr(attention, "refused", {})


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in serves, on the CPU."""
    monkeypatch.setattr(attention, "backend", stand_in)
    monkeypatch.setattr(attention, "DEVICES", ("cpu",))


def draw(
    batch: int, heads: int, tokens: int, keys: int, dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as a convolution leaves them: channels before tokens in memory."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, dim, n) for n in (tokens, keys, keys)]
    q, k, v = (torch.randn(shape, generator=generator).mT for shape in shapes)
    return q, k, v


@pytest.mark.usefixtures("serving")
class TestServing:
    @settings(deadline=None, max_examples=30)
    @given(
        sizes=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 19)] * 2, st.sampled_from([4, 8, 32])),
        seed=st.integers(0, 99),
        per_query=st.booleans(),
    )
    def test_masked_attention_agrees_with_sdpa(
        self, sizes: tuple[int, int, int, int, int], seed: int, per_query: bool
    ) -> None:
        q, k, v = draw(*sizes, seed=seed)
        batch, _, tokens, keys, _ = sizes
        shape = (batch, 1, tokens, keys) if per_query else (batch, keys)
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        got = attention.attend(q, k, v, mask, otherwise="refuse")
        torch.testing.assert_close(got, sdpa(q, k, v, mask), rtol=1e-5, atol=1e-5)

    def test_without_a_mask_no_bias_is_made(self) -> None:
        q, k, v = draw(2, 3, 5, 7, 8)
        got = attention.attend(q, k, v, None, otherwise="refuse")
        torch.testing.assert_close(got, sdpa(q, k, v, None), rtol=1e-5, atol=1e-5)

    def test_attention_over_nothing_gives_zero(self) -> None:
        q, k, v = draw(2, 2, 3, 5, 8)
        mask = torch.tensor([[True] * 5, [False] * 5])
        got = attention.attend(q, k, v, mask, otherwise="refuse")
        assert got[1].eq(0).all()
        assert got[0].ne(0).any()

    def test_autocast_reaches_the_kernel(self) -> None:
        q, k, v = draw(1, 2, 4, 4, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert attention.attend(q, k.bfloat16(), v, None, otherwise="refuse").dtype == torch.bfloat16

    def test_it_compiles_without_a_break(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "backend", plain)
        q, k, v = draw(2, 2, 3, 5, 8)
        mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) < 0.5
        compiled = torch.compile(attention.attend, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(q, k, v, mask), sdpa(q, k, v, mask), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda q, k, v: (q.double(), k.double(), v.double()), "dtype is torch.float64"),
            (lambda q, k, v: (q[..., :6], k[..., :6], v[..., :6]), "head size 6 is not a multiple of 4"),
            (lambda *qkv: tuple(x[..., :4].half() for x in qkv), "head size 4 is not a multiple of 8"),
            (lambda q, k, v: (q, k.half(), v), "q, k and v differ in dtype"),
        ],
    )
    def test_each_condition_is_named(self, change: Any, named: str) -> None:
        q, k, v = change(*draw(1, 2, 4, 4, 8))
        assert [reason for reason in attention.what_fails(q, k, v) if named in reason]
        with pytest.raises(ValueError, match=named):
            attention.attend(q, k, v, None, otherwise="refuse")

    def test_what_xformers_itself_refuses_is_asked_once_and_named(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = []

        def refusing(*tensors: Tensor) -> Tensor:
            asked.append(tensors)
            why = "No operator found\n`cutlassF` is not supported because:\n    too new a device"
            raise NotImplementedError(why)

        monkeypatch.setattr(attention, "backend", refusing)
        q, k, v = draw(1, 2, 4, 4, 8)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                torch.testing.assert_close(attention.attend(q, k, v, None), sdpa(q, k, v, None))
        assert len(asked) == 1
        assert len(caplog.records) == 1
        assert "no kernel for this: `cutlassF` is not supported because: too new a device" in caplog.text
        with pytest.raises(ValueError, match="too new a device"):
            attention.attend(q, k, v, None, otherwise="refuse")


def test_the_cpu_falls_back_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention, "backend", stand_in)
    q, k, v = draw(1, 2, 4, 4, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(attention.attend(q, k, v, None), sdpa(q, k, v, None))
    assert [record.getMessage() for record in caplog.records] == [
        "xformers.attention falls back to SDPA: device is cpu, expected cuda"
    ]


def test_compiled_it_falls_back_without_a_break_and_says_so_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention, "backend", stand_in)
    q, k, v = draw(1, 2, 4, 4, 8)
    compiled = torch.compile(attention.attend, backend="eager", fullgraph=True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(compiled(q, k, v, None), sdpa(q, k, v, None))
    assert "device is cpu, expected cuda" in caplog.text


def test_refusing_lists_all_conditions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "backend", None)
    monkeypatch.setattr(attention, "not_loaded", "xformers is not installed")
    q, k, v = (x.double() for x in draw(1, 2, 4, 4, 8))
    with pytest.raises(ValueError, match=r"not installed; device is cpu, .*; dtype is torch.float64"):
        attention.attend(q, k, v, None, otherwise="refuse")


def test_shapes_on_the_meta_device_ask_nobody(caplog: pytest.LogCaptureFixture) -> None:
    q = torch.empty(1, 2, 4, 8, device="meta")
    assert attention.attend(q, q, q, None, otherwise="refuse").shape == q.shape
    assert not caplog.records


class TestLoading:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
        monkeypatch.setitem(sys.modules, "xformers", None)  # type: ignore[arg-type]
        function, why = attention.load_backend()
        assert function is None
        assert "not installed" in why

    def test_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(name: str) -> Any:
            raise OSError("libcudart.so.12: cannot open shared object file\nmore")

        monkeypatch.setattr(attention.importlib, "import_module", load)
        function, why = attention.load_backend()
        assert function is None
        assert why == "xformers cannot be imported: OSError: libcudart.so.12: cannot open shared object file"

    def test_present(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
        ops.memory_efficient_attention = stand_in  # type: ignore[attr-defined]
        package.ops = ops  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xformers", package)
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)
        assert attention.load_backend() == (stand_in, "")
