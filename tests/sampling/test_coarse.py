"""Coarse to fine: what joins has the distribution of the process, and costs nothing before."""

from __future__ import annotations

import math
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

from mdmkit.diffusion import Diffusion, NoiseLevel
from mdmkit.pyramid import pool
from mdmkit.sampling import (
    Denoised,
    Rule,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
    none,
    sample_pyramid,
    unipc,
)
from mdmkit.sampling import sample as sample_module
from mdmkit.sampling.coarse import enlarged, phases, times_from, times_until
from mdmkit.schedules import Cosine, LinearFlow, shift_levels
from tests.sampling.ideal import Counting, Gaussian, Perfect, Related

SIZES = [(2, 2), (4, 4), (8, 8)]
SHAPES = [(1, *size) for size in SIZES]


def diffusion_of(schedule: Any = None, *, power: float = 1.0, scales: Any = None) -> Diffusion:
    return Diffusion(shift_levels(schedule or Cosine(), SIZES, shift_power=power), scales=scales)


diffusion = diffusion_of()


def smooth(levels: int, *, shared: float, own: float, detail: float = 0.0) -> Tensor:
    """Covariance of pictures that are flat within the pixels of level 0: one tone, and one for each cell."""
    size = SIZES[levels - 1]
    cells = enlarged(torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2), size).flatten(1)
    many = math.prod(size)
    return shared**2 * torch.ones(many, many) + own**2 * cells.T @ cells + detail**2 * torch.eye(many)


def drawn_covariance(
    monkeypatch: pytest.MonkeyPatch, denoise: Related, process: Diffusion, levels: int, **how: Any
) -> Tensor:
    """Covariance of what is drawn, all levels' pixels: exact, as each draw of noise is traced to the end.

    With a linear denoiser pictures are linear in the noise, so that one `seed` for each of its numbers gives
    the map.
    """
    first: dict[tuple[Any, ...], int] = {}
    told = 0

    def one(shape: Sequence[int], seed: int, *key: Any, **_: Any) -> Tensor:
        nonlocal told
        x = torch.zeros(math.prod(shape), dtype=torch.float64)
        if key not in first:
            first[key], told = told, told + len(x)
        if 0 <= seed - first[key] < len(x):
            x[seed - first[key]] = 1.0
        return x.view(*shape)

    monkeypatch.setattr(sample_module, "normal", one)
    z = sample_pyramid(
        denoise,
        process,
        SHAPES[:levels],
        list(range(how.pop("numbers"))),
        threshold=none,
        dtype=torch.float64,
        **how,
    )
    flat = torch.cat([level.flatten(1) for level in z], 1)
    assert told <= len(flat), told
    return flat.T @ flat


PROCESSES = {
    "p1": diffusion,
    "p2": diffusion_of(power=2.0),
    "p0": diffusion_of(power=0.0),
    "flow": diffusion_of(LinearFlow()),
    "scaled": diffusion_of(scales=(1.0, 0.7, 0.4)),
}
CASES = [(name, 3, -3.0) for name in PROCESSES] + [("p1", 2, of) for of in (-6.0, 0.0)]


@pytest.mark.parametrize(("name", "levels", "outer_from"), CASES)
def test_what_joins_leaves_no_seam(
    monkeypatch: pytest.MonkeyPatch, name: str, levels: int, outer_from: float
):
    """Pictures with one tone all over, where a wrong join is seen most: variance of tone and cells.

    An outer level that starts from noise alone leaves 0.2 of 0.73, one from the predicted picture 0.2 to 0.6.
    """
    process = PROCESSES[name]
    data = Related(smooth(levels, shared=0.8, own=0.3), SIZES[:levels], process.scales)
    got = drawn_covariance(
        monkeypatch,
        data,
        process,
        levels,
        rule=dpmpp_2m,
        steps=80,
        outer_from=outer_from,
        numbers={2: 4 + 16, 3: 4 + 16 + 64 + 4}[levels],
    )
    expected = attrs.evolve(data, scales=None).covariance(levels)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03 * 0.73)


def test_what_is_left_out_is_detail_below_the_noise(monkeypatch: pytest.MonkeyPatch):
    off = []
    for outer_from in (4.0, -3.0):
        data = Related(smooth(2, shared=0.5, own=0.3, detail=0.3), SIZES[:2])
        got = drawn_covariance(
            monkeypatch, data, diffusion, 2, rule=dpmpp_2m, steps=80, outer_from=outer_from, numbers=20
        )
        off.append(float((got - data.covariance(2)).abs().max()))
    assert off[0] > 5 * off[1]
    assert off[1] < 0.02 * 0.43


@pytest.mark.parametrize("rule", [ddim, ddpm, dpmpp_2m_sde, heun, unipc])
def test_gaussian_pictures_from_seeds(rule: Rule):
    process = Diffusion(shift_levels(Cosine(), [32, 64]))
    denoise = Gaussian(-0.2, 0.5)
    shapes = [(3, 32, 32), (3, 64, 64)]
    z = sample_pyramid(
        denoise, process, shapes, [0, 1], rule=rule, steps=40, threshold=none, outer_from=-2.0
    )
    for level in z:
        assert level.mean().item() == pytest.approx(-0.2, abs=0.04)
        assert level.std().item() == pytest.approx(0.5, rel=0.1)


@settings(max_examples=10)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=2), outer_from=st.floats(-6, 2))
def test_until_a_level_joins_all_is_as_without_it(seeds: list[int], outer_from: float):
    """Bit for bit, and at the cost of the levels that run."""
    data = Related(smooth(3, shared=0.5, own=0.3, detail=0.1), SIZES)
    seen: dict[str, list[tuple[NoiseLevel, Denoised]]] = {"whole": [], "inner": []}

    def draw(name: str, levels: int, outer_from: float | None = None) -> Counting:
        counted = Counting(data)
        sample_pyramid(
            counted,
            diffusion,
            SHAPES,
            seeds,
            rule=dpmpp_2m_sde,
            steps=8,
            levels=levels,
            dtype=torch.float64,
            outer_from=outer_from,
            callback=lambda step, at, said: seen[name].append((at, said)),
        )
        return counted

    counted = draw("whole", 3, outer_from)
    draw("inner", 1)
    parts = phases([k / 8 for k in range(8, -1, -1)], diffusion, SHAPES, outer_from)
    assert counted.ran == [part.levels for part in parts for _ in part.times[1:]]
    assert counted.ran == sorted(counted.ran)
    assert [part.levels for part in parts] == [1, 2, 3]
    for (at, said), (at_inner, inner) in zip(
        seen["whole"][: len(parts[0].times) - 1], seen["inner"], strict=False
    ):
        assert at == at_inner
        assert torch.equal(said.x0[0], inner.x0[0])
    for level in (1, 2):
        firsts = [at for at, said in seen["whole"] if len(said.x0) == level + 1]
        assert firsts[0].logsnr[level] == pytest.approx(outer_from, abs=1e-6)


def test_it_saves_what_it_says():
    """Half of the evaluations of the outer levels and more, of the inner ones one or two more a join."""
    counts = []
    for outer_from in (None, 1.0):
        counted = Counting(Gaussian(0.0, 0.5))
        sample_pyramid(counted, diffusion, SHAPES, [0], steps=50, outer_from=outer_from)
        counts.append([counted.of_level(level) for level in range(3)])
    (whole, _, _), (inner, middle, outer) = counts
    assert counts[0] == [50, 50, 50]
    assert whole <= inner <= whole + 16
    assert middle <= 30
    assert outer <= 20


@pytest.mark.parametrize("rule", [ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, unipc])
def test_a_perfect_denoiser_is_believed(rule: Rule):
    x0 = tuple(torch.rand(1, *shape) for shape in SHAPES)
    z = sample_pyramid(Perfect(x0), diffusion, SHAPES, [3], rule=rule, steps=9, outer_from=-2.0)
    for level, wanted in zip(z, x0, strict=True):
        torch.testing.assert_close(level, wanted, rtol=0, atol=1e-5)


def test_a_level_that_is_heard_from_the_start_runs_from_the_start():
    draw = partial(sample_pyramid, Gaussian(0.1, 0.4), diffusion, SHAPES, [1, 2], steps=5)
    for a, b in zip(draw(), draw(outer_from=-100.0), strict=True):
        assert torch.equal(a, b)


def test_a_picture_does_not_depend_on_its_batch_mates():
    data = Related(smooth(3, shared=0.5, own=0.3, detail=0.1), SIZES)
    draw = partial(sample_pyramid, data, diffusion, SHAPES, rule=ddpm, steps=6, dtype=torch.float64)
    together = draw([4, 5, 6], outer_from=-2.0)
    for level, alone in zip(together, draw([5], outer_from=-2.0), strict=True):
        torch.testing.assert_close(level[1:2], alone)
    other = draw([5], outer_from=-3.0)
    assert not torch.equal(other[0], together[0][1:2])


grids = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=9, unique=True).map(
    lambda times: [*sorted(times, reverse=True), 0.0]
)


@given(times=grids, cut=st.floats(0.02, 0.98))
def test_a_cut_grid_has_no_tiny_step_that_a_larger_one_follows(times: list[float], cut: float):
    cut = min(cut, times[0])
    low, high = times_from(times, cut), times_until([1.0, *times], cut / 2)
    assert (low[0], low[-1], high[0], high[-1]) == (cut, 0.0, 1.0, cut / 2)
    for grid in (low, high):
        assert all(now > after for now, after in pairwise(grid))
    if len(low) > 2:
        assert low[0] - low[1] >= (low[1] - low[2]) / 2 or low[1] not in times[:-2]
    assert set(low[1:]) <= set(times)
    assert set(high[:-1]) <= {1.0, *times}


@given(side=st.integers(1, 3), factors=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_pooling_takes_enlarging_back(side: int, factors: tuple[int, int]):
    x = torch.rand(2, 3, side, side + 1, dtype=torch.float64)
    size = (side * factors[0], (side + 1) * factors[1])
    torch.testing.assert_close(pool(enlarged(x, size), (side, side + 1)), x)


def test_what_cannot_join_is_refused():
    draw = partial(sample_pyramid, Gaussian(0.0, 1.0), diffusion, SHAPES, [0], steps=3)
    for value in (19.9, 50.0):
        with pytest.raises(ValueError, match=f"outer_from={value:g} leaves level 1 no step, as .* ends at"):
            draw(outer_from=value)
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"expected a finite logsnr for outer_from, got {value}"):
            draw(outer_from=value)


def test_noise_of_a_time_that_is_gone_through_twice_is_drawn_twice():
    """The inner level runs on beyond the join and goes back: the same fresh noise would count double."""
    process = Diffusion(shift_levels(Cosine(), [32, 64]))
    fresh: list[Tensor] = []

    def watch(denoise: Any, z: Any, path: Sequence[NoiseLevel], noise: Any) -> Any:
        fresh.append(noise(len(path) - 2 if not fresh else 1, 0).flatten())  # 0.625 to 0.53, to 0.5
        return z

    sample_pyramid(
        Gaussian(0.0, 1.0), process, [(3, 32, 32), (3, 64, 64)], [0], rule=watch, steps=8, outer_from=-2.0
    )
    assert abs(float(torch.corrcoef(torch.stack(fresh))[0, 1])) < 0.1
