"""Clips are drawn as pictures are: pyramids with frames, known frames, and clips longer than trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import pool, pyramid
from mdmkit.sampling import Denoised, Windows, ddim, ddpm, dpmpp_2m, known_frames, known_low, sample_pyramid
from mdmkit.sampling.draw import Drawing, draw
from mdmkit.sampling.spacing import uniform_t
from mdmkit.sampling.threshold import clip
from mdmkit.schedules import Cosine, shift_levels
from tests.nn.nests import stir
from tests.nn.test_clips import clip_nest
from tests.sampling.ideal import Gaussian, Perfect, with_eps

SIZES = [(2, 4, 4), (8, 4, 4), (8, 8, 12)]
SHAPES = [(3, *size) for size in SIZES]
diffusion = Diffusion(shift_levels(Cosine(), SIZES))


def clips(seed: int = 0, rows: int = 1, size: Sequence[int] = SIZES[-1]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, *size, generator=generator) * 2 - 1


@pytest.mark.parametrize("rule", [ddim, ddpm, dpmpp_2m])
@pytest.mark.parametrize("outer_from", [None, -1.0])
def test_who_knows_the_clip_draws_it(rule: Any, outer_from: float | None):
    x0 = pyramid(clips(rows=2), SIZES)
    z = sample_pyramid(Perfect(x0), diffusion, SHAPES, [1, 2], rule=rule, steps=6, outer_from=outer_from)
    for level, truth in zip(z, x0, strict=True):
        torch.testing.assert_close(level, truth, rtol=0, atol=2e-3)


def test_a_clip_does_not_depend_on_its_batch_mates_and_has_noise_for_each_frame():
    denoise = Gaussian(0.1, 0.4)
    both = sample_pyramid(denoise, diffusion, SHAPES, [1, 2], rule=ddpm, steps=4)
    alone = sample_pyramid(denoise, diffusion, SHAPES, [2], rule=ddpm, steps=4)
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a[1:], b)
    frames = both[-1][0].unbind(1)
    assert not any(torch.equal(frames[0], other) for other in frames[1:])


GIVEN = {"a picture": [0], "what came before": [0, 1, 2], "both ends": [0, -1], "all": list(range(8))}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("pick", [False, True])
@pytest.mark.parametrize("rule", [ddim, ddpm])
def test_frames_that_are_given_come_out(name: str, pick: bool, rule: Any):
    places, truth = GIVEN[name], clips(1)
    known = known_frames({place: truth[:, :, place] for place in places}, SIZES, pick=pick)
    z = sample_pyramid(Gaussian(0.1, 0.4), diffusion, SHAPES, [1, 2], rule=rule, steps=4, known=known)
    torch.testing.assert_close(z[2][:, :, places], truth[:, :, places].expand(2, -1, -1, -1, -1))
    middle = pool(truth, SIZES[1])
    torch.testing.assert_close(z[1][:, :, places], middle[:, :, places].expand(2, -1, -1, -1, -1))
    for f in set(range(8)) - {place % 8 for place in places}:
        assert not torch.allclose(z[2][:1, :, f], truth[:, :, f], atol=0.1)
    # of the two frames inside: the average of four each, or the first of four
    taken = {place % 8 for place in places}
    sure = [f for f in (0, 1) if (4 * f in taken if pick else taken.issuperset(range(4 * f, 4 * f + 4)))]
    low = pool(truth, SIZES[0], pick=pick)
    torch.testing.assert_close(z[0][:, :, sure], low[:, :, sure].expand(2, -1, -1, -1, -1))
    assert sure == {"all": [0, 1]}.get(name, [0] if pick else [])


@pytest.mark.parametrize("pick", [False, True])
def test_a_low_clip_is_kept_inside_a_higher_one(pick: bool):
    truth = clips(2, size=SIZES[0])
    known = known_low(truth, SIZES, pick=pick)
    z = sample_pyramid(Gaussian(0.1, 0.4), diffusion, SHAPES, [1], rule=ddpm, steps=4, known=known)
    torch.testing.assert_close(z[0], truth)
    for level in z[1:]:
        torch.testing.assert_close(pool(level, SIZES[0], pick=pick), truth, rtol=0, atol=0.02)


def test_frames_that_do_not_fit_are_refused():
    frame = torch.zeros(1, 3, 8, 12)
    with pytest.raises(ValueError, match="places in a clip of 8 frames, got 8"):
        known_frames({8: frame}, SIZES)
    with pytest.raises(ValueError, match=r"expected frames of \(8, 12\), got \(4, 12\)"):
        known_frames({0: frame[:, :, :4]}, SIZES)
    with pytest.raises(ValueError, match="got 0 of"):
        known_frames({}, SIZES)
    with pytest.raises(ValueError, match="expected frames of a clip"):
        known_frames({0: frame}, [(4, 4), (8, 12)])


def longer(times: int, one_inner: bool) -> list[tuple[int, int, int, int]]:
    """Shapes of a clip so many quarters of the trained length longer."""
    more = [2 if one_inner else 2 + times, *(8 + 4 * times,) * 2]
    return [(3, f, *size[1:]) for f, size in zip(more, SIZES, strict=True)]


@settings(max_examples=8, deadline=None)
@given(times=st.integers(0, 4), one_inner=st.booleans(), overlap=st.floats(0, 0.9))
def test_what_sees_each_frame_alone_sees_no_windows(times: int, one_inner: bool, overlap: float):
    seen: set[tuple[int, ...]] = set()
    denoise = Gaussian(0.1, 0.4)

    def watch(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        seen.update((r, *level.shape[2:]) for r, level in enumerate(z))
        return denoise(z, at)

    shapes = longer(times, one_inner)
    windows = Windows(SIZES, overlap).wrap(lambda: watch)
    made = (sample_pyramid(one, diffusion, shapes, [1, 2], steps=3) for one in (windows, denoise))
    for level, whole in zip(*made, strict=True):
        torch.testing.assert_close(level, whole, rtol=0, atol=1e-4)
    assert seen == {(r, *size) for r, size in enumerate(SIZES)}


def tied(z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
    """Every frame is the average of the inner clip."""
    mean = z[0].mean((1, 2, 3, 4), keepdim=True).clamp(-1, 1)
    return with_eps([mean.expand_as(level) for level in z], z, at)


def test_one_inner_clip_holds_a_longer_one_together():
    spread = []
    for one_inner in (True, False):
        windows = Windows(SIZES, 0.5).wrap(lambda: tied)
        z = sample_pyramid(windows, diffusion, longer(3, one_inner), [1], steps=6)
        spread.append(float(z[-1].mean((1, 3, 4)).std()))
    assert spread[0] < 1e-3 < spread[1]


def test_a_canvas_that_windows_do_not_fit_is_refused():
    ask = Windows(SIZES).wrap(lambda: tied)
    for frames in ((2, 12, 8), (3, 8, 8), (1, 8, 8), (4, 12, 12)):
        z = [torch.zeros(1, 3, f, *size[1:]) for f, size in zip(frames, SIZES, strict=True)]
        with pytest.raises(ValueError, match="expected a canvas"):
            ask(z, diffusion.at(0.5))


def drawing(**said: Any) -> Drawing:
    return Drawing(rule=ddpm, spacing=uniform_t, threshold=clip, steps=2, **said)


def test_a_network_draws_clips_pictures_and_longer_clips():
    nest = stir(clip_nest()).float()
    for p in nest.parameters():
        p.requires_grad_(False)
    nest.get_submodule("levels.0").text = None  # type: ignore[assignment]  # it reads no text here
    sizes = [(1, 8, 12), (4, 8, 12), (8, 16, 24)]
    process = Diffusion(shift_levels(Cosine(), sizes))

    def drawn(wanted: Sequence[Sequence[int]], **said: Any) -> list[tuple[Tensor, ...]]:
        return draw(nest, None, process, drawing(), resolutions=wanted, captions=["", ""], **said)

    both = drawn(sizes)
    assert [tuple(level.shape) for level in both[0]] == [(3, *size) for size in sizes]
    for a, b in zip(drawn(sizes, batch=1)[1], both[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    pictures = drawn([(1, *size[1:]) for size in sizes])
    assert [tuple(level.shape) for level in pictures[0]] == [(3, 1, *size[1:]) for size in sizes]
    long = [(1, 8, 12), (8, 8, 12), (16, 16, 24)]
    made = drawn(long, windows=Windows(sizes))
    assert [tuple(level.shape) for level in made[0]] == [(3, *size) for size in long]
    first = both[0][-1][None, :, 0]
    known = known_frames({0: first}, sizes)
    assert torch.equal(drawn(sizes, known=known)[1][-1][:, 0], first[0])
