"""Self-conditioning in sampling: each row's own last estimate is carried along, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion
from mdmkit.sampling import CFG, Between, Denoiser, Interval, ddim, heun, none, sample_pyramid, uniform_t
from mdmkit.sampling.auto import AutoFolder
from mdmkit.sampling.draw import Drawing, Weak, draw
from mdmkit.sampling.regions import Regions
from mdmkit.sampling.windows import Windows
from mdmkit.schedules import Cosine, shift_levels
from tests.nn import nests

SIZES = [(8, 8), (16, 16)]
diffusion = Diffusion(schedules=shift_levels(Cosine(), SIZES), prediction="x0")


class Watching(nn.Module):
    """Says x0 = 0.1 z + 0.5 of what it is shown + its text; keeps what it was shown."""

    self_conditioning = True

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []
        self.said: list[Any] = []

    def forward(self, z: Sequence[Tensor], t: Tensor, cond=None, cond_mask=None, *, micros, previous=None):
        self.shown.append(previous and [None if x is None else x.clone() for x in previous])
        text = torch.zeros(len(z[0])) if cond is None else cond.mean((1, 2))
        said = []
        for level, old in zip(z, previous or [None] * len(z), strict=True):
            mine = 0.1 * level + text[: len(level)].view(-1, 1, 1, 1)
            said.append(mine if old is None else mine + 0.5 * old)
        self.said.append([x.clone() for x in said])
        return tuple(said)


def shapes(levels: int = 2) -> list[tuple[int, int, int]]:
    return [(3, *size) for size in SIZES[:levels]]


def in_range(said: list[Tensor]) -> list[Tensor]:
    return [x.clamp(-1, 1) for x in said]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rule", [ddim, heun])
def test_each_evaluation_is_shown_what_the_one_before_said(rule: Any):
    net = Watching()
    how: dict[str, Any] = {"rule": rule, "steps": 3, "threshold": none}
    sample_pyramid(Denoiser(net, diffusion).carrying(), diffusion, shapes(), [0, 1], **how)
    assert net.shown[0] == [None, None]
    assert len(net.said) == (3 if rule is ddim else 4)
    for before, shown in zip(net.said[:-1], net.shown[1:], strict=True):
        assert same(shown, in_range(before))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_trajectory_knows_nothing_of_the_one_before(steps: int):
    reused = Denoiser(Watching(), diffusion).carrying()
    for seed in (0, 1):
        how: dict[str, Any] = {"steps": steps, "threshold": none}
        again = sample_pyramid(reused, diffusion, shapes(), [seed], **how)
        fresh = sample_pyramid(Denoiser(Watching(), diffusion).carrying(), diffusion, shapes(), [seed], **how)
        assert same(list(again), list(fresh))


def test_with_guidance_each_answer_has_its_own_and_the_conditional_one_stands_in():
    net = Watching()
    told: dict[str, Any] = {"cond": torch.full((2, 1, 4), 0.2), "uncond": torch.full((1, 1, 4), -0.3)}
    middle = float(diffusion.logsnr(torch.tensor(0.5), 0))
    guidance = Interval((-50.0, middle)).wrap(CFG(3.0).wrap(Denoiser(net, diffusion, **told).carrying()))
    sample_pyramid(guidance, diffusion, shapes(), [0, 1], steps=4, threshold=none)
    rows = [len(said[0]) for said in net.said]
    assert rows == [4, 4, 4, 2], "guided until the middle"
    for before, shown in zip(net.said[:2], net.shown[1:3], strict=True):
        assert same(shown, in_range(before))
        assert not torch.equal(shown[0][:2], shown[0][2:])
    assert same(net.shown[3], [x[:2] for x in in_range(net.said[2])])
    # back inside, nobody knows what the unconditional answer would have been
    denoise = Denoiser(net, diffusion, **told).carrying()
    z = tuple(torch.randn(2, *shape) for shape in shapes())
    denoise(z, diffusion.at(0.9))
    denoise.both(z, diffusion.at(0.8))
    assert same(net.shown[-1], [torch.cat([x, x]) for x in in_range(net.said[-2])])


def test_a_level_that_joins_has_none_and_those_inside_keep_theirs():
    net = Watching()
    how: dict[str, Any] = {"steps": 12, "threshold": none, "outer_from": -2.0}
    sample_pyramid(Denoiser(net, diffusion).carrying(), diffusion, shapes(), [0], **how)
    counts = [len(shown) for shown in net.shown]
    joins = counts.index(2)
    assert joins > 1
    assert torch.equal(net.shown[joins][0], in_range(net.said[joins - 1])[0])
    assert net.shown[joins][1] is None
    assert same(net.shown[joins + 1], in_range(net.said[joins]))


def test_windows_remember_their_own_piece():
    net = Watching()
    drawing = Drawing(ddim, uniform_t, none, (), steps=2)
    windows = Windows(SIZES, overlap=0.0)
    draw(net, None, diffusion, drawing, resolutions=[(8, 16), (16, 32)], captions=["a"], windows=windows)
    assert [shown[0] is None for shown in net.shown] == [True, True, False, False]
    for i in (0, 1):
        assert same(net.shown[2 + i], in_range(net.said[i]))


def test_a_picture_does_not_depend_on_its_batch_mates():
    net = nests.nest(2, micro_conditioning=None, self_conditioning=True, dtype=torch.float64)
    nests.stir(net)
    net = net.float()
    seen = torch.randn(3, 5, nests.WIDTH, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"steps": 3, "threshold": none}
    seeds = [0, Between(0, 1, 0.5), 2]

    def drawn(rows: slice) -> tuple[Tensor, ...]:
        denoise = CFG(2.0).wrap(Denoiser(net, diffusion, cond=seen[rows], uncond=-seen[:1]).carrying())
        return sample_pyramid(denoise, diffusion, shapes(), seeds[rows], **how)

    together = drawn(slice(None))
    for i in range(3):
        for ours, theirs in zip(drawn(slice(i, i + 1)), together, strict=True):
            torch.testing.assert_close(ours[0], theirs[i], rtol=1e-3, atol=1e-3)


def test_without_it_nothing_is_remembered():
    net = nests.nest(1, micro_conditioning=None)
    assert Denoiser(net, diffusion).carrying().memory is None


def test_an_answer_outside_of_a_trajectory_is_about_its_picture_alone():
    net = Watching()
    denoise = Denoiser(net, diffusion)
    z = tuple(torch.randn(2, *shape) for shape in shapes())
    first, again = (denoise(z, diffusion.at(t)) for t in (0.5, 0.5))
    denoise(z, diffusion.at(0.7))
    assert net.shown == [None] * 3
    assert same(list(first.x0), list(again.x0))


def test_regions_and_weaker_models_carry_their_own():
    net, weak = Watching(), Watching()
    top = torch.zeros(1, 1, 16, 16)
    top[..., :8, :] = 1
    guidance: Any = AutoFolder("weak")
    led = Weak(guidance, weak, diffusion, levels=1)
    drawing = Drawing(ddim, uniform_t, none, (led,), steps=3)

    def words(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        features = torch.tensor([len(caption) / 10 for caption in captions]).view(-1, 1, 1).expand(-1, 2, 4)
        return features, torch.ones(features.shape[:2], dtype=torch.bool)

    regions = Regions(("ab",), top)
    draw(net, words, diffusion, drawing, resolutions=SIZES, captions=["a", "abc"], regions=regions)
    for one, levels in ((net, 2), (weak, 1)):
        assert [len(said[0]) for said in one.said] == [4, 4, 4], "two prompts for each of two pictures"
        assert one.shown[0] == [None] * levels
        for before, shown in zip(one.said[:-1], one.shown[1:], strict=True):
            assert same(shown, in_range(before))


def test_weaker_models_in_windows_remember_their_own_piece():
    net, weak = Watching(), Watching()
    guidance: Any = AutoFolder("weak")
    led = Weak(guidance, weak, diffusion, levels=2, told=False)
    drawing = Drawing(ddim, uniform_t, none, (led,), steps=2)
    windows = Windows(SIZES, overlap=0.0)
    draw(net, None, diffusion, drawing, resolutions=[(8, 16), (16, 32)], captions=["a"], windows=windows)
    for i in (0, 1):
        assert same(weak.shown[2 + i], in_range(weak.said[i]))
