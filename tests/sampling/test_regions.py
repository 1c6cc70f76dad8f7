"""Several prompts in one picture: where each counts, what comes out, that one batch asks for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import pool
from mdmkit.sampling import CFG, Denoised, Denoiser, Regional, ddim, dpmpp_2m, none, sample_pyramid, shares_of
from mdmkit.sampling.conditions import encoded
from mdmkit.sampling.draw import Drawing, draw
from mdmkit.sampling.regions import Regions, composed
from mdmkit.sampling.spacing import uniform_logsnr, uniform_t
from mdmkit.schedules import Cosine, shift_levels
from tests.sampling.ideal import Gaussian
from tests.sampling.test_draw import SIZES, diffusion, encoder, nest_of, off

LEFT, RIGHT = (torch.zeros(1, 1, 16, 16) for _ in range(2))
LEFT[..., :6] = 1
RIGHT[..., 10:] = 1
MASKS = torch.cat([LEFT, RIGHT])


class Chunks:
    """Several denoisers, each for its part of the rows: as a network is, told several prompts."""

    def __init__(self, *denoisers: Any) -> None:
        self.denoisers, self.rows = denoisers, []

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        self.rows.append(len(z[0]))
        parts = zip(*(level.chunk(len(self.denoisers)) for level in z), strict=True)
        said = [denoise(part, at) for denoise, part in zip(self.denoisers, parts, strict=True)]
        sides = [[torch.cat(level) for level in zip(*side, strict=True)] for side in zip(*said, strict=True)]
        return Denoised(tuple(sides[0]), tuple(sides[1]))


def test_each_part_is_drawn_from_its_own_distribution():
    """Ideal denoisers of Gaussian pictures: a region has its prompt's mean and deviation, at each level."""
    process = Diffusion(shift_levels(Cosine(), [8, 16]))
    base, left, right = Gaussian(0.0, 0.1), Gaussian(-0.6, 0.2), Gaussian(0.7, 0.05)
    regional = Regional(Chunks(base, left, right), shares_of(MASKS, [8, 16]))

    def drawn(denoise: Any) -> tuple[Tensor, ...]:
        shapes = [(1, 8, 8), (1, 16, 16)]
        return sample_pyramid(
            denoise,
            process,
            shapes,
            range(32),
            rule=dpmpp_2m,
            steps=120,
            spacing=uniform_logsnr,
            threshold=none,
        )

    alone = [drawn(prompt) for prompt in (left, base, right)]
    for r, (level, (first, last)) in enumerate(zip(drawn(regional), ((3, 5), (6, 10)), strict=True)):
        parts = slice(0, first), slice(first, last), slice(last, None)
        for part, wanted, whole in zip(parts, (left, base, right), alone, strict=True):
            here = level[..., part]
            assert abs(here.mean() - wanted.mean) < 0.1 * wanted.std
            assert abs(here.std() - wanted.std) < 0.1 * wanted.std
            # and as pixels are independent here, each is that of its prompt alone
            torch.testing.assert_close(here, whole[r][..., part], rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 999), regions=st.integers(1, 4), rest=st.booleans())
def test_shares_are_one_in_sum_and_averages_of_each_other(seed: int, regions: int, rest: bool):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(regions, 1, 12, 8, generator=generator)
    low, high = shares_of(masks, [(6, 4), (12, 8)], rest=rest)
    assert low.shape == (regions + rest, 1, 6, 4)
    for level in (low, high):
        torch.testing.assert_close(level.sum(0), torch.ones_like(level[0]))
        assert (level >= -1e-6).all()
    torch.testing.assert_close(pool(high, (6, 4)), low)
    total = masks.sum(0)
    if rest:  # a mask alone counts as it says
        alone = (total <= 1).expand_as(masks[:1])
        torch.testing.assert_close(high[1:2][alone], masks[:1][alone])


def test_a_region_that_is_everything_is_its_prompt():
    z = [torch.randn(2, 1, s, s, dtype=torch.float64) for s in (8, 16)]
    process = Diffusion(shift_levels(Cosine(), [8, 16]))
    base, region = Gaussian(0.0, 0.1), Gaussian(-0.6, 0.2)
    for masks, expected in ((torch.ones(1, 1, 16, 16), region), (torch.zeros(1, 1, 16, 16), base)):
        asked = Chunks(base, region)
        said = Regional(asked, shares_of(masks, [8, 16]))(z, process.at(0.5))
        wanted = expected(z, process.at(0.5))
        for part in ("x0", "eps"):
            for a, b in zip(getattr(said, part), getattr(wanted, part), strict=True):
                torch.testing.assert_close(a, b)
        assert asked.rows == [4]


def test_guidance_around_it_is_guidance_of_each_prompt():
    z = [torch.randn(2, 1, s, s, dtype=torch.float64) for s in (8, 16)]
    at = Diffusion(shift_levels(Cosine(), [8, 16])).at(0.4)
    base, left, away = Gaussian(0.0, 0.1), Gaussian(-0.6, 0.2), Gaussian(0.3, 0.4)
    shares = shares_of(LEFT * 0.7, [8, 16])
    asked = Chunks(base, left, away)
    said = CFG(3.0).wrap(Regional(Chunks(base, left), shares, absent=asked))(z, at)
    assert asked.rows == [6]  # one batch: two prompts and the absence of text, for two pictures
    for r in range(2):
        uncond = away(z, at).x0[r]
        each = [uncond + 3 * (prompt(z, at).x0[r] - uncond) for prompt in (base, left)]
        wanted = sum(x * share for x, share in zip(each, shares[r].double(), strict=True))
        torch.testing.assert_close(said.x0[r], wanted)
    with pytest.raises(ValueError, match="give the regional denoiser `absent`"):
        CFG(3.0).wrap(Regional(Chunks(base, left), shares))(z, at)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("guide", [(), (CFG(3.0),)])
def test_drawing_is_each_prompt_by_itself_put_together(masked: bool, guide: tuple[Any, ...]):
    """A network told one prompt at a time, composed by hand at every step."""
    nest, text = nest_of(masked=masked), encoder()
    captions, regions = ["a ring", "a small red star left of"], Regions(("blue", "a star"), MASKS)
    how = Drawing(ddim, uniform_t, none, guide, steps=3)
    got = draw(
        nest, text, diffusion, how, resolutions=SIZES, captions=captions, regions=regions, seed=5, batch=2
    )
    shares = shares_of(MASKS, SIZES)
    for i, caption in enumerate(captions):
        with torch.no_grad():
            # padded as the released sampler does it, all texts of a picture together
            features, mask = text([caption, *regions.prompts, ""])
        denoisers = []
        for row in range(3):
            told = {"cond": features[row : row + 1], "cond_mask": mask[row : row + 1]}
            away = {"uncond": features[3:], "uncond_mask": mask[3:]}
            denoise: Any = Denoiser(nest, diffusion, **told, **away)
            for one in guide:
                denoise = one.wrap(denoise)
            denoisers.append(denoise)

        def by_hand(z: Sequence[Tensor], at: NoiseLevel, denoisers: Any = tuple(denoisers)) -> Denoised:
            return composed(Chunks(*denoisers)([level.repeat(3, 1, 1, 1) for level in z], at), shares)

        alone = sample_pyramid(
            by_hand, diffusion, [(3, *size) for size in SIZES], [5 + i], rule=ddim, steps=3, threshold=none
        )
        assert off([x[0] for x in alone], got[i]) < 1e-3 * max(float(x.abs().max()) for x in alone)


def test_captions_are_followed_by_the_rows_of_each_region():
    text = encoder()
    _, told = next(encoded(text, ["a", "bb"], "", batch=2, apart=False, regions=["ccc"]))
    expected = [text([caption])[0][0] for caption in ("a", "bb", "ccc", "ccc")]
    assert told.cond is not None
    assert told.uncond is not None
    for row, wanted in zip(told.cond, expected, strict=True):
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-5, atol=1e-5)
    assert len(told.uncond) == 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected masks of the picture's size, 16 x 16, got 8 x 16; resize"):
        shares_of(MASKS[:, :, :8], [8, 16])
    with pytest.raises(ValueError, match=r"expected masks \(regions, 1, height, width\), got \(2, 16, 16\)"):
        shares_of(MASKS[:, 0], [8, 16])
    with pytest.raises(ValueError, match=r"expected masks from 0 .* to 1 .*, got values from 0 to 255"):
        shares_of(MASKS * 255, [8, 16])
    with pytest.raises(ValueError, match="expected a mask for every pixel, got none for 64 of 256"):
        shares_of(MASKS, [8, 16], rest=False)
    with pytest.raises(ValueError, match="expected a mask for each of 1 prompts, at least one, got 2"):
        Regions(("a",), MASKS)
    how = Drawing(ddim, uniform_t, none, (), steps=1)
    with pytest.raises(ValueError, match="expected masks of the picture's size, 16 x 16, got 32 x 32"):
        draw(
            nest_of(masked=True),
            encoder(),
            diffusion,
            how,
            resolutions=SIZES,
            captions=["a"],
            regions=Regions(("b",), torch.ones(1, 1, 32, 32)),
        )
