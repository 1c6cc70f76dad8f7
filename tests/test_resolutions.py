from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.resolutions import All, Mixed, ResolutionSampler, rows_per_level

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
    for sampler in (Mixed(share(weights), levels=len(weights)), All(levels=len(weights))):
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
