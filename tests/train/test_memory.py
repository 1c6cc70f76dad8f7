"""Too little memory is said before a training starts, or in one line when it comes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.nn import NestedUNet, UNetCore, UNetShell
from mdmkit.nn.cost import level_costs
from mdmkit.train import memory
from mdmkit.train.memory import check_fits, free_memory, one_line_memory_errors, training_memory

CPU = torch.device("cpu")


def nest() -> NestedUNet:
    made = {"norm_groups": 4, "device": "meta"}
    core = UNetCore(channels=(8,), blocks=1, attention=0, **made)
    shell = UNetShell(channels=(8, 8), blocks=1, inner_channels=8, emb_dim=core.emb_dim, **made)
    return NestedUNet(core, [shell])


def test_it_is_what_check_build_says() -> None:
    sizes = ((8, 8), (16, 16))
    model, activations = training_memory(nest(), sizes, (6, 4))
    costs = level_costs(nest(), sizes, (6, 4))
    assert activations == sum(cost.activations for cost in costs)
    assert model + activations == sum(cost.memory for cost in costs)
    assert training_memory(nest(), sizes, (6,))[1] == costs[0].activations


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 2**30)
    check_fits(2**30, 2 * 2**30, device=CPU, bf16=False, pictures=64)
    with pytest.raises(WrongInput) as raised:
        check_fits(2**30, 3 * 2**30, device=CPU, bf16=False, pictures=64)
    assert str(raised.value) == (
        "too little memory: training takes at least 4.0 GiB (model 1.0 GiB, activations of 64 pictures at a "
        "time), but cpu has 3.0 GiB free; raise train.accumulate, set model.use_checkpoint = true, or lower "
        "train.batch"
    )
    # autocast keeps half of them
    check_fits(2**30, 4 * 2**30, device=torch.device("cuda"), bf16=True, pictures=64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(WrongInput, match=r"at least 6.0 GiB"):
        check_fits(2**30, 2 * 2**30, device=CPU, bf16=False, pictures=64)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    check_fits(2**50, 0, device=CPU, bf16=False, pictures=64)


def test_free_memory_is_some() -> None:
    free = free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_an_allocation_that_fails_is_one_line() -> None:
    def torch_cpu() -> None:
        torch.empty(2**50)

    def numpy() -> None:
        np.empty(2**58, np.uint8)

    def cuda() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    for fails in (torch_cpu, numpy, cuda):
        with (
            pytest.raises(MdmkitError, match=r"^too little memory: [^\n]*; draw fewer$"),
            one_line_memory_errors("draw fewer"),
        ):
            fails()
    with pytest.raises(RuntimeError, match=r"^something else$"), one_line_memory_errors():
        raise RuntimeError("something else")
