from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.grid import grid_side, pack, unpack
from mdmkit.pyramid import pool, pool_grid, pyramid

sides = st.integers(1, 4)
seeds = st.integers(0, 99)


def clip(frames: int, size: tuple[int, int], seed: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, frames, 3, *size, generator=generator, dtype=torch.float64)


@given(side=sides, size=st.tuples(sides, sides), seed=seeds)
def test_frames_stand_line_by_line(side: int, size: tuple[int, int], seed: int):
    frames = clip(side * side, size, seed)
    picture = pack(frames.flatten(0, 1), side * side)
    lines = [torch.cat(list(frames[:, n * side : (n + 1) * side].unbind(1)), -1) for n in range(side)]
    assert torch.equal(picture, torch.cat(lines, -2))
    assert torch.equal(unpack(picture, side * side), frames.flatten(0, 1))


def test_one_frame_is_the_picture_itself():
    x = torch.ones(1, 3, 5, 7)
    assert pack(x, 1) is x
    assert unpack(x, 1) is x


@pytest.mark.parametrize("frames", [0, -1, 2, 3, 8, 15])
def test_frames_that_are_no_square_are_refused(frames: int):
    with pytest.raises(ValueError, match=rf"expected frames of 1, 4, 9, 16 ..., got {frames}"):
        grid_side(frames)


def test_pictures_that_frames_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="expected a picture that 4 x 4 frames divide, got 8 x 10"):
        unpack(torch.ones(1, 3, 8, 10), 16)


@given(size=st.tuples(sides, sides), seed=seeds)
def test_a_pyramid_of_grids_keeps_the_first_frames_and_pools_their_pixels(size: tuple[int, int], seed: int):
    frames = clip(16, (2 * size[0], 2 * size[1]), seed)
    (h, w), x = size, pack(frames.flatten(0, 1), 16)
    low, middle, wide, high = pyramid(
        x, [(h, w), (2 * h, 2 * w), (4 * h, 4 * w), (8 * h, 8 * w)], [2, 2, 2, 1], frames=(1, 4, 16, 16)
    )
    assert torch.equal(high, x[:1])
    assert torch.equal(wide, pool(x, (4 * h, 4 * w)))
    assert torch.equal(low, pool(frames[:, 0], size))
    assert torch.equal(unpack(middle, 4), pool(frames[:, ::4].flatten(0, 1), size))
    # and it composes, so that a level more moves none
    assert torch.equal(pool_grid(middle, size, (4, 1)), low)
    # fewer levels of the same picture
    assert torch.equal(pyramid(x, [(h, w)], frames=(1, 4, 16, 16))[0], low)


def test_frames_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="expected a number of frames that divides 9, got 4"):
        pyramid(torch.ones(1, 3, 9, 9), [6, 9], frames=(4, 9))
