"""Editing on cases that are known: perfect and Gaussian denoisers, and one that ties neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.pyramid import pyramid
from mdmkit.sampling import (
    Between,
    Known,
    Rule,
    Start,
    clip,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    heun,
    known_low,
    known_region,
    lcm,
    lms,
    none,
    sample_pyramid,
    unipc,
)
from mdmkit.sampling.seeds import noise_of
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.streams import normal
from tests.sampling.ideal import Counting, Gaussian, Perfect, Related

SIZES = [(4, 4), (8, 8), (16, 16)]
SHAPES = [(3, *size) for size in SIZES]
RULES = [ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, heun, lcm, lms, unipc]
diffusion = Diffusion(shift_levels(Cosine(), SIZES))
scaled = Diffusion(diffusion.schedules, scales=(1.0, 0.5, 0.25))
denoise = Gaussian(0.2, 0.4)
draw = partial(sample_pyramid, denoise, diffusion, SHAPES, steps=6)


def picture(seed: int = 0, size: Sequence[int] = SIZES[-1]) -> Tensor:
    return normal((1, 3, *size), seed, "picture").clamp(-1, 1)


def same(a: Sequence[Tensor], b: Sequence[Tensor], *, off: float = 0.0) -> bool:
    return all(float((x - y).abs().max()) <= off for x, y in zip(a, b, strict=True))


half = torch.zeros(1, 1, 16, 16)
half[..., :10] = 1


@pytest.mark.parametrize("process", [diffusion, scaled], ids=["plain", "scaled"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_known_comes_out(rule: Rule, process: Diffusion):
    """At every level, exactly but for rounding; what is not is drawn."""
    known = known_region(picture(), half, SIZES)
    z = sample_pyramid(
        Gaussian(0.2, 0.4), process, SHAPES, [1, 2], rule=rule, steps=6, known=known, threshold=clip
    )
    for level, wanted, mask in zip(z, known.pictures, known.masks, strict=True):
        off = (level - wanted).abs()
        assert float(off[mask.expand_as(off)].max()) < 1e-5
        assert float(off[~mask.expand_as(off)].mean()) > 0.1


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_of_ones_gives_the_picture_back_and_one_of_zeros_changes_nothing(rule: Rule):
    whole = known_region(picture(), torch.ones_like(half), SIZES)
    assert same(draw([3], rule=rule, known=whole), pyramid(picture(), SIZES), off=1e-6)
    nothing = known_region(picture(), torch.zeros_like(half), SIZES)
    assert same(draw([3], rule=rule, known=nothing), draw([3], rule=rule))


def test_the_known_part_goes_through_the_noise_and_the_rest_sees_it():
    """The known part of z is the forward process of it with the seed's own noise; flat pictures follow it,
    the more closely with fresh noise."""
    sizes = [(2, 2), (4, 4)]
    tone = 0.64 * torch.ones(16, 16, dtype=torch.float64) + 1e-4 * torch.eye(16, dtype=torch.float64)
    seen: list[Any] = []
    data = Related(tone, sizes)

    def watch(z: Any, at: Any) -> Any:
        seen.append((at, z[-1]))
        return data(z, at)

    x0 = torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    process = Diffusion(shift_levels(Cosine(), sizes))
    follow = partial(
        sample_pyramid,
        diffusion=process,
        shapes=[(1, *size) for size in sizes],
        steps=40,
        known=known_region(x0, mask, sizes),
        dtype=torch.float64,
        threshold=none,
    )
    follow(watch, seeds=[4])
    for at, noisy in seen[1:]:
        eps = (noisy - at.alpha[1] * x0) / at.sigma[1]
        noise = normal((1, 4, 4), 4, 0, 1, "sample", dtype=torch.float64)
        torch.testing.assert_close(eps[0, :, :2], noise[:, :2], rtol=0, atol=1e-3)
    drawn, fresh = (follow(data, seeds=range(16), rule=rule)[1][..., 2:, :] for rule in (ddim, dpmpp_2m_sde))
    assert float(fresh.mean()) == pytest.approx(0.7, abs=0.05)
    assert float((fresh - 0.7).abs().mean()) < float((drawn - 0.7).abs().mean()) / 2 < 0.1


@pytest.mark.parametrize("rule", [ddim, dpmpp_2m_sde])
def test_going_back_over_stretches_fits_the_rest_to_what_is_known(rule: Rule):
    """Pictures of one tone: given a half of them, the rest has that tone; each pass costs its steps."""
    sizes = [(2, 2), (4, 4)]
    tone = 0.64 * torch.ones(16, 16, dtype=torch.float64) + 1e-4 * torch.eye(16, dtype=torch.float64)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    region = known_region(torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64), mask, sizes)
    process = Diffusion(shift_levels(Cosine(), sizes))

    def off(known: Known, seeds: Sequence[int] = range(24)) -> tuple[Tensor, int]:
        asked = Counting(Related(tone, sizes))
        shapes = [(1, *size) for size in sizes]
        _, high = sample_pyramid(
            asked,
            process,
            shapes,
            seeds,
            rule=rule,
            steps=20,
            known=known,
            dtype=torch.float64,
            threshold=none,
        )
        return (high[..., 2:, :] - 0.7).abs(), len(asked.ran)

    once, evaluations = off(region)
    thrice, more = off(attrs.evolve(region, passes=3, jump=5))
    assert float(thrice.mean()) < (0.5 if rule is ddim else 0.8) * float(once.mean())
    assert (evaluations, more) == (20, 5 + 3 * 15)
    # nothing but the noise of the seed, whatever the batch
    alone, _ = off(attrs.evolve(region, passes=3, jump=5), [7])
    assert torch.allclose(alone[0], thrice[7], atol=1e-9)


def test_each_pass_has_noise_of_its_own():
    seen: list[Tensor] = []

    def watch(denoise: Any, z: Any, path: Any, noise: Any) -> Any:
        seen.append(noise(0, 0))
        return ddpm(denoise, z, path, noise)

    known = attrs.evolve(known_region(picture(), half, SIZES), passes=3, jump=2)
    draw([1], rule=watch, known=known)
    assert len(seen) == 1 + 3 + 3
    assert all(float((a - b).abs().max()) > 0.1 for i, a in enumerate(seen) for b in seen[:i])


@given(top=st.integers(0, 15), left=st.integers(0, 15), seed=st.integers(0, 99))
def test_an_inner_pixel_is_known_where_all_of_it_is(top: int, left: int, seed: int):
    """What lies under the zeros of a mask, as black from a drawing program, is never seen."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., top:, left:] = 1
    one = known_region(picture(seed), mask, SIZES)
    other = known_region(torch.where(mask == 1, picture(seed), picture(seed + 1)), mask, SIZES)
    for level, (height, _) in enumerate(SIZES):
        side = 16 // height
        inside = torch.zeros(height, height, dtype=torch.bool)
        inside[-(-top // side) :, -(-left // side) :] = True
        assert torch.equal(one.masks[level][0, 0], inside)
        for known in (one, other):
            assert torch.equal(known.pictures[level][..., inside], one.pictures[level][..., inside])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_super_resolution_keeps_the_low_picture(level: int):
    low = picture(5, SIZES[level])
    known = known_low(low, SIZES)
    assert len(known.pictures) == level + 1
    z = draw([1, 2], known=known)
    for inner, wanted in zip(z, pyramid(low, SIZES[: level + 1]), strict=False):
        torch.testing.assert_close(inner, wanted.expand_as(inner), rtol=0, atol=1e-6)
    assert all(
        not torch.equal(outer[0], outer[1]) for outer in z[level + 1 :]
    )


@pytest.mark.parametrize("scales", [None, (1.0, 0.6)])
@pytest.mark.parametrize("rule", [dpmpp_2m, dpmpp_2m_sde])
def test_an_outer_level_has_the_low_picture_as_its_average(rule: Rule, scales: Any):
    """And detail of its own, of the data's variance."""
    sizes = [(2, 2), (4, 4)]
    cells = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    cells = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
    data = Related(0.25 * cells.T @ cells + 0.04 * torch.eye(16, dtype=torch.float64), sizes, scales)
    low = torch.tensor([[[[0.8, -0.5], [0.1, 0.4]]]], dtype=torch.float64)
    z = sample_pyramid(
        data,
        Diffusion(shift_levels(Cosine(), sizes), scales=scales),
        [(1, *size) for size in sizes],
        list(range(60)),
        rule=rule,
        steps=60,
        known=known_low(low, sizes),
        dtype=torch.float64,
        threshold=none,
    )
    pooled = pyramid(z[1], sizes)[0]
    torch.testing.assert_close(pooled, low.expand_as(pooled), rtol=0, atol=1e-9)
    detail = z[1] - low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(detail.square().mean()) == pytest.approx(0.04 * 3 / 4, rel=0.15)


@pytest.mark.parametrize("rule", RULES)
def test_strength_0_is_the_picture_and_1_is_another(rule: Rule):
    pictures = pyramid(picture(), SIZES)
    assert same(draw([7], rule=rule, start=Start(pictures, 0.0)), pictures)
    assert same(draw([7], rule=rule, start=Start(pictures, 1.0)), draw([7], rule=rule))
    known = Perfect(pictures)
    z = sample_pyramid(known, diffusion, SHAPES, [7], rule=rule, steps=6, start=Start(pictures, 0.45))
    assert same(z, pictures, off=1e-5)
    at, noisy = known.seen[0]
    assert at.t == 0.45
    for level in range(3):
        noise = normal(SHAPES[level], 7, 0, level, "sample")
        torch.testing.assert_close(
            noisy[level][0], at.alpha[level] * pictures[level][0] + at.sigma[level] * noise
        )


def test_a_stronger_variation_is_further_away_and_cheaper_ones_cost_less():
    pictures = tuple(torch.full((1, *shape), 0.9) for shape in SHAPES)
    away, cost = [], []
    for strength in (0.1, 0.4, 0.8):
        counted = Counting(denoise)
        z = sample_pyramid(counted, diffusion, SHAPES, [0], steps=20, start=Start(pictures, strength))
        away.append(float((z[-1] - 0.9).abs().mean()))
        cost.append(counted.of_level(0))
    assert away == sorted(away)
    assert away[-1] > 2 * away[0] > 0
    assert cost == [2, 8, 16]


def test_variations_have_the_distribution_of_the_data():
    """Noisy data of a Gaussian, taken back, are that Gaussian's again."""
    process = Diffusion(shift_levels(Cosine(), [32, 64]))
    shapes = [(3, 32, 32), (3, 64, 64)]
    x0 = tuple(0.2 + 0.4 * normal((1, *shape), 9, "data") for shape in shapes)
    z = sample_pyramid(denoise, process, shapes, [0], steps=60, start=Start(x0, 0.6), threshold=none)
    for level in z:
        assert level.mean().item() == pytest.approx(0.2, abs=0.02)
        assert level.std().item() == pytest.approx(0.4, rel=0.04)


def test_edits_go_together_and_with_levels_that_join():
    start = Start(pyramid(picture(1), SIZES), 0.9)
    known = known_region(picture(1), half, SIZES)
    z = draw([2], start=start, known=known, outer_from=-1.0)
    for level, wanted, mask in zip(z, known.pictures, known.masks, strict=True):
        assert float((level - wanted).abs()[mask.expand_as(level)].max()) < 1e-5
    assert len(draw([2], start=start, known=known, levels=1)) == 1


@pytest.mark.parametrize("rule", [ddim, ddpm])
@settings(max_examples=10)
@given(first=st.integers(0, 2**40), second=st.integers(0, 2**40))
def test_between_two_seeds_the_ends_are_their_pictures(rule: Rule, first: int, second: int):
    ends = draw([first, second], rule=rule)
    z = draw([Between(first, second, w) for w in (0.0, 0.3, 1.0)], rule=rule)
    for level, end in zip(z, ends, strict=True):
        assert torch.equal(level[0], end[0])
        assert torch.equal(level[2], end[1])
        assert first == second or not torch.equal(level[1], level[0])
    assert same(draw([Between(first, first, 0.5)], rule=rule), draw([first], rule=rule))


@given(weight=st.floats(0, 1))
def test_noise_between_two_seeds_is_noise(weight: float):
    noise = noise_of(Between(1, 2, weight), lambda seed: normal((20_000,), seed))
    assert noise.mean().item() == pytest.approx(0, abs=0.04)
    assert noise.std().item() == pytest.approx(1, abs=0.04)


def test_between_two_seeds_pictures_change_little_by_little():
    z = draw([Between(1, 2, w / 8) for w in range(9)])[-1]
    steps = [float((a - b).square().mean()) for a, b in pairwise(z)]
    whole = float((z[0] - z[-1]).square().mean())
    assert max(steps) < whole / 4


def test_a_picture_a_row_and_one_for_all():
    rows = torch.cat([picture(1), picture(2)])
    z = draw([0, 1], known=known_region(rows, torch.ones(1, 1, 16, 16), SIZES))
    assert same(z, pyramid(rows, SIZES), off=1e-6)


MASKS = [torch.ones(1, 1, *size, dtype=torch.bool) for size in SIZES]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda: Start(pyramid(picture(), SIZES), 1.2),
         "expected strength in [0, 1], got 1.2; 0 is the picture itself, 1 another one"),
        (lambda: draw([0], start=Start(pyramid(picture(), SIZES[:2]))),
         "expected pictures to start from at 3 levels, got 2; mdmkit.pyramid.pyramid makes them of one"),
        (lambda: draw([0], start=Start(pyramid(picture(), [8, 8, 8]))),
         "expected a picture to start from (1, 3, 4, 4) at level 0, got (1, 3, 8, 8)"),
        (lambda: draw([0, 1, 2], start=Start(pyramid(picture().expand(2, -1, -1, -1), SIZES))),
         "expected a picture to start from (1 or 3, 3, 4, 4) at level 0, got (2, 3, 4, 4)"),
        (lambda: known_region(picture(), half[..., :8], SIZES),
         "expected a mask of the picture's size, (16, 16), got (16, 8); resize one of the two"),
        (lambda: known_region(picture(), half * 0.5, SIZES),
         "expected a mask of 0 (drawn) and 1 (known), got values from 0 to 0.5; compare it with 0.5"),
        (lambda: known_low(picture(0, (5, 4)), SIZES),
         "expected a picture of a level's size, one of (4, 4), (8, 8), (16, 16), got (5, 4); resize it"),
        (lambda: Known(pyramid(picture(), SIZES), MASKS[:2]), "expected a mask for each of 3 levels, got 2"),
        (lambda: Known(pyramid(picture(), SIZES), MASKS, passes=0),
         "expected passes and jump of at least 1, got 0 and 5; 1 pass goes back nowhere"),
        (lambda: Known(pyramid(picture(), SIZES[:1]), MASKS[1:2]),
         "expected a bool mask (1 or 1, 1 or 3, 4, 4) at level 0, as the picture is, got (1, 1, 8, 8) bool"),
        (lambda: Known(pyramid(picture(), SIZES[:1]), [MASKS[0].float()]),
         "expected a bool mask (1 or 1, 1 or 3, 4, 4) at level 0, as the picture is, "
         "got (1, 1, 4, 4) float32"),
        (lambda: draw([0], known=Known(pyramid(picture(), SIZES[1:]), MASKS[1:])),
         "expected a known picture (1, 3, 4, 4) at level 0, got (1, 3, 8, 8)"),
        (lambda: Between(1, 2, -0.1), "expected weight in [0, 1], from seed 1 to 2, got -0.1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(wrong: Any, line: str):
    with pytest.raises(ValueError, match="expected ") as error:
        wrong()
    assert str(error.value) == line
