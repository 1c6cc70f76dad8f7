from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.sampling import threshold as thresholds
from mdmkit.sampling.threshold import Threshold, clip, dynamic, dynamic_if, none, thresholded
from mdmkit.schedules import Cosine, shift_levels
from tests.golden import golden_case
from tests.sampling.ideal import Perfect

every = pytest.mark.parametrize("threshold", [none, clip, dynamic, dynamic_if])
bounded = pytest.mark.parametrize("threshold", [clip, dynamic, dynamic_if])
seeds = st.integers(0, 99)


def pictures(seed: int, rows: int = 3, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(rows, 3, 5, 7, generator=torch.Generator().manual_seed(seed))


@every
@given(seed=seeds, spread=st.floats(0.1, 50))
def test_a_picture_does_not_depend_on_its_batch(threshold: Threshold, seed: int, spread: float):
    x0 = pictures(seed, spread=spread)
    rows = torch.cat([threshold(x0[row : row + 1]) for row in range(len(x0))])
    assert torch.equal(threshold(x0), rows)


@bounded
@given(seed=seeds, spread=st.floats(0.1, 50), limit=st.floats(0.1, 3))
def test_pictures_come_into_range_and_stay_there(
    threshold: Callable[..., Tensor], seed: int, spread: float, limit: float
):
    out = partial(threshold, limit=limit)(pictures(seed, spread=spread))
    assert out.abs().max() <= limit
    calm = pictures(seed).clamp(-limit, limit) * 0.999
    torch.testing.assert_close(partial(threshold, limit=limit)(calm), calm, rtol=1e-6, atol=0)


@given(seed=seeds, quantile=st.floats(0, 1), columns=st.integers(1, 40))
def test_the_quantile_is_torchs(seed: int, quantile: float, columns: int):
    values = torch.randn(4, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.quantile(values, quantile, dim=1)
    torch.testing.assert_close(thresholds.quantile_rows(values, quantile), expected, rtol=1e-12, atol=1e-12)


def test_dynamic_shrinks_where_clip_cuts():
    x0 = pictures(0, spread=3.0)
    shrunk = dynamic(x0, quantile=1.0)
    largest = x0.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(shrunk, x0 / largest)
    torch.testing.assert_close(dynamic(x0, quantile=1.0, maximum=1.0), clip(x0))


@given(seed=seeds, t=st.floats(0.01, 1), scale=st.sampled_from([1.0, 0.5]))
def test_eps_leads_from_the_thresholded_picture_to_z(seed: int, t: float, scale: float):
    diffusion = Diffusion(shift_levels(Cosine(), [4, 8]), scales=(1.0, scale))
    at = diffusion.at(t)
    x0 = tuple(pictures(seed + level, spread=2.0).double() for level in range(2))
    z = tuple(pictures(seed + level + 5).double() for level in range(2))
    answer = thresholded(Perfect(x0), clip, diffusion)(z, at)
    assert torch.equal(answer.x0[0], clip(x0[0]))
    assert torch.equal(answer.x0[1], clip(x0[1], limit=scale))
    for level in range(2):
        back = at.alpha[level] * answer.x0[level] + at.sigma[level] * answer.eps[level]
        torch.testing.assert_close(back, z[level], rtol=0, atol=1e-10)
    perfect = Perfect(x0)
    assert thresholded(perfect, none, diffusion) is perfect


@given(seed=seeds)
def test_each_level_has_its_threshold(seed: int):
    diffusion, x0 = Diffusion(shift_levels(Cosine(), [4, 8])), (pictures(seed, spread=3.0), pictures(seed, 2))
    z, at = (pictures(seed + 5), pictures(seed + 6, 2)), diffusion.at(0.5)
    said = thresholded(Perfect(x0), [none, partial(clip, limit=0.5)], diffusion)(z, at)
    assert torch.equal(said.x0[0], x0[0])
    assert torch.equal(said.x0[1], clip(x0[1], limit=0.5))
    # inner levels alone have theirs; levels without one are refused
    inner = thresholded(Perfect(x0), [none, clip], diffusion)(z[:1], at)
    assert torch.equal(inner.x0[0], x0[0])
    with pytest.raises(ValueError, match="expected a threshold for each of 2 levels, low to high, got 1"):
        thresholded(Perfect(x0), [clip], diffusion)(z, at)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["ddpm", "deepfloyd"])
@pytest.mark.parametrize(
    ("name", "threshold"), [("NONE", none), ("CLIP", clip), ("DYNAMIC", dynamic), ("DYNAMIC_IF", dynamic_if)]
)
def test_released_thresholds(case: str, name: str, threshold: Callable[..., Tensor]):
    recorded = load_file(golden_case(f"arithmetic_{case}") / "arithmetic.safetensors")
    for scale in (1, 4):
        bound = threshold if threshold is none else partial(threshold, limit=1 / scale)
        wanted = recorded[f"threshold.{name}.scale{scale}"]
        torch.testing.assert_close(bound(recorded["threshold.in"]), wanted, rtol=0, atol=1e-6)
    for predicted in ("DDPM", "V_PREDICTION"):
        wanted = recorded.get(f"last.{predicted}.{name}.etaNone.noise1.x0")
        if wanted is not None:
            torch.testing.assert_close(
                threshold(recorded[f"x0_from_pred.{predicted}"]), wanted, rtol=0, atol=1e-6
            )
