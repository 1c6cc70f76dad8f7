"""Strategies of growth as values: stages, ramps, plateaus, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.growth import (
    Cascade,
    Deepen,
    FadeIn,
    FreezeThenThaw,
    Growth,
    Net2Wider,
    NoGrowth,
    Stack,
    Staged,
    apart,
)
from mdmkit.stages import Plateau, Stage, Watch, new_levels, ramp

STAGED = (Staged, FreezeThenThaw, FadeIn, Net2Wider, Deepen, Stack)
rising = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(sorted)


@attrs.frozen
class Network:
    """Settings of a level, as strategies see them."""

    channels: tuple[int, ...] = (8, 16)
    emb_dim: int | None = None
    extra_blocks: int | tuple[int, ...] = 2
    temporal_attention: int | tuple[int, ...] = 0


@given(levels=st.integers(1, 5))
def test_without_growth_there_is_one_stage_with_all_levels(levels: int):
    assert NoGrowth(levels=levels).stages == (Stage(levels=levels),)
    assert isinstance(NoGrowth(levels=levels), Growth)
    assert NoGrowth(levels=levels).stages[0].length(8) is None, "the recipe says it"
    assert new_levels(NoGrowth(levels=levels).stages, 0) == range(0)


@pytest.mark.parametrize("strategy", STAGED)
@given(counts=rising)
def test_stages_bring_each_level_once(strategy: type, counts: list[int]):
    made = strategy([Stage(levels=count) for count in counts], levels=counts[-1])
    assert isinstance(made, Growth)
    assert [stage.levels for stage in made.stages] == counts
    brought = [r for i in range(len(counts)) for r in new_levels(made.stages, i)]
    assert [*range(counts[0]), *brought] == list(range(counts[-1]))


@pytest.mark.parametrize("strategy", STAGED)
def test_who_preserves_says_so(strategy: type):
    assert strategy.preserves is (strategy is not Stack)
    assert not apart(strategy([Stage(levels=1)], levels=1))


def test_a_cascade_carries_nothing_and_each_stage_adds_levels():
    made = Cascade([Stage(levels=1), Stage(levels=3)], levels=3)
    assert isinstance(made, Growth)
    assert apart(made)
    assert not made.preserves
    assert made.carry({"levels.0.x": torch.ones(2)}, {"levels.0.x": (2,)}) == {}
    with pytest.raises(ValueError, match=r"expected stages\[1\] to add a level to the 2 before it"):
        Cascade([Stage(levels=2), Stage(levels=2), Stage(levels=3)], levels=3)


@pytest.mark.parametrize("strategy", STAGED)
@given(counts=st.lists(st.integers(0, 4), max_size=4))
def test_stages_that_cannot_be_are_refused(strategy: type, counts: list[int]):
    stages = [Stage(levels=count) for count in counts]
    if counts and min(counts) >= 1 and counts == sorted(counts) and counts[-1] <= 3:
        strategy(stages, levels=3)
        return
    odd = r"^expected (at least one stage, got none|\d to 3 levels in stages)"
    with pytest.raises(ValueError, match=odd):
        strategy(stages, levels=3)


@attrs.frozen
class Said:
    """Some fields of a stage, as a recipe's settings have them."""

    levels: int
    images: int
    plateau: Any = None
    narrower: Any = 1


def test_a_stage_is_made_of_what_settings_say():
    (stage,) = Staged((Said(levels=1, images=20, plateau=Plateau(window=7)),), levels=1).stages
    assert stage == Stage(levels=1, images=20, plateau=Plateau(window=7))
    assert (stage.length(8), stage.length(20), stage.length(21)) == (3, 1, 1)
    assert Stage(levels=1, steps=4).length(8) == 4


@given(step=st.integers(0, 50), steps=st.integers(0, 30))
def test_a_ramp_rises_from_0_to_1_and_stays(step: int, steps: int):
    at = ramp(step, steps)
    assert 0 <= at <= 1
    assert at == 1 if step >= steps else at == step / steps
    assert ramp(step + 1, steps) >= at


def flat_at(losses: list[float], plateau: Plateau) -> int | None:
    """When a plateau is reached, written out from its definition: after how many losses."""
    taken = [(i, loss) for i, loss in enumerate(losses) if math.isfinite(loss)]
    windows = len(taken) // plateau.window
    lowest, flat = math.inf, 0
    for w in range(windows):
        part = taken[w * plateau.window : (w + 1) * plateau.window]
        mean = sum(loss for _, loss in part) / plateau.window
        fell = mean < lowest * (1 - plateau.drop)
        lowest, flat = (mean, 0) if fell else (lowest, flat + 1)
        if flat >= plateau.patience:
            return part[-1][0] + 1
    return None


plateaus = st.builds(
    Plateau, window=st.integers(1, 4), patience=st.integers(1, 3), drop=st.sampled_from([0.01, 0.1, 0.5])
)
losses = st.lists(
    st.sampled_from([1.0, 0.995, 0.95, 0.8, 0.4, 0.1, 2.0, math.nan, math.inf]), max_size=40
)


@given(plateau=plateaus, losses=losses, cut=st.integers(0, 40))
def test_a_plateau_is_seen_when_it_is_there_also_across_a_checkpoint(
    plateau: Plateau, losses: list[float], cut: int
):
    watch, ended = Watch(plateau), None
    for i, loss in enumerate(losses):
        if i == cut:
            kept = {name: value.clone() for name, value in watch.state_dict().items()}
            watch = Watch(plateau)
            watch.load_state_dict(kept)
        if watch.reached(loss):
            ended = i + 1
            break
    assert ended == flat_at(losses, plateau)


def test_a_watch_takes_back_exactly_what_it_had_seen():
    watch = Watch(Plateau(window=3))
    for loss in (0.1, 0.2, 0.7, 1 / 3):
        watch.reached(loss)
    other = Watch(Plateau(window=3))
    other.load_state_dict(watch.state_dict())
    assert other == watch
    for odd in ({}, {"seen": torch.zeros(3)}, {"seen": torch.zeros(4), "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"^expected the four numbers of a plateau's watch"):
            other.load_state_dict(odd)


@given(
    divisors=st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=2),
    emb_dim=st.sampled_from([None, 64]),
)
def test_narrower_levels_keep_the_width_of_the_embedding(divisors: list[int], emb_dim: int | None):
    made = Net2Wider([Stage(levels=2, narrower=tuple(divisors)), Stage(levels=2)], levels=2)
    network = Network(emb_dim=emb_dim)
    for level, divisor in enumerate(divisors):
        narrow = made.network(network, 0, level)
        assert narrow.channels == (8 // divisor, 16 // divisor)
        # what 4 * channels[0] would be is that of the whole network
        assert (narrow.emb_dim or 4 * narrow.channels[0]) == (emb_dim or 32)
        assert made.network(network, 1, level) == network


@pytest.mark.parametrize(
    ("network", "narrower", "message"),
    [
        (Network(channels=(8, 12)), 8, "narrower = 8 does not divide the 12 channels of level 1"),
        (Network(temporal_attention=(0, 1)), 2, "level 1 has temporal_attention, whose heads are"),
        (Network(temporal_attention=1), 2, "level 1 has temporal_attention, whose heads are of one size"),
    ],
)
def test_what_cannot_be_widened_is_refused_before_it_is_trained(
    network: Network, narrower: int, message: str
):
    made = Net2Wider([Stage(levels=2, narrower=narrower), Stage(levels=2)], levels=2)
    with pytest.raises(ValueError, match=f"^{message}"):
        made.network(network, 0, 1)
    assert made.network(network, 1, 1) == network


@pytest.mark.parametrize("split", [-0.1, 1.0])
def test_a_split_that_leaves_a_copy_nothing_is_refused(split: float):
    with pytest.raises(ValueError, match=r"^expected 0 <= split < 1"):
        Net2Wider([Stage(levels=1)], levels=1, split=split)


@pytest.mark.parametrize("strategy", [Deepen, Stack])
@given(most=st.integers(0, 3), has=st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_shallow_stage_has_at_most_its_extra_blocks(strategy: type, most: int, has: Any):
    made = strategy([Stage(levels=1, extra_blocks=most), Stage(levels=1)], levels=1)
    network = Network(extra_blocks=has)
    fewer = made.network(network, 0, 0).extra_blocks
    expected = min(has, most) if isinstance(has, int) else tuple(min(one, most) for one in has)
    assert fewer == expected
    assert made.network(network, 1, 0) == network


def test_others_leave_the_network_and_every_tensor_as_they_are():
    old = {"a": torch.ones(2), "b": torch.zeros(3, 1)}
    shapes = {"a": (2,), "b": (3, 1), "c": (4,)}
    for made in (NoGrowth(2), *(one([Stage(levels=2)], levels=2) for one in (Staged, FadeIn, Deepen))):
        assert made.network(Network(), 0, 1) == Network()
        for moment in (0, 1, 2):
            carried = made.carry(old, shapes, moment=moment)
            assert carried == old
            assert carried is not old
