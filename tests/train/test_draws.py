"""Every draw of a training step is a function of (seed, step, place in the global batch) and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.train.draws import (
    Rows,
    draw_noise,
    dropped,
    micro_batches,
    numbered,
    self_conditioned,
    stopping,
)

SIZES = ((2, 3), (4, 6), (8, 12))

splits = st.tuples(st.integers(1, 4), st.integers(1, 3))
units = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(
    lambda more: [1 + sum(more[i:]) for i in range(len(more))]
)


@given(split=splits, units=units)
def test_ranks_and_micro_batches_share_out_every_place_once(split: tuple[int, int], units: list[int]) -> None:
    ranks, accumulate = split
    per_level = [count * ranks * accumulate for count in units]
    parts = [
        part
        for rank in range(ranks)
        for part in micro_batches(per_level, rank=rank, ranks=ranks, accumulate=accumulate)
    ]
    assert sorted(place for part in parts for place in part.places) == list(range(per_level[0]))
    assert {part.per_level for part in parts} == {tuple(units)}, "equal counts at every level"
    for level, rows in enumerate(per_level):
        # the rows that reach a level are the first of the global batch, and the first of each part
        reach = sorted(place for part in parts for place in part.places[: part.per_level[level]])
        assert reach == list(range(rows))


@given(split=splits, by_step=st.lists(units, min_size=1, max_size=4))
def test_rows_are_numbered_by_their_top_level_without_a_gap(
    split: tuple[int, int], by_step: list[list[int]]
) -> None:
    ranks, accumulate = split
    before, found = [0] * 3, []
    for counts in by_step:
        per_level = [count * ranks * accumulate for count in counts]
        for rank in range(ranks):
            for part in micro_batches(per_level, rank=rank, ranks=ranks, accumulate=accumulate):
                rows = numbered(part, per_level, before)
                found += rows
                for level, count in enumerate(part.per_level):
                    assert sum(top >= level for top, _ in rows) == count
        before = [
            had + more for had, more in zip(before, [*stopping(per_level), 0, 0], strict=False)
        ]
    assert sorted(found) == [(top, number) for top in range(3) for number in range(before[top])]


def test_an_uneven_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rows per level \(6, 3\) do not split over 2 ranks x 1 parts$"):
        micro_batches([6, 3], rank=0, ranks=2, accumulate=1)


@given(split=splits, seed=st.integers(0, 2**40), step=st.integers(0, 10**7))
def test_a_place_draws_the_same_whoever_takes_it(split: tuple[int, int], seed: int, step: int) -> None:
    ranks, accumulate = split
    per_level = [2 * ranks * accumulate, ranks * accumulate]
    (whole,) = micro_batches(per_level, rank=0, ranks=1, accumulate=1)
    noise = draw_noise(whole, SIZES, seed=seed, step=step, device="cpu")
    gone = dropped(whole, 0.5, seed=seed, step=step)
    for rank in range(ranks):
        for part in micro_batches(per_level, rank=rank, ranks=ranks, accumulate=accumulate):
            ours = draw_noise(part, SIZES, seed=seed, step=step, device="cpu")
            for level, drawn in enumerate(ours):
                assert torch.equal(drawn, noise[level][list(part.places[: part.per_level[level]])])
            assert dropped(part, 0.5, seed=seed, step=step) == [gone[place] for place in part.places]


def test_a_level_more_never_changes_inner_draws() -> None:
    one = draw_noise(Rows((0, 1, 2), (3,)), SIZES, seed=1, step=2, device="cpu")
    three = draw_noise(Rows((0, 1, 2), (3, 2, 1)), SIZES, seed=1, step=2, device="cpu")
    assert torch.equal(one[0], three[0])
    assert [tuple(level.shape) for level in three] == [(3, 3, 2, 3), (2, 3, 4, 6), (1, 3, 8, 12)]


@pytest.mark.parametrize("other", [{"seed": 6}, {"step": 8}])
def test_another_seed_or_step_draws_others(other: dict[str, int]) -> None:
    rows, key = Rows(tuple(range(64)), (64,)), {"seed": 5, "step": 7}
    changed = {**key, **other}
    one, two = (
        draw_noise(rows, SIZES, seed=k["seed"], step=k["step"], device="cpu")[0] for k in (key, changed)
    )
    assert not torch.equal(one, two)
    assert dropped(rows, 0.5, **key) != dropped(rows, 0.5, **changed)


def test_noise_is_standard_normal_and_independent_by_row_and_level() -> None:
    rows = Rows(tuple(range(200)), (200, 200))
    low, high = draw_noise(rows, ((6, 6), (6, 6)), seed=0, step=0, device="cpu", dtype=torch.float64)
    assert abs(low.mean()) < 0.03
    assert abs(low.var() - 1) < 0.03
    assert abs((low * high).mean()) < 0.03
    assert abs((low[1:] * low[:-1]).mean()) < 0.03


def test_the_share_of_dropped_captions() -> None:
    rows = Rows(tuple(range(2000)), (2000,))
    assert 150 < sum(dropped(rows, 0.1, seed=0, step=0)) < 250
    assert not any(dropped(rows, 0.0, seed=0, step=0))
    assert all(dropped(rows, 1.0, seed=0, step=0))


@given(split=splits, seed=st.integers(0, 2**40), step=st.integers(0, 10**7))
def test_a_place_is_shown_its_estimate_whoever_takes_it(split: tuple[int, int], seed: int, step: int) -> None:
    ranks, accumulate = split
    total = 4 * ranks * accumulate
    whole = self_conditioned(Rows(tuple(range(total)), (total,)), seed=seed, step=step)
    for rank in range(ranks):
        for part in micro_batches([total], rank=rank, ranks=ranks, accumulate=accumulate):
            assert self_conditioned(part, seed=seed, step=step) == [whole[place] for place in part.places]


def test_half_of_the_rows_are_shown_their_estimate() -> None:
    rows = Rows(tuple(range(2000)), (2000,))
    first, second = (self_conditioned(rows, seed=0, step=step) for step in (0, 1))
    assert abs(sum(first) - 1000) < 5 * 22.4
    assert abs(sum(a == b for a, b in zip(first, second, strict=True)) - 1000) < 5 * 22.4
    assert first != [not gone for gone in dropped(rows, 0.5, seed=0, step=0)]
