from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdmkit.growth import Growth, NoGrowth, Stage


@given(levels=st.integers(1, 5), step=st.integers(0, 10**9))
def test_without_growth_there_is_one_stage_with_all_levels(levels: int, step: int):
    assert NoGrowth(levels=levels).stage(step) == Stage(index=0, levels=levels, step=step)
    assert isinstance(NoGrowth(levels=levels), Growth)
