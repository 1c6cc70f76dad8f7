"""Canvases larger than trained: windows that all see one picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import Denoised, Rule, Windows, ddim, ddpm, dpmpp_2m, known_region, sample_pyramid
from mdmkit.sampling.windows import starts
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.streams import normal
from tests.sampling.ideal import Gaussian, with_eps

TRAINED = [(4, 4), (8, 8), (16, 32)]
diffusion = Diffusion(shift_levels(Cosine(), TRAINED))


def shapes(height: int, width: int) -> list[tuple[int, int, int]]:
    """A canvas, by the sides of its level 0."""
    return [(3, height, width), (3, 2 * height, 2 * width), (3, 4 * height, 8 * width)]


def draw(denoise: Any, canvas: Sequence[tuple[int, int, int]], **how: Any) -> tuple[Tensor, ...]:
    return sample_pyramid(denoise, diffusion, canvas, [1, 2], steps=5, **how)


@pytest.mark.parametrize("rule", [ddim, ddpm, dpmpp_2m])
@pytest.mark.parametrize("outer_from", [None, -1.0])
@settings(max_examples=5)
@given(height=st.integers(4, 9), width=st.integers(4, 9), overlap=st.floats(0, 0.9))
def test_what_sees_each_pixel_alone_sees_no_windows(
    rule: Rule, outer_from: float | None, height: int, width: int, overlap: float
):
    seen: set[tuple[int, ...]] = set()
    denoise = Gaussian(0.1, 0.4)

    def watch(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        seen.update((r, *level.shape[2:]) for r, level in enumerate(z))
        return denoise(z, at)

    canvas = shapes(height, width)
    windows = Windows(TRAINED, overlap).wrap(lambda: watch)
    z = draw(windows, canvas, rule=rule, outer_from=outer_from)
    for level, whole in zip(z, draw(denoise, canvas, rule=rule, outer_from=outer_from), strict=True):
        torch.testing.assert_close(level, whole, rtol=0, atol=1e-4)
    assert seen == {(r, *size) for r, size in enumerate(TRAINED)}


def tied(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
    """Each picture is its own average, at every level that of the innermost."""
    mean = (z[0] / at.alpha[0]).mean((1, 2, 3), keepdim=True).clamp(-1, 1)
    return with_eps([mean.expand_as(level) for level in z], z, at)


def test_a_canvas_of_a_windows_size_is_the_plain_picture():
    canvas = [(3, *size) for size in TRAINED]
    windowed = draw(Windows(TRAINED).wrap(lambda: tied), canvas)
    for level, plain in zip(windowed, draw(tied, canvas), strict=True):
        assert torch.equal(level, plain)


def test_windows_are_the_same_piece_at_every_level():
    """A denoiser that knows one picture by its window's place in it would see a shift of any level."""
    canvas = shapes(7, 9)
    where = [
        torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))[None].float()
        / torch.tensor([h / 7, w / 9]).view(1, 2, 1, 1)
        for _, h, w in canvas
    ]
    corners = []

    def watch(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        corners.append([tuple(level[0, :, 0, 0].tolist()) for level in z])
        return with_eps([torch.zeros_like(level) for level in z], z, at)

    Windows(TRAINED, 0.5).wrap(lambda: watch)(where, diffusion.at(0.5))
    assert [levels[0] for levels in corners] == [(a, b) for a in (0, 2, 3) for b in (0, 2, 4, 5)]
    assert all(levels == [levels[0]] * 3 for levels in corners)


def test_neighbours_agree_where_they_overlap():
    """Windows apart are pictures of their own; overlapping ones go over into each other."""
    canvas = shapes(4, 16)
    jumps = []
    for overlap in (0.0, 0.75):
        z = draw(Windows(TRAINED, overlap).wrap(lambda: tied), canvas)[0]
        jumps.append(float((z[..., 1:] - z[..., :-1]).abs().amax()))
    assert jumps[1] < jumps[0] / 1.5


def test_each_window_has_a_denoiser_of_its_own():
    made: list[list[float]] = []

    def make() -> Any:
        mine: list[float] = []
        made.append(mine)

        def denoise(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
            mine.append(at.t)
            return tied(z, at)

        return denoise

    draw(Windows(TRAINED, 0.5).wrap(make), shapes(4, 8))
    assert made == [pytest.approx([1, 0.8, 0.6, 0.4, 0.2])] * 3


def test_a_known_part_of_a_canvas_comes_out():
    canvas = shapes(6, 6)
    picture = normal((1, *canvas[-1]), 0, "picture").clamp(-1, 1)
    mask = torch.zeros(1, 1, *canvas[-1][1:])
    mask[..., :16] = 1
    known = known_region(picture, mask, [shape[1:] for shape in canvas])
    z = draw(Windows(TRAINED).wrap(lambda: tied), canvas, known=known)
    torch.testing.assert_close(z[-1][..., :16], picture[..., :16].expand(2, -1, -1, -1), rtol=0, atol=1e-5)


@given(canvas=st.integers(1, 40), window=st.integers(1, 40), overlap=st.floats(0, 0.99))
def test_windows_cover_a_side(canvas: int, window: int, overlap: float):
    canvas = max(canvas, window)
    found = starts(canvas, window, overlap)
    assert found == sorted(set(found))
    assert {pixel for start in found for pixel in range(start, start + window)} == set(range(canvas))


def test_what_does_not_fit_is_refused():
    for overlap in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"expected overlap in .*, got {overlap}"):
            Windows(TRAINED, overlap)
    ask = partial(draw, Windows(TRAINED[:2]).wrap(lambda: tied))
    for canvas in ([(3, 3, 4), (3, 6, 8)], [(3, 4, 4), (3, 8, 9)]):
        with pytest.raises(ValueError, match=r"expected a canvas of at least \(4, 4\) at level 0, .*, got "):
            ask(canvas)
