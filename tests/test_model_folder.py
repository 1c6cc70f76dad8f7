"""Model folders: whole or not there, every tensor accounted for, mapped and not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mdmkit import assemble, model_folder
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, load
from mdmkit.train import state
from mdmkit.train.plan import trained_parameters
from tests.train import tiny

REGISTRY = load_registry()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load(tiny.write_recipe(tmp_path), [], REGISTRY)


def fresh(recipe: Recipe) -> dict[str, Any]:
    """Random parameters for a recipe; zeros would hide a wrong order."""
    torch.manual_seed(3)
    parameters = trained_parameters(assemble.nest(recipe, REGISTRY), assemble.text_encoder(recipe, REGISTRY))
    return {name: torch.randn_like(p) for name, p in parameters.items()}


def test_what_is_written_is_loaded(recipe: Recipe, tmp_path: Path) -> None:
    weights = fresh(recipe)
    model_folder.write(tmp_path / "models" / "mine", recipe, weights, {"source": "drawn"})
    folder = model_folder.find(tmp_path / "models" / "mine")
    assert load(folder / "recipe.resolved.toml", [], REGISTRY) == recipe
    assert state.load(folder).facts["source"] == "drawn"
    nest, text = model_folder.load(folder, recipe, REGISTRY)
    loaded = trained_parameters(nest, text)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert all(p.requires_grad and not p.is_meta for p in nest.parameters())
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_weights_are_mapped_and_not_copied(recipe: Recipe, tmp_path: Path) -> None:
    """Every parameter of the nest lies in the file's own mapping, one after the other."""
    weights = fresh(recipe)
    model_folder.write(tmp_path / "mine", recipe, weights, {})
    nest, _ = model_folder.load(tmp_path / "mine", recipe, REGISTRY)
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    for name, p in nest.named_parameters():
        assert any(start <= p.data_ptr() < end for start, end in mapped), name


def test_averaged_weights_come_first(recipe: Recipe, tmp_path: Path) -> None:
    weights = fresh(recipe)
    averaged = {name: value + 1 for name, value in weights.items()}
    folder = state.save(
        tmp_path / "checkpoints",
        5,
        {"model": weights, "ema": averaged},
        {},
        {"recipe.resolved.toml": ""},
        keep=1,
    )
    assert model_folder.find(tmp_path) == folder
    for asked, expected in ((None, averaged), ("ema", averaged), ("model", weights)):
        stored = model_folder.weights_in(folder, asked)
        assert all(torch.equal(stored[name], value) for name, value in expected.items()), asked


def test_what_does_not_fit_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    weights = fresh(recipe)
    model_folder.write(tmp_path / "whole", recipe, weights, {})
    with pytest.raises(WrongInput, match=r"has no ema\.safetensors; it has model\.safetensors"):
        model_folder.weights_in(tmp_path / "whole", "ema")
    some = dict(weights)
    some["levels.0.more"] = some.pop("levels.0.conv_in.bias")
    model_folder.write(tmp_path / "other", recipe, some, {})
    with pytest.raises(WrongInput, match=r"missing: levels\.0\.conv_in\.bias; left over: levels\.0\.more"):
        model_folder.load(tmp_path / "other", recipe, REGISTRY)
    with pytest.raises(WrongInput, match="exists and is not an empty folder"):
        model_folder.write(tmp_path / "whole", recipe, weights, {})
    with pytest.raises(WrongInput, match="neither a run folder nor a model folder"):
        model_folder.find(tmp_path)
    file = tmp_path / "whole" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MdmkitError, match="cut short"):
        model_folder.load(tmp_path / "whole", recipe, REGISTRY)


def test_what_fails_leaves_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        model_folder.write(tmp_path / "out", recipe, fresh(recipe), {})
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_constructors_make_their_own_buffers(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin's core may compute a table where it is built; a network from meta would have none."""
    build = assemble.nest

    def with_table(*args: Any, **given: Any) -> Any:
        nest = build(*args, **given)
        nest.register_buffer("table", torch.arange(3.0, device=given.get("device")), persistent=False)
        return nest

    weights = fresh(recipe)
    model_folder.write(tmp_path / "mine", recipe, weights, {})
    monkeypatch.setattr(assemble, "nest", with_table)
    nest, text = model_folder.load(tmp_path / "mine", recipe, REGISTRY)
    assert nest.get_buffer("table").tolist() == [0, 1, 2]
    loaded = trained_parameters(nest, text)
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
