"""`mdmkit import`: a model folder that draws, or one line and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mdmkit import assemble, model_folder
from mdmkit.interop.apple_keys import key_map
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from tests.golden import golden_case
from tests.interop import released
from tests.train import tiny

REGISTRY = load_registry(env={"MDMKIT_PLUGINS": ""})


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["noema_args_dict", "ema_args_namespace_plain"])
@pytest.mark.parametrize("given", ["inside", "config"])
def test_a_recorded_file_is_imported_and_gives_the_recorded_outputs(kind: str, given: str, tmp_path: Path):
    folder = golden_case("checkpoint_unet")
    table = json.loads((folder / "config.json").read_text())
    named = ["--config", released.write_yaml(tmp_path / "c.yaml", table)] if given == "config" else []
    answer = tiny.here(
        "import", "apple", folder / f"{kind}.pth", *named, "--out", tmp_path / "models" / "mine"
    )
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"{tmp_path}/models/mine\ncarried over:\n")
    assert "  level 0, 16 pixels: 292,803\n  all: 292,803\n" in answer.out
    assert "next: mdmkit sample" in answer.out
    assert "never read by the released code: diffusion_config.sampler_config.reproject_signal" in answer.err
    where = model_folder.find(tmp_path / "models" / "mine")
    recipe = load(where / "recipe.resolved.toml", registry=REGISTRY)
    facts = json.loads((where / "state.json").read_text())
    assert facts["released"]["batch_num"] == 4321
    assert facts["imported"]["file"] == f"{kind}.pth"
    nest = assemble.nest(recipe, REGISTRY)
    nest.load_state_dict(load_file(where / "model.safetensors"))
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        (out,) = nest(
            [io["x_t.0"]], (io["times"].double() + 1) / 1000, io["conditioning"], io["cond_mask"].bool(), {}
        )
    recorded = io[f"out_{kind.partition('_')[0]}.0"]
    assert ((out - recorded).abs().max() / recorded.std()).item() <= 5e-5


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of a tiny nest without text, and its config."""
    table = released.tiny_config()
    released.checkpoint(tmp_path / "vis_model.pth", table, None)
    return tmp_path / "vis_model.pth", released.write_yaml(tmp_path / "c.yaml", table)


def test_an_imported_model_draws(files: tuple[Path, Path], tmp_path: Path):
    file, config = files
    out = tmp_path / "mine"
    answer = tiny.here("import", "apple", file, "--config", config, "--out", out, "--set", "sample.steps=2")
    assert answer.code == 0, answer.err
    assert "  level 1, 16 pixels: " in answer.out
    assert answer.out.endswith(f"next: mdmkit sample {out}\n")
    said = f"{config}: never read by the released code (carried over as diffusion_config.mixed_ratio)"
    assert f"{said}: mixed_ratio\n" in answer.err
    assert "about the released programs' files, reader and machines: dataset_config, " in answer.err
    answer = tiny.here("sample", out, "--out", tmp_path / "drawn", "--count", "2")
    assert answer.code == 0, answer.err
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert {"grid-level-1-16x16.png", "picture-00000.png", "picture-00001.png"} <= names
    assert tiny.here("check", out / "recipe.resolved.toml", "--build").code == 0


def test_every_tensor_arrives_under_our_name_in_single_precision(tmp_path: Path):
    table = released.tiny_config(text=True)
    state = released.checkpoint(tmp_path / "a.pth", table, 24)
    config = released.write_yaml(tmp_path / "c.yaml", table)
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
        lower = {name: tensor.to(dtype) for name, tensor in state.items()}
        torch.save({"state_dict": lower}, tmp_path / "b.pth")
        out = tmp_path / f"mine{number}"
        assert tiny.here("import", "apple", tmp_path / "b.pth", "--config", config, "--out", out).code == 0
        recipe = load(out / "recipe.resolved.toml", registry=REGISTRY)
        assert recipe.text is not None
        assert recipe.text.settings.width == 24
        stored = load_file(out / "model.safetensors")
        names = key_map(assemble.nest(recipe, REGISTRY, device="meta"))
        assert stored.keys() == names.keys()
        for ours, theirs in names.items():
            assert stored[ours].dtype == torch.float32
            assert torch.equal(stored[ours].flatten(), lower[theirs].float().flatten()), ours


def test_names_that_share_memory_are_parted(files: tuple[Path, Path], tmp_path: Path):
    file, config = files
    state = torch.load(file, weights_only=True)["state_dict"]
    twins = [name for name in state if name.endswith("resnets.0.norm1.weight")]
    state |= {name: state[twins[0]] for name in twins if state[name].shape == state[twins[0]].shape}
    torch.save({"state_dict": state}, file)
    assert tiny.here("import", "apple", file, "--config", config, "--out", tmp_path / "mine").code == 0


@pytest.mark.parametrize(
    "what", ["a tensor is missing", "a tensor is left over", "a shape", "a type", "levels"]
)
def test_a_config_that_does_not_fit_is_refused(what: str, files: tuple[Path, Path], tmp_path: Path):
    file, config = files
    state = torch.load(file, weights_only=True)["state_dict"]
    name = "inner_unet.conv_in.bias"
    said = f"{file} does not fit {config}: "
    if what == "a tensor is missing":
        del state[name]
        said += f"released weights lack {name}"
    elif what == "a tensor is left over":
        state["outer.weight"] = torch.zeros(2)
        said += "released weights have parameters that the network lacks: outer.weight"
    elif what == "a shape":
        state[name] = torch.zeros(31)
        said += f"expected released {name} of shape (32,), got (31,)"
    elif what == "a type":
        state[name] = torch.zeros(32, dtype=torch.int64)
        said += f"expected floating point numbers, got torch.int64 for {name}"
    else:
        table = released.tiny_config()
        core = {"unet_config": table["unet_config"]["inner_config"], "model": "unet", "vision_model": "unet"}
        released.write_yaml(config, table | core)
        said += "released weights lack "
    torch.save({"state_dict": state}, file)
    answer = tiny.here("import", "apple", file, "--config", config, "--out", tmp_path / "mine")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(said)
    assert answer.err.count("\n") == 1
    nothing_left(tmp_path)


def nothing_left(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= {"vis_model.pth", "c.yaml"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file, config: file.unlink(), "{file}: cannot be read: No such file or directory"),
        (lambda file, config: config.unlink(), "{config}: cannot be read: No such file or directory"),
        (
            lambda file, config: file.write_bytes(file.read_bytes()[:-100]),
            "{file}: the file is cut short or damaged",
        ),
        (
            lambda file, config: config.write_text("lr: 1\nlrr: 2\n"),
            "{config}: lrr: unknown key; did you mean 'lr'?",
        ),
        (
            lambda file, config: config.write_text("lr: 1\n"),
            "{config}: unet_config: missing; expected the table",
        ),
        (
            lambda file, config: config.write_text(config.read_text().replace("lr: 5.0e-05", "lr: -1")),
            "{config} as a recipe:",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    spoil: Any, said: str, files: tuple[Path, Path], tmp_path: Path
):
    file, config = files
    spoil(file, config)
    answer = tiny.here("import", "apple", file, "--config", config, "--out", tmp_path / "mine")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(said.format(file=file, config=config))
    assert answer.err.count("\n") == 1
    nothing_left(tmp_path)


def test_other_things_are_refused(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, config = files
    answer = tiny.here("import", "orange", file, "--out", tmp_path / "mine")
    assert (answer.code, answer.err) == (2, "import: expected the format apple, got 'orange'\n")
    answer = tiny.here("import", "apple", file, "--out", tmp_path / "mine")
    assert (answer.code, answer.err) == (
        2,
        f"{file}: has no settings inside (args); name the released YAML with --config\n",
    )
    answer = tiny.here("import", "apple", "absent.pth", "--config", config, "--out", tmp_path)
    assert (answer.code, answer.err) == (
        2,
        f"{tmp_path} exists and is not an empty folder; name another --out\n",
    )

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder, "write", full)
    answer = tiny.here("import", "apple", file, "--config", config, "--out", tmp_path / "mine")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"{tmp_path}/mine cannot be written: [Errno 28] No space left on device\n"
    nothing_left(tmp_path)
