"""Levels that a model is given: what its network sees, what comes out, and models in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import (
    Denoised,
    Regions,
    Rule,
    Start,
    Windows,
    clip,
    ddim,
    ddpm,
    dpmpp_2m,
    heun,
    known_low,
    none,
    sample_pyramid,
    uniform_t,
)
from mdmkit.sampling.draw import Drawing, draw
from mdmkit.sampling.sequence import Link, draw_in_sequence
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.streams import normal
from mdmkit.targets import to_eps
from mdmkit.text import BytesEncoder
from tests.nn import nests
from tests.sampling.ideal import Perfect, Related

SIZES = [(8, 8), (16, 16)]
plain = Diffusion(shift_levels(Cosine(), SIZES))
process = attrs.evolve(plain, given=1, given_noise=0.2)
SMALL = [(1, 1), (2, 2)]


def picture(seed: int = 0, size: Sequence[int] = SIZES[0]) -> Tensor:
    return normal((1, 3, *size), seed, "picture").clamp(-1, 1)


@attrs.frozen
class RelatedTo:
    """E[x_1 | z_1, y] of Gaussian pictures, y = sqrt(1 - s^2) x_0 + s noise being what is given."""

    ideal: Related
    noise: float

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        kept = (1 - self.noise**2) ** 0.5
        shown = NoiseLevel(at.t, (kept, *at.alpha[1:]), (self.noise, *at.sigma[1:]))
        x0 = self.ideal(z, shown).x0
        levels = zip(x0, z, at.alpha, at.sigma, strict=True)
        return Denoised(x0, tuple(to_eps(x, noisy, a, s, "x0") for x, noisy, a, s in levels))


@pytest.mark.parametrize("rule", [heun, dpmpp_2m])
def test_with_the_ideal_denoiser_the_rest_is_drawn_from_its_distribution_given_the_low_picture(rule: Rule):
    noise, rows = 0.5, 6
    cov = 0.05 * torch.eye(4, dtype=torch.float64) + 0.2
    made = Diffusion(shift_levels(Cosine(), SMALL), given=1, given_noise=noise)
    low = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    shapes = [(1, *size) for size in SMALL]
    drawn = sample_pyramid(
        RelatedTo(Related(cov, SMALL), noise), made, shapes, range(rows),
        given=[low], rule=rule, steps=100, threshold=none, dtype=torch.float64,
    )  # fmt: skip
    assert torch.equal(drawn[0], low.expand(rows, 1, 1, 1))
    # x_1 given y, the low picture as it is seen, is Gaussian, and the flow keeps (z - mean of z) / std of z
    kept, pooled = (1 - noise**2) ** 0.5, torch.full((1, 4), 0.25, dtype=torch.float64)
    across = cov @ pooled.T * kept
    gain = across / (kept**2 * (pooled @ cov @ pooled.T) + noise**2)
    values, basis = torch.linalg.eigh(cov - gain @ across.T)
    at = made.at(1.0)
    for row in range(rows):
        seen = kept * low + noise * normal((1, 1, 1), row, 0, 0, "given", dtype=torch.float64)
        mean = (gain * seen.flatten()).flatten()
        z = normal(shapes[1], row, 0, 1, "sample", dtype=torch.float64).flatten()
        z = z * (at.alpha[1] ** 2 + at.sigma[1] ** 2) ** 0.5
        ratio = (values / (at.alpha[1] ** 2 * values + at.sigma[1] ** 2)).sqrt()
        expected = mean + basis @ (ratio * (basis.T @ (z - at.alpha[1] * mean)))
        assert torch.allclose(drawn[1][row].flatten(), expected, atol=0.01)


@pytest.mark.parametrize("rule", [ddim, ddpm, dpmpp_2m, heun])
@settings(max_examples=4)
@given(
    noise=st.sampled_from([0.0, 0.5]), scales=st.sampled_from([None, (0.7, 0.35)]), seed=st.integers(0, 9)
)
def test_the_network_sees_what_is_given_at_every_step_and_it_comes_out(
    rule: Rule, noise: float, scales: Any, seed: int
):
    made = attrs.evolve(plain, given=1, given_noise=noise, scales=scales)
    x0 = made.scaled((picture(5), picture(6, SIZES[1])))
    denoise = Perfect((torch.full_like(x0[0], torch.pi), x0[1]))  # what is said of a given level is not asked
    shapes = [(3, *size) for size in SIZES]
    drawn = sample_pyramid(denoise, made, shapes, [seed], given=[picture(5)], rule=rule, steps=4)
    eps = normal((3, *SIZES[0]), seed, 0, 0, "given")
    seen = {id(z): z[0] for _, z in denoise.seen}
    for z in seen.values():
        assert torch.equal(z[0], made.shown(x0[0], eps)[0])
    assert len(seen) >= 4
    assert torch.equal(drawn[0], picture(5))
    assert torch.allclose(drawn[1], picture(6, SIZES[1]), atol=1e-4)
    if noise == 0:
        assert torch.equal(made.shown(x0[0], eps), x0[0])


def test_a_picture_a_row_and_what_does_not_fit():
    shapes = [(3, *size) for size in SIZES]
    denoise = Perfect((torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 16, 16)))
    rows = torch.cat([picture(1), picture(2)])
    assert torch.equal(sample_pyramid(denoise, process, shapes, [0, 1], given=[rows], steps=2)[0], rows)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "expected pictures of the 1 inner levels that the model is given, got 0; draw them"),
        ({"given": [rows, rows]}, "expected pictures of the 1 inner levels that the model is given, got 2"),
        ({"given": [picture(1, (4, 4))]}, r"expected a given picture \(1 or 2, 3, 8, 8\) at level 0, got"),
        ({"given": [rows], "levels": 1}, "expected more than the 1 levels that the model is given, got 1"),
    )
    for wrong, line in cases:
        with pytest.raises(ValueError, match=line):
            sample_pyramid(denoise, process, shapes, [0, 1], steps=2, **wrong)
    with pytest.raises(ValueError, match="model is given, got 1"):
        sample_pyramid(denoise, plain, shapes, [0, 1], given=[rows], steps=2)
    with pytest.raises(ValueError, match="expected 0 <= given < 2 levels and 0 <= given_noise < 1, got 2"):
        attrs.evolve(plain, given=2)


CAPTIONS = ["a", "a small red star left of", ""]
drawing = Drawing(ddim, uniform_t, clip, steps=2)


def links() -> list[Link]:
    """A model of the low level, and one that is given it, of different weights."""
    torch.manual_seed(1)
    text = BytesEncoder(width=nests.WIDTH, heads=2, layers=1, max_tokens=32)
    made = [nests.nest(levels, micro_conditioning=None, dtype=torch.float64) for levels in (1, 2)]
    for seed, nest in enumerate(made):
        torch.manual_seed(seed)
        nests.stir(nest)
    processes = [Diffusion(plain.schedules[:1]), process]
    return [Link(nest.float(), text, p, drawing) for nest, p in zip(made, processes, strict=True)]


def by(link: Link, **told: Any) -> list[tuple[Tensor, ...]]:
    sizes = SIZES[: link.diffusion.levels]
    return draw(
        link.nest, link.text, link.diffusion, drawing, resolutions=sizes, captions=CAPTIONS, **told
    )


def same(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> bool:
    return all(
        torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_models_in_sequence_draw_what_they_draw_by_hand():
    low, high = links()
    drawn = draw_in_sequence([low, high], resolutions=SIZES, captions=CAPTIONS, seed=3)
    inner = by(low, seed=3)
    assert same([picture[:1] for picture in drawn], inner)
    assert same(drawn, by(high, seed=3, given=inner))
    assert not same(drawn, by(high, seed=3, given=inner[1:] + inner[:1])), "each has its own"
    # the batch does not matter, and inner levels alone are those of the inner model
    alone = draw_in_sequence([low, high], resolutions=SIZES, captions=CAPTIONS, seed=3, batch=1)
    for ours, theirs in zip(alone, drawn, strict=True):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    assert same(draw_in_sequence([low, high], resolutions=SIZES[:1], captions=CAPTIONS, seed=3), inner)
    assert same(draw_in_sequence([low], resolutions=SIZES[:1], captions=CAPTIONS, seed=3), inner)


def test_a_known_low_picture_takes_the_place_of_the_models_before():
    low, high = links()
    known = known_low(picture(1), SIZES)
    drawn = draw_in_sequence([low, high], resolutions=SIZES, captions=CAPTIONS, known=known)
    assert same(drawn, draw_in_sequence([high], resolutions=SIZES, captions=CAPTIONS, known=known))
    assert same(drawn, by(high, known=known, given=[[picture(1)[0]]] * 3))
    assert all(torch.equal(one[0], picture(1)[0]) for one in drawn)
    with pytest.raises(ValueError, match="inner levels that the model is given, got 0"):
        draw_in_sequence([high], resolutions=SIZES, captions=CAPTIONS)


def test_what_wraps_a_denoiser_goes_with_given_levels():
    low, high = links()
    masks = torch.ones(1, 1, 16, 16)
    start = Start((picture(1), picture(2, SIZES[1])), 0.5)
    ways: tuple[dict[str, Any], ...] = ({"regions": Regions(("a ring",), masks)}, {"start": start})
    for told in ways:
        drawn = draw_in_sequence([low, high], resolutions=SIZES, captions=CAPTIONS, **told)
        assert all(one[0].shape[1:] == SIZES[0] for one in drawn)
        assert all(x.isfinite().all() for one in drawn for x in one)
    wide = [(8, 12), (16, 24)]
    drawn = draw_in_sequence(
        [low, high], resolutions=wide, captions=CAPTIONS[:1], windows=Windows(tuple(SIZES))
    )
    assert [tuple(x.shape[1:]) for x in drawn[0]] == wide
    joined = attrs.evolve(high, drawing=attrs.evolve(drawing, outer_from=-1.0, steps=6))
    late = draw_in_sequence([low, joined], resolutions=SIZES, captions=CAPTIONS)
    assert same([one[:1] for one in late], by(low)), "a level that joins late is told the same"
