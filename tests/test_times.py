from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.times import TimeSampler, UniformTime

wide = torch.float64

stratified = pytest.mark.parametrize("sampler", [UniformTime(), UniformTime(stratified=True)])


@stratified
@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40), batch=st.integers(1, 33), data=st.data())
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(
    sampler: UniformTime, seed: int, step: int, batch: int, data: st.DataObject
):
    everything = sampler.draw(seed, step, list(range(batch)), batch)
    part = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
    torch.testing.assert_close(sampler.draw(seed, step, part, batch), everything[part], rtol=0, atol=0)
    assert everything.dtype == wide
    assert ((everything > 0) & (everything <= 1)).all()
    assert isinstance(sampler, TimeSampler)


@stratified
def test_times_are_uniform_and_differ_by_seed_step_and_position(sampler: UniformTime):
    t = torch.stack([sampler.draw(0, step, range(40), 40) for step in range(60)]).numpy()
    assert len(np.unique(t)) == t.size
    # the density is 1: the quantiles of 2400 draws are the numbers themselves, to five standard errors
    assert np.abs(np.quantile(t, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.05
    # also at one place of the batch, so that a level that trains the first rows only misses no times
    assert abs(t[:, 0].mean() - 0.5) < 5 * 0.29 / 60**0.5
    assert (sampler.density(torch.rand(3)) == 1).all()


@given(seed=st.integers(0, 99), batch=st.integers(1, 50))
def test_stratified_draws_have_one_in_each_part(seed: int, batch: int):
    t = UniformTime(stratified=True).draw(seed, 3, range(batch), batch)
    assert torch.equal((t * batch).ceil().long().sort().values, torch.arange(1, batch + 1))


def test_stratified_positions_must_be_in_the_batch():
    with pytest.raises(ValueError, match=r"expected positions in a batch of 4, got 0 \.\. 4"):
        UniformTime(stratified=True).draw(0, 0, [0, 4], 4)
