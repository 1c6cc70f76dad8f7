"""`mdmkit evaluate`: the numbers that a run ends with, for any model folder, any count and metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mdmkit.cli.data_pictures import first_unseen
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.recipe.stages import growth_of
from tests.train import tiny

MEASURED = tiny.RECIPE + '\n[evaluate]\nmetrics = ["prompt_accuracy"]\ncount = 70\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that measured itself, over more pictures than are drawn at a time."""
    folder = tmp_path_factory.mktemp("measured")
    few = ("--set", "train.steps=2")
    done = tiny.here("run", tiny.write_recipe(folder, MEASURED), "--out", folder / "run", *few)
    assert done.code == 0, done.err
    return folder / "run"


def test_it_gives_what_the_run_ended_with(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    before = sorted(path for path in run.rglob("*"))
    done = tiny.here("evaluate", run, "--out", out)
    assert done.code == 0, done.err
    assert json.loads(out.read_text()) == json.loads((run / "metrics.json").read_text())
    lines = dict(line.split() for line in done.out.splitlines())
    assert lines.keys() == json.loads(out.read_text()).keys()
    assert lines["prompt_accuracy.pictures"] == "70.0000"
    assert sorted(path for path in run.rglob("*")) == before, "the model's folder is left as it is"


def test_a_model_folder_its_weights_its_count_and_seed(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "checkpoints" / "step-0000002", model)
    few = ("--count", "3", "--set", "sample.steps=1")
    assert tiny.here("evaluate", model, *few, "--seed", "5", "--weights", "model").code == 0
    same = [tiny.here("evaluate", model, *few, "--set", f"sample.batch={n}").out for n in (1, 16)]
    assert same[0] == same[1]


def test_a_metric_is_named_or_the_recipes(run: Path) -> None:
    few = ("--count", "2", "--set", "sample.steps=1")
    named = tiny.here("evaluate", run, *few, "--metric", "prompt_accuracy", "--set", "evaluate.metrics=[]")
    assert named == tiny.here("evaluate", run, *few)
    assert named.code == 0


def test_likelihood_looks_at_the_data_and_draws_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmkit.cli.run_pictures.drawn", None)
    few = ("--metric", "likelihood", "--count", "5", "--set", "sample.batch=2")
    done = tiny.here("evaluate", run, *few)
    assert done.code == 0, done.err
    numbers = {name: float(value) for name, value in (line.split() for line in done.out.splitlines())}
    names = ("bits.0", "bits.1", "given.0", "given.1", "pictures")
    assert list(numbers) == [f"likelihood.{name}" for name in names]
    assert all(0 < value < 40 for value in numbers.values())
    again = tiny.here("evaluate", run, *few[:-1], "sample.batch=5")
    assert again == done, "a picture's bits are its own, whatever the batch"
    # whoever knows nothing pays for every pixel: an untrained network predicts v = 0
    assert numbers["likelihood.bits.1"] > 8


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--count", "0"), "evaluate --count: expected a number of at least 1, got 0"),
        (("--weights", "best"), "evaluate --weights: expected ema or model, got 'best'"),
        (("--set", "evaluate.metrics=[]"),
         "evaluate: the recipe measures nothing (evaluate.metrics is empty); say --metric "
         "(known: fidelity, likelihood, motion_accuracy, prompt_accuracy, temporal_consistency, "
         "video_fidelity)"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run: Path, arguments: tuple[str, ...], line: str) -> None:
    assert tiny.here("evaluate", run, *arguments, MDMKIT_PLUGINS="") == (2, "", line + "\n")


def test_captions_that_a_metric_cannot_judge_are_one_line(run: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    data = f'data={{use="folder", path="{tmp_path}", captions="none"}}'
    done = tiny.here("evaluate", run, "--count", "2", "--set", "sample.steps=1", "--set", data)
    line = "metric prompt_accuracy: expected captions about shapes, came 2 others; use the shapes dataset\n"
    assert (done.code, done.err) == (1, line)


def test_pictures_that_were_not_trained_on_begin_behind_all_stages_of_growth() -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = load(registry.recipes["mdmkit:tiny_grow"], registry=registry)
    assert first_unseen(recipe, registry) == (800 + 600 + 500) * 32


def test_an_unknown_metric_is_one_line(run: Path) -> None:
    done = tiny.here("evaluate", run, "--metric", "prompt_acuracy")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "unknown metric 'prompt_acuracy'; did you mean 'prompt_accuracy'?" in done.err


@pytest.mark.parametrize(("name", "trained"), [("quickstart", 850 * 32), ("tiny_grow", None)])
def test_data_are_looked_at_where_training_ends(name: str, trained: int | None) -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = load(f"mdmkit:{name}", registry=registry)
    if trained is None:  # every stage counts
        stages = growth_of(recipe, registry).stages
        trained = sum((stage.steps or 0) * (stage.batch or recipe.train.batch or 0) for stage in stages)
    assert first_unseen(recipe, registry) == trained > 0
