from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import pool
from mdmkit.sampling import (
    CFG,
    Denoised,
    Denoiser,
    Interval,
    clip,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2s_ancestral,
    flow_heun,
    heun,
    lcm,
    lms,
    none,
    released,
    sample_pyramid,
    unipc,
)
from mdmkit.sampling.rules import Rule
from mdmkit.schedules import Cosine, LinearFlow, shift_levels
from mdmkit.streams import normal
from tests.sampling.ideal import Gaussian, Perfect

SHAPES = [(3, 4, 4), (3, 8, 8), (3, 8, 16)]
diffusion = Diffusion(shift_levels(Cosine(), [shape[1:] for shape in SHAPES]))
picked = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)
rules = pytest.mark.parametrize("rule", [ddim, partial(ddim, eta=0.5), ddpm])


def nest(z: Sequence[Tensor], t: Tensor, **_: object) -> tuple[Tensor, ...]:
    """Each level sees itself and the levels inside, as in a nest, and no row sees another."""
    context = torch.zeros(len(t), 1, 1, 1)
    predictions = []
    for level in z:
        context = context + pool(level, (2, 2)).mean((1, 2, 3), keepdim=True)
        predictions.append((level * 0.3 + context + t.view(-1, 1, 1, 1)).sin().float())
    return tuple(predictions)


denoise = Denoiser(nest, diffusion)


@rules
@given(seeds=picked)
def test_a_sample_does_not_depend_on_its_batch_mates(rule: Rule, seeds: list[int]):
    together = sample_pyramid(denoise, diffusion, SHAPES, seeds, rule=rule, steps=3)
    assert [level.shape for level in together] == [(len(seeds), *shape) for shape in SHAPES]
    for row, seed in enumerate(seeds):
        alone = sample_pyramid(denoise, diffusion, SHAPES, [seed], rule=rule, steps=3)
        for level, same in zip(together, alone, strict=True):
            torch.testing.assert_close(level[row : row + 1], same, rtol=0, atol=1e-6)


@rules
@given(seeds=picked, levels=st.integers(1, 2))
def test_stopping_at_an_inner_level_gives_the_inner_part(rule: Rule, seeds: list[int], levels: int):
    whole = sample_pyramid(denoise, diffusion, SHAPES, seeds, rule=rule, steps=3)
    inner = sample_pyramid(denoise, diffusion, SHAPES, seeds, rule=rule, steps=3, levels=levels)
    assert len(inner) == levels
    for part, level in zip(inner, whole, strict=False):
        assert torch.equal(part, level)


def test_the_same_seed_gives_the_same_picture_and_another_another():
    first, second, other = (
        sample_pyramid(denoise, diffusion, SHAPES, [seed], rule=ddpm, steps=4, threshold=none)
        for seed in (7, 7, 8)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all((a - b).abs().mean() > 0.01 for a, b in zip(first, other, strict=True))


def test_initial_noise_is_keyed_by_seed_and_level_and_never_used_again():
    used: list[Tensor] = []

    def watch(denoise, z, path, noise) -> tuple[Tensor, ...]:  # pyright: ignore
        used.extend(z)
        used.extend(noise(step, level) for step in range(3) for level in range(3))
        return z

    sample_pyramid(denoise, diffusion, SHAPES, [5], rule=watch)
    torch.testing.assert_close(used[0][0], normal((3, 4, 4), 5, 0, 0, "sample"))
    first = [round(draw.flatten()[0].item(), 6) for draw in used]
    assert len(set(first)) == len(first)


def test_the_callback_sees_every_guided_and_thresholded_prediction():
    seen: list[tuple[int, NoiseLevel, Denoised]] = []
    final = sample_pyramid(
        Perfect(tuple(torch.full((1, *shape), 3.0) for shape in SHAPES)),
        diffusion,
        SHAPES,
        [0],
        steps=4,
        threshold=clip,
        callback=lambda *args: seen.append(args),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [at.t for _, at, _ in seen] == [1.0, 0.75, 0.5, 0.25]
    for _, _, answer in seen:
        assert all((level == 1).all() for level in answer.x0)
    assert all(torch.equal(a, b) for a, b in zip(final, seen[-1][2].x0, strict=True))


@rules
def test_gaussian_pictures_from_seeds(rule: Rule):
    flow = Diffusion(shift_levels(LinearFlow(), [32, 64], shift_power=2))
    out = sample_pyramid(
        Gaussian(-0.2, 0.5), flow, [(3, 32, 32), (3, 64, 64)], [0, 1], rule=rule, steps=60, threshold=none
    )
    for level in out:
        assert level.mean().item() == pytest.approx(-0.2, abs=0.04)
        assert level.std().item() == pytest.approx(0.5, rel=0.1)


def test_gradients_are_not_kept():
    weight = torch.ones(1, requires_grad=True)
    out = sample_pyramid(
        Denoiser(lambda z, t, **_: [level * weight for level in z], diffusion),
        diffusion,
        SHAPES,
        [0],
        steps=2,
    )
    assert not any(level.requires_grad for level in out)


def test_the_released_grid_starts_from_pure_noise_too():
    starts: list[Tensor] = []

    def watch(denoise, z, path, noise) -> tuple[Tensor, ...]:  # pyright: ignore
        starts.extend(z)
        return z

    for spacing in (released, lambda steps, diffusion: [1.0, 0.0]):
        sample_pyramid(denoise, diffusion, SHAPES[:1], [3], rule=watch, steps=5, spacing=spacing)
    assert torch.equal(starts[0], starts[1])


def test_what_does_not_fit_is_refused():
    for levels in (0, 4):
        with pytest.raises(ValueError, match=f"expected 1 to 3 levels, got {levels}"):
            sample_pyramid(denoise, diffusion, SHAPES, [0], levels=levels)
    for times in ([1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.5, 0.0]):
        with pytest.raises(ValueError, match="expected times that fall from at most 1 to 0"):
            sample_pyramid(
                denoise, diffusion, SHAPES, [0], spacing=lambda steps, diffusion, times=times: times
            )


@rules
@given(seeds=picked, scale=st.floats(0.2, 2))
def test_scaled_pictures_come_out_as_pictures(rule: Rule, seeds: list[int], scale: float):
    """The process has them scaled, and a threshold and a callback see them as they come out."""
    scaled = Diffusion(diffusion.schedules, scales=(1.0, scale, scale**2))
    x0 = tuple(torch.randn(len(seeds), *shape).clamp(-1.5, 1.5) for shape in SHAPES)
    shown: list[tuple[Tensor, ...]] = []
    drawn = sample_pyramid(
        Perfect(scaled.scaled(x0)),
        scaled,
        SHAPES,
        seeds,
        rule=rule,
        steps=3,
        threshold=clip,
        callback=lambda step, at, said: shown.append(said.x0),
    )
    for level, wanted in enumerate(x0):
        torch.testing.assert_close(drawn[level], wanted.clamp(-1, 1))
        torch.testing.assert_close(shown[0][level], wanted.clamp(-1, 1))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_says_nan_is_named_by_step_and_level(level: int, value: float):
    at_step: list[float] = []

    def broken(z: Sequence[Tensor], t: Tensor, **_: object) -> tuple[Tensor, ...]:
        said = list(nest(z, t))
        at_step.append(float(t[0]))
        if len(at_step) == 3 and level < len(z):
            said[level] = said[level].clone()
            said[level][1, 0, 0, 0] = value
        return tuple(said)

    with pytest.raises(
        ValueError,
        match="finite answers of the network, got NaN or infinity in step 3 of 4 "
        rf"\(t = 0\.5\) at level {level}, pictures 1 of the batch; look for it in the weights",
    ):
        sample_pyramid(Denoiser(broken, diffusion), diffusion, SHAPES, [5, 6], steps=4)
    at_step.clear()
    if level == 2:  # a level that does not run says nothing
        sample_pyramid(Denoiser(broken, diffusion), diffusion, SHAPES, [5, 6], steps=4, levels=2)


def test_an_interval_outside_of_the_schedule_is_refused():
    paired = Denoiser(nest, diffusion, cond=torch.zeros(1, 1, 4), uncond=torch.zeros(1, 1, 4))
    # the cosine's logsnr is clamped
    low, high = (float(diffusion.logsnr(torch.tensor(t, dtype=torch.float64), 0)) for t in (1.0, 0.0))
    for logsnr in ((high + 1, high + 3), (low - 9, low - 1)):
        guided = Interval(logsnr).wrap(CFG(2.0).wrap(paired))
        with pytest.raises(ValueError, match=r"an interval that meets the schedule's logsnr, -.* to .* at"):
            sample_pyramid(guided, diffusion, SHAPES, [0], steps=2)
    for logsnr in ((low - 1, low + 1), (high - 1, high + 9), (low - 5, high + 5)):
        sample_pyramid(Interval(logsnr).wrap(CFG(2.0).wrap(paired)), diffusion, SHAPES, [0], steps=2)


@pytest.mark.parametrize(
    "rule", [ddim, ddpm, dpmpp_2m, dpmpp_2s_ancestral, flow_heun, heun, lcm, lms, unipc]
)
def test_a_path_without_a_step_is_refused(rule: Rule):
    z = tuple(torch.randn(1, *shape) for shape in SHAPES)
    for path in ([], [diffusion.at(1.0)]):
        with pytest.raises(ValueError, match=f"2 noise levels, a step between them, got {len(path)}"):
            rule(denoise, z, path, lambda step, level: z[level])
