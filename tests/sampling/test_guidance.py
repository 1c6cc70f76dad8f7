from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.sampling import (
    APG,
    CFG,
    CFGPP,
    Answers,
    CFGZero,
    Denoised,
    Guidance,
    Interval,
    Rescale,
    clip,
    ddim,
    thresholded,
)
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.targets import from_x0_eps
from tests.sampling.ideal import with_eps

diffusion = Diffusion(shift_levels(Cosine(), [4, 8]))
AT = diffusion.at(0.5)
SCALED: dict[str, Guidance] = {
    "cfg": CFG(3.0),
    "cfg by level": CFG((1.5, 4.0)),
    "cfgpp": CFGPP(0.6),
    "cfg_zero": CFGZero(3.0),
    "apg": APG(scale=5.0, norm=2.0),
    "rescale": Rescale(),
}
seeds = st.integers(0, 999)


def pyramid(seed: int, rows: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 3, s, s, generator=generator, dtype=torch.float64) for s in (4, 8))


class Two:
    """A denoiser with two fixed answers that counts what it is asked."""

    def __init__(self, cond: Sequence[Tensor], uncond: Sequence[Tensor]) -> None:
        self.pictures = tuple(cond), tuple(uncond)
        self.asked: list[str] = []

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        return self.plain(z, at)

    def plain(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        self.asked.append("one")
        return with_eps(self.pictures[0], z, at)

    def answers(self, z: Sequence[Tensor], at: NoiseLevel) -> Answers:
        cond = self.plain(z, at)
        return Answers(cond, None, cond)

    def both(self, z: Sequence[Tensor], at: NoiseLevel) -> tuple[Denoised, Denoised]:
        self.asked.append("two")
        cond, uncond = (with_eps(picture, z, at) for picture in self.pictures)
        return cond, uncond


def two(seed: int, rows: int = 3) -> Two:
    return Two(pyramid(seed, rows), pyramid(seed + 1, rows))


def wrapped(guidance: Guidance, inside: Two):
    """Guided; what only acts on another guidance stands behind cfg."""
    start = CFG(3.0).wrap(inside) if isinstance(guidance, Rescale) else inside
    return guidance.wrap(start)


@pytest.mark.parametrize("name", SCALED)
@given(seed=seeds, t=st.floats(0.02, 0.95))
def test_pictures_do_not_see_each_other(name: str, seed: int, t: float):
    inside, z, at = two(seed), pyramid(seed + 2), diffusion.at(t)
    together = wrapped(SCALED[name], inside)(z, at)
    for row in range(3):
        alone = wrapped(SCALED[name], Two(*([x[row : row + 1] for x in p] for p in inside.pictures)))
        said = alone([level[row : row + 1] for level in z], at)
        for part in ("x0", "eps"):
            for mine, all_rows in zip(getattr(said, part), getattr(together, part), strict=True):
                torch.testing.assert_close(mine, all_rows[row : row + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SCALED if name != "cfgpp"])
@given(seed=seeds, t=st.floats(0.02, 0.95))
def test_picture_and_noise_still_lead_to_z(name: str, seed: int, t: float):
    """All but CFG++, which renoises with another noise by intent."""
    z, at = pyramid(seed + 2), diffusion.at(t)
    said = wrapped(SCALED[name], two(seed))(z, at)
    for r in range(2):
        back = at.alpha[r] * said.x0[r] + at.sigma[r] * said.eps[r]
        torch.testing.assert_close(back, z[r], rtol=1e-7, atol=1e-7)


@given(seed=seeds, low=st.floats(0, 8), high=st.floats(0, 8))
def test_each_level_has_its_scale(seed: int, low: float, high: float):
    z = pyramid(seed + 2)
    both = CFG((low, high)).wrap(two(seed))(z, AT)
    for r, scale in enumerate((low, high)):
        alone = CFG(scale).wrap(two(seed))(z, AT)
        torch.testing.assert_close(both.x0[r], alone.x0[r])
    with pytest.raises(ValueError, match=r"expected a scale for each level, low to high, got 1: \[2\.0\]"):
        CFG((2.0,)).wrap(two(seed))(z, AT)


@given(seed=seeds, scale=st.floats(0, 10))
def test_the_projected_guidance_is_plain_guidance_without_its_changes(seed: int, scale: float):
    z = pyramid(seed + 2)
    projected = APG(scale=scale, eta=1.0, norm=None, momentum=0.0).wrap(two(seed))
    plain = CFG(scale).wrap(two(seed)) if scale != 1 else two(seed)
    for t in (0.8, 0.4):
        for mine, same in zip(projected(z, diffusion.at(t)).x0, plain(z, diffusion.at(t)).x0, strict=True):
            torch.testing.assert_close(mine, same, rtol=1e-9, atol=1e-9)


@given(seed=seeds, norm=st.floats(0.1, 3))
def test_the_projected_part_is_orthogonal_and_short(seed: int, norm: float):
    inside, z = two(seed), pyramid(seed + 2)
    said = APG(scale=2.0, norm=norm, momentum=0.0).wrap(inside)(z, AT)
    for guided, cond in zip(said.x0, inside.pictures[0], strict=True):
        step = guided - cond
        across = (step * cond).flatten(1).sum(1)
        torch.testing.assert_close(across, torch.zeros_like(across), rtol=0, atol=1e-9)
        assert (step.flatten(1).norm(dim=1) <= norm * (1 + 1e-9)).all()


def test_momentum_lasts_for_one_trajectory():
    z, inside = pyramid(2), two(0)
    guided = APG(scale=2.0, norm=None, momentum=-0.5).wrap(inside)
    first = guided(z, diffusion.at(0.9)).x0
    second = guided(z, diffusion.at(0.5)).x0
    # the same answers, less half of the difference before
    for r in range(2):
        torch.testing.assert_close(
            second[r] - inside.pictures[0][r], 0.5 * (first[r] - inside.pictures[0][r])
        )
    again = guided(z, diffusion.at(0.9)).x0
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@given(seed=seeds)
def test_cfgpp_goes_between_both_and_renoises_without_the_condition(seed: int):
    inside, z = two(seed), pyramid(seed + 2)
    said = CFGPP(0.25).wrap(inside)(z, AT)
    _, uncond = inside.both(z, AT)
    for r in range(2):
        expected = 0.75 * inside.pictures[1][r] + 0.25 * inside.pictures[0][r]
        torch.testing.assert_close(said.x0[r], expected)
        assert torch.equal(said.eps[r], uncond.eps[r])
    # a threshold moves both by as much, and does not undo the choice of noise
    cut = thresholded(CFGPP(0.25).wrap(inside), clip, diffusion)(z, AT)
    for r in range(2):
        moved = (said.x0[r] - cut.x0[r]) * AT.alpha[r] / AT.sigma[r]
        torch.testing.assert_close(cut.eps[r], uncond.eps[r] + moved)


@given(seed=seeds, scale=st.floats(1.5, 8))
def test_cfg_zero_fits_the_unconditional_flow(seed: int, scale: float):
    inside, z = two(seed), pyramid(seed + 2)
    cond, uncond = inside.both(z, AT)
    said = CFGZero(scale).wrap(inside)(z, AT)
    for r in range(2):
        c, u, guided = (x.eps[r] - x.x0[r] for x in (cond, uncond, said))
        fit = (c * u).flatten(1).sum(1) / (u * u).flatten(1).sum(1)
        base = fit.view(-1, 1, 1, 1) * u
        torch.testing.assert_close(guided, base + scale * (c - base))
        # the best fit leaves nothing along the unconditional flow
        left = ((c - base) * u).flatten(1).sum(1)
        torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-8)


def test_cfg_zero_waits_at_the_start():
    z = pyramid(2)
    start, soon = diffusion.at(1.0), diffusion.at(0.97)
    guided = CFGZero(3.0, zero=0.02).wrap(two(0))
    said = guided(z, start)
    assert all(torch.equal(a, b) for a, b in zip(said.x0, said.eps, strict=True))
    moved = guided(z, soon)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(moved.x0, moved.eps, strict=True))


@given(seed=seeds, factor=st.floats(0, 1), space=st.sampled_from(["x0", "v", "flow", "eps"]))
def test_rescaling_brings_the_deviation_back(seed: int, factor: float, space: str):
    inside, z = two(seed), pyramid(seed + 2)
    guided = CFG(4.0).wrap(inside)
    said = Rescale(factor=factor, space=space).wrap(guided)(z, AT)

    def deviations(answer: Denoised) -> list[Tensor]:
        return [
            from_x0_eps(answer.x0[r], answer.eps[r], AT.alpha[r], AT.sigma[r], space).flatten(1).std(1)
            for r in range(2)
        ]

    before, after, wanted = (deviations(x) for x in (guided(z, AT), said, inside(z, AT)))
    for r in range(2):
        torch.testing.assert_close(after[r], (1 - factor) * before[r] + factor * wanted[r])


def test_outside_of_the_interval_one_row_runs():
    inside, z = two(0), pyramid(2)
    times = [k / 10 for k in range(10, 0, -1)]
    within = [t for t in times if -3 <= diffusion.at(t).logsnr[0] <= 5]
    assert 0 < len(within) < len(times)
    guided = Interval((-3.0, 5.0)).wrap(CFG(3.0).wrap(inside))
    plain, strong = two(0), CFG(3.0).wrap(two(0))
    for t in times:
        at = diffusion.at(t)
        said = guided(z, at)
        expected = strong(z, at) if t in within else plain(z, at)
        assert all(torch.equal(a, b) for a, b in zip(said.x0, expected.x0, strict=True))
    assert inside.asked == ["two" if t in within else "one" for t in times]


def test_guidance_is_applied_in_order_with_one_evaluation_a_step():
    inside, z = two(0), pyramid(2)
    denoise = Interval((-3.0, 5.0)).wrap(Rescale().wrap(CFG(3.0).wrap(inside)))
    path = [diffusion.at(t) for t in (1.0, 0.6, 0.4, 0.0)]
    ddim(denoise, z, path, lambda step, level: z[level])
    assert inside.asked == ["one", "two", "two"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFGPP(1.5), r"expected scale in \[0, 1\], got 1\.5; cfg takes larger ones"),
        (lambda: APG(norm=0.0), "expected norm > 0, got 0.0; leave it out for no limit"),
        (lambda: Rescale(factor=2.0), r"expected factor in \[0, 1\], got 2\.0"),
        (lambda: Interval((5.0, -3.0)), r"expected logsnr = \[low, high\], low < high, got \[5\.0, -3\.0\]"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
