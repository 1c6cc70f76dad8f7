"""Checkpoints: what is saved comes back, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.train import state
from mdmkit.train.ema import EMA
from mdmkit.train.optim import adamw, named_state
from mdmkit.train.state import Checkpoint, check_names, checkpoints, damaged, latest, load, restore, save

TENSORS = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.float64)},
    "optimizer": {"step/a": torch.tensor(3.0), "exp_avg/a": torch.randn(3, 2).T},
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 7, TENSORS, {"sums": [0.1]}, {"recipe.resolved.toml": "format = 1\n"}, keep=2)
    assert (path.name, latest(tmp_path)) == ("step-0000007", path)
    loaded = load(path)
    assert (loaded.step, loaded.facts["sums"]) == (7, [0.1])
    assert {name: set(group) for name, group in loaded.tensors.items()} == {
        n: set(g) for n, g in TENSORS.items()
    }
    for group, tensors in TENSORS.items():
        for name, tensor in tensors.items():
            assert torch.equal(loaded.tensors[group][name], tensor)
            assert loaded.tensors[group][name].dtype == tensor.dtype
    assert set(load(path, only=("model",)).tensors) == {"model"}
    assert (path / "recipe.resolved.toml").read_text() == "format = 1\n"


def test_the_last_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, TENSORS, {}, keep=2)
    assert names(tmp_path) == ["step-0000003", "step-0000010"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["save_file", "sync", "os.rename"])
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_never_costs_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, before: bool
) -> None:
    kept = "there is no checkpoint before it"
    if before:
        kept = f"the checkpoint before it is whole: {save(tmp_path, 1, TENSORS, {}, keep=1)}"
    monkeypatch.setattr(f"mdmkit.train.state.{where}", full_disk)
    with pytest.raises(MdmkitError) as raised:
        save(tmp_path, 2, TENSORS, {}, keep=1)
    assert str(raised.value) == (
        f"checkpoint at step 2 could not be written to {tmp_path}: [Errno 28] No space left on device; {kept}"
    )
    assert names(tmp_path) == (["step-0000001"] if before else [])
    assert damaged(tmp_path) == []


def test_safetensors_own_error_for_a_full_disk_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise state.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(state, "save_file", refuse)
    with pytest.raises(MdmkitError, match="No space left on device"):
        save(tmp_path, 2, TENSORS, {}, keep=1)


def test_what_a_killed_process_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-0000004").mkdir(parents=True)
    assert (checkpoints(tmp_path), latest(tmp_path)) == ([], None)
    save(tmp_path, 5, TENSORS, {}, keep=1)
    assert names(tmp_path) == ["step-0000005"]


def cut_short(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def gone(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def no_facts(path: Path) -> None:
    (path / "state.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize("harm", [cut_short, gone, no_facts])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, harm) -> None:
    first = save(tmp_path, 1, TENSORS, {}, keep=2)
    second = save(tmp_path, 2, TENSORS, {}, keep=2)
    harm(second)
    assert latest(tmp_path) == first
    assert [path for path, _ in damaged(tmp_path)] == [second]
    with pytest.raises(MdmkitError, match=f"^{second} is not a whole checkpoint: "):
        load(second)
    # trained again to the same step, it takes the place of the damaged one
    assert save(tmp_path, 2, TENSORS, {}, keep=2) == latest(tmp_path) == second


def test_a_file_of_the_right_length_but_not_readable_is_one_line(tmp_path: Path) -> None:
    path = save(tmp_path, 1, TENSORS, {}, keep=2)
    file = path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(MdmkitError, match=f"^{path} is not a whole checkpoint: .*; use another one"):
        load(path)


def trained(seed: int) -> tuple[dict[str, nn.Parameter], EMA, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    named = dict(model.named_parameters())
    ema, optimizer = EMA(named, decay=0.9), adamw(list(named.items()))
    for _ in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        ema.update()
    return named, ema, optimizer


def test_restore_gives_parameters_averages_and_moments_back(tmp_path: Path) -> None:
    named, ema, optimizer = trained(0)
    tensors = {"model": named, "ema": ema.averages, "optimizer": named_state(optimizer, named.items())}
    path = save(tmp_path, 2, tensors, {"ema": ema.updates}, keep=1)
    others, other_ema, other_optimizer = trained(1)
    restore(load(path), others, other_ema, other_optimizer)
    for name, parameter in named.items():
        assert torch.equal(others[name], parameter)
        assert torch.equal(other_ema.averages[name], ema.averages[name])
    assert other_ema.updates == ema.updates
    ours, theirs = named_state(optimizer, named.items()), named_state(other_optimizer, others.items())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_and_shapes_must_be_those_of_the_recipe(tmp_path: Path) -> None:
    wanted: dict[str, Tensor] = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(WrongInput) as raised:
        check_names(tmp_path, wanted, {"a": torch.zeros(3), "c": torch.zeros(1)})
    assert str(raised.value) == (
        f"{tmp_path} is from another recipe: missing: b; left over: c; other shape: a (3,) instead of (2,)"
    )
    named, ema, optimizer = trained(0)
    stored = {"model": named, "ema": {**ema.averages, "odd": torch.zeros(1)}, "optimizer": {}}
    facts = json.loads(json.dumps({"step": 1, "ema": ema.updates}))
    with pytest.raises(WrongInput, match=r"does not fit this run: averages of unknown parameters: odd"):
        restore(Checkpoint(tmp_path, facts, stored), named, ema, optimizer)
