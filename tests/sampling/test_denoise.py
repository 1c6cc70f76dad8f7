"""The denoiser around a network: x0 and eps from predictions, and guidance from one batch of both answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdmkit.diffusion import Diffusion
from mdmkit.nn import NestedUNet, UNetCore
from mdmkit.nn.attention import ImageAttention
from mdmkit.sampling import CFG, Denoised, Denoiser, Guidance, Interval, ddim
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.targets import SPACES, from_x0_eps

schedules = shift_levels(Cosine(), [4, 8])
seeds = st.integers(0, 99)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pyramid(seed: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    return noise(seed, rows, 3, 4, 4), noise(seed + 1, rows, 3, 8, 8)


class Net:
    """Mixes what it is given, so that nothing can be left out unseen; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self,
        z: Sequence[Tensor],
        t: Tensor,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        micros: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        assert t.dtype == torch.float64
        self.calls.append(len(t))
        text = torch.zeros(len(t), dtype=torch.float64)
        if cond is not None:
            mask = torch.ones(cond.shape[:2]) if cond_mask is None else cond_mask
            text = (cond * mask.unsqueeze(-1)).sum((1, 2)) / mask.sum(1)
        size = micros["size"] if micros else torch.zeros(len(t))
        return tuple(level * (1 + t + text + size).view(-1, 1, 1, 1) for level in z)


@pytest.mark.parametrize("space", SPACES)
@given(seed=seeds, t=st.floats(0.01, 0.99))
def test_predictions_become_x0_and_eps_at_every_level(space: str, seed: int, t: float):
    diffusion = Diffusion(schedules, prediction=space)
    at, x0, eps = diffusion.at(t), pyramid(seed), pyramid(seed + 7)
    z = tuple(at.alpha[r] * x0[r] + at.sigma[r] * eps[r] for r in range(2))
    answer = tuple(from_x0_eps(x0[r], eps[r], at.alpha[r], at.sigma[r], space) for r in range(2))
    denoised = Denoiser(lambda *_, **__: answer, diffusion)(z, at)
    for level in range(2):
        torch.testing.assert_close(denoised.x0[level], x0[level], rtol=0, atol=1e-9)
        torch.testing.assert_close(denoised.eps[level], eps[level], rtol=0, atol=1e-9)


def denoiser(net: Net, seed: int, tokens: tuple[int, int] = (5, 5), masked: bool = True) -> Denoiser:
    return Denoiser(
        net,
        Diffusion(schedules),
        cond=noise(seed, 2, tokens[0], 6),
        cond_mask=torch.arange(tokens[0]) < torch.tensor([[2], [tokens[0]]]) if masked else None,
        uncond=noise(seed + 1, 1, tokens[1], 6),
        uncond_mask=torch.arange(tokens[1])[None] < 1 if masked else None,
        micros={"size": noise(seed + 2, 2)},
    )


def assert_same(ours: Denoised, theirs: Denoised) -> None:
    for a, b in zip(ours.x0 + ours.eps, theirs.x0 + theirs.eps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@given(seed=seeds, tokens=st.tuples(st.integers(1, 6), st.integers(1, 6)), masked=st.booleans())
def test_both_answers_in_one_batch_equal_each_alone(seed: int, tokens: tuple[int, int], masked: bool):
    net = Net()
    whole = denoiser(net, seed, tokens, masked)
    at, z = whole.diffusion.at(0.6), pyramid(seed)
    cond, uncond = whole.both(z, at)
    assert net.calls == [4]
    assert_same(cond, whole(z, at))
    assert whole.uncond is not None
    uncond_mask = None if whole.uncond_mask is None else whole.uncond_mask.expand(2, -1)
    alone = Denoiser(
        net, whole.diffusion, cond=whole.uncond.expand(2, -1, -1), cond_mask=uncond_mask, micros=whole.micros
    )
    assert_same(uncond, alone(z, at))


@given(seed=seeds, scale=st.floats(0, 9))
def test_guidance_goes_from_the_unconditional_answer_through_the_conditional_one(seed: int, scale: float):
    net = Net()
    plain = denoiser(net, seed)
    at, z = plain.diffusion.at(0.6), pyramid(seed)
    guided = CFG(scale=scale).wrap(plain)
    cond, uncond = plain.both(z, at)
    answer = guided(z, at)
    for level in range(2):
        expected = (1 - scale) * uncond.x0[level] + scale * cond.x0[level]
        torch.testing.assert_close(answer.x0[level], expected, rtol=1e-9, atol=1e-9)
        # x0 and eps still make up z, so that every rule may use either
        back = at.alpha[level] * answer.x0[level] + at.sigma[level] * answer.eps[level]
        torch.testing.assert_close(back, z[level], rtol=0, atol=1e-9)
    assert_same(guided.both(z, at)[1], uncond)
    assert isinstance(CFG(), Guidance)


def test_scale_one_needs_no_second_answer():
    net = Net()
    plain = denoiser(net, 0)
    assert CFG(scale=1.0).wrap(plain) is plain
    plain(pyramid(0), plain.diffusion.at(0.5))
    assert net.calls == [2]


def test_guidance_without_an_unconditional_text_says_what_is_missing():
    bare = Denoiser(Net(), Diffusion(schedules))
    with pytest.raises(ValueError, match="give the denoiser cond and uncond"):
        CFG(scale=2.0).wrap(bare)(pyramid(0), bare.diffusion.at(0.5))


def test_inner_levels_alone_and_low_precision_predictions():
    whole = Denoiser(lambda z, t, **_: [level.bfloat16() for level in z], Diffusion(schedules))
    answer = whole((noise(0, 1, 3, 4, 4).float(),), whole.diffusion.at(0.5))
    assert len(answer.x0) == 1
    assert answer.x0[0].dtype == answer.eps[0].dtype == torch.float32


def test_a_nest_reads_its_text_once_a_picture(monkeypatch: pytest.MonkeyPatch):
    """Of 6 steps, some with guidance and some without: the text path and each layer's keys run twice."""
    core = UNetCore(channels=[8, 8], blocks=1, attention=[0, 1], heads=2, norm_groups=2, cond_dim=6)
    nest = NestedUNet(core, [])
    with torch.no_grad():
        for p in nest.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    calls = {"text": 0, "keys": 0}

    def counted(name: str, method):
        def call(*args, **given):
            calls[name] += 1
            return method(*args, **given)

        return call

    assert core.text is not None
    monkeypatch.setattr(core.text, "forward", counted("text", core.text.forward))
    layers = [m for m in nest.modules() if isinstance(m, ImageAttention)]
    for layer in layers:
        assert layer.text_kv is not None
        monkeypatch.setattr(layer.text_kv, "forward", counted("keys", layer.text_kv.forward))
    cond, uncond = torch.randn(2, 5, 6), torch.randn(1, 3, 6)
    z, one = (torch.randn(2, 3, 8, 8),), Diffusion(schedules[:1])

    def drawn(**given) -> Tensor:
        denoise = Interval((-2.0, 2.0)).wrap(CFG(3.0).wrap(Denoiser(nest, one, cond=cond, uncond=uncond)))
        path = [one.at(1 - k / 6) for k in range(7)]
        return ddim(denoise, z, path, lambda step, level: z[level])[0]

    with torch.no_grad():
        once = drawn()
    assert calls == {"text": 2, "keys": 2 * len(layers)}
    every = drawn()  # with gradients it is read at each step
    assert calls == {"text": 2 + 6, "keys": (2 + 6) * len(layers)}
    assert torch.equal(once, every)
