"""Layers along time, and levels whose pictures are grids of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmkit.grid import unpack
from mdmkit.nn import NestedUNet, TemporalAttention, TemporalDownsample, TemporalUpsample, UNetShell, sdpa
from mdmkit.nn.cost import level_costs
from mdmkit.nn.grid import GridStage
from mdmkit.nn.video import Rotary

from .nests import WIDTH, core, draw, stir, told

EMB = torch.zeros(2, 8)
seeds = st.integers(0, 99)


def attention(**settings: Any) -> TemporalAttention:
    return TemporalAttention(8, head_dim=4, dtype=torch.float64, **settings)


@given(rotary=st.booleans(), frames=st.integers(1, 4), seed=seeds)
def test_fresh_attention_over_time_is_the_identity_and_learns(rotary: bool, frames: int, seed: int):
    layer, x = attention(rotary=rotary), draw(2 * frames, 8, 4, 6, seed=seed)
    assert torch.equal(layer(x, EMB, frames), x)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    # the frequencies of rotary embeddings are kept, and not trained
    moved = {name: False for name, p in layer.named_parameters() if p.requires_grad}
    for _ in range(4):
        optimizer.zero_grad()
        (layer(x, EMB, frames) * draw(*x.shape, seed=seed + 1)).sum().backward()
        moved = {
            name: moved[name] or bool(p.grad is not None and p.grad.any())
            for name, p in layer.named_parameters()
            if name in moved
        }
        optimizer.step()
    assert all(moved.values()), moved


@given(rotary=st.booleans(), seed=seeds)
def test_attention_over_time_sees_frames_of_its_own_clip(rotary: bool, seed: int):
    layer, x = stir(attention(rotary=rotary), seed), draw(6, 8, 4, 4, seed=seed)
    out = layer(x, EMB, 3)
    torch.testing.assert_close(out[:3], layer(x[:3], EMB[:1], 3))
    other = layer(torch.cat([x[:2], x[3:]]).contiguous()[:3], EMB[:1], 3)
    assert not torch.equal(out[0], other[0])
    # without rotary, frames may be permuted; with it, their order counts
    order = [2, 0, 1]
    permuted = layer(x[order], EMB[:1], 3)
    same = torch.allclose(permuted, out[order], rtol=1e-10, atol=1e-10)
    assert same == (not rotary)


@given(dim=st.sampled_from([2, 4, 32]), shift=st.integers(1, 5), seed=seeds)
def test_rotary_keeps_lengths_and_sees_distances_only(dim: int, shift: int, seed: int):
    turn = Rotary(dim, dtype=torch.float64)
    q, k = draw(1, 1, 1, dim, seed=seed), draw(1, 1, 1, dim, seed=seed + 1)
    q, k = turn(q.expand(1, 1, 9, dim)), turn(k.expand(1, 1, 9, dim))
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[..., :1].expand(1, 1, 9))
    products = (q @ k.mT)[0, 0]
    torch.testing.assert_close(products.diagonal(shift), products[0, shift].expand(9 - shift))


@given(stride=st.integers(2, 3), seed=seeds)
def test_strides_in_time_are_convolutions_along_frames(stride: int, seed: int):
    frames = 2 * stride
    down, up = TemporalDownsample(4, stride).double(), TemporalUpsample(4, stride).double()
    x = draw(2 * frames, 4, 2, 3, seed=seed)
    low = down(x, frames)
    high = up(low, 2)
    assert (low.shape, high.shape) == ((4, 4, 2, 3), x.shape)
    for h in range(2):
        for w in range(3):
            line = x[:, :, h, w].unflatten(0, (2, frames)).mT
            low_line = low[:, :, h, w].unflatten(0, (2, 2)).mT
            padding = 1 if stride == 2 else 0
            torch.testing.assert_close(
                low_line, F.conv1d(line, down.weight, down.bias, stride=stride, padding=padding)
            )
            wide = F.conv1d(F.interpolate(low_line, scale_factor=stride), up.weight, up.bias, padding=1)
            torch.testing.assert_close(high[:, :, h, w].unflatten(0, (2, frames)).mT, wide)


def frames_shell(inner: Any, **settings: Any) -> UNetShell:
    """4 frames to 1, with attention over them."""
    made: dict[str, Any] = {
        "channels": (32, 32, 32),
        "blocks": 1,
        "norm_groups": 4,
        "strides": ((2, 1, 1), (2, 1, 1)),
        "layout": "grid",
        "frames": 4,
        "temporal_attention": (1, 0, 2),
        "rotary": True,
        "dtype": torch.float64,
        "inner_channels": inner.channels[0],
        "emb_dim": inner.emb_dim,
    }
    return UNetShell(**made | settings)


def clip_nest(seed: int = 0, **settings: Any) -> NestedUNet:
    """A picture, 4 frames of its size, and 4 frames twice as large."""
    torch.manual_seed(seed)
    inside = core()
    around = frames_shell(inside)
    wide = frames_shell(around, channels=(8, 8), strides=None, temporal_attention=0, rotary=False)
    return NestedUNet(inside, [around, wide], **settings)


def grids(rows: tuple[int, int, int], seed: int = 0) -> list[torch.Tensor]:
    return [draw(count, 3, 8 << r, 12 << r, seed=seed + r) for r, count in enumerate(rows)]


@settings(max_examples=5)
@given(seed=seeds)
def test_a_fresh_level_of_frames_leaves_those_inside_untouched(seed: int):
    nest, z, given_ = clip_nest(seed), grids((2, 2, 2), seed), told(2, seed)
    with torch.no_grad():
        stir(nest.levels[0], seed)
        inside = nest(z[:1], **given_)
        out = nest(z, **given_)
        assert torch.equal(out[0], inside[0])
        assert not out[1].any()
        stir(nest, seed)
        whole = nest(z, **given_)
        few = nest([z[0], z[1][:1], z[2][:1]], **given_)
        alone = nest([z[0]], **given_)[0]
    assert [x.shape for x in whole] == [x.shape for x in z]
    for r in (1, 2):
        torch.testing.assert_close(few[r], whole[r][:1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(few[0][1:], alone[1:], rtol=1e-9, atol=1e-9)


def test_without_attention_in_time_a_level_of_frames_does_not_mix_them():
    """Only what the level inside hands out goes to every frame, and that is the same for each here."""
    inside = core()
    plain = frames_shell(inside, channels=(8, 8), strides=None, temporal_attention=0, rotary=False)
    nest = NestedUNet(inside, [plain])
    stir(nest)
    torch.nn.init.zeros_(plain.out_adapter.weight)
    z = draw(1, 3, 16, 24)
    other = z.clone()
    other[..., 8:, 12:] += 1  # the last of four frames
    with torch.no_grad():
        a, b = (nest([draw(1, 3, 8, 12), x], **told(1))[1] for x in (z, other))
    same = [torch.equal(x, y) for x, y in zip(unpack(a, 4), unpack(b, 4), strict=True)]
    assert same == [True, True, True, False]


def test_blocks_checkpoints_and_attend_reach_levels_of_frames():
    nest, given_ = stir(clip_nest()), told(2)
    assert isinstance(nest, NestedUNet)
    stages = [m for m in nest.modules() if isinstance(m, GridStage)]
    layers = [m for m in nest.modules() if isinstance(m, TemporalAttention)]
    blocks = list(nest.blocks())
    assert len(stages) == 2 * 3 + 2 * 2
    assert len(layers) == 2 * (1 + 2) + (1 + 2)  # one block on the way down, two on the way up
    assert all(any(layer is block for block in blocks) for layer in layers)

    def gradients() -> list[torch.Tensor]:
        nest.zero_grad()
        torch.stack([out.square().mean() for out in nest(grids((2, 1, 1)), **given_)]).sum().backward()
        return [p.grad.clone() for p in nest.parameters() if p.grad is not None]

    plain = gradients()
    nest.use_checkpoint = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))
    seen = []

    def attend(q: Any, k: Any, v: Any, mask: Any = None, /) -> Any:
        seen.append(tuple(q.shape))
        return sdpa(q, k, v, mask)

    nest.use_checkpoint, nest.attend = False, attend
    with torch.no_grad():
        nest(grids((2, 1, 1)), **given_)
    # (B h w, heads, F, D): the frames of the first stage at half their height and width
    assert (1 * 4 * 6, 1, 4, 32) in seen
    assert (1 * 4 * 6, 1, 1, 32) in seen


def test_attention_over_time_compiles_whole():
    nest, z, given_ = stir(clip_nest()), grids((2, 1, 1)), told(2)
    assert isinstance(nest, NestedUNet)
    with torch.no_grad():
        eager = nest(z, **given_)
        torch._dynamo.reset()
        layers = [block for block in nest.blocks() if isinstance(block, TemporalAttention)]
        for block in layers[:3]:
            block.compile(fullgraph=True, backend="eager")
        assert all(torch.equal(a, b) for a, b in zip(eager, nest(z, **given_), strict=True))
    torch._dynamo.reset()


def test_what_a_level_of_frames_costs_is_found_on_meta():
    nest = clip_nest()
    sizes = [(8, 12), (16, 24), (32, 48)]
    plain = frames_shell(nest.levels[0], temporal_attention=0, rotary=False)
    without, attended = (
        level_costs(made, sizes, 1, tokens=5, cond_dim=WIDTH)
        for made in (NestedUNet(nest.levels[0], [plain, nest.levels[2]]), nest)
    )
    assert attended[1].flops > without[1].flops
    assert (attended[0], attended[2].flops) == (without[0], without[2].flops)
    on_meta = frames_shell(nest.levels[0], device="meta")
    assert all(tensor.is_meta for tensor in on_meta.state_dict().values())
    assert set(on_meta.state_dict()) == set(nest.levels[1].state_dict())


def test_sizes_that_do_not_fit_are_refused():
    nest = clip_nest()
    with pytest.raises(ValueError, match="expected 16 x 24 pixels at level 1, got 32 x 24"):
        nest([draw(1, 3, 8, 12), draw(1, 3, 32, 24)], **told(1))
    shell = nest.levels[1]
    assert isinstance(shell, UNetShell)
    # attention over time halves the frames, so their sides are even
    assert (shell.ratio, shell.multiple) == ((2, 2), (4, 4))
    with pytest.raises(ValueError, match="a height that the strides divide, a multiple of 4, got 6"):
        shell.encode(draw(1, 3, 6, 8), torch.ones(1))
