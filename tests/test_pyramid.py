from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.pyramid import normalize_resolution, pool, pyramid, ratio

axes = st.integers(2, 3)


def sizes(data: st.DataObject, number: int) -> list[tuple[int, ...]]:
    """Sizes low to high, any integer ratio an axis."""
    axis = data.draw(axes)
    chain = [tuple(data.draw(st.integers(1, 3)) for _ in range(axis))]
    for _ in range(number - 1):
        chain.append(tuple(side * data.draw(st.integers(1, 3)) for side in chain[-1]))
    return chain


def picture(size: tuple[int, ...], rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(data=st.data(), seed=st.integers(0, 99))
def test_pooling_composes_and_keeps_the_mean(data: st.DataObject, seed: int):
    low, middle, high = sizes(data, 3)
    x = picture(high, seed=seed)
    torch.testing.assert_close(pool(pool(x, middle), low), pool(x, low), rtol=1e-12, atol=1e-12)
    space = tuple(range(2, x.ndim))
    torch.testing.assert_close(pool(x, low).mean(space), x.mean(space), rtol=1e-12, atol=1e-12)
    assert ratio(high, low) == tuple(
        a * b for a, b in zip(ratio(high, middle), ratio(middle, low), strict=True)
    )


@given(data=st.data(), seed=st.integers(0, 99))
def test_pooling_undoes_repetition(data: st.DataObject, seed: int):
    low, high = sizes(data, 2)
    x = picture(low, seed=seed)
    repeated = x
    for axis, factor in enumerate(ratio(high, low), start=2):
        repeated = repeated.repeat_interleave(factor, dim=axis)
    torch.testing.assert_close(pool(repeated, low), x, rtol=1e-12, atol=1e-12)


@given(data=st.data())
def test_a_level_more_disturbs_no_level_and_rows_are_the_first(data: st.DataObject):
    chain = sizes(data, 3)
    x = picture(chain[-1], rows=5)
    whole = pyramid(x, chain)
    assert [level.shape[2:] for level in whole] == [torch.Size(size) for size in chain]
    assert whole[-1] is x or torch.equal(whole[-1], x)
    for alone, together in zip(pyramid(x, chain[:-1]), whole[:-1], strict=True):
        assert torch.equal(alone, together)
    for part, level, count in zip(pyramid(x, chain, rows=(5, 2, 1)), whole, (5, 2, 1), strict=True):
        assert torch.equal(part, level[:count])


def test_a_resolution_is_a_side_or_height_and_width():
    assert normalize_resolution(16) == (16, 16)
    assert normalize_resolution([16, 24]) == (16, 24)
    assert normalize_resolution((4, 16, 24)) == (4, 16, 24)
    for wrong in (0, (16,), (4, -1), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="expected a side"):
            normalize_resolution(wrong)


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"size \(50, 64\) is not an integer multiple of \(16, 16\) .* try \(48, 64\)"
    ):
        ratio((50, 64), (16, 16))
    with pytest.raises(ValueError, match="2 and 3 axes"):
        ratio((64, 64), (4, 16, 16))
    with pytest.raises(ValueError, match="not an integer multiple"):
        pool(picture((8, 8)), (16, 16))
    with pytest.raises(ValueError, match="expected rows for 2 levels, got 1"):
        pyramid(picture((8, 8)), [4, 8], rows=[2])
