"""Devices, ranks, precision and compilation."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from mdmkit.errors import WrongInput
from mdmkit.nn import NestedUNet, UNetCore
from mdmkit.train.parallel import World, autocast, compile_blocks, pick_device, world

CPU = torch.device("cpu")


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("wanted", ["gpu", "cpu:x", "mps", ""])
def test_a_device_that_is_no_device_is_refused(wanted: str) -> None:
    with pytest.raises(WrongInput) as raised:
        pick_device(wanted)
    assert str(raised.value) == f"run.device: expected auto, cpu, cuda or cuda:<number>, got '{wanted}'"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongInput) as raised:
        pick_device("cuda")
    assert str(raised.value) == (
        "run.device: 'cuda' is asked for, but torch sees no CUDA device; say run.device=\"cpu\""
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(WrongInput, match=r"^run.device: cuda:3 is asked for, but there are 2 CUDA devices$"):
        pick_device("cuda:3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        WrongInput, match=r'^run.device: cuda:1 is one device for several ranks; say run.device="cuda"$'
    ):
        pick_device("cuda:1")


def test_one_rank_alone() -> None:
    with world(CPU) as ranks:
        assert ranks == World()
        assert ranks.is_main
        assert ranks.any(torch.tensor(True), False, device=CPU) == [True, False]
        assert ranks.sum(2, 3, device=CPU) == [2, 3]
        assert ranks.gather([("a", "b")]) == [("a", "b")]
        means = torch.tensor([1.5])
        assert ranks.mean(means) is means
        module = nn.Linear(1, 1)
        assert ranks.wrap(module) is module
        ranks.barrier()


def test_low_precision_only_where_the_device_is_made_for_it() -> None:
    with autocast("bf16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_every_block_is_compiled_and_no_name_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import config

    nest = NestedUNet(UNetCore(channels=(8, 8), blocks=2, attention=(0, 1), heads=2, norm_groups=4))
    names = list(nest.state_dict())
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *a, **k: compiled.append(self))
    with config.patch(recompile_limit=8, accumulated_recompile_limit=8):
        assert compile_blocks(nest.blocks()) == len(compiled) > 4
        assert compiled == list(nest.blocks())
        assert config.recompile_limit >= 4 * len(compiled), "one variant a shape, for each of them"
    assert list(nest.state_dict()) == names


def test_a_compiled_block_computes_the_same() -> None:
    torch.manual_seed(0)
    nest = NestedUNet(UNetCore(channels=(8,), blocks=1, attention=0, middle=False, norm_groups=4))
    for parameter in nest.parameters():
        nn.init.normal_(parameter, std=0.3)
    z, t = (torch.randn(2, 3, 8, 8),), torch.tensor([0.2, 0.7])
    expected = nest(z, t)[0]
    for block in nest.blocks():
        block.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        assert torch.equal(nest(z, t)[0], expected)
