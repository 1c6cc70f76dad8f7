"""Autoguidance as a component: its formula, what it composes with, models of fewer levels."""

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
    Auto,
    Denoised,
    Denoiser,
    Interval,
    Rescale,
    ddim,
    sample_pyramid,
)
from mdmkit.sampling.auto import AutoFolder
from mdmkit.schedules import Cosine
from mdmkit.targets import from_x0_eps
from tests.sampling.ideal import Gaussian, with_eps
from tests.sampling.test_guidance import AT, Two, diffusion, pyramid, two

seeds = st.integers(0, 999)


class Says:
    """A weak model that says one pyramid, of as many levels as it is shown, and counts."""

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        self.pictures, self.shown = tuple(pictures), []

    def __call__(self, z: Sequence[Tensor], at: NoiseLevel) -> Denoised:
        self.shown.append(len(z))
        return with_eps(self.pictures[: len(z)], z, at)


def same(a: Denoised, b: Denoised) -> None:
    for part in ("x0", "eps"):
        for mine, other in zip(getattr(a, part), getattr(b, part), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@given(seed=seeds, scale=st.floats(0, 6), t=st.floats(0.02, 0.98))
def test_it_is_plain_guidance_away_from_the_weak_model(seed: int, scale: float, t: float):
    inside, z, at = two(seed), pyramid(seed + 2), diffusion.at(t)
    weak = Says(inside.pictures[1])
    same(Auto(weak, scale).wrap(inside)(z, at), CFG(scale).wrap(two(seed))(z, at))
    assert inside.asked == ["one"]  # the strong model runs one row
    assert weak.shown == ([2] if scale != 1 else [])


@given(seed=seeds, scale=st.floats(1.5, 6))
def test_levels_that_the_weak_model_lacks_are_left_alone(seed: int, scale: float):
    inside, z = two(seed), pyramid(seed + 2)
    weak = Says(pyramid(seed + 3))
    said = Auto(weak, scale, levels=1).wrap(inside)(z, AT)
    whole = Auto(Says(pyramid(seed + 3)), scale).wrap(two(seed))(z, AT)
    assert weak.shown == [1]
    torch.testing.assert_close(said.x0[0], whole.x0[0])
    assert torch.equal(said.x0[1], inside.pictures[0][1])
    # behind other guidance they are as that has them
    behind = Auto(weak, scale, levels=1).wrap(CFG(3.0).wrap(two(seed)))(z, AT)
    torch.testing.assert_close(behind.x0[1], CFG(3.0).wrap(two(seed))(z, AT).x0[1])
    # coarse to fine: the outer level does not run yet
    inner = Auto(weak, scale, levels=2).wrap(Two(*([p[0]] for p in inside.pictures)))
    torch.testing.assert_close(inner(z[:1], AT).x0[0], said.x0[0])


@given(seed=seeds, auto=st.floats(1.1, 4), cfg=st.floats(1.1, 6))
def test_order_says_what_is_multiplied(seed: int, auto: float, cfg: float):
    z, weak = pyramid(seed + 2), pyramid(seed + 3)
    cond, uncond = two(seed).pictures
    added = Auto(Says(weak), auto).wrap(CFG(cfg).wrap(two(seed)))(z, AT)
    multiplied = CFG(cfg).wrap(Auto(Says(weak), auto).wrap(two(seed)))(z, AT)
    for r in range(2):
        push = (auto - 1) * (cond[r] - weak[r])
        guided = uncond[r] + cfg * (cond[r] - uncond[r])
        torch.testing.assert_close(added.x0[r], guided + push)
        torch.testing.assert_close(multiplied.x0[r], guided + cfg * push)


def test_outside_of_an_interval_the_weak_model_is_not_asked():
    z, weak = pyramid(2), Says(pyramid(3))
    inside, outside = diffusion.at(0.5), diffusion.at(0.99)
    for guided in (
        Interval((-3.0, 5.0)).wrap(Auto(weak, 2.0).wrap(two(0))),
        Interval((-3.0, 5.0)).wrap(CFG(3.0).wrap(Auto(weak, 2.0).wrap(two(0)))),
    ):
        weak.shown.clear()
        same(guided(z, outside), two(0)(z, outside))
        assert weak.shown == []
        assert (guided(z, inside).x0[0] - two(0).pictures[0][0]).abs().max() > 0.1
        assert weak.shown == [2]
    # an interval in front of another guidance holds for what is in front of it
    middle = CFG(3.0).wrap(Interval((-3.0, 5.0)).wrap(Auto(weak, 2.0).wrap(two(0))))
    weak.shown.clear()
    same(middle(z, outside), CFG(3.0).wrap(two(0))(z, outside))
    assert weak.shown == []
    same(middle(z, inside), CFG(3.0).wrap(Auto(weak, 2.0).wrap(two(0)))(z, inside))


@given(seed=seeds)
def test_what_acts_on_guidance_acts_on_it(seed: int):
    z, weak = pyramid(seed + 2), Says(pyramid(seed + 3))
    guided = Auto(weak, 3.0).wrap(two(seed))
    said = Rescale(factor=1.0, space="x0").wrap(guided)(z, AT)
    for rescaled, cond in zip(said.x0, two(seed).pictures[0], strict=True):
        torch.testing.assert_close(rescaled.flatten(1).std(1), cond.flatten(1).std(1))
    # and guidance that asks for both sees the guided answer
    projected = APG(scale=2.0, eta=1.0, norm=None, momentum=0.0).wrap(guided)(z, AT)
    same(projected, CFG(2.0).wrap(guided)(z, AT))


def test_a_weak_model_may_predict_in_another_space():
    """Two Gaussian models: where the weak one is broader, guidance narrows."""
    one = Diffusion((Cosine(),))
    strong, weak = Gaussian(0.2, 0.3), Gaussian(0.2, 0.6)

    def network(model: Gaussian, space: str):
        def predict(z: Sequence[Tensor], t: Tensor, **_: object) -> list[Tensor]:
            at = one.at(float(t[0]))
            said = model(z, at)
            return [from_x0_eps(said.x0[0], said.eps[0], at.alpha[0], at.sigma[0], space)]

        return predict

    drawn = {}
    for space in ("x0", "eps", "v", "flow"):
        denoise = Denoiser(network(strong, "v"), Diffusion((Cosine(),), "v"))
        other = Denoiser(network(weak, space), Diffusion((Cosine(),), space))
        (drawn[space],) = sample_pyramid(
            Auto(other, 1.5).wrap(denoise),
            one,
            [(1, 16, 16)],
            range(8),
            rule=ddim,
            steps=60,
            dtype=torch.float64,
        )
        torch.testing.assert_close(drawn[space], drawn["x0"], rtol=1e-6, atol=1e-6)
    plain = sample_pyramid(
        strong, one, [(1, 16, 16)], range(8), rule=ddim, steps=60, dtype=torch.float64
    )[0]
    assert abs(plain.std() - 0.3) < 0.03
    assert drawn["v"].std() < 0.85 * plain.std()
    assert abs(drawn["v"].mean() - 0.2) < 0.02


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected the weak model to know at least 1 level, got 0"):
        Auto(Says([]), levels=0)
    short = Auto(lambda z, at: with_eps(pyramid(0)[:1], z[:1], at), 2.0).wrap(two(0))
    with pytest.raises(ValueError, match=r"for 2 levels from the weak model, got 1; say how many it knows"):
        short(pyramid(2), AT)
    with pytest.raises(ValueError, match="auto: the weak model 'runs/a' is not loaded"):
        AutoFolder("runs/a").wrap(two(0))
