"""The average of the weights: its formula, joining later, swapping, states by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mdmkit.train.ema import EMA


def small(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)).to(dtype)


def jolt(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


@given(decay=st.floats(0, 0.9999), steps=st.integers(1, 30), seed=st.integers(0, 1000))
def test_the_average_follows_its_formula(decay: float, steps: int, seed: int) -> None:
    module = small(seed)
    ema = EMA.of(module, decay=decay)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for n in range(steps):
        jolt(module, seed + n)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * p.detach() for name, p in module.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(ema.averages[name], value, rtol=1e-12, atol=1e-12)


def test_a_random_start_is_forgotten_early() -> None:
    p = nn.Parameter(torch.tensor([1000.0]))
    ema = EMA([("p", p)], decay=0.9999)
    with torch.no_grad():
        p.zero_()
    for _ in range(100):
        ema.update()
    # a fixed decay of 0.9999 would have kept 99 % of the start
    assert ema.averages["p"].item() < 1e-3


def test_averages_are_float32_whatever_the_parameters() -> None:
    module = small(dtype=torch.bfloat16)
    ema = EMA.of(module, decay=0.9)
    jolt(module, 1)
    ema.update()
    assert {a.dtype for a in ema.averages.values()} == {torch.float32}
    assert ema.state_dict()["averages"]["1.running_mean"].dtype == torch.bfloat16


def test_what_joins_later_warms_up_by_itself_and_disturbs_nothing() -> None:
    module, alone, late = small(0), small(0), small(5)
    ema, reference = EMA.of(module, decay=0.999), EMA.of(alone, decay=0.999)
    fresh = EMA.of(late, decay=0.999)
    for n in range(20):
        if n == 12:
            ema.add({f"late.{name}": p for name, p in late.named_parameters()})
        for moved in (module, alone, *([late] if n >= 12 else [])):
            jolt(moved, n)
        ema.update()
        reference.update()
        if n >= 12:
            fresh.update()
    for name, average in reference.averages.items():
        assert torch.equal(ema.averages[name], average)
    for name, average in fresh.averages.items():
        assert torch.equal(ema.averages[f"late.{name}"], average)
    assert ema.updates["0.weight"] == 20
    assert ema.updates["late.0.weight"] == 8
    with pytest.raises(ValueError, match=r"expected new names, got '0\.weight'"):
        ema.add(module.named_parameters())


def test_saved_loaded_and_continued_is_the_same_bit_for_bit() -> None:
    module, other = small(0, torch.float32), small(9, torch.float32)
    ema = EMA.of(module, decay=0.99)
    for n in range(5):
        jolt(module, n)
        ema.update()
    saved = {
        "averages": {name: a.clone() for name, a in ema.state_dict()["averages"].items()},
        "updates": ema.state_dict()["updates"],
    }
    other.load_state_dict(module.state_dict())
    resumed = EMA.of(other, decay=0.99)
    resumed.load_state_dict(saved)
    for n in range(5, 9):
        for moved, average in ((module, ema), (other, resumed)):
            jolt(moved, n)
            average.update()
    assert all(torch.equal(resumed.averages[name], a) for name, a in ema.averages.items())
    assert resumed.updates == ema.updates


def test_a_grown_module_takes_over_the_old_averages_and_starts_the_new_at_their_values() -> None:
    module, grown = small(0), nn.ModuleDict({"inner": small(1), "outer": small(2)})
    old = EMA([(f"inner.{name}", p) for name, p in module.named_parameters()], decay=0.9)
    jolt(module, 3)
    old.update()
    ema = EMA(grown.named_parameters(), decay=0.9)
    with pytest.raises(ValueError, match=r"averages are missing for outer\.0\.bias, .* and 3 more"):
        ema.load_state_dict(old.state_dict())
    ema.load_state_dict(old.state_dict(), new=[name for name in ema.averages if name.startswith("outer.")])
    assert torch.equal(ema.averages["inner.0.weight"], old.averages["inner.0.weight"])
    assert torch.equal(ema.averages["outer.0.weight"], grown["outer"].get_parameter("0.weight"))
    assert (ema.updates["inner.0.weight"], ema.updates["outer.0.weight"]) == (1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["averages"].update(x=torch.zeros(1)), "averages of unknown parameters: x"),
        (lambda s: s["averages"].pop("0.bias"), "averages are missing for 0.bias"),
        (lambda s: s["averages"].update({"0.bias": torch.zeros(3)}), r"expected shape \(4,\), got \(3,\)"),
        (lambda s: s["updates"].pop("0.bias"), "the count of updates is missing for 0.bias"),
    ],
)
def test_a_state_of_another_module_is_refused_and_changes_nothing(change, message: str) -> None:
    module = small(0)
    state = EMA.of(small(1), decay=0.9).state_dict()
    ema = EMA.of(module, decay=0.9)
    before = {name: a.clone() for name, a in ema.averages.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        ema.load_state_dict(state)
    assert all(torch.equal(ema.averages[name], a) for name, a in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_shows_the_averages_and_gives_the_weights_back(dtype: torch.dtype) -> None:
    module = small(0, dtype)
    ema = EMA.of(module, decay=0.9)
    jolt(module, 1)
    ema.update()
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    averages = {name: a.clone() for name, a in ema.averages.items()}

    def look_and_fail() -> None:
        with ema.swap():
            assert all(torch.equal(p, averages[name].to(dtype)) for name, p in module.named_parameters())
            raise RuntimeError("sampling failed")

    with pytest.raises(RuntimeError, match="sampling failed"):
        look_and_fail()
    assert all(torch.equal(p, own[name]) for name, p in module.named_parameters())
    assert all(torch.equal(ema.averages[name], a) for name, a in averages.items())


def test_copy_to_fills_another_module_with_its_buffers() -> None:
    module, other = small(0), small(1)
    ema = EMA.of(module, decay=0.9)
    module.get_buffer("1.running_mean").add_(3)
    ema.copy_to(other)
    assert torch.equal(other.get_buffer("1.running_mean"), module.get_buffer("1.running_mean"))
    assert all(torch.equal(p, ema.averages[name]) for name, p in other.named_parameters())
    with pytest.raises(ValueError, match=r"which differ in 0\.bias, 0\.weight, 1\.bias and 6 more"):
        ema.copy_to(nn.Module())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_never_moves_or_overshoots_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        EMA([], decay=decay)
