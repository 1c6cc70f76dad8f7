from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mdmkit.pyramid import pool
from mdmkit.schedules import DDPM, Cosine
from mdmkit.targets import SPACES, convert, from_x0_eps, huber, mse, multiscale, to_eps, to_x0
from tests.golden import golden_case

scales = st.floats(1e-3, 5.0)
spaces = st.sampled_from(SPACES)


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return first, second


@given(seed=st.integers(0, 99), alpha=scales, sigma=scales, space=spaces)
def test_a_target_gives_back_picture_and_noise(seed: int, alpha: float, sigma: float, space: str):
    x0, eps = draw(seed)
    z = alpha * x0 + sigma * eps
    target = from_x0_eps(x0, eps, alpha, sigma, space)
    torch.testing.assert_close(to_x0(target, z, alpha, sigma, space), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(to_eps(target, z, alpha, sigma, space), eps, rtol=0, atol=1e-9)


@given(seed=st.integers(0, 99), alpha=scales, sigma=scales, source=spaces, target=spaces)
def test_conversions_keep_z_and_come_back(seed: int, alpha: float, sigma: float, source: str, target: str):
    pred, z = draw(seed)
    x0, eps = to_x0(pred, z, alpha, sigma, source), to_eps(pred, z, alpha, sigma, source)
    torch.testing.assert_close(alpha * x0 + sigma * eps, z, rtol=1e-9, atol=1e-8)
    there = convert(pred, z, alpha, sigma, source, target)
    torch.testing.assert_close(convert(there, z, alpha, sigma, target, source), pred, rtol=1e-5, atol=1e-5)
    if source == target:
        assert there is pred


@pytest.mark.parametrize("space", SPACES)
def test_both_ends_are_finite_with_finite_gradients(space: str):
    pred, z = draw(0)
    pred.requires_grad_()
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        for a, s in ((alpha, sigma), (torch.tensor(alpha), torch.tensor(sigma))):
            x0, eps = to_x0(pred, z, a, s, space), to_eps(pred, z, a, s, space)
            assert x0.isfinite().all()
            assert eps.isfinite().all()
            (gradient,) = torch.autograd.grad(x0.sum() + eps.sum(), pred)
            assert gradient.isfinite().all()


def test_an_unknown_space_lists_the_known_ones():
    pred, z = draw(0)
    for call in (to_x0, to_eps, from_x0_eps):
        with pytest.raises(
            ValueError, match="unknown prediction space 'noise'; expected one of x0, eps, v, flow"
        ):
            call(pred, z, 1.0, 1.0, "noise")
    with pytest.raises(ValueError, match="unknown prediction space 'noise'"):
        convert(pred, z, 1.0, 1.0, "noise", "noise")


def test_mse_is_per_pixel():
    prediction, target = draw(1)
    torch.testing.assert_close(mse(prediction, target), (prediction - target).square(), rtol=0, atol=0)


@given(seed=st.integers(0, 99), delta=st.floats(1e-3, 10.0))
def test_huber_is_the_formula_and_lies_under_both_its_limits(seed: int, delta: float):
    prediction, target = draw(seed)
    d = (prediction - target).abs()
    got = huber(prediction, target, delta=delta)
    torch.testing.assert_close(got, 2 * delta**2 * ((1 + (d / delta) ** 2).sqrt() - 1), rtol=1e-6, atol=1e-9)
    assert (got <= mse(prediction, target)).all()
    assert (got <= 2 * delta * d).all()


def test_huber_is_squared_near_zero_and_straight_far_away():
    zero = torch.zeros(3)
    near = torch.tensor([1e-6, -3e-5, 1e-4])  # float32: a root minus 1 would be 0
    torch.testing.assert_close(huber(near, zero, delta=0.1), near.square(), rtol=1e-5, atol=0)
    far = torch.tensor([1e3, -1e4, 1e5])
    torch.testing.assert_close(huber(far, zero, delta=0.1), 0.2 * far.abs(), rtol=1e-3, atol=0)
    far.requires_grad_()
    huber(far, zero, delta=0.1).sum().backward()
    assert far.grad is not None
    torch.testing.assert_close(far.grad, torch.tensor([0.2, -0.2, 0.2]), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"expected delta > 0, got 0.0"):
        huber(near, zero, delta=0.0)


def test_scales_count_d_over_s_with_their_own_means():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, 8, 12, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for side, weight in ((8, 1.0), (4, 2.0), (2, 4.0)):
        small = pool(a - b, (side, side * 12 // 8))
        expected += weight * small.square().flatten(1).mean(1)
    got = multiscale(a, b, smallest=2)
    assert got.shape == a.shape
    torch.testing.assert_close(got.flatten(1).mean(1), expected)
    # 1 x 1.5 is no size; a smallest side above half of the picture's leaves the picture alone
    torch.testing.assert_close(multiscale(a, b, smallest=1), got)
    torch.testing.assert_close(multiscale(a, b, smallest=5), mse(a, b))
    # the paper's 1 / s is this over d
    flat = multiscale(a, b, smallest=2, power=0.0).flatten(1).mean(1)
    whole, half, quarter = (pool(a - b, (s, s * 3 // 2)).square().flatten(1).mean(1) for s in (8, 4, 2))
    torch.testing.assert_close(flat, whole + half + quarter)
    torch.testing.assert_close(got.flatten(1).mean(1) / 8, whole / 8 + half / 4 + quarter / 2)
    clips = a.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    still = multiscale(clips, torch.zeros_like(clips), smallest=2)
    torch.testing.assert_close(still[:, :, 1], multiscale(a, torch.zeros_like(a), smallest=2))
    with pytest.raises(ValueError, match="expected smallest >= 1"):
        multiscale(a, b, smallest=0)


@given(source=st.sampled_from(SPACES), target=st.sampled_from(SPACES), seed=st.integers(0, 99))
def test_all_scales_change_by_one_factor_from_space_to_space(source: str, target: str, seed: int):
    generator = torch.Generator().manual_seed(seed)
    z, one, other = torch.randn(3, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    alpha, sigma = 0.6, 0.9
    moved = [convert(x, z, alpha, sigma, source, target) for x in (one, other)]
    by_pixel = mse(*moved).mean() / mse(one, other).mean()
    by_scale = multiscale(*moved, smallest=1).mean() / multiscale(one, other, smallest=1).mean()
    torch.testing.assert_close(by_scale, by_pixel)


@pytest.mark.golden
@pytest.mark.parametrize(("case", "schedule"), [("ddpm", DDPM()), ("deepfloyd", Cosine())])
def test_released_conversions(case: str, schedule: Cosine | DDPM):
    """The released DDPM and DDIM types predict eps, V_PREDICTION predicts v; recorded in float32."""
    recorded = load_file(golden_case(f"arithmetic_{case}") / "arithmetic.safetensors")
    alpha, sigma = (s.view(-1, 1, 1, 1) for s in schedule.alpha_sigma(recorded["t"].double() / 1000))
    x0, eps, z, pred = (recorded[key].double() for key in ("x0", "eps", "x_t", "pred"))
    # at t = 1 and 2 their 1 - gamma has four digits left, and it divides
    loose = torch.tensor([1e-3, 1e-3, 2e-6, 2e-6, 2e-6, 2e-6], dtype=torch.float64).view(-1, 1, 1, 1)

    def check(ours: torch.Tensor, key: str) -> None:
        theirs = recorded[key].double()
        # rows by their largest value: what is small next to it is a difference of large numbers
        assert ((ours - theirs).abs() <= loose * (1 + theirs.abs().amax((1, 2, 3), keepdim=True))).all(), key

    check(alpha * x0 + sigma * eps, "x_t")
    for name, space in (("DDPM", "eps"), ("DDIM", "eps"), ("V_PREDICTION", "v")):
        check(from_x0_eps(x0, eps, alpha, sigma, space), f"target.{name}")
        check(to_x0(pred, z, alpha, sigma, space), f"x0_from_pred.{name}")
        check(to_eps(pred, z, alpha, sigma, space), f"eps_from_pred.{name}")
        check(convert(x0, z, alpha, sigma, "x0", space), f"pred_from_x0.{name}")
