"""Numbers about pictures are told to every model that reads them, whatever stands around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdmkit.diffusion import Diffusion
from mdmkit.nn import NestedUNet
from mdmkit.sampling import (
    CFG,
    Denoiser,
    Regions,
    Windows,
    ddim,
    none,
    sample_pyramid,
    uniform_t,
)
from mdmkit.sampling.auto import AutoFolder
from mdmkit.sampling.conditions import encoded
from mdmkit.sampling.draw import Drawing, Weak, draw, guided
from mdmkit.sampling.sequence import Link, draw_in_sequence
from mdmkit.schedules import Cosine, shift_levels
from mdmkit.text import BytesEncoder
from tests.nn import nests

SIZES = [(8, 8), (16, 16)]
CAPTIONS = ["a", "a small red star"]
diffusion = Diffusion(shift_levels(Cosine(), SIZES))


def nest_of(defaults: dict[str, float] | None, *, seed: int = 0, levels: int = 2) -> NestedUNet:
    made = nests.nest(levels, micro_conditioning=defaults, dtype=torch.float64)
    torch.manual_seed(seed)
    nests.stir(made)
    return made.float()


def encoder() -> BytesEncoder:
    torch.manual_seed(1)
    return BytesEncoder(width=nests.WIDTH, heads=2, layers=1, max_tokens=32)


def drawing(*guidance: Any) -> Drawing:
    return Drawing(ddim, uniform_t, none, guidance, steps=2)


def drawn(nest: NestedUNet, *guidance: Any, **given: Any) -> list[tuple[torch.Tensor, ...]]:
    told = {"resolutions": SIZES, "captions": CAPTIONS, "seed": 3, **given}
    return draw(nest, encoder(), diffusion, drawing(*guidance), **told)


def off(one: Any, other: Any) -> float:
    pairs = (zip(x, y, strict=True) for x, y in zip(one, other, strict=True))
    return max(float((a - b).abs().max()) for pair in pairs for a, b in pair)


@pytest.mark.parametrize("guidance", [(), (CFG(2.0),)])
def test_pictures_are_those_of_a_network_that_is_told(guidance: tuple[Any, ...]):
    nest, text = nest_of({"scale": 64.0, "aspect": 0.1}), encoder()
    with torch.no_grad():
        ((_, told),) = encoded(text, CAPTIONS, "", batch=2, apart=False)
        micros = {"scale": torch.full((2,), 20.0), "aspect": torch.full((2,), 0.7)}
        by_hand = sample_pyramid(
            guided(Denoiser(nest.eval(), diffusion, **told._asdict(), micros=micros), guidance),
            diffusion,
            [(3, *size) for size in SIZES],
            [3, 4],
            rule=ddim,
            steps=2,
            threshold=none,
        )
    got = drawn(nest, *guidance, micros={"scale": 20.0, "aspect": 0.7})
    for r in range(2):
        torch.testing.assert_close(torch.stack([p[r] for p in got]), by_hand[r], rtol=1e-4, atol=1e-4)
    plain = drawn(nest, *guidance)
    assert off(got, plain) > 1e-2
    # a default that is said is the default, bit for bit
    assert off(drawn(nest, *guidance, micros={"aspect": 0.1}), plain) == 0
    alone = drawn(nest, *guidance, micros={"scale": 20.0, "aspect": 0.7}, batch=1)
    assert off(alone, got) < 1e-3


@pytest.mark.parametrize("guidance", [(), (CFG(2.0),)])
def test_regions_and_windows_are_told_too(guidance: tuple[Any, ...]):
    nest = nest_of({"scale": 64.0})
    regions = Regions(("blue",), torch.ones(1, 1, 16, 16))
    ways: tuple[dict[str, Any], ...] = (
        {"regions": regions},
        {"resolutions": [(8, 16), (16, 32)], "windows": Windows(tuple(SIZES))},
    )
    for way in ways:
        plain = drawn(nest, *guidance, **way)
        assert off(drawn(nest, *guidance, micros={"scale": 20.0}, **way), plain) > 1e-2
        assert off(drawn(nest, *guidance, micros={"scale": 64.0}, **way), plain) == 0


def test_a_number_that_no_level_reads_is_refused():
    line = r"no level reads the micro-conditioning 'crop' \(known: aspect, scale\)"
    with pytest.raises(ValueError, match=line):
        drawn(nest_of({"scale": 64.0, "aspect": 0.1}), micros={"crop": 0.5})


def test_a_weak_model_is_told_what_it_reads():
    """Led away from a copy of itself nothing changes, unless the copy is told something else."""
    nest = nest_of({"scale": 64.0})

    def weak(other: NestedUNet) -> Weak:
        guidance: Any = AutoFolder("other", scale=3.0)
        return Weak(guidance, other, diffusion, 2)

    micros = {"scale": 20.0}
    told = drawn(nest, micros=micros)
    assert off(drawn(nest, weak(nest), micros=micros), told) < 1e-3
    deaf = nest_of(None, seed=5)
    assert off(drawn(nest, weak(deaf), micros=micros), told) > 1e-2
    assert off(drawn(nest, weak(deaf)), drawn(nest, weak(deaf), micros=micros)) > 1e-2


def test_models_in_sequence_are_each_told_what_they_read():
    given = Diffusion(diffusion.schedules, given=1)
    inner = Diffusion(diffusion.schedules[:1])
    text = encoder()

    def links(low: dict[str, float] | None, high: dict[str, float] | None) -> list[Link]:
        made = (nest_of(low, levels=1), inner), (nest_of(high, seed=2), given)
        return [Link(nest, text, process, drawing()) for nest, process in made]

    def by(pair: list[Link], **micros: float) -> list[tuple[torch.Tensor, ...]]:
        return draw_in_sequence(pair, resolutions=SIZES, captions=CAPTIONS, micros=micros or None)

    for pair, changed in (
        (links({"scale": 64.0}, None), [True, True]),  # outside by what it is given
        (links(None, {"scale": 64.0}), [False, True]),
    ):
        plain, told = by(pair), by(pair, scale=20.0)
        assert [off([p[r : r + 1] for p in plain], [p[r : r + 1] for p in told]) > 0 for r in range(2)] == (
            changed
        )
    with pytest.raises(ValueError, match=r"no model reads .* 'crop' \(known: aspect, scale\)"):
        by(links({"scale": 64.0}, {"aspect": 0.1}), crop=1.0)
