"""Operators of growth: a wider network says the same, and its moments are those of its own gradients."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.operators import stacked, widened
from tests.nn.nests import draw as noise
from tests.nn.nests import stir

COND = 6


@attrs.frozen
class Case:
    """A nest, what each level is widened by, and what it is shown."""

    channels: tuple[tuple[int, int], ...]
    times: tuple[int, ...]
    heads: int
    groups: int
    strides: tuple[tuple[int, int], ...]
    settings: dict[str, Any]
    text: bool
    split: float

    def nest(self, wide: bool) -> NestedUNet:
        """The narrow one, or the wide one; float64."""
        where: dict[str, Any] = {"dtype": torch.float64, "blocks": 1, "heads": self.heads}
        where |= {"norm_groups": self.groups, **self.settings}
        widths = [
            tuple(c * (times if wide else 1) for c in channels)
            for channels, times in zip(self.channels, self.times, strict=True)
        ]
        core = UNetCore(
            channels=widths[0],
            strides=[self.strides[0]],
            attention=(1, 1),
            emb_dim=16,
            cond_dim=COND if self.text else None,
            cond_width=8 if self.text else None,
            text_layers=int(self.text),
            **where,
        )
        levels: list[Any] = [core]
        for r, channels in enumerate(widths[1:], 1):
            told = {"inner_channels": levels[-1].channels[0], "emb_dim": 16, "cond_width": core.cond_width}
            levels.append(
                UNetShell(channels=channels, strides=[self.strides[r]], attention=(0, 1), **told, **where)
            )
        return NestedUNet(core, levels[1:])

    def told(self, seed: int) -> dict[str, Any]:
        """Noisy pictures of all levels, times, text and a mask."""
        (h, w), z = self.strides[0], []
        h, w = 2 * h, w
        for r in range(len(self.times)):
            if r:
                h, w = h * self.strides[r][0], w * self.strides[r][1]
            z.append(noise(2, 3, h, w, seed=seed + r))
        said: dict[str, Any] = {"z": z, "t": torch.tensor([0.3, 0.9], dtype=torch.float64)}
        if self.text:
            mask = torch.tensor([[True] * 3, [True, False, False]])
            said |= {"cond": noise(2, 3, COND, seed=seed + 9), "cond_mask": mask}
        return said


@st.composite
def cases(draw: st.DrawFn) -> Case:
    levels = draw(st.integers(1, 3), label="levels")
    width = st.sampled_from([4, 8])
    return Case(
        channels=tuple((draw(width), draw(width)) for _ in range(levels)),
        times=tuple(draw(st.integers(1, 3)) for _ in range(levels)),
        heads=draw(st.sampled_from([1, 2]), label="heads"),
        groups=draw(st.sampled_from([1, 2, 4]), label="groups"),
        strides=tuple(draw(st.sampled_from([(2, 2), (1, 2), (2, 1), (3, 2)])) for _ in range(levels)),
        settings={"extra_blocks": draw(st.integers(0, 1)), "ffn": draw(st.booleans())},
        text=draw(st.booleans(), label="text"),
        split=draw(st.sampled_from([0.0, 0.5, 0.9])),
    )


def widen(narrow: NestedUNet, wide: NestedUNet, split: float) -> None:
    """Give a wide nest the function of a narrow one."""
    wanted = dict(wide.named_parameters())
    with torch.no_grad():
        for name, p in narrow.named_parameters():
            wanted[name].copy_(widened(name, p.detach(), wanted[name].shape, split=split))


@settings(max_examples=25)
@given(case=cases(), seed=st.integers(0, 999))
@torch.no_grad()
def test_a_wider_network_says_the_same(case: Case, seed: int):
    narrow, wide = case.nest(False), case.nest(True)
    stir(narrow, seed)
    widen(narrow, wide, case.split)
    told = case.told(seed)
    for ours, theirs in zip(wide(**told), narrow(**told), strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


def gradients(nest: NestedUNet, told: dict[str, Any]) -> dict[str, Tensor]:
    loss = sum((said * noise(*said.shape, seed=5)).sum() for said in nest(**told))
    loss.backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in nest.named_parameters() if p.grad is not None}


@settings(max_examples=12)
@given(case=cases(), seed=st.integers(0, 999))
def test_moments_become_those_of_the_wider_networks_own_gradients(case: Case, seed: int):
    """A gradient is a first moment, its square a second one: both are mapped to what they are there."""
    case = attrs.evolve(case, split=0.0)
    narrow, wide = case.nest(False), case.nest(True)
    stir(narrow, seed)
    widen(narrow, wide, 0.0)
    told = case.told(seed)
    old, new = gradients(narrow, told), gradients(wide, told)
    assert old.keys() == new.keys()
    largest = max(float(g.abs().max()) for g in old.values())
    for name, g in old.items():
        first = widened(name, g, new[name].shape, moment=1)
        second = widened(name, g.square(), new[name].shape, moment=2)
        assert (first - new[name]).abs().max() <= 1e-9 * largest, name
        assert (second - new[name].square()).abs().max() <= 1e-9 * largest**2, name


@given(
    old=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    times=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    split=st.sampled_from([0.0, 0.5, 0.9]),
    kernel=st.sampled_from([(), (3, 3)]),
)
def test_copies_stand_side_by_side_and_share_what_they_read(
    old: tuple[int, int], times: tuple[int, int], split: float, kernel: tuple[int, ...]
):
    was = noise(*old, *kernel)
    shape = (old[0] * times[0], old[1] * times[1], *kernel)
    now = widened("levels.0.conv_in.weight", was, shape, split=split)
    assert now.shape == shape
    apart = now.unflatten(1, (old[1], times[1]))
    assert torch.allclose(apart.sum(2), was.repeat_interleave(times[0], 0), rtol=1e-12, atol=1e-12)
    shares = (apart / was.repeat_interleave(times[0], 0).unsqueeze(2)).flatten()
    even = 1 / times[1]
    if split == 0 or times[1] == 1:
        assert torch.allclose(shares, torch.full_like(shares, even))
    else:
        low, high = even * (1 - split) / (1 + split), even * (1 + split) / (1 - split)
        assert (shares >= low).all()
        assert (shares <= high).all()
        assert shares.std() > 0.05 * split * even, "copies that start equal stay equal"
    again = widened("levels.0.conv_in.weight", was, shape, split=split)
    assert torch.equal(now, again), "a function of the name, on every rank"
    if split and times[1] > 1:
        assert not torch.equal(now, widened("levels.1.conv_in.weight", was, shape, split=split))


def test_queries_are_smaller_where_heads_are_larger():
    old = noise(12, 4)
    now = widened("levels.0.down.0.attention.0.0.qkv.weight", old, (48, 4))
    expected = old.repeat_interleave(4, 0)
    assert torch.allclose(now[:16], expected[:16] / 2)
    assert torch.equal(now[16:], expected[16:])
    other = widened("levels.0.down.0.attention.0.0.text_kv.weight", old, (48, 4))
    assert torch.equal(other, expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 4), r"w: expected a multiple of \(4, 4\) along each axis, got \(6, 4\)"),
        ((2, 4), r"w: expected a multiple of \(4, 4\) along each axis, got \(2, 4\)"),
        ((4, 4, 3), r"w: expected a multiple of \(4, 4\) along each axis, got \(4, 4, 3\)"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        widened("w", noise(4, 4), shape)


def test_kernels_keep_their_size():
    with pytest.raises(ValueError, match=r"^w: kernels keep their size, but \(4, 4, 1, 1\) is to become"):
        widened("w", noise(4, 4, 1, 1), (4, 4, 3, 3))


def test_what_keeps_its_shape_is_the_same_tensor():
    old = noise(3, 2)
    for moment in (0, 1, 2):
        assert widened("x.qkv.weight", old, (3, 2), moment=moment, split=0.5) is old


def core(extra: int, blocks: int = 2) -> UNetCore:
    return UNetCore(
        channels=(4, 8), blocks=blocks, extra_blocks=extra, heads=2, norm_groups=2, dtype=torch.float64
    )


@given(before=st.integers(0, 2), more=st.integers(1, 2), seed=st.integers(0, 99))
def test_stacked_blocks_are_copies_of_the_last_one_before_them(before: int, more: int, seed: int):
    small, large = NestedUNet(core(before)), NestedUNet(core(before + more))
    stir(small, seed)
    old = {name: p.detach() for name, p in small.named_parameters()}
    shapes = {name: p.shape for name, p in large.named_parameters()}
    out = stacked(old, shapes)
    assert out.keys() == shapes.keys()
    assert all(out[name].shape == shape for name, shape in shapes.items())
    assert all(torch.equal(out[name], value) for name, value in old.items())
    for way, joined in (("down", 2), ("up", 3)):
        last = joined + before - 1
        for index in range(last + 1, last + 1 + more):
            for stage in (0, 1):
                prefix = f"levels.0.{way}.{stage}.blocks."
                rest = inside(shapes, f"{prefix}{index}.")
                assert rest
                source = out_source(out, prefix, last, rest, stage)
                for name in rest:
                    assert torch.equal(out[f"{prefix}{index}.{name}"], out[f"{source}{name}"])


def inside(names: Any, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def out_source(out: dict[str, Tensor], prefix: str, last: int, rest: list[str], stage: int) -> str:
    """The nearest block before that has the same parameters; on the way up else the last on the way down."""
    for index in range(last, -1, -1):
        if set(inside(out, f"{prefix}{index}.")) == set(rest):
            return f"{prefix}{index}."
    return f"levels.0.down.{stage}.blocks.{last - 1}."


def test_where_there_is_nothing_to_copy_it_is_said():
    small = NestedUNet(UNetCore(channels=(4, 8), blocks=1, heads=2, norm_groups=2))
    large = NestedUNet(UNetCore(channels=(4, 8), blocks=1, extra_blocks=1, heads=2, norm_groups=2))
    with pytest.raises(ValueError, match=r"^levels\.0\.down\.1\.blocks\.1: stacking copies a block of the"):
        stacked(dict(small.named_parameters()), {name: p.shape for name, p in large.named_parameters()})
