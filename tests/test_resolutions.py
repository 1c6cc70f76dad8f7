from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.resolutions import (
    All,
    BySource,
    Curriculum,
    Divided,
    Fixed,
    Mixed,
    ResolutionSampler,
    Stochastic,
    level_factors,
    rows_per_level,
    some_steps,
    step_rows,
)

parts = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


def share(weights: list[int]) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


@given(weights=parts, units=st.integers(4, 40), multiple=st.integers(1, 5))
def test_rows_add_up_and_stay_near_their_shares(weights: list[int], units: int, multiple: int):
    shares = share(weights)
    rows = rows_per_level(shares, units * multiple, multiple)
    counts = [here - above for here, above in zip(rows, (*rows[1:], 0), strict=True)]
    assert rows[0] == units * multiple
    for part, count in zip(shares, counts, strict=True):
        assert count % multiple == 0
        assert (count > 0) == (part > 0)
        # a level may lose more than one unit only to levels that would have had none
        assert (
            abs(count / multiple - part * units) < 1 + sum(0 < other * units < 1 for other in shares) + 1e-9
        )


@given(weights=parts, factor=st.integers(1, 5))
def test_shares_that_come_out_even_are_met(weights: list[int], factor: int):
    rows = rows_per_level(share(weights), sum(weights) * factor)
    assert rows == tuple(factor * sum(weights[level:]) for level in range(len(weights)))


def test_the_released_mixed_batch():
    assert rows_per_level((1 / 3, 2 / 3), 12) == (12, 8)
    assert rows_per_level((0.01, 0.99), 4) == (4, 3)
    assert rows_per_level((0.5, 0.5), 5) == (5, 2)  # ties go to the lower level
    assert rows_per_level((0.0, 1.0), 4) == (4, 4)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="batch=10 is not a multiple of 4"):
        rows_per_level((0.0, 1.0), 10, 4)
    with pytest.raises(ValueError, match=r"batch=4 cannot give each of 2 levels .* use >= 8"):
        rows_per_level((0.5, 0.5), 4, 4)


@given(weights=parts, seed=st.integers(0, 9), step=st.integers(0, 9))
def test_samplers_give_one_share_a_level(weights: list[int], seed: int, step: int):
    count = len(weights)
    for sampler in (
        All(levels=count),
        Fixed(seed % count, levels=count),
        Mixed(share(weights), levels=count),
        Stochastic(share(weights), levels=count),
        Curriculum(share(weights), share(weights[::-1]), 6, levels=count),
        BySource(levels=count),
        BySource(share(weights), levels=count),
        Divided(tuple(weights)),
    ):
        assert isinstance(sampler, ResolutionSampler)
        shares = sampler.shares(seed, step)
        assert len(shares) == len(weights)
        assert math.fsum(shares) == pytest.approx(1)
    assert All(levels=3).shares(seed, step) == (0, 0, 1)


def test_mixed_shares_are_checked():
    assert Mixed(shares=[0.333, 0.667], levels=2).shares(0, 0) == (0.333, 0.667)
    assert Mixed(shares=[0.3333, 0.6666], levels=2).shares(0, 0) == pytest.approx((1 / 3, 2 / 3))
    with pytest.raises(ValueError, match="expected shares for 3 levels, low to high, got 2"):
        Mixed(shares=(0.5, 0.5), levels=3)
    for wrong in ((0.5, 0.6), (-0.5, 1.5)):
        with pytest.raises(ValueError, match="whose sum is 1"):
            Mixed(shares=wrong, levels=2)


@given(level=st.integers(0, 3), more=st.integers(0, 2), step=st.integers(0, 9))
def test_fixed_rows_all_stop_at_one_level(level: int, more: int, step: int):
    shares = Fixed(level, levels=level + 1 + more).shares(0, step)
    assert rows_per_level(shares, 6) == (6,) * (level + 1) + (0,) * more
    with pytest.raises(ValueError, match=f"expected one of the levels 0 to {level}, got {level + 1}"):
        Fixed(level + 1, levels=level + 1)


@given(weights=parts, seed=st.integers(0, 99))
def test_a_stochastic_step_has_one_level_drawn_by_its_probability(weights: list[int], seed: int):
    steps, probabilities = 400, share(weights)
    sampler = Stochastic(probabilities, levels=len(weights))
    drawn = [sampler.shares(seed, step) for step in range(steps)]
    assert {tuple(sorted(shares)) for shares in drawn} == {(0.0,) * (len(weights) - 1) + (1.0,)}
    for level, probability in enumerate(probabilities):
        count = sum(shares[level] for shares in drawn)
        # five standard deviations, and none where there is no chance
        assert abs(count - steps * probability) <= 5 * math.sqrt(steps * probability * (1 - probability))


def test_a_stochastic_draw_is_a_function_of_seed_and_step():
    one, other = (Stochastic((0.5, 0.5), levels=2) for _ in range(2))
    backwards = {step: other.shares(1, step) for step in reversed(range(64))}
    assert [one.shares(1, step) for step in range(64)] == [backwards[step] for step in range(64)]
    assert [one.shares(1, step) for step in range(64)] != [one.shares(2, step) for step in range(64)]


def test_sums_that_rounding_leaves_below_one_draw_no_level_without_probability():
    sampler = Stochastic((0.4995, 0.5, 0.0), levels=3)  # within 0.001 of 1
    assert all(sampler.shares(0, step)[2] == 0 for step in range(500))


@given(first=parts, last=parts, steps=st.integers(1, 50), step=st.integers(0, 120))
def test_a_curriculum_moves_straight(first: list[int], last: list[int], steps: int, step: int):
    levels = max(len(first), len(last))
    start, end = (share([0] * (levels - len(some)) + some) for some in (first, last))
    sampler = Curriculum(start, end, steps, levels=levels)
    assert sampler.shares(0, 0) == pytest.approx(start)
    assert sampler.shares(7, steps) == sampler.shares(0, steps + step) == pytest.approx(end)
    now = sampler.shares(0, step)
    for a, b, here in zip(start, end, now, strict=True):
        assert here == pytest.approx(a + (b - a) * min(step, steps) / steps)


def test_what_new_samplers_refuse():
    with pytest.raises(ValueError, match="expected probabilities for 3 levels, low to high, got 2"):
        Stochastic((0.5, 0.5), levels=3)
    with pytest.raises(ValueError, match="expected shares at the end >= 0 whose sum is 1"):
        Curriculum((0.5, 0.5), (0.5, 0.6), 10, levels=2)
    with pytest.raises(ValueError, match="expected steps >= 1, got 0"):
        Curriculum((0.5, 0.5), (0.5, 0.5), 0, levels=2)


@given(weights=parts, batch=st.integers(4, 12))
def test_factors_make_up_for_the_steps_that_a_level_misses(weights: list[int], batch: int):
    probabilities = share(weights)
    sampler = Stochastic(probabilities, levels=len(weights))
    expected = [0.0] * len(weights)
    for level, probability in enumerate(probabilities):
        rows = (batch,) * (level + 1)
        for r, factor in enumerate(level_factors(sampler, rows)):
            expected[r] += probability * factor if probability else 0.0
    top = max(r for r, weight in enumerate(weights) if weight)
    assert expected[: top + 1] == pytest.approx([1.0] * (top + 1))


def test_factors_are_one_where_every_step_reaches_the_same_levels():
    for sampler in (All(levels=2), Mixed((0.3, 0.7), levels=2), Curriculum((1, 0), (0, 1), 9, levels=2)):
        assert level_factors(sampler, (8, 3)) == (1.0, 1.0)


def test_the_steps_that_are_looked_at_hold_the_first_and_the_last():
    assert some_steps(3) == [0, 1, 2]
    assert some_steps(1000, count=2) == [0, 1, 999]
    assert some_steps(None, count=2) == [0, 1]


@given(weights=parts, units=st.integers(1, 9), multiple=st.integers(1, 4), start=st.integers(0, 10**6))
def test_divided_rows_are_exact_in_the_long_run(weights: list[int], units: int, multiple: int, start: int):
    sampler, batch, total = Divided(tuple(weights)), units * multiple, sum(weights)
    so_far = [0] * len(weights)
    for step in range(40):
        rows = step_rows(sampler, 0, step, batch, multiple)
        assert rows[0] == batch
        assert all(count % multiple == 0 for count in rows)
        assert list(rows) == sorted(rows, reverse=True)
        so_far = [before + count for before, count in zip(so_far, rows, strict=True)]
        for level, count in enumerate(so_far):
            ideal = (step + 1) * units * sum(weights[level:]) / total
            assert ideal - level - 1e-6 <= count / multiple <= ideal + 1e-6
    # whole rounds come out even, wherever they begin
    period = [step_rows(sampler, 0, start * total + step, batch, multiple) for step in range(total)]
    assert [sum(column) for column in zip(*period, strict=True)] == [
        batch * sum(weights[level:]) for level in range(len(weights))
    ]


@given(weights=parts, units=st.integers(1, 9))
def test_factors_let_every_divided_row_count_alike(weights: list[int], units: int):
    sampler, total = Divided(tuple(weights)), sum(weights)
    counted = [0.0] * len(weights)
    for step in range(total):
        reached = [count for count in sampler.rows(step, units) if count]
        for level, factor in enumerate(level_factors(sampler, reached)):
            counted[level] += factor
            assert factor / reached[level] == pytest.approx(total / units / sum(weights[level:]))
    top = max(level for level, weight in enumerate(weights) if weight)
    assert counted[: top + 1] == pytest.approx([total] * (top + 1))
    assert not any(counted[top + 1 :])


def test_by_source_over_data():
    assert BySource(levels=3).over((70, 0, 30)).parts == (70, 0, 30)
    assert BySource(levels=2).over(None).shares(0, 0) == (0, 1)
    assert BySource((0.25, 0.75), levels=2).over(None).shares(0, 0) == pytest.approx((0.25, 0.75))
    assert BySource((0.25, 0.75), levels=2).over((9, 3)).shares(0, 0) == pytest.approx((0.25, 0.75))
    with pytest.raises(ValueError, match="no picture is as large as level 2"):
        BySource(levels=3).over((70, 30, 0))
    with pytest.raises(ValueError, match="no picture is as large as level 1"):
        BySource((0.5, 0.5), levels=2).over((70, 0))
    with pytest.raises(ValueError, match="expected shares for 3 levels, low to high, got 2"):
        BySource((0.5, 0.5), levels=3)
    with pytest.raises(ValueError, match="batch=6 is not a multiple of 4"):
        step_rows(Divided((1, 1)), 0, 0, 6, 4)
