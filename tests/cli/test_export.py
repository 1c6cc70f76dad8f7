"""`mdmkit export`: what leaves is what was trained; what cannot leave is one line and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mdmkit import assemble, model_folder
from mdmkit.interop.apple_file import read
from mdmkit.interop.apple_keys import build_nest, from_released, level_settings
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, load, loads
from mdmkit.train import state
from mdmkit.train.plan import trained_parameters
from tests.golden import golden_case
from tests.train import tiny

REGISTRY = load_registry()
# as the released code can have it: groups of 32, 8 heads, T5
RELEASED = """
format = 1

[data]
use = "shapes"

[text]
use = "t5"
model = "google/flan-t5-xl"
width = 24

[diffusion]
shift_power = 2
level_weights = [1.0, 4.0]

[[model.levels]]
resolution = 8
channels = [32, 64]
blocks = [1, 2]
attention = [0, 1]
cond_width = 32
micro_conditioning = { scale = 8.0 }

[[model.levels]]
resolution = 16
channels = [32, 32]
blocks = 1
normalize_input = true

[train]
steps = 2
batch = 3
levels = { use = "mixed", shares = [0.25, 0.75] }
"""


RELEASED_FILES = [
    "noema_args_dict",
    "ema_args_namespace_plain",
    "ema_args_namespace_objects",
    "ema_args_namespace_objects_oldnames",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    few = ("--set", "train.steps=5", "--set", "train.optimizer.lr=0.01", "--set", "sample.steps=3")
    done = tiny.here("run", tiny.write_recipe(folder), "--out", folder / "run", *few)
    assert done.code == 0, done.err
    return folder / "run"


def random_weights(recipe: Recipe, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = assemble.text_encoder(recipe, REGISTRY, device="meta")
    wanted = trained_parameters(assemble.nest(recipe, REGISTRY, device="meta"), text)
    return {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in wanted.items()}


def model(folder: Path, text: str = RELEASED, sets: tuple[str, ...] = ()) -> tuple[Path, dict[str, Tensor]]:
    """A model folder with random weights, and those."""
    recipe = loads(text, sets, REGISTRY)
    weights = random_weights(recipe)
    model_folder.write(folder / "model", recipe, weights, {"source": "drawn"})
    return folder / "model", weights


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def pictures(model: Path, out: Path, *more: Any) -> list[bytes]:
    done = tiny.here("sample", model, "--prompt", "a red star", "--count", "2", "--out", out, *more)
    assert done.code == 0, done.err
    return [path.read_bytes() for path in sorted(out.glob("picture-*.png"))]


def test_a_model_folder_draws_what_the_run_draws(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "mine"
    done = tiny.here("export", run, "--format", "safetensors", "--out", out)
    assert done == (0, f"{out}\n", "")
    assert sorted(path.name for path in out.iterdir()) == [
        "model.safetensors", "recipe.resolved.toml", "state.json",
    ]  # fmt: skip
    assert same(load_file(out / "model.safetensors"), model_folder.weights_in(model_folder.find(run), "ema"))
    assert state.load(out).facts["step"] == 5
    assert pictures(out, tmp_path / "a") == pictures(run, tmp_path / "b")


def test_weights_as_trained_leave_when_asked_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tiny.here("export", run, "--format", "safetensors", "--weights", "model", "--out", out).code == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert same(stored, model_folder.weights_in(model_folder.find(run), "model"))
    assert not same(stored, model_folder.weights_in(model_folder.find(run), "ema"))


def test_inner_levels_are_a_model_of_their_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "inner"
    assert tiny.here("export", run, "--format", "safetensors", "--levels", "1", "--out", out).code == 0
    recipe = load(out / "recipe.resolved.toml", [], REGISTRY)
    assert [level.resolution for level in recipe.model.levels] == [8]
    assert recipe.train.levels.settings.shares == (1.0,)
    assert pictures(out, tmp_path / "a") == pictures(run, tmp_path / "b", "--levels", "1")


def test_the_released_form_holds_every_tensor_and_the_settings(tmp_path: Path) -> None:
    folder, weights = model(tmp_path)
    out = tmp_path / "new" / "vis_model.pth"
    assert tiny.here("export", folder, "--format", "apple", "--out", out) == (0, f"{out}\n", "")
    assert [path.name for path in out.parent.iterdir()] == ["vis_model.pth"]

    checkpoint = torch.load(out, weights_only=True)
    args = checkpoint["args"]
    assert (args["model"], args["text_model"]) == ("nested_unet", "google/flan-t5-xl")
    assert args["diffusion_config"]["sampler_config"]["schedule_shifted_power"] == 2.0
    assert args["diffusion_config"]["multi_res_weights"] == "4:1"
    assert args["diffusion_config"]["mixed_ratio"] == "3:1"
    # what the released trainer looks up when it goes on
    assert {"batch_num", "exp_avg_loss", "exp_avg_loss_var", "best_avg_loss"} < checkpoint.keys()

    nest = build_nest(args["unet_config"], 24)
    state_dict = checkpoint["state_dict"]
    assert same(from_released(state_dict, nest), weights)
    assert state_dict["inner_unet.up_blocks.0.attn.0.qkv.weight"].shape == (192, 64, 1, 1)
    core, shell = level_settings(args["unet_config"])
    assert (core["blocks"], core["cond_width"], shell["normalize_input"]) == ((1, 2), 32, True)
    # a shell's embedding is as wide as the core's, which the released code has to be told
    assert shell["emb_dim"] == 128


def test_the_released_form_is_no_larger_than_its_tensors(tmp_path: Path) -> None:
    """A tensor that is a view of a mapped file must not take the whole file along."""
    folder, weights = model(tmp_path)
    out = tmp_path / "out.pth"
    assert tiny.here("export", folder, "--format", "apple", "--levels", "1", "--out", out).code == 0
    kept = sum(4 * value.numel() for name, value in weights.items() if name.startswith("levels.0."))
    assert kept < out.stat().st_size < 1.2 * kept


def test_settings_without_a_place_are_listed(tmp_path: Path) -> None:
    sets = ('diffusion.loss_space="x0"', 'sample.threshold={use="dynamic", quantile=0.9}')
    folder, _ = model(tmp_path, sets=sets)
    done = tiny.here("export", folder, "--format", "apple", "--out", tmp_path / "out.pth")
    assert done.code == 0
    assert done.err.splitlines() == [
        f"left out, as the released settings have no place for it: {path}"
        for path in ("diffusion.loss_space", "sample.threshold")
    ]


REFUSED = {
    "heads": (
        ("model.levels[0].heads=4",),
        "model.levels[0].heads: 4; the released networks have 8",
    ),
    "limit": (
        ("model.levels[0].output_limit=2.0",),
        "model.levels[0].output_limit: 2.0; a released nest has none",
    ),
    "schedule": (
        ('diffusion.schedule="linear_flow"',),
        "diffusion.schedule: 'linear_flow'; "
        "the released code has those called cosine, cosine_logsnr, ddpm here",
    ),
    "prediction": (
        ('diffusion.prediction="x0"',),
        "diffusion.prediction: 'x0'; the released code has eps and v",
    ),
    "encoder": (
        ('text={use="bytes", width=24}',),
        "text: 'bytes'; the released networks read the features of a 't5'",
    ),
    "layer": (('text.layer="penultimate"',), "text.layer: 'penultimate'; the released code takes the 'last'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_released_code_cannot_hold(name: str, tmp_path: Path) -> None:
    sets, line = REFUSED[name]
    folder, _ = model(tmp_path, sets=sets)
    out = tmp_path / "new" / "out.pth"
    done = tiny.here("export", folder, "--format", "apple", "--out", out)
    assert done == (2, "", f"the released code cannot hold this model: {line}\n")
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--format", "onnx"), "export --format: expected apple, diffusers, safetensors, got 'onnx'"),
        (("--format", "apple", "--weights", "best"), "export --weights: expected ema or model, got 'best'"),
        (("--format", "apple", "--levels", "0"), "export --levels: expected a number of at least 1, got 0"),
        (("--format", "safetensors", "--levels", "3"),
         "export --levels: expected 1 to 2, got 3: the model has no more"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run: Path, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    done = tiny.here("export", run, *arguments, "--out", tmp_path / "new" / "out")
    assert done == (2, "", line + "\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["apple", "diffusers", "safetensors"])
def test_nothing_is_written_over(form: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    done = tiny.here("export", run, "--format", form, "--out", out)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{out} exists" in done.err
    below = out / "mine.txt" / "deeper"
    done = tiny.here("export", run, "--format", form, "--out", below)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert (out / "mine.txt").read_text() == "keep me"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_without_a_model_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    done = tiny.here("export", tmp_path, "--format", "apple", "--out", tmp_path / "out")
    assert done.code == 2
    assert "is neither a run folder nor a model folder" in done.err
    recipe = loads(RELEASED, [], REGISTRY)
    weights = random_weights(recipe)
    weights.pop("levels.1.conv_in.bias")
    model_folder.write(tmp_path / "model", recipe, weights, {})
    done = tiny.here("export", tmp_path / "model", "--format", "apple", "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert "missing: levels.1.conv_in.bias" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["apple", "diffusers", "safetensors"])
def test_a_full_disk_leaves_nothing(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = model(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "sync", full)
    done = tiny.here("export", folder, "--format", form, "--out", tmp_path / "new" / "out")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "cannot be written: [Errno 28] No space left on device" in done.err
    assert not list((tmp_path / "new").iterdir())


def there_and_back(file: Path, folder: Path, *more: Any) -> dict[str, Any]:
    """What export writes of what import read."""
    done = tiny.here("import", "apple", file, *more, "--out", folder / "model")
    assert done.code == 0, done.err
    done = tiny.here("export", folder / "model", "--format", "apple", "--out", folder / "back.pth")
    assert (done.code, done.err) == (0, "")
    return torch.load(folder / "back.pth", weights_only=True)


@pytest.mark.golden
@pytest.mark.parametrize("name", RELEASED_FILES)
def test_a_released_file_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    file = golden_case("checkpoint_unet") / f"{name}.pth"
    first, back = read(file), there_and_back(file, tmp_path)
    assert same(back["state_dict"], first.tensors)
    assert first.settings is not None
    for key in ("model", "text_model", "unet_config", "diffusion_config", "lr", "warmup_steps"):
        assert back["args"][key] == first.settings[key], key
    # and once more: the recipe too is the same
    assert tiny.here("import", "apple", tmp_path / "back.pth", "--out", tmp_path / "again").code == 0
    one, two = (load(tmp_path / name / "recipe.resolved.toml", [], REGISTRY) for name in ("model", "again"))
    assert one == two
    stored = [load_file(tmp_path / name / "model.safetensors") for name in ("model", "again")]
    assert same(*stored)


@pytest.mark.golden
@pytest.mark.parametrize(
    "case",
    [
        *("unet_plain", "unet_lmhead_masked", "nested2_normed", "nested2_outer_attn", "nested3"),
        *("temporal", "temporal_spatial_ds"),
    ],
)
def test_recorded_networks_come_back_as_they_were(case: str, tmp_path: Path) -> None:
    config = json.loads((golden_case(case) / "config.json").read_text())
    process = golden_case("checkpoint_unet" if config["model"] == "unet" else "train_step")
    config = json.loads((process / "config.json").read_text()) | config
    config |= {"text_model": "google/flan-t5-xl", "sample_image_size": 64}
    weights = load_file(golden_case(case) / "weights.safetensors")
    torch.save({"state_dict": weights, "args": config}, tmp_path / "first.pth")
    back = there_and_back(tmp_path / "first.pth", tmp_path)
    assert same(back["state_dict"], {k: v for k, v in weights.items() if "interp_layer" not in k})
    assert tiny.here("import", "apple", tmp_path / "back.pth", "--out", tmp_path / "again").code == 0
    one, two = (load(tmp_path / name / "recipe.resolved.toml", [], REGISTRY) for name in ("model", "again"))
    assert one == two
