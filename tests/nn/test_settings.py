"""What the settings say is wrong is what cannot be built or run, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mdmkit import nn
from mdmkit.builtin.nn import UNetCore, UNetShell

widths = st.sampled_from([4, 6, 8, 9, 12, 16, 24])
per_stage = st.one_of(st.integers(1, 2), st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple))
layers = st.one_of(st.integers(0, 1), st.lists(st.integers(0, 1), min_size=1, max_size=3).map(tuple))
GRID_STRIDES = [2, (1, 2), (2, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2, 2)]
stride = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.just((1, 2, 2)))


def settings(cls: Any, **more: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        cls,
        channels=st.lists(widths, min_size=1, max_size=3).map(tuple),
        blocks=per_stage,
        strides=st.one_of(st.none(), st.lists(stride, max_size=2).map(tuple)),
        heads=st.sampled_from([1, 2, 4]),
        norm_groups=st.sampled_from([1, 2, 4]),
        micro_conditioning=st.sampled_from([None, {"scale": 64.0}, {"a.b": 1.0}]),
        **more,
    )


cores = settings(
    UNetCore,
    attention=st.one_of(st.none(), layers),
    middle=st.booleans(),
    emb_dim=st.sampled_from([None, 16, 20]),
    cond_width=st.sampled_from([None, 8, 9]),
    text_layers=st.integers(0, 1),
)


def arguments(made: Any) -> dict[str, Any]:
    """As the registry passes them, but for the block, which stays the default."""
    return {f.name: getattr(made, f.name) for f in attrs.fields(type(made)) if f.name != "block"}


def refused(call: Callable[[], Any]) -> str:
    """Why it cannot be, or nothing."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


@given(said=cores)
def test_a_core_builds_where_its_settings_find_no_problem(said: UNetCore):
    found = list(said.problems())
    assert all(message and path for path, message in found)
    refusal = refused(lambda: nn.UNetCore(**arguments(said), cond_dim=16, device="meta"))
    assert bool(found) == bool(refusal), (found, refusal)


@given(
    said=settings(UNetShell, attention=layers),
    inner=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    data=st.data(),
)
def test_a_shell_runs_where_its_settings_find_no_problem(said: UNetShell, inner: tuple[int, int], data: Any):
    found = list(said.problems())
    core = nn.UNetCore(channels=(8,), attention=0, heads=1, norm_groups=1, middle=False, device="meta")
    make = partial(nn.UNetShell, **arguments(said), inner_channels=8, emb_dim=core.emb_dim, device="meta")
    refusal = refused(make)
    assert bool(found) == bool(refusal), (found, refusal)
    if found:
        return
    shell = make()
    h, w = (
        side * data.draw(st.sampled_from([factor, 2, 3]))
        for side, factor in zip(inner, shell.ratio, strict=True)
    )
    z = [torch.empty(1, 3, *size, device="meta") for size in (inner, (h, w))]
    found = list(said.level_problems(resolution=(h, w), inner=inner, index=1))
    refusal = refused(lambda: nn.NestedUNet(core, [shell])(z, torch.empty(1, device="meta")))
    assert bool(found) == bool(refusal), (found, refusal)


@given(
    said=st.builds(
        UNetShell,
        channels=st.lists(st.sampled_from([16, 32, 64]), min_size=1, max_size=3).map(tuple),
        blocks=st.just(1),
        attention=st.integers(0, 1),
        strides=st.one_of(st.none(), st.lists(st.sampled_from(GRID_STRIDES), max_size=3).map(tuple)),
        norm_groups=st.just(8),
        layout=st.sampled_from([None, "grid", "grid", "grid"]),
        frames=st.sampled_from([1, 2, 4, 8, 9, 16]),
        temporal_attention=layers,
        rotary=st.booleans(),
    ),
    inner=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    times=st.sampled_from([None, 1, 2, 3]),
)
@example(
    UNetShell((32, 32), strides=((4, 1, 1),), layout="grid", frames=4, temporal_attention=1), (5, 3), None
)
@example(
    UNetShell((32, 32), strides=((4, 1, 1),), layout="grid", frames=4, temporal_attention=1), (4, 6), None
)
def test_a_level_of_frames_runs_where_its_settings_find_no_problem(
    said: UNetShell, inner: tuple[int, int], times: int | None
):
    found = list(said.problems())
    core = nn.UNetCore(channels=(8,), attention=0, heads=1, norm_groups=1, middle=False, device="meta")
    make = partial(nn.UNetShell, **arguments(said), inner_channels=8, emb_dim=core.emb_dim, device="meta")
    refusal = refused(make)
    assert bool(found) == bool(refusal), (found, refusal)
    if found:
        return
    shell = make()
    h, w = (side * (times or factor) for side, factor in zip(inner, shell.ratio, strict=True))
    z = [torch.empty(1, 3, *size, device="meta") for size in (inner, (h, w))]
    found = list(said.level_problems(resolution=(h, w), inner=inner, index=1))
    refusal = refused(lambda: nn.NestedUNet(core, [shell])(z, torch.empty(1, device="meta")))
    assert bool(found) == bool(refusal), (found, refusal)


MESSAGES = {
    "groups": (
        UNetCore(channels=(48, 96)),
        [
            ("channels[0]", "norm_groups=32 does not divide channels=48; try norm_groups=24"),
        ],
    ),
    "heads": (
        UNetCore(channels=(32, 36), norm_groups=4, attention=(0, 1)),
        [("channels[1]", "heads=8 does not divide channels=36; try heads=6")],
    ),
    "odd": (
        UNetCore(channels=(9, 18), norm_groups=9, heads=9, attention=0),
        [("channels[0]", "expected an even number, as emb_dim is 4 * channels[0], got 9")],
    ),
    "lists": (
        UNetShell(channels=(32, 64), blocks=(1, 1, 1), attention=(0,), strides=(2, 2)),
        [
            ("blocks", "expected one entry a stage, 2, got 3"),
            ("attention", "expected one entry a stage, 2, got 1"),
            ("strides", "expected one entry between each two stages, 1, got 2"),
        ],
    ),
    "grid": (
        UNetShell(
            channels=(32, 48),
            strides=((2, 2, 2),),
            norm_groups=8,
            layout="grid",
            frames=8,
            temporal_attention=1,
        ),
        [
            (
                "strides[0]",
                "expected a stride in time or in space, got [2, 2, 2]; "
                "say [frames, 1, 1] or [1, height, width]",
            ),
            ("frames", "a grid of frames is a square: expected 1, 4, 9, 16 ..., got 8"),
            ("channels[1]", "head_dim=32 does not divide channels=48; try head_dim=24"),
        ],
    ),
    "no grid": (
        UNetShell(strides=((2, 1, 1),), frames=4, rotary=True),
        [
            ("rotary", 'expected false without layout = "grid", got true'),
        ],
    ),
    "text": (
        UNetCore(channels=(32, 64), attention=(0, 1), cond_width=36, text_layers=1),
        [("cond_width", "heads=8 does not divide cond_width=36; try heads=6")],
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str):
    said, expected = MESSAGES[name]
    assert list(said.problems()) == expected


def test_messages_about_resolutions():
    core, shell = UNetCore(channels=(32, 64, 64)), UNetShell(channels=(32, 64, 64), strides=(2, (1, 2)))
    assert list(core.level_problems(resolution=(64, 64), inner=None, index=0)) == []
    assert list(core.level_problems(resolution=(64, 50), inner=None, index=0)) == [
        ("resolution", "the strides divide by 4, which does not divide [64, 50]")
    ]
    assert list(shell.level_problems(resolution=(512, 512), inner=(64, 64), index=2)) == [
        ("resolution", "3 stages take 512 down to [256, 128], but levels[1] works at 64")
    ]
