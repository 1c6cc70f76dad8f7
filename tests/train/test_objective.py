"""The training loss: by hand at one level, and what mixed batches and loss spaces do to it."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mdmkit.diffusion import Diffusion
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.targets import SPACES, convert, mse
from mdmkit.train.objective import Objective, pyramid_loss, row_losses
from mdmkit.weighting import Uniform
from tests.nn import nests

SIZES = ((4, 4), (8, 8))

Levels = tuple[Tensor, ...]


def diffusion(prediction: str = "v", levels: int = 2) -> Diffusion:
    return Diffusion(shift_levels(Cosine(), SIZES[:levels], shift_power=1.0), prediction)


def draw(seed: int, *rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)
        for count, size in zip(rows, SIZES, strict=False)
    )


def times(seed: int, rows: int) -> Tensor:
    return 0.02 + 0.96 * torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(said: Levels, x: Levels, eps: Levels, t: Tensor, *, diffusion: Diffusion, **how: Any) -> Tensor:
    """The loss of predictions at the noisy pictures of x and eps."""
    z = diffusion.noisy(x, eps, t)
    return pyramid_loss(said, z, x, eps, t, diffusion=diffusion, **how).trained


@attrs.frozen
class Steep:
    """A weighting that is not constant."""

    space: str | None = None

    def weight(self, logsnr: Tensor) -> Tensor:
        return (1 + logsnr.exp()).sqrt()


def test_the_loss_of_one_level_by_hand() -> None:
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    (x,), (eps,), (said,) = draw(0, 2), draw(1, 2), draw(2, 2)
    process = diffusion("v", levels=1)
    expected = 0.0
    for row in range(2):
        logsnr = process.schedules[0].logsnr(t[row]).item()
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))
        z = [
            alpha * a + sigma * b
            for a, b in zip(x[row].flatten().tolist(), eps[row].flatten().tolist(), strict=True)
        ]
        # eps of a v prediction (variance preserving): sigma z + alpha v
        wrong = [
            (sigma * at + alpha * v - e) ** 2
            for at, v, e in zip(z, said[row].flatten().tolist(), eps[row].flatten().tolist(), strict=True)
        ]
        expected += math.sqrt(1 + math.exp(logsnr)) * sum(wrong) / len(wrong) / 2
    loss = loss_of(
        (said,), (x,), (eps,), t, diffusion=process, loss_space="eps", pixel_loss=mse, weighting=Steep()
    )
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@given(seed=st.integers(0, 99), outer=st.integers(1, 4), space=st.sampled_from(SPACES))
def test_each_level_is_the_mean_over_its_own_rows(seed: int, outer: int, space: str) -> None:
    rows = (4, outer)
    x, eps, said, t = draw(seed, *rows), draw(seed + 100, *rows), draw(seed + 200, *rows), times(seed, 4)
    how = {"diffusion": diffusion(), "loss_space": space, "pixel_loss": mse, "weighting": Steep()}
    together = loss_of(said, x, eps, t, **how)
    alone = [
        [
            loss_of(
                tuple(level[i : i + 1] for level in said),
                tuple(level[i : i + 1] for level in x),
                tuple(level[i : i + 1] for level in eps),
                t[i : i + 1],
                **how,
            )[r]
            for i in range(rows[r])
        ]
        for r in range(2)
    ]
    for r in range(2):
        assert torch.allclose(together[r], torch.stack(alone[r]).mean())


@given(seed=st.integers(0, 99), outer=st.integers(1, 4), space=st.sampled_from(SPACES))
def test_a_given_level_has_no_loss_and_the_others_theirs(seed: int, outer: int, space: str) -> None:
    rows = (4, outer)
    x, eps, said, t = draw(seed, *rows), draw(seed + 100, *rows), draw(seed + 200, *rows), times(seed, 4)
    how: dict[str, Any] = {"loss_space": space, "pixel_loss": mse, "weighting": Steep()}
    process = attrs.evolve(diffusion(), given=1, given_noise=0.3)
    said = tuple(level.requires_grad_() for level in said)
    loss = loss_of(said, x, eps, t, diffusion=process, **how)
    alone = Diffusion(process.schedules[1:], process.prediction)
    top = loss_of(said[1:], x[1:], eps[1:], t, diffusion=alone, **how)
    assert loss.tolist() == [0.0, top.item()]
    loss.sum().backward()
    assert said[0].grad is None
    assert said[1].grad is not None
    # the network sees it nearly as it is, at every time
    shown, noisy = process.noisy(x, eps, t)
    assert torch.allclose(shown, (1 - 0.3**2) ** 0.5 * x[0] + 0.3 * eps[0])
    assert torch.equal(noisy, diffusion().noisy(x, eps, t)[1])
    with torch.no_grad():
        z = process.noisy(x, eps, t)
        by_row = pyramid_loss(said, z, x, eps, t, diffusion=process, **how)
    assert torch.equal(by_row.plain, loss.detach())
    assert torch.equal(by_row.rows[0], torch.zeros(4, dtype=torch.float64))


def test_learned_weights_and_importance_by_row() -> None:
    x, eps, said, t = draw(0, 3, 2), draw(1, 3, 2), draw(2, 3, 2), times(3, 3)
    process, importance = diffusion(), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)

    def u(logsnr: Tensor, level: int) -> Tensor:
        return logsnr / 3 + level

    z = process.noisy(x, eps, t)
    how: dict[str, Any] = {"loss_space": "eps", "pixel_loss": mse, "weighting": Steep()}
    plain = pyramid_loss(said, z, x, eps, t, diffusion=process, **how)
    learned = pyramid_loss(
        said, z, x, eps, t, diffusion=process, uncertainty=u, importance=importance, **how
    )
    assert torch.equal(plain.plain, plain.trained)
    for r, rows in enumerate(plain.rows):
        assert torch.allclose(rows.mean(), plain.trained[r])
        counted = importance[: len(rows)]
        assert torch.allclose(learned.plain[r], (counted * rows).mean())
        at = u(process.logsnr(t[: len(rows)], r), r)
        assert torch.allclose(learned.rows[r], rows / at.exp())
        assert torch.allclose(learned.trained[r], (counted * (rows / at.exp() + at)).mean())
    # rows of the outer level count for those that stop early too
    total = row_losses(plain.rows, torch.tensor([1.0, 4.0], dtype=torch.float64))
    assert torch.allclose(total.mean(), plain.trained[0] + 4 * plain.trained[1])
    assert torch.allclose(total[2], plain.rows[0][2])


def test_shares_leave_the_loss_unbiased() -> None:
    # whichever rows of a batch reach the top, the mean over all choices is the loss of the whole batch
    x, eps, said, t = draw(0, 4, 4), draw(1, 4, 4), draw(2, 4, 4), times(3, 4)
    how = {"diffusion": diffusion(), "loss_space": "eps", "pixel_loss": mse, "weighting": Uniform()}
    whole = loss_of(said, x, eps, t, **how)
    orders = [torch.tensor(order) for order in ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))]

    def cut(levels: tuple[Tensor, ...], order: Tensor) -> tuple[Tensor, ...]:
        return levels[0][order], levels[1][order][:2]

    mixed = torch.stack([loss_of(cut(said, o), cut(x, o), cut(eps, o), t[o], **how) for o in orders])
    assert torch.allclose(mixed.mean(0), whole)
    assert not torch.allclose(mixed[0], whole)


@given(source=st.sampled_from(SPACES), target=st.sampled_from(SPACES), seed=st.integers(0, 99))
def test_what_the_network_predicts_does_not_change_the_loss(source: str, target: str, seed: int) -> None:
    x, eps, said, t = draw(seed, 3, 2), draw(seed + 1, 3, 2), draw(seed + 2, 3, 2), times(seed, 3)
    as_v = diffusion("v")
    z = as_v.noisy(x, eps, t)
    same = tuple(
        convert(v, noisy, *as_v.alpha_sigma(t, r, like=noisy), "v", source)
        for r, (v, noisy) in enumerate(zip(said, z, strict=True))
    )
    how = {"loss_space": target, "pixel_loss": mse, "weighting": Steep("eps")}
    one = loss_of(said, x, eps, t, diffusion=as_v, **how)
    other = loss_of(same, x, eps, t, diffusion=diffusion(source), **how)
    assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_a_weighting_means_its_own_space_whatever_the_loss_is_taken_in(space: str) -> None:
    x, eps, said, t = draw(0, 3, 2), draw(1, 3, 2), draw(2, 3, 2), times(3, 3)
    how = {"diffusion": diffusion(), "pixel_loss": mse, "weighting": Steep("eps")}
    reference = loss_of(said, x, eps, t, loss_space="eps", **how)
    assert torch.allclose(loss_of(said, x, eps, t, loss_space=space, **how), reference, rtol=1e-6)


class Words(nn.Module):
    """Two words as features."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2, 4, dtype=torch.float64)

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        features = self.words(torch.tensor([len(caption) % 2 for caption in captions])).unsqueeze(1)
        return features, torch.ones(features.shape[:2], dtype=torch.bool)


class Net(nn.Module):
    """Scales each level by a number of its own and adds the text's mean."""

    def __init__(self) -> None:
        super().__init__()
        half = torch.tensor(0.5, dtype=torch.float64)
        self.scales = nn.ParameterList(nn.Parameter(half.clone()) for _ in SIZES)

    def forward(self, z, t, cond, cond_mask=None, micros=None):
        said = cond.mean((1, 2)).view(-1, 1, 1, 1)
        return tuple(scale * level + said[: len(level)] for scale, level in zip(self.scales, z, strict=False))


def objective(net: Net, words: Words) -> Objective:
    return Objective(net, words, diffusion=diffusion(), loss_space="eps", pixel_loss=mse, weighting=Uniform())


def test_gradients_reach_network_and_text_and_only_levels_that_run() -> None:
    net, words = Net(), Words()
    loss = objective(net, words)(draw(0, 3), draw(1, 3), times(0, 3), captions=["a", "bb", ""]).trained
    assert loss.shape == (1,)
    loss.sum().backward()
    inner, outer = net.scales
    assert inner.grad is not None
    assert inner.grad.abs() > 0
    assert outer.grad is None
    assert words.words.weight.grad is not None
    assert words.words.weight.grad.abs().sum() > 0


def test_a_level_more_leaves_the_losses_below_as_they_are() -> None:
    model = objective(Net(), Words())
    x, eps, t = draw(0, 3, 2), draw(1, 3, 2), times(0, 3)
    both = model(x, eps, t, captions=["a", "bb", ""]).trained
    inner = model(x[:1], eps[:1], t, captions=["a", "bb", ""]).trained
    assert torch.equal(both[:1], inner)


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.25, 0.5, 3.0]))
def test_scaled_pictures_are_trained_on_as_if_they_were_so(seed: int, scale: float):
    x, eps, t = draw(seed, 2, 2), draw(seed + 1, 2, 2), times(seed, 2)
    seen: list[Levels] = []

    class Nest(nn.Module):
        def forward(self, z: Levels, *_: Any) -> Levels:
            seen.append(z)
            return tuple(level.sin() for level in z)

    how: dict[str, Any] = {"loss_space": "x0", "pixel_loss": mse, "weighting": Uniform()}
    scaled = attrs.evolve(diffusion(), scales=(1.0, scale))
    ours = Objective(Nest(), None, diffusion=scaled, **how)(x, eps, t).trained
    plain = Objective(Nest(), None, diffusion=diffusion(), **how)((x[0], x[1] * scale), eps, t).trained
    assert torch.equal(ours, plain)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


class Echo(nn.Module):
    """Says something of z and of what it is shown; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls: list[dict[str, Any]] = []

    def forward(self, z, t, cond=None, cond_mask=None, micros=None, *, previous=None):
        self.calls.append({"z": z, "t": t, "cond": cond, "micros": micros, "previous": previous})
        shown = [0.0 if x is None else x for x in previous or [None] * len(z)]
        return tuple(self.scale * level + old for level, old in zip(z, shown, strict=True))


@pytest.mark.parametrize("estimated", [(True, False, True, True), (False, False, True, False)])
def test_rows_are_shown_what_the_network_says_of_them_alone(estimated: tuple[bool, ...]) -> None:
    net, process = Echo(), attrs.evolve(diffusion("eps"), scales=(1.0, 0.5))
    model = Objective(net, None, diffusion=process, loss_space="eps", pixel_loss=mse, weighting=Uniform())
    x, eps, t = draw(0, 4, 2), draw(1, 4, 2), times(0, 4)
    told = {"cond": torch.randn(4, 2, 4), "micros": {"scale": torch.arange(4.0)}}
    model(x, eps, t, estimated=estimated, **told)
    first, second = net.calls
    picked = [row for row, yes in enumerate(estimated) if yes]
    assert torch.equal(first["t"], t[picked])
    assert torch.equal(first["cond"], told["cond"][picked])
    assert torch.equal(first["micros"]["scale"], told["micros"]["scale"][picked])
    assert first["previous"] is None
    assert len(first["z"]) == (2 if picked[0] < 2 else 1), "a level of which no row is picked does not run"
    for r, (level, previous) in enumerate(zip(second["z"], second["previous"], strict=True)):
        inside = [row for row in picked if row < len(level)]
        if not inside:
            assert previous is None
            continue
        assert torch.equal(first["z"][r], level[inside])
        assert not previous.requires_grad
        others = [row for row in range(len(level)) if row not in inside]
        assert not previous[others].any()
        for row in inside:
            alpha, sigma = (float(scale[row]) for scale in process.alpha_sigma(t, r))
            x0 = (level[row] - sigma * 0.3 * level[row]) / alpha
            limit = (1.0, 0.5)[r]
            assert torch.allclose(previous[row], x0.clamp(-limit, limit))
            assert previous[row].abs().max() <= limit
    # nothing is asked twice where nobody is shown anything
    net.calls.clear()
    model(x, eps, t, estimated=[False] * 4, **told)
    assert [call["previous"] for call in net.calls] == [None]


def test_an_estimate_takes_no_gradient_away_under_autocast() -> None:
    torch.manual_seed(0)
    net = nests.nest(1, self_conditioning=True, dtype=torch.float32)
    nests.stir(net)
    how: dict[str, Any] = {"loss_space": "v", "pixel_loss": mse, "weighting": Uniform()}
    model = Objective(net, None, diffusion=diffusion(levels=1), **how)
    x, eps = (torch.randn(2, 3, 4, 4) for _ in range(2))
    told = nests.told(2)
    told = {"cond": told["cond"].float(), "cond_mask": told["cond_mask"], "micros": told["micros"]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = model((x,), (eps,), torch.tensor([0.4, 0.6]), estimated=[True, False], **told)
    said.trained.sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
