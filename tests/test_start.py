"""Starting from a model: the same function where it is old, nothing where it is new, an error elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from torch import Tensor, nn

from mdmkit import assemble, model_folder, start
from mdmkit.errors import WrongInput
from mdmkit.plugins import load_registry
from mdmkit.recipe import Recipe, loads
from mdmkit.train.ema import EMA
from mdmkit.train.plan import trained_parameters
from tests.train import tiny

REGISTRY = load_registry()
OUTER = """
[[model.levels]]
resolution = 32
channels = [8, 8]
blocks = [1, 1]
norm_groups = 4
normalize_input = true

[train]"""
TWO = tiny.RECIPE
LEVELS = TWO.split("[[model.levels]]")
ONE = LEVELS[0] + "[[model.levels]]" + LEVELS[1] + "[train]" + TWO.partition("[train]")[2]
ONE = ONE.replace('levels = { use = "mixed", shares = [0.5, 0.5] }\n', "")
THREE = TWO.replace("[train]", OUTER.lstrip()).replace("shares = [0.5, 0.5]", "shares = [0.5, 0.25, 0.25]")
TEXTS = {1: ONE, 2: TWO, 3: THREE}


def recipe_of(levels: int, *sets: str) -> Recipe:
    return loads(TEXTS[levels], sets, REGISTRY)


def model_of(levels: int, folder: Path, *sets: str, seed: int = 3) -> Path:
    """A model folder of so many levels; every parameter random, so that nothing is zero by construction."""
    recipe = recipe_of(levels, *sets)
    generator = torch.Generator().manual_seed(seed)
    parameters = trained_parameters(*fresh(recipe))
    weights = {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    model_folder.write(folder, recipe, weights, {})
    return folder


def fresh(recipe: Recipe, dtype: torch.dtype | None = None) -> tuple[nn.Module, nn.Module | None]:
    torch.manual_seed(0)
    return (
        assemble.nest(recipe, REGISTRY, dtype=dtype), assemble.text_encoder(recipe, REGISTRY, dtype=dtype)
    )  # fmt: skip


def told(recipe: Recipe) -> tuple[tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(9)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    z = tuple(random(2, 3, h, w) for h, w in assemble.resolutions(recipe))
    return z, torch.tensor([0.2, 0.8], dtype=torch.float64)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 3), (2, 3), (2, 2), (3, 2), (3, 1)])
@torch.no_grad()
def test_old_levels_predict_exactly_what_the_start_model_predicts(old: int, new: int, tmp_path: Path) -> None:
    """In float64, to the last bit, whatever is at the new level; new heads give 0."""
    folder = model_of(old, tmp_path / "model")
    theirs = recipe_of(old)
    nest, text = model_folder.load(folder, theirs, REGISTRY)
    assert text is not None
    nest, text = nest.double(), text.double()

    recipe = recipe_of(new, f'run.start="{folder}"')
    grown, its_text = fresh(recipe, torch.float64)
    found = start.find(recipe, REGISTRY)
    found.copy_into(trained_parameters(grown, its_text))
    assert its_text is not None

    z, t = told(recipe if new >= old else theirs)
    cond, mask = text(["a red star", ""])
    again, again_mask = its_text(["a red star", ""])
    assert torch.equal(cond, again)
    assert torch.equal(mask, again_mask)
    shared = min(old, new)
    expected = nest(z[:shared], t, cond, mask)
    for levels in range(shared, new + 1):
        got = grown(z[:levels], t, again, again_mask)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False)), levels
        assert all(not prediction.any() for prediction in got[shared:])
    assert list(found.loaded) == list(range(shared))
    assert list(found.grown) == list(range(shared, new))
    assert list(found.left_out) == list(range(new, old))


def test_averaged_weights_are_taken_and_averages_begin_there(tmp_path: Path) -> None:
    folder = model_of(1, tmp_path / "model")
    averaged = {name: x + 1 for name, x in model_folder.weights_in(folder).items()}
    run = tmp_path / "run" / "checkpoints"
    from mdmkit.train import state

    texts = {"recipe.resolved.toml": (folder / "recipe.resolved.toml").read_text()}
    groups = {"model": model_folder.weights_in(folder), "ema": averaged}
    state.save(run, 7, groups, {}, texts, keep=1)
    recipe = recipe_of(2, f'run.start="{tmp_path}/run"')
    parameters = trained_parameters(*fresh(recipe))
    found = start.find(recipe, REGISTRY)
    assert found.weights == "ema"
    found.copy_into(parameters)
    ema = EMA(parameters, decay=0.9)
    for name, x in averaged.items():
        assert torch.equal(parameters[name], x)
        assert torch.equal(ema.averages[name], x)
    for name, p in parameters.items():
        assert torch.equal(ema.averages[name], p)
        assert ema.updates[name] == 0


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["model.levels[0].channels=[16, 16]"],
         "model.levels[0].channels: it has [8, 16], the recipe asks for [16, 16]"),
        (["model.levels[1].normalize_input=true"],
         "model.levels[1].normalize_input: it has False, the recipe asks for True"),
        (["model.levels[0].micro_conditioning={scale=8.0}"],
         "model.levels[0].micro_conditioning: it has none, the recipe asks for {'scale': 8.0}"),
        (["model.levels[1].block={use=\"resnet\", dropout=0.1}"],
         "model.levels[1].block.dropout: it has 0.0, the recipe asks for 0.1"),
        (["diffusion.schedule={use=\"cosine\", form=\"continuous\"}"],
         "diffusion.schedule.form: it has table, the recipe asks for continuous"),
        (["diffusion.schedule=\"linear_flow\""],
         "diffusion.schedule.use: it has cosine@1, the recipe asks for linear_flow@1"),
        (["diffusion.prediction=\"x0\""], "diffusion.prediction: it has v, the recipe asks for x0"),
        (["diffusion.shift_power=2.0"], "diffusion.shift_power: it has 1.0, the recipe asks for 2.0"),
        (["text.layers=2"], "text.layers: it has 1, the recipe asks for 2"),
        (["text={use=\"classes\", width=16, names=[\"a\"]}"],
         "text.classes.weight: it has nothing, the recipe asks for (2, 16)"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(sets: list[str], line: str, tmp_path: Path) -> None:
    folder = model_of(2, tmp_path / "model")
    with pytest.raises(WrongInput) as error:
        start.find(recipe_of(3, f'run.start="{folder}"', *sets), REGISTRY)
    assert str(error.value) == f"run.start: {folder} does not fit: {line}"


def test_what_changes_no_old_level_may_differ(tmp_path: Path) -> None:
    folder = model_of(1, tmp_path / "model")
    sets = ["diffusion.shift_power=2.0", 'diffusion.loss_space="v"', "train.ema=0.5", "text.pad=\"max\""]
    start.find(recipe_of(2, f'run.start="{folder}"', *sets, 'data={use="shapes"}'), REGISTRY)


def test_a_frozen_encoder_may_come_from_elsewhere(tmp_path: Path) -> None:
    """The same encoder in a folder, in another precision, or its features packed; not another layer of it."""
    t5 = 'text={use="t5", width=16, precision="bf16"}'
    folder = tmp_path / "model"
    recipe = recipe_of(1, t5)
    nest = assemble.nest(recipe, REGISTRY)
    model_folder.write(folder, recipe, dict(nest.named_parameters()), {})
    given = f'run.start="{folder}"'
    for text in (
        'text={use="t5", width=16, model="/data/t5", pad="max"}',
        'text={use="cached", width=16}',
        'text={use="hf", model="google/flan-t5-xl", width=16}',
    ):
        start.find(recipe_of(2, given, text), REGISTRY)
    for text, line in (
        ('text={use="hf", model="x", width=16, layer="penultimate"}', "text.layer: it has last"),
        ('text={use="cached", width=17}', "text.width: it has 16, the recipe asks for 17"),
    ):
        with pytest.raises(WrongInput, match=line):
            start.find(recipe_of(2, given, text), REGISTRY)


def test_a_folder_that_is_not_there_or_no_model(tmp_path: Path) -> None:
    for name, line in (
        ("none", "none: no such folder; expected a model folder or a run folder"),
        ("empty", "empty is neither a run folder nor a model folder (recipe.resolved.toml is missing)"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(WrongInput) as error:
            start.find(recipe_of(2, f'run.start="{tmp_path / name}"'), REGISTRY)
        assert str(error.value) == f"run.start: {tmp_path}/{line}"


PARAMETERS = trained_parameters(*fresh(recipe_of(2)))
SIZES = {
    part: sum(p.numel() for name, p in PARAMETERS.items() if name.startswith(part))
    for part in ("levels.0", "levels.1", "text")
}
FEW = ("--set", "train.steps=2", "--set", "sample.count=1")


def begin(tmp_path: Path, *more: Any) -> tuple[Path, Path]:
    folder = model_of(1, tmp_path / "model")
    recipe = tiny.write_recipe(tmp_path, TWO)
    done = tiny.here(
        "run", recipe, "--out", tmp_path / "run", *FEW, "--set", f'run.start="{folder}"', *more
    )
    assert done.code == 0, done.err
    assert done.err.splitlines()[0] == (
        f"starts from {folder} (model): level 0 loaded ({SIZES['levels.0']:,} parameters); "
        f"level 1 grown on top ({SIZES['levels.1']:,} parameters); "
        f"text encoder loaded ({SIZES['text']:,} parameters)"
    )
    return folder, tmp_path / "run"


def test_a_run_says_what_it_starts_from(tmp_path: Path) -> None:
    folder, run = begin(tmp_path)
    (event,) = tiny.events(run, "started_from")
    assert event == {
        "step": 0,
        "folder": str(folder),
        "weights": "model",
        "loaded": {"0": SIZES["levels.0"]},
        "grown": {"1": SIZES["levels.1"]},
        "left_out": {},
        "text": SIZES["text"],
    }
    facts = tomli.loads((run / "run.toml").read_text())["start"]
    assert facts["folder"] == str(folder)
    (name, digest), = facts["weights"].items()
    assert (name, digest[:7], len(digest)) == ("model.safetensors", "sha256:", 71)
    assert f'start = "{folder}"' in (run / "recipe.resolved.toml").read_text()
    # one step at a warmed-up rate is small: what was trained is what was loaded
    trained = tiny.tensors(run, 2)
    for name, x in model_folder.weights_in(folder).items():
        assert (trained[f"model:{name}"] - x).abs().max() < 0.01, name


def test_resume_does_not_read_the_start_again(tmp_path: Path) -> None:
    folder, run = begin(tmp_path)
    shutil.rmtree(folder)
    done = tiny.here("run", "--resume", run, "--set", "train.steps=4")
    assert done.code == 0, done.err
    assert "starts from" not in done.err
    assert len(tiny.events(run, "started_from")) == 1
    refused = tiny.here("run", "--resume", run, "--set", 'run.start="other"')
    assert refused.code == 2
    assert refused.err.startswith("--set changes run.start, which is read before the first step of")


def test_a_run_stopped_before_its_first_checkpoint_begins_again_from_the_same_weights(tmp_path: Path) -> None:
    folder, run = begin(tmp_path)
    whole = tiny.tensors(run, 2)
    shutil.rmtree(run / "checkpoints")
    assert tiny.here("run", "--resume", run).code == 0
    again = tiny.tensors(run, 2)
    assert all(torch.equal(again[name], x) for name, x in whole.items())
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(folder)
    model_of(1, folder, seed=4)
    refused = tiny.here("run", "--resume", run)
    assert refused.code == 2
    assert refused.err.startswith(f"run.start: the weights in {folder} are not those that {run} began with")


def test_what_does_not_fit_leaves_no_run_folder(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, TWO)
    sets = ("--set", f'run.start="{tmp_path}/none"')
    assert tiny.here("check", recipe, *sets).code == 0  # the folder may be on another machine
    line = f"run.start: {tmp_path}/none: no such folder; expected a model folder or a run folder\n"
    assert tiny.here("check", "--build", recipe, *sets) == (2, "", line)
    assert tiny.here("run", recipe, "--out", tmp_path / "run", *sets) == (2, "", line)
    assert not (tmp_path / "run").exists()
    folder = model_of(1, tmp_path / "model")
    done = tiny.here("check", "--build", recipe, "--set", f'run.start="{folder}"')
    assert done.out.splitlines()[-1].startswith(f"  starts from {folder} (model): level 0 loaded (")


def test_levels_that_are_shown_their_estimates_from_now_on_start_as_they_were(tmp_path: Path) -> None:
    folder = model_of(2, tmp_path / "model")
    text = TWO.replace("norm_groups = 4", "norm_groups = 4\nself_conditioning = true")
    shown = loads(text, (), REGISTRY)
    found = start.find(shown, REGISTRY, str(folder))
    (old, _), (new, _) = fresh(recipe_of(2), torch.float64), fresh(shown, torch.float64)
    for nest in (old, new):
        found.copy_into(dict(nest.named_parameters()))
    z, t = told(shown)
    words = {"cond": torch.randn(2, 5, 16, dtype=torch.float64)}
    said = new(z, t, previous=z, **words)
    assert all(torch.equal(a, b) for a, b in zip(said, old(z, t, **words), strict=True))
    # the other way round something would be lost
    shown_folder = tmp_path / "shown"
    weights = dict(trained_parameters(*fresh(shown)))
    model_folder.write(shown_folder, shown, weights, {})
    with pytest.raises(WrongInput, match=r"levels\[0\].self_conditioning: it has True, the recipe asks for"):
        start.find(recipe_of(2), REGISTRY, str(shown_folder))
    # and a folder that says that it has them has them
    del weights["levels.1.conv_self.weight"]
    model_folder.write(tmp_path / "torn", shown, weights, {})
    with pytest.raises(WrongInput, match=r"levels.1.conv_self.weight: it has nothing"):
        start.find(shown, REGISTRY, str(tmp_path / "torn"))
