"""Nests over clips: a picture model until layers along time learn, to which still clips are pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmkit.nn import (
    FrameAttention,
    FrameConv,
    FrameDownsample,
    FrameShift,
    FrameUpsample,
    NestedUNet,
    TemporalAttention,
    UNetShell,
    sdpa,
)
from mdmkit.nn.cost import level_costs

from .nests import WIDTH, core, draw, first, shell, stir, told

seeds = st.integers(0, 99)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def layer(kind: type, **said: Any) -> Any:
    """A maker of temporal layers, as a nest calls it."""
    return lambda **context: kind(**said, **context)


LAYERS = {
    "attention": layer(FrameAttention, head_dim=4),
    "attention, relative": layer(FrameAttention, head_dim=4, positions="relative", max_distance=2),
    "attention, causal": layer(FrameAttention, head_dim=4, causal=True),
    "attention, relative and causal": layer(FrameAttention, head_dim=4, positions="relative", causal=True),
    "attention, also over places": layer(FrameAttention, head_dim=4, spatial_heads=1),
    "attention, in parts": layer(FrameAttention, head_dim=4, chunk=5),
    "attention_pooled": layer(TemporalAttention, head_dim=4),
    "conv": layer(FrameConv),
    "conv, causal": layer(FrameConv, causal=True, kernel=5),
    "conv, depthwise": layer(FrameConv, depthwise=True),
    "shift": layer(FrameShift),
    "shift, causal": layer(FrameShift, causal=True),
}
MADE: dict[str, Any] = {"channels": 8, "emb_dim": 16, "dtype": torch.float64}


def clip_nest(
    temporal: Any = LAYERS["attention"], strides: Any = (((2, 1, 1), (2, 1, 1)), ((2, 2, 2),)), **said: Any
) -> NestedUNet:
    """One frame, 4 of its size, and 8 twice as large; told frames and their rate."""
    micros = {"fps": 8.0, "frames": 8.0}
    levels: list[Any] = [core(micro_conditioning=micros)]
    frames = 1
    for steps in strides:
        for step in steps:
            frames *= step[0]
        channels = (8,) * (len(steps) + 1)
        clips: dict[str, Any] = {"frames": frames, "temporal": temporal, "micro_conditioning": micros}
        levels.append(shell(levels[-1], channels=channels, strides=steps, **clips))
    return NestedUNet(levels[0], levels[1:], **said)


def clips(rows: tuple[int, ...], frames: tuple[int, ...] = (1, 4, 8), seed: int = 0) -> list[torch.Tensor]:
    sides = ((8, 12), (8, 12), (16, 24))
    sizes = zip(rows, frames, sides[: len(rows)], strict=False)
    return [draw(b, 3, f, *side, seed=seed + r) for r, (b, f, side) in enumerate(sizes)]


def asked(rows: int, seed: int = 0) -> dict[str, Any]:
    given_ = told(rows, seed)
    return given_ | {"micros": {"fps": torch.full((rows,), 6.0)}}


@pytest.mark.parametrize("name", [name for name in LAYERS if "causal" in name])
def test_a_causal_layer_sees_nothing_of_later_frames(name: str):
    made = stir(LAYERS[name](**MADE))
    x, emb = draw(2 * 5, 8, 4, 6), draw(2, 16, seed=1)
    later = x.unflatten(0, (2, 5)).clone()
    later[:, 3:] += 1
    out, other = made(x, emb, 5), made(later.flatten(0, 1), emb, 5)
    same = [torch.allclose(a, b, **EXACT) for a, b in zip(out[:5], other[:5], strict=True)]
    assert same == [True, True, True, False, False]


NUMBERED = {"attention, sinusoidal": layer(FrameAttention, head_dim=4, positions="sinusoidal")}


@pytest.mark.parametrize(
    "name", ["attention", "attention, relative", "attention, sinusoidal", "conv", "shift"]
)
def test_a_layer_knows_the_order_of_frames(name: str):
    made, order = stir((LAYERS | NUMBERED)[name](**MADE)), [2, 0, 1, 3]
    x, emb = draw(4, 8, 4, 6), draw(1, 16, seed=1)
    assert not torch.allclose(made(x[order], emb, 4), made(x, emb, 4)[order])


def test_sinusoidal_positions_number_the_frames_of_a_clip_that_stands_still():
    made = FrameAttention(head_dim=4, positions="sinusoidal", **MADE)
    still, emb = draw(1, 8, 4, 6).expand(4, -1, -1, -1), draw(1, 16, seed=1)
    assert torch.equal(made(still, emb, 4), still), "fresh, it is the identity"
    stir(made)
    out = made(still, emb, 4)
    assert all(not torch.allclose(out[i], out[j]) for i in range(4) for j in range(i))
    # the number is counted from the clip's first frame, whatever follows
    causal = FrameAttention(head_dim=4, positions="sinusoidal", causal=True, **MADE)
    causal.load_state_dict(made.state_dict())
    torch.testing.assert_close(causal(still, emb, 4)[:2], causal(still[:2], emb, 2), **EXACT)
    with pytest.raises(ValueError, match="expected even channels, got 9"):
        FrameAttention(head_dim=3, positions="sinusoidal", channels=9)


def test_attention_without_positions_lets_frames_be_permuted():
    made, order = stir(FrameAttention(head_dim=4, positions="none", **MADE)), [2, 0, 1, 3]
    x, emb = draw(4, 8, 4, 6), draw(1, 16, seed=1)
    torch.testing.assert_close(made(x[order], emb, 4), made(x, emb, 4)[order], **EXACT)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_positions_are_distances(positions: str):
    """What two frames say to each other at places 0 and 1 they say at 1 and 2, whatever else is shown."""
    made = FrameAttention(head_dim=4, positions=positions, **MADE)
    stir(made)
    q, k = draw(1, 2, 2, 4), draw(1, 2, 2, 4, seed=1)
    other = draw(1, 2, 1, 4, seed=2)
    seen: list[torch.Tensor] = []

    def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Ratio of the two weights of the pair, which what stands beside it does not change."""
        if made.rotary is not None:
            q, k = made.rotary(q), made.rotary(k)
        eye = torch.eye(q.shape[2], dtype=q.dtype).expand(1, 2, -1, -1)
        return made.attended(q, k, eye, sdpa).log()

    seen.append(scores(q, k))
    later = scores(torch.cat([other, q], 2), torch.cat([other, k], 2))[..., 1:, 1:]
    seen.append(later)
    first, second = (x[..., 0] - x[..., 1] for x in seen)
    torch.testing.assert_close(first, second, **EXACT)


@given(chunk=st.integers(1, 30), spatial=st.integers(0, 1), causal=st.booleans(), seed=seeds)
@settings(max_examples=10)
def test_parts_give_the_same_numbers_and_gradients(chunk: int, spatial: int, causal: bool, seed: int):
    said: dict[str, Any] = {"head_dim": 4, "spatial_heads": spatial, "causal": causal, **MADE}
    whole = stir(FrameAttention(**said), seed)
    parts = FrameAttention(chunk=chunk, **said)
    parts.load_state_dict(whole.state_dict())
    x, emb = draw(2 * 3, 8, 4, 6, seed=seed), draw(2, 16, seed=1)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    outs = whole(a, emb, 3), parts(b, emb, 3)
    torch.testing.assert_close(*outs, **EXACT)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, **EXACT)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **EXACT)


def test_attention_in_parts_keeps_less_for_the_backward_pass():
    kept = []
    for chunk in (None, 4):
        made = stir(FrameAttention(head_dim=4, chunk=chunk, **MADE))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):  # noqa: B023
            made(draw(8, 8, 16, 16).requires_grad_(), draw(1, 16), 8)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


@given(stride=st.integers(2, 5), seed=seeds)
def test_strides_in_time_begin_as_average_and_repetition(stride: int, seed: int):
    down, up = FrameDownsample(4, stride).double(), FrameUpsample(4, stride).double()
    x = draw(2 * 2 * stride, 4, 2, 3, seed=seed)
    low = down(x, 2 * stride)
    torch.testing.assert_close(low, x.unflatten(0, (4, stride)).mean(1))
    torch.testing.assert_close(up(low, 2, 2 * stride), low.repeat_interleave(stride, 0))
    # a picture is a clip that stands still, whatever they have learned
    stir(down, seed)
    stir(up, seed)
    still = x[:1].repeat(2 * stride, 1, 1, 1)
    torch.testing.assert_close(down(still, 2 * stride), down(x[:1], 1).repeat(2, 1, 1, 1), **EXACT)
    # on the way up each frame is another one, and a picture is what they have in common
    out = up(still[:2], 2, 2 * stride).unflatten(0, (2, stride))
    torch.testing.assert_close(out.mean(1), up(x[:1], 1, 1).repeat(2, 1, 1, 1), **EXACT)
    torch.testing.assert_close(out[0], out[1], **EXACT)
    assert not torch.allclose(out[:, 0], out[:, -1])


@pytest.mark.parametrize("name", LAYERS)
def test_a_picture_model_with_new_layers_says_of_every_frame_what_it_said(name: str):
    """Every level has as many frames: each is the picture model's prediction of that moment."""
    torch.manual_seed(0)
    inside = core()
    pictures = stir(NestedUNet(inside, [shell(inside)]))
    frames = {"frames": 4, "temporal": LAYERS[name]}
    inner = core(**frames)
    grown = NestedUNet(inner, [shell(inner, strides=((1, 2, 2),), **frames)])
    missing, unexpected = grown.load_state_dict(pictures.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".temporal." in key for key in missing)
    z, given_ = [draw(2, 3, 4, 8, 12), draw(2, 3, 4, 16, 24, seed=1)], told(2)
    with torch.no_grad():
        said = grown(z, **given_)
        for f in range(4):
            for a, b in zip(said, pictures([x[:, :, f] for x in z], **given_), strict=True):
                torch.testing.assert_close(a[:, :, f], b, **EXACT)


@pytest.mark.parametrize("name", LAYERS)
def test_a_clip_that_stands_still_is_its_picture(name: str):
    """Whatever the layers have learned, where there are no strides in time."""
    frames = {"frames": 4, "temporal": LAYERS[name]}
    inner = core(**frames)
    nest, given_ = stir(NestedUNet(inner, [shell(inner, strides=((1, 2, 2),), **frames)])), told(2)
    z = [draw(2, 3, 1, 8, 12), draw(2, 3, 1, 16, 24, seed=1)]
    with torch.no_grad():
        alone = nest(z, **given_)
        still = nest([x.expand(-1, -1, 4, -1, -1) for x in z], **given_)
    for a, b in zip(alone, still, strict=True):
        torch.testing.assert_close(b, a.expand_as(b), **EXACT)


@settings(max_examples=5)
@given(seed=seeds, kept=st.booleans())
def test_a_fresh_level_of_clips_leaves_those_inside_untouched(seed: int, kept: bool):
    torch.manual_seed(seed)
    nest, z, given_ = clip_nest(), clips((3, 3, 3), seed=seed), asked(3, seed)
    with torch.no_grad():
        stir(nest.levels[0], seed)
        out = nest(z, **given_)
        counts = {**given_["micros"], "frames": torch.full((3,), 8.0)}
        assert torch.equal(out[0], nest(z[:1], **{**given_, "micros": counts})[0])
        assert not out[1].any()
        assert not out[2].any()
        stir(nest, seed)
        if kept:  # what sampling does with the text
            given_["text"] = nest.read(given_.pop("cond"), given_.pop("cond_mask"))
        whole = nest(z, **given_)
        assert [x.shape for x in whole] == [x.shape for x in z]
        if kept:
            return
        mixed = nest([z[0], z[1][:2], z[2][:1]], **given_)
        for r, rows in enumerate((slice(2, 3), slice(1, 2), slice(0, 1))):
            alone = nest([x[rows] for x in z[: r + 1]], **first(given_, rows))
            for inside, one in enumerate(alone):
                torch.testing.assert_close(mixed[inside][rows], one, **EXACT)


def test_features_of_kept_text_are_those_of_the_text_itself():
    nest, z, given_ = clip_nest(), clips((2, 2, 2)), asked(2)
    stir(nest)
    with torch.no_grad():
        plain = nest(z, **given_)
        text = nest.read(given_.pop("cond"), given_.pop("cond_mask"))
        for a, b in zip(plain, nest(z, text=text, **given_), strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_checkpointed_blocks_give_the_same_gradients():
    grads = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        nest = stir(clip_nest(use_checkpoint=use_checkpoint))
        torch.stack([x.square().mean() for x in nest(clips((2, 2, 1)), **asked(2))]).sum().backward()
        grads.append([p.grad for p in nest.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **EXACT)


def test_a_level_starts_from_the_clip_inside():
    """lift: the prediction inside, each pixel and frame repeated."""
    nest, z = clip_nest(lift=(1.0, 0.5)), clips((2, 2, 2))
    stir(nest.levels[0])
    with torch.no_grad():
        low, middle, high = nest(z, **asked(2))
        torch.testing.assert_close(middle, low.expand_as(middle))
        stir(nest.levels[1])
        _, middle, high = nest(z, **asked(2))
    assert not torch.allclose(middle[:, :, 0], middle[:, :, 1])
    wide = middle.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(high, 0.5 * wide)


def test_levels_are_told_how_many_frames_a_row_has():
    nest, z, given_ = stir(clip_nest()), clips((2, 1, 1)), asked(2)
    counts = {"frames": torch.tensor([8.0, 1.0]), **given_["micros"]}
    with torch.no_grad():
        own = nest(z, **given_)
        same = nest(z, **{**given_, "micros": counts})
        assert all(torch.equal(a, b) for a, b in zip(own, same, strict=True))
        other = nest(z, **{**given_, "micros": counts | {"fps": torch.tensor([7.0, 6.0])}})
        assert not torch.equal(own[2], other[2])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((1, 4, 4), "expected 8 frames at level 2, or one at every level, got 4"),
        ((1, 1, 8), "expected 4 frames at level 1, or one at every level, got 1"),
        ((2, 4, 8), "expected 8 frames at level 1, or one at every level, got 4"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        clip_nest()(clips((1, 1, 1), frames), **asked(1))


def test_pictures_and_clips_at_once_are_refused():
    z = clips((1, 1, 1))
    with pytest.raises(ValueError, match="pictures at all levels or clips at all"):
        clip_nest()([z[0][:, :, 0], *z[1:]], **asked(1))


def test_a_level_of_clips_that_cannot_be_says_why():
    with pytest.raises(ValueError, match="a multiple of 2, got 3"):
        UNetShell(strides=[(2, 2, 2)], frames=3, inner_channels=8)
    with pytest.raises(ValueError, match="expected an odd kernel, got 4; try 5"):
        FrameConv(kernel=4, **MADE)
    with pytest.raises(ValueError, match="below the 2 heads of 8 channels, got 2"):
        FrameAttention(head_dim=4, spatial_heads=2, **MADE)
    with pytest.raises(ValueError, match="positions"):
        FrameAttention(head_dim=4, positions="sine", **MADE)
    with pytest.raises(ValueError, match="moves 0"):
        FrameShift(share=0.01, **MADE)


def test_frames_cost_as_many_pictures_and_layers_along_time_more():
    sizes = [(1, 8, 12), (4, 8, 12), (8, 16, 24)]
    given_ = {"batch": 1, "tokens": 5, "cond_dim": WIDTH}
    plain, timed = (level_costs(clip_nest(one), sizes, **given_) for one in (None, LAYERS["attention"]))
    pictures = level_costs(clip_nest(None), [(1, *size[1:]) for size in sizes], **given_)
    assert [cost.shape for cost in timed] == [(3, *size) for size in sizes]
    assert timed[0] == plain[0] == pictures[0]
    for r, frames in ((1, 4), (2, 8)):
        assert timed[r].flops > plain[r].flops
        assert timed[r].activations > plain[r].activations
        # the lower stages of a level have fewer frames
        assert 1.5 * pictures[r].flops < plain[r].flops < frames * pictures[r].flops * 1.5
