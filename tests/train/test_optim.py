"""AdamW by our settings, and any optimiser's state by the parameters' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mdmkit.train.optim import adamw, load_named_state, named_state


def small(seed: int = 0, channels_last: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    return module.to(memory_format=torch.channels_last) if channels_last else module  # pyright: ignore


def step(module: nn.Module, optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    module(torch.randn(2, 3, 6, 6, generator=generator)).square().mean().backward()
    optimizer.step()


class Counting(Optimizer):
    """Keeps an int, a float and a tensor of another shape: what optimisers of other people do."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["scale"] = state.get("scale", 1.0) / 3
                state["rows"] = state.get("rows", 0) + p.flatten(1).sum(1) if p.ndim > 1 else torch.zeros(2)
                p.add_(p.grad, alpha=-0.1 * state["scale"] / state["step"])


def test_adamw_is_the_published_update() -> None:
    p = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    optimizer = adamw([p], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    x, m, v = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    for n in range(1, 6):
        g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        x = x - 0.01 * (m / (1 - 0.8**n) / ((v / (1 - 0.95**n)).sqrt() + 1e-6) + 0.1 * x)
        torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-9)


def test_adamw_is_fused_on_the_cpu_and_takes_named_parameters() -> None:
    module = small()
    optimizer = adamw(module.named_parameters())
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in module.named_parameters()]
    step(module, optimizer, 0)


@pytest.mark.parametrize(("vectors", "moved"), [(False, {"0.weight", "2.weight"}), (True, None)])
def test_weight_decay_spares_vectors_unless_told(vectors: bool, moved: set[str] | None) -> None:
    module = small()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = adamw(module.parameters(), weight_decay=0.5, decay_vectors=vectors)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == (moved or {name for name, p in before.items() if p.any()})


@given(seed=st.integers(0, 1000), before=st.integers(0, 3), channels_last=st.booleans(), decay=st.booleans())
def test_saved_and_loaded_goes_on_bit_for_bit(
    seed: int, before: int, channels_last: bool, decay: bool
) -> None:
    modules = small(seed, channels_last), small(seed + 1, channels_last)
    optimizers = [adamw(m.named_parameters(), lr=0.01, weight_decay=0.1 * decay) for m in modules]
    for n in range(before):
        step(modules[0], optimizers[0], n)
    step(modules[1], optimizers[1], 99)
    modules[1].load_state_dict(modules[0].state_dict())
    flat = {k: v.clone() for k, v in named_state(optimizers[0], modules[0].named_parameters()).items()}
    load_named_state(optimizers[1], modules[1].named_parameters(), flat)
    for n in range(before, before + 3):
        for module, optimizer in zip(modules, optimizers, strict=True):
            step(module, optimizer, n)
    for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "make", [Counting, torch.optim.SGD, torch.optim.NAdam, lambda p: torch.optim.SGD(p, momentum=0.9)]
)
def test_any_optimiser_goes_through_a_file(make, tmp_path: Path) -> None:
    modules = small(0), small(0)
    optimizers = [make(m.parameters()) for m in modules]
    for n in range(3):
        step(modules[0], optimizers[0], n)
    save_file(named_state(optimizers[0], modules[0].named_parameters()), tmp_path / "state.safetensors")
    modules[1].load_state_dict(modules[0].state_dict())
    load_named_state(optimizers[1], modules[1].named_parameters(), load_file(tmp_path / "state.safetensors"))
    for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        first, second = optimizers[0].state.get(a, {}), optimizers[1].state.get(b, {})
        assert first.keys() - {k for k, value in first.items() if value is None} == second.keys()
        for key, value in second.items():
            assert type(value) is type(first[key])
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(first[key]))
    for n in range(3, 5):
        for module, optimizer in zip(modules, optimizers, strict=True):
            step(module, optimizer, n)
    assert all(
        torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True)
    )


def test_a_grown_module_keeps_the_old_moments_and_counts_and_the_new_start_at_none() -> None:
    inner = small(0)
    optimizer = adamw(inner.named_parameters())
    step(inner, optimizer, 0)
    flat = {
        f"{key}/inner.{name}": value
        for (key, _, name), value in (
            (k.partition("/"), v) for k, v in named_state(optimizer, inner.named_parameters()).items()
        )
    }
    both = nn.ModuleDict({"inner": inner, "outer": small(1)})
    grown = adamw(both.named_parameters())
    load_named_state(grown, both.named_parameters(), flat)
    step(both["outer"], grown, 1)  # zero_grad leaves None: only the part with gradients moves
    step(inner, grown, 1)
    counts = {name: grown.state[p]["step"].item() for name, p in both.named_parameters()}
    assert counts["inner.0.weight"] == 2
    assert counts["outer.0.weight"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exp_avg/9.weight": torch.zeros(1)}, "'exp_avg/9.weight' belongs to no parameter"),
        ({"exp_avg/0.bias": torch.zeros(7)}, r"expected shape \(4,\), got \(7,\)"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(
    change: dict[str, Tensor], message: str
) -> None:
    module = small()
    optimizer = adamw(module.parameters())
    step(module, optimizer, 0)
    names = list(module.named_parameters())
    before = {k: v.clone() for k, v in named_state(optimizer, names).items()}
    with pytest.raises(ValueError, match=message):
        load_named_state(optimizer, names, {**before, **change})
    after = named_state(optimizer, names)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_parameter_without_a_name_and_state_that_is_no_number_are_refused() -> None:
    module = small()
    optimizer = adamw(module.parameters())
    with pytest.raises(ValueError, match="expected a name for each parameter"):
        named_state(optimizer, module[0].named_parameters())  # pyright: ignore
    optimizer.state[module[0].weight]["history"] = [1, 2]  # pyright: ignore
    with pytest.raises(ValueError, match="got list under 'history'"):
        named_state(optimizer, module.named_parameters())
