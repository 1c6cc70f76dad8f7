from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdmkit.targets import SPACES, convert
from mdmkit.weighting import (
    P2,
    EDMWeight,
    Learned,
    MinSNR,
    SigmoidWeight,
    SoftMinSNR,
    Uniform,
    Weighting,
    weight_in,
)

spaces = st.sampled_from(SPACES)
wide = torch.float64


@given(seed=st.integers(0, 99), own=spaces, loss=spaces, logsnr=st.floats(-6, 6))
def test_a_weight_means_the_same_in_every_loss_space(seed: int, own: str, loss: str, logsnr: float):
    generator = torch.Generator().manual_seed(seed)
    z, x0, guess = (torch.randn(5, generator=generator, dtype=wide) for _ in range(3))
    at = torch.tensor(logsnr, dtype=wide)
    alpha, sigma = 1.3 * at.sigmoid().sqrt(), 1.3 * (-at).sigmoid().sqrt()

    def squared_error(space: str) -> torch.Tensor:
        return (
            convert(guess, z, alpha, sigma, "x0", space) - convert(x0, z, alpha, sigma, "x0", space)
        ).square()

    weight = weight_in(Uniform(space=own), at, alpha, sigma, loss)
    torch.testing.assert_close(weight * squared_error(loss), squared_error(own), rtol=1e-9, atol=1e-9)


def test_uniform_without_a_space_is_one_wherever_the_loss_is():
    assert isinstance(Uniform(), Weighting)
    logsnr, scale = torch.linspace(-30, 30, 7), torch.tensor(0.0)
    for space in SPACES:
        assert (weight_in(Uniform(), logsnr, scale, scale, space) == 1).all()
    with pytest.raises(ValueError, match="unknown space 'noise'"):
        Uniform(space="noise")


def in_every_space(on_x0: torch.Tensor, snr: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a weight on the x0 loss is elsewhere, as the papers say it: |x0 error|^2 = |eps error|^2 / SNR,
    |v error|^2 = (1 + SNR) |x0 error|^2, |flow error|^2 = (1 + sqrt(SNR))^2 |x0 error|^2."""
    return {"x0": on_x0, "eps": on_x0 / snr, "v": on_x0 / (1 + snr), "flow": on_x0 / (1 + snr.sqrt()) ** 2}


WEIGHTS: dict[str, tuple[Weighting, Any]] = {
    # what each docstring says: on x0, and on v
    "min_snr": (MinSNR(), lambda snr: (snr.clamp(max=5), snr.clamp(max=5) / (snr + 1))),
    "min_snr low": (MinSNR(0.3), lambda snr: (snr.clamp(max=0.3), snr.clamp(max=0.3) / (snr + 1))),
    "soft_min_snr": (
        SoftMinSNR(4.0),
        lambda snr: (1 / (1 / snr + 1 / 4), snr * 4 / ((snr + 4) * (1 + snr))),
    ),
    "sigmoid": (
        SigmoidWeight(-2.0),
        lambda snr: (
            math.exp(-2) * (snr.log() + 2).sigmoid(),
            (-2 - snr.log()).sigmoid() * snr.log().sigmoid(),
        ),
    ),
    "edm": (
        EDMWeight(0.5),
        lambda snr: ((1 / snr + 0.25) / (0.25 / snr), (snr + 4) / (1 + snr)),
    ),
    "p2": (
        P2(0.5, 0.7),
        lambda snr: (snr / (0.5 + snr) ** 0.7, snr / ((1 + snr) * (0.5 + snr) ** 0.7)),
    ),
}
each = pytest.mark.parametrize(("weighting", "said"), WEIGHTS.values(), ids=WEIGHTS.keys())
steps = torch.linspace(-18, 18, 73, dtype=wide)


@each
@pytest.mark.parametrize("space", SPACES)
def test_a_weight_is_what_its_docstring_says_in_every_space(weighting: Weighting, said: Any, space: str):
    alpha, sigma = steps.sigmoid().sqrt(), (-steps).sigmoid().sqrt()
    on_x0, on_v = said(steps.exp())
    expected = in_every_space(on_x0, steps.exp())
    torch.testing.assert_close(on_v, expected["v"], rtol=1e-9, atol=0)
    got = weight_in(weighting, steps, alpha, sigma, space)
    torch.testing.assert_close(got, expected[space], rtol=1e-9, atol=0)


@each
def test_only_v_depends_on_the_family(weighting: Weighting, said: Any):
    alpha, sigma = (steps / 2).sigmoid(), (-steps / 2).sigmoid()  # alpha + sigma = 1
    expected = in_every_space(said(steps.exp())[0], steps.exp())
    for space in ("x0", "eps", "flow"):
        torch.testing.assert_close(
            weight_in(weighting, steps, alpha, sigma, space), expected[space], rtol=1e-9, atol=0
        )


@each
def test_float32_is_enough_for_a_weight(weighting: Weighting, said: Any):
    narrow = weighting.weight(steps.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), weighting.weight(steps), rtol=1e-5, atol=0)


@given(b=st.floats(-6, 6))
def test_weights_that_are_one(b: float):
    scales = steps.sigmoid().sqrt(), (-steps).sigmoid().sqrt()

    def same(one: Weighting, other: Weighting) -> None:
        for space in SPACES:
            ours, theirs = (weight_in(each, steps, *scales, space) for each in (one, other))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)

    same(SigmoidWeight(b), SoftMinSNR(math.exp(b)))
    same(EDMWeight(1.0), Uniform("v"))
    same(P2(1.0, 1.0), SoftMinSNR(1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(0.0), "expected gamma > 0, got 0.0"),
        (lambda: SoftMinSNR(-1.0), "expected gamma > 0, got -1.0"),
        (lambda: EDMWeight(0.0), "expected sigma_data > 0, got 0.0"),
        (lambda: P2(k=0.0), "expected k > 0, got 0.0"),
        (lambda: P2(gamma=math.inf), "expected gamma > 0, got inf"),
    ],
)
def test_wrong_settings_of_a_weight_say_what_was_expected(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_learned_weights_are_one_linear_layer_over_fourier_features_of_each_levels_noise():
    heads = Learned(channels=5).heads(2)
    logsnr = torch.tensor([-6.0, 0.0, 2.5])
    assert {name for name, _ in heads.named_parameters()} == {
        "levels.0.weight",
        "levels.0.bias",
        "levels.1.weight",
        "levels.1.bias",
    }
    assert heads.state_dict().keys() == dict(heads.named_parameters()).keys()
    assert not heads(logsnr, 0).any(), "the plain loss at the start"
    with torch.no_grad():
        for p in heads.parameters():
            p.copy_(torch.linspace(0.5, 1.5, p.numel()))
    weight = torch.linspace(0.5, 1.5, 5).tolist()
    for at, u in zip(logsnr.tolist(), heads(logsnr, 1).tolist(), strict=True):
        expected = 0.5
        for k in range(5):
            f = NormalDist().inv_cdf((k + 0.5) / 5)
            phase = k * (math.sqrt(5) - 1) / 2
            expected += (
                weight[k] * math.sqrt(2) * math.cos(2 * math.pi * (f * -at / 8 + phase)) / math.sqrt(5)
            )
        assert u == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        heads.get_submodule("levels.0").get_parameter("bias").zero_()
    assert not torch.allclose(heads(logsnr, 0), heads(logsnr, 1))
    # a level more is appended
    more = Learned(channels=5).heads(3)
    assert heads.state_dict().keys() < more.state_dict().keys()


def test_learned_weights_come_to_one_over_the_mean_loss():
    torch.manual_seed(0)
    heads = Learned(channels=64).heads(1)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.02)
    for _ in range(600):
        logsnr = 8 * torch.rand(256) - 4
        loss = torch.exp(logsnr / 2 - 1) * torch.empty(256).exponential_()
        u = heads(logsnr, 0)
        (loss * torch.exp(-u) + u).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    at = torch.linspace(-3.5, 3.5, 15)
    assert (heads(at, 0).detach() - (at / 2 - 1)).abs().max() < 0.25
