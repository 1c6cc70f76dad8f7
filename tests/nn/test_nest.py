"""What holds across the levels of a nest."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.nn.unet import Running

from .nests import WIDTH, core, draw, first, nest, pictures, shell, stir, told

seeds = st.integers(0, 2**16)


@given(seed=seeds)
def test_one_level_is_the_core_alone_bit_for_bit(seed: int):
    made = nest(1, seed=seed)
    stir(made, seed)
    alone = made.levels[0]
    assert isinstance(alone, UNetCore)
    given_ = told(2, seed)
    text = alone.read(given_["cond"], given_["cond_mask"])
    z = pictures([2], seed=seed)[0]
    prediction, _ = alone(z, given_["t"], text=text, micros=given_["micros"])
    assert torch.equal(made([z], **given_)[0], prediction)


@given(levels=st.integers(2, 3), seed=seeds)
def test_a_fresh_shell_leaves_every_lower_output_unchanged(levels: int, seed: int):
    made = nest(levels, seed=seed)
    for inner in list(made.levels)[:-1]:
        stir(inner, seed)
    z, given_ = pictures([2] * levels, (4, 8), seed=seed), told(2, seed)
    among, below = made(z, **given_), made(z[:-1], **given_)
    assert all(torch.equal(a, b) for a, b in zip(among, below, strict=False))
    assert not among[-1].any()
    assert below[-1].any()


def test_keys_of_k_levels_are_a_subset_of_k_plus_one():
    keys = [set(nest(levels).state_dict()) for levels in (1, 2, 3)]
    assert keys[0] < keys[1] < keys[2]
    assert all(key.startswith("levels.0.") for key in keys[0])
    assert all(key.startswith("levels.2.") for key in keys[2] - keys[1])


def test_levels_inside_start_the_same_whatever_is_around_them():
    two, three = nest(2).state_dict(), nest(3).state_dict()
    assert all(torch.equal(two[key], three[key]) for key in two)


@given(counts=st.sampled_from([(3, 1, 1), (3, 2, 1), (2, 2, 1), (3, 3, 2), (3, 1)]), seed=seeds)
def test_low_only_rows_in_a_mixed_batch_equal_the_same_rows_alone(counts: tuple[int, ...], seed: int):
    made = nest(len(counts), seed=seed)
    stir(made, seed)
    z, given_ = pictures(counts, (4, 4), seed), told(counts[0], seed)
    mixed = made(z, **given_)
    assert [out.shape for out in mixed] == [x.shape for x in z]
    for row in range(counts[0]):
        own = [x[row : row + 1] for x in z if row < len(x)]
        alone = made(own, **first(given_, slice(row, row + 1)))
        for r, out in enumerate(alone):
            torch.testing.assert_close(mixed[r][row : row + 1], out, rtol=0, atol=1e-11)


def test_every_part_of_a_nest_is_heard():
    made = nest(3)
    stir(made)
    z, given_ = pictures([2, 2, 2], (4, 4)), told(2)
    given_["micros"] = {"scale": torch.tensor([20.0, 40.0])}
    base = made(z, **given_)
    changes = {
        "t": {"t": given_["t"] * 0.5},
        "cond": {"cond": -given_["cond"]},
        "cond_mask": {"cond_mask": ~given_["cond_mask"]},
        "micros": {"micros": {"scale": torch.tensor([30.0, 50.0])}},
    }
    for name, change in changes.items():
        for out, other in zip(base, made(z, **given_ | change), strict=True):
            assert not torch.allclose(out, other), name
    for r in range(3):
        moved = [x + (i == r) * draw(*x.shape, seed=9) for i, x in enumerate(z)]
        # each level sees all others
        assert all(not torch.allclose(a, b) for a, b in zip(base, made(moved, **given_), strict=True))


def test_a_scale_counts_only_up_to_its_default_and_stands_in_where_none_is_given():
    made = nest(1)
    stir(made)
    z, given_ = pictures([2]), told(2)
    outs = [made(z, **given_ | {"micros": {"scale": torch.full((2,), v)}})[0] for v in (64.0, 512.0)]
    assert torch.equal(*outs)
    assert torch.equal(outs[0], made(z, **given_ | {"micros": None})[0])


def test_padding_of_the_text_changes_nothing():
    made = nest(1, text_layers=1)
    stir(made)
    z, given_ = pictures([3]), told(3)
    hidden = given_["cond"].masked_fill(~given_["cond_mask"][..., None], 99.0)
    torch.testing.assert_close(made(z, **given_)[0], made(z, **given_ | {"cond": hidden})[0])


def test_text_that_is_masked_throughout_is_finite_and_says_nothing():
    made = nest(1)
    stir(made)
    z, given_ = pictures([2]), told(2)
    given_["cond_mask"] = torch.zeros_like(given_["cond_mask"])
    out = made(z, **given_)[0]
    assert out.isfinite().all()
    assert torch.equal(out, made(z, **given_ | {"cond": given_["cond"] * 7})[0])
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_without_text_and_at_other_levels_counts():
    made = nest(2, cond_dim=None)
    stir(made)
    z, t = pictures([2, 2]), torch.tensor([0.2, 0.9])
    assert [o.shape for o in made(z, t)] == [x.shape for x in z]
    assert len(made(z[:1], t)) == 1


@given(
    strides=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=2),
    inner=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=seeds,
)
def test_any_integer_ratio_per_axis(strides: list[tuple[int, int]], inner: tuple[int, int], seed: int):
    torch.manual_seed(seed)
    middle = core(channels=(8,), attention=0, middle=False, cond_dim=None)
    outer = shell(middle, channels=(8,) * (len(strides) + 1), strides=strides)
    made = NestedUNet(middle, [outer])
    stir(made, seed)
    h, w = inner
    rh, rw = outer.ratio
    z = draw(1, 3, h, w), draw(1, 3, h * rh, w * rw)
    assert [o.shape for o in made(z, torch.tensor([0.5]))] == [x.shape for x in z]


def test_use_checkpoint_changes_no_gradient_and_keeps_less():
    made = nest(2, text_layers=1)
    stir(made)
    z, given_ = pictures([2, 1]), told(2)
    grads, kept = [], []
    for use_checkpoint in (False, True):
        made.use_checkpoint = use_checkpoint
        made.zero_grad()
        count = 0

        def keep(x: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = torch.stack([o.square().mean() for o in made(z, **given_)]).sum()
        kept.append(count)
        loss.backward()
        grads.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert kept[1] < kept[0] / 2


def test_checkpointing_repeats_the_same_dropout():
    from functools import partial

    from mdmkit.nn import ResBlock

    made = nest(1, block=partial(ResBlock, dropout=0.5))
    stir(made)
    grads = []
    for use_checkpoint in (False, True):
        made.use_checkpoint = use_checkpoint
        made.zero_grad()
        torch.manual_seed(3)
        made(pictures([2]), **told(2))[0].square().mean().backward()
        grads.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_every_attention_goes_through_the_one_given():
    calls = []

    def attend(q, k, v, mask=None):
        calls.append((q.shape, k.shape, None if mask is None else mask.shape))
        return q

    middle = core(text_layers=2)
    outer = shell(middle, attention=(0, 1), cond_width=WIDTH)
    made = NestedUNet(middle, [outer], attend=attend)
    made(pictures([2, 2], (4, 4)), **told(2))
    # the text's own; self and cross in down, middle and up of the core; in down and up of the shell
    assert len(calls) == 2 + 2 * (1 + 1 + 2) + 2 * (1 + 2)
    assert calls[0] == ((2, 4, 5, 4), (2, 4, 5, 4), (2, 5))


def test_blocks_compile_whole():
    made = nest(2, text_layers=1)
    stir(made)
    z, given_ = pictures([2, 2], (4, 4)), told(2)
    with torch.no_grad():
        eager = made(z, **given_)
        keys = set(made.state_dict())
        torch._dynamo.reset()
        blocks = list(made.blocks())
        for block in blocks:
            block.compile(fullgraph=True, backend="eager")
        assert len(blocks) == 1 + (2 + 2 + 4) + (3 + 3 - 2) + 6
        assert all(torch.equal(a, b) for a, b in zip(eager, made(z, **given_), strict=True))
    assert set(made.state_dict()) == keys
    torch._dynamo.reset()


def test_on_meta_nothing_is_real_and_dtypes_are_kept():
    middle = core(device="meta", dtype=torch.bfloat16, text_layers=1, cond_width=24, heads=2)
    made = NestedUNet(
        middle, [shell(middle, attention=1, cond_width=24, device="meta", dtype=torch.bfloat16)]
    )
    tensors = [*made.parameters(), *made.buffers()]
    assert all(x.is_meta and x.dtype == torch.bfloat16 for x in tensors)


def test_all_parameters_learn_once_the_zeros_have_moved():
    made = nest(3, text_layers=1, cond_width=8)
    stir(made)
    outs = made(pictures([2, 2, 2], (4, 4)), **told(2))
    torch.stack([o.square().mean() for o in outs]).sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_a_block_of_ones_own():
    class Plain(nn.Module):
        def __init__(self, *, in_channels, out_channels, emb_dim, norm_groups, device=None, dtype=None):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 1, device=device, dtype=dtype)

        def forward(self, x, emb):
            return self.conv(x)

    made = nest(1, block=Plain)
    assert made(pictures([2]), **told(2))[0].shape == (2, 3, 8, 12)


WRONG = {
    "too many levels": (lambda n, z, a: n([*z, z[1]], **a), "expected pictures of 1 to 2 levels, got 3"),
    "more rows outside": (
        lambda n, z, a: n([z[0][:1], z[1]], **first(a, slice(0, 1))),
        "expected at most the 1 rows of level 0 at level 1, got 2",
    ),
    "another ratio": (
        lambda n, z, a: n([z[0], z[1][..., :8]], **a),
        "expected 16 x 24 pixels at level 1, got 16 x 8",
    ),
    "an odd side": (
        lambda n, z, a: n([z[0][..., :3]], **a),
        "width that the strides divide, a multiple of 2, got 3",
    ),
    "no text": (lambda n, z, a: n(z, a["t"]), "expected text features of width 16, got none"),
    "narrow text": (
        lambda n, z, a: n(z, a["t"], a["cond"][..., :4]),
        "expected text features of width 16, got width 4",
    ),
    "unread micros": (
        lambda n, z, a: n(z, **a | {"micros": {"scal": a["t"]}}),
        "no level reads the micro-conditioning 'scal' (known: scale)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_line(name: str):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(nest(2), pictures([2, 2]), told(2))


UNBUILDABLE = {
    "groups": ({"channels": (48, 96)}, "norm_groups=32 does not divide channels=48; try norm_groups=24"),
    "heads": (
        {"channels": (32, 36), "norm_groups": 4, "heads": 8},
        "heads=8 does not divide channels=36; try heads=6",
    ),
    "lists": ({"channels": (32, 64), "blocks": (1, 1, 1)}, "expected one entry a stage in blocks, 2, got 3"),
    "strides": (
        {"channels": (32, 64), "strides": (2, 2)},
        "expected one stride between each two stages, 1, got 2",
    ),
    "stride": (
        {"channels": (32, 64), "strides": ((2, 2, 2),)},
        "expected frames that the strides divide, a multiple of 2, got 1",
    ),
    "no stage": ({"channels": ()}, "expected at least one stage in channels, got none"),
    "no block": ({"channels": (32,), "blocks": 0}, "expected at least one residual block a stage, got [0]"),
    "emb_dim": ({"channels": (32,), "emb_dim": 20}, "expected emb_dim to be a multiple of 8, got 20; try 24"),
    "text": ({"channels": (32,), "cond_width": 8}, "cond_width and text_layers need text features"),
    "limit": ({"channels": (32,), "output_limit": 0.0}, "expected output_limit > 0, got 0.0"),
    "micro": (
        {"channels": (32,), "micro_conditioning": {"a.b": 1.0}},
        "a name in micro_conditioning, got 'a.b'",
    ),
}


def test_a_limit_squeezes_predictions_and_leaves_features():
    torch.manual_seed(0)
    limited, free = core(output_limit=0.5), core()
    stir(limited)
    stir(free)
    z, given_ = pictures([2])[0], told(2)
    text = free.read(given_["cond"], given_["cond_mask"])
    said, features = limited(z, given_["t"], text=text)
    wide, same = free(z, given_["t"], text=text)
    assert torch.equal(features, same)
    assert wide.abs().max() > 0.5 > said.abs().max()
    torch.testing.assert_close(0.5 * torch.atanh(said / 0.5), wide)


@pytest.mark.parametrize("name", UNBUILDABLE)
def test_a_core_that_cannot_be_says_why(name: str):
    settings, message = UNBUILDABLE[name]
    made: dict[str, Any] = {"attention": 1, "device": "meta"}
    with pytest.raises(ValueError, match=re.escape(message)):
        UNetCore(**made | settings)


def test_a_shell_that_does_not_fit_says_why():
    middle = core()
    with pytest.raises(ValueError, match="level 1 built with inner_channels=8, got 16"):
        NestedUNet(middle, [shell(middle, inner_channels=16)])
    with pytest.raises(ValueError, match="level 1 built with emb_dim=32, the core's"):
        NestedUNet(middle, [shell(middle, emb_dim=64)])
    unconditional = core(cond_dim=None)
    with pytest.raises(ValueError, match="text features are given"):
        NestedUNet(unconditional)(pictures([2]), **told(2))
    NestedUNet(unconditional, [shell(unconditional, emb_dim=64)])  # nothing is added: widths are free


RELEASED = [461_359_107, 476_613_958, 480_970_057]


def test_parameter_counts_of_the_released_networks():
    where: dict[str, Any] = {"device": "meta"}
    middle = UNetCore(
        channels=(256, 512, 768), blocks=2, attention=(0, 1, 5), cond_dim=2048, cond_width=2048,
        micro_conditioning={"scale": 64.0}, **where,
    )  # fmt: skip
    around: dict[str, Any] = {"blocks": (2, 2, 1), "emb_dim": middle.emb_dim, "cond_width": 2048, **where}
    shells = [
        UNetShell(channels=(64, 128, 256), inner_channels=256, micro_conditioning={"scale": 256.0}, **around),
        UNetShell(channels=(32, 32, 64), inner_channels=64, micro_conditioning={"scale": 1024.0}, **around),
    ]
    made = [NestedUNet(middle, shells[:r]) for r in range(3)]
    assert [sum(p.numel() for p in n.parameters()) for n in made] == RELEASED


def test_running_is_what_calls_a_block():
    assert Running()(nn.Identity(), torch.ones(1)).item() == 1


@given(
    seed=seeds,
    masked=st.booleans(),
    layers=st.integers(0, 1),
    rows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_text_that_was_read_before_gives_the_same_numbers(
    seed: int, masked: bool, layers: int, rows: tuple[int, int]
):
    inside = core(masked_cross_attention=masked, text_layers=layers)
    made = NestedUNet(inside, [shell(inside, attention=1, cond_width=inside.cond_width)])
    stir(made, seed)
    count = max(rows), min(rows)
    z, given_ = pictures(count, seed=seed), told(count[0], seed)
    text = made.read(given_.pop("cond"), given_.pop("cond_mask"))
    assert text is not None
    assert text.kept is not None
    assert len(text.kept) == sum(getattr(m, "text_kv", None) is not None for m in made.modules()) > 4
    again = told(count[0], seed)
    for mine, same in zip(made(z, **given_, text=text), made(z, **again), strict=True):
        assert torch.equal(mine, same)


def test_what_reads_no_text_has_nothing_to_keep():
    free = nest(2, cond_dim=None)
    assert free.read(None) is None
