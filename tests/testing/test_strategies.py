"""What the strategies draw is what they say."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.testing import strategies


@given(strategies.resolutions(largest=48))
def test_resolutions_divide_each_other_and_grow(resolutions: tuple[tuple[int, int], ...]) -> None:
    assert all(1 <= side <= 48 for resolution in resolutions for side in resolution)
    for low, high in pairwise(resolutions):
        assert high[0] % low[0] == 0
        assert high[1] % low[1] == 0
        assert high != low


@given(st.data(), st.integers(1, 4))
def test_as_many_levels_as_asked_for(data: st.DataObject, levels: int) -> None:
    assert len(data.draw(strategies.resolutions(levels=levels))) == levels
    assert len(data.draw(strategies.shares(levels))) == levels


@given(strategies.shares(3))
def test_shares_sum_to_one(shares: tuple[float, ...]) -> None:
    assert abs(sum(shares) - 1) < 1e-9
    assert min(shares) >= 0


@given(strategies.resolutions(), strategies.seeds())
def test_a_pyramid_is_a_function_of_its_seed(resolutions: tuple[tuple[int, int], ...], seed: int) -> None:
    first, second = (strategies.pyramid_of(resolutions, seed=seed) for _ in range(2))
    assert [x.shape for x in first] == [(2, 3, *side) for side in resolutions]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
