"""The global order: each epoch a permutation, every place a function of (seed, position)."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.data.order import Order

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**40)


@given(sizes=sizes, seed=seeds, window=st.integers(1, 5), epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_an_epoch_holds_each_sample_once(sizes, seed, window, epoch, shuffle):
    order = Order(sizes, seed=seed, window=window, shuffle=shuffle)
    places = [order[position] for position in range(epoch * len(order), (epoch + 1) * len(order))]
    assert all(place.epoch == epoch for place in places)
    assert sorted((place.shard, place.row) for place in places) == [
        (shard, row) for shard, size in enumerate(sizes) for row in range(size)
    ]


@given(sizes=sizes, seed=seeds, positions=st.lists(st.integers(0, 500), max_size=20))
def test_a_place_does_not_depend_on_what_was_asked_before(sizes, seed, positions):
    used = Order(sizes, seed=seed, window=2)
    for position in positions:
        assert used[position] == Order(sizes, seed=seed, window=2)[position]


@given(seed=seeds, window=st.integers(1, 4))
def test_samples_stay_inside_a_window_of_shards(seed, window):
    order = Order([10] * 12, seed=seed, window=window)
    for start in range(0, 120, 10 * window):
        assert len({order[start + i].shard for i in range(10 * window) if start + i < 120}) <= window


def test_epochs_and_seeds_differ():
    order = Order([50, 50], seed=0)
    first = [order[i][1:] for i in range(100)]
    assert first != [order[100 + i][1:] for i in range(100)]
    other = Order([50, 50], seed=1)
    assert first != [other[i][1:] for i in range(100)]
    plain = Order([50, 50], seed=0, shuffle=False)
    assert [plain[i][1:] for i in range(100)] == [(i // 50, i % 50) for i in range(100)]


@given(sizes=sizes, seed=seeds, position=st.integers(0, 300))
def test_candidates_begin_with_the_sample_and_try_each_once(sizes, seed, position):
    order = Order(sizes, seed=seed)
    tried = [(place.shard, place.row) for place in order.candidates(position)]
    assert tried[0] == order[position][1:]
    assert len(tried) == len(set(tried)) == len(order)
    again = [(place.shard, place.row) for place in islice(order.candidates(position), 3)]
    assert tried[:3] == again


def test_a_huge_order_is_cheap_to_open_anywhere():
    order = Order([10_000] * 100_000, seed=3)
    place = order[7 * 10**9 + 5]
    assert place.epoch == 7
    assert 0 <= place.row < 10_000


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least one sample, got none"):
        Order([0, 0], seed=0)
    with pytest.raises(ValueError, match="window >= 1"):
        Order([1], seed=0, window=0)
    with pytest.raises(IndexError, match="position >= 0, got -1"):
        Order([1], seed=0)[-1]
