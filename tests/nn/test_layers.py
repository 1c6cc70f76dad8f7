"""Attention, residual blocks, resampling and embeddings, each against what it claims."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.nn import ImageAttention, ResBlock, TextLayer, Upsample, sdpa
from mdmkit.nn.blocks import Downsample
from mdmkit.nn.embed import sinusoid, time_index

from .nests import draw, stir

seeds = st.integers(0, 2**16)
sizes = st.integers(1, 6)
f64 = torch.float64


@given(rows=sizes, heads=sizes, queries=sizes, keys=sizes, width=sizes, seed=seeds)
def test_attention_is_softmax_over_what_the_mask_leaves(rows, heads, queries, keys, width, seed):
    q, k, v = (draw(rows, heads, n, width, seed=seed + i) for i, n in enumerate((queries, keys, keys)))
    generator = torch.Generator().manual_seed(seed)
    for mask in (
        None,
        torch.rand(rows, keys, generator=generator) < 0.5,
        torch.rand(rows, 1, queries, keys, generator=generator) < 0.5,
    ):
        whole = torch.ones(rows, 1, 1, keys, dtype=torch.bool) if mask is None else mask
        whole = whole[:, None, None] if whole.ndim == 2 else whole
        weight = (q @ k.mT / math.sqrt(width)).exp() * whole
        expected = weight @ v / weight.sum(-1, keepdim=True).clamp(min=1e-300)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        got = sdpa(leaves[0], leaves[1], leaves[2], mask)
        torch.testing.assert_close(got, expected)
        dead = ~whole.any(-1)[..., None].expand_as(got)
        assert not got[dead].any()
        got.sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


@given(
    scale=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    height=sizes,
    width=sizes,
    channels=sizes,
    seed=seeds,
)
def test_upsampling_is_nearest_neighbour_then_a_convolution(scale, height, width, channels, seed):
    torch.manual_seed(seed)
    up = Upsample(channels, scale, dtype=f64)
    x = draw(2, channels, height, width, seed=seed).requires_grad_()
    enlarged = x.repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3)
    plain = F.conv2d(enlarged, up.weight, up.bias, padding=1)
    fast = up(x)
    torch.testing.assert_close(fast, plain)
    side = draw(*fast.shape, seed=seed + 1)
    assert up.bias is not None
    inputs = (x, up.weight, up.bias)
    for a, b in zip(
        torch.autograd.grad((fast * side).sum(), inputs),
        torch.autograd.grad((plain * side).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@given(stride=st.tuples(st.integers(1, 6), st.integers(1, 6)), height=sizes, width=sizes)
def test_downsampling_divides_and_looks_at_every_pixel(stride, height, width):
    down = Downsample(1, stride, dtype=f64)
    torch.nn.init.ones_(down.weight)
    x = torch.zeros(1, 1, height * stride[0], width * stride[1], dtype=f64, requires_grad=True)
    out = down(x)
    assert out.shape[2:] == (height, width)
    (seen,) = torch.autograd.grad(out.sum(), x)
    assert (seen >= 1).all()


@pytest.mark.parametrize(("inside", "outside"), [(8, 8), (8, 12)])
def test_a_residual_block_starts_as_the_identity_and_hears_the_embedding(inside, outside):
    block = ResBlock(in_channels=inside, out_channels=outside, emb_dim=16, norm_groups=4, dtype=f64)
    x, emb = draw(2, inside, 5, 7), draw(2, 16, seed=1)
    assert torch.equal(block(x, emb), x if block.skip is None else block.skip(x))
    stir(block)
    assert not torch.allclose(block(x, emb), block(x, -emb))


def test_attention_layers_start_as_the_identity():
    layer = ImageAttention(16, heads=4, norm_groups=4, cond_width=8, ffn=True, dtype=f64)
    x, text = draw(2, 16, 3, 5), draw(2, 6, 8, seed=1)
    assert torch.equal(layer(x, text), x)
    tokens = TextLayer(8, heads=2, dtype=f64)
    assert torch.equal(tokens(text), text)


@given(seed=seeds)
def test_attention_over_pixels_knows_no_positions(seed):
    layer = stir(ImageAttention(16, heads=4, norm_groups=4, cond_width=8, ffn=True, dtype=f64), seed)
    x, text = draw(2, 16, 3, 4, seed=seed), draw(2, 6, 8, seed=seed + 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(layer(moved, text).flatten(2), layer(x, text).flatten(2)[..., order])


def test_attention_runs_in_low_precision_and_in_other_memory_formats():
    layer = stir(ImageAttention(16, heads=4, norm_groups=4, dtype=f64))
    x = draw(2, 16, 3, 5)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_the_time_embedding_is_exact():
    t = (torch.arange(1000, dtype=f64) + 1) / 1000
    torch.testing.assert_close(time_index(t), torch.arange(1000, dtype=f64), rtol=0, atol=1e-10)
    angle = torch.arange(1000, dtype=f64)[:, None] * 10_000.0 ** (-torch.arange(4, dtype=f64) / 4)
    torch.testing.assert_close(sinusoid(time_index(t), 8), torch.cat([angle.sin(), angle.cos()], 1))
