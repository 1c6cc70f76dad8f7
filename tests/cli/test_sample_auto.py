"""Guidance by a weaker model that a recipe names: run, sample and evaluate open it and compare it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mdmkit import assemble, model_folder
from mdmkit.plugins import load_registry
from mdmkit.recipe import load, loads
from mdmkit.sampling import CFG, Auto, Denoiser, sample_pyramid
from mdmkit.sampling.conditions import encoded
from mdmkit.sampling.draw import draw, guided
from tests.cli.test_sample_edit import pixels
from tests.train import tiny

FEW = ("--set", "train.steps=10", "--set", "train.optimizer.lr=0.02", "--set", "sample.steps=4")
INNER = tiny.RECIPE[: tiny.RECIPE.rindex("[[model.levels]]")] + tiny.RECIPE[tiny.RECIPE.index("[train]") :]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: `strong` with a checkpoint after 5 steps of 10, and `inner` of level 0 alone, in eps."""
    folder = tmp_path_factory.mktemp("runs")
    done = tiny.here("run", tiny.write_recipe(folder), "--out", folder / "strong", *FEW)
    assert done.code == 0, done.err
    recipe = folder / "inner.toml"
    mixed = 'levels = { use = "mixed", shares = [0.5, 0.5] }\n'
    recipe.write_text(INNER.replace(mixed, ""), encoding="utf-8")
    eps = ("--set", 'diffusion.prediction="eps"', "--set", "text.width=8", "--set", "run.seed=9")
    done = tiny.here("run", recipe, "--out", folder / "inner", *FEW, *eps)
    assert done.code == 0, done.err
    return folder


def auto(weak: Path, more: str = "") -> tuple[str, str]:
    cfg = '{use="cfg", scale=2.0}'
    return "--set", f'sample.guidance=[{cfg}, {{use="auto", weak="{weak}", scale=3.0{more}}}]'


def sampled(runs: Path, out: Path, *given: str | Path) -> list:
    prompts = ("--prompt", "a red ring", "--prompt", "a blue star")
    done = tiny.here("sample", runs / "strong", *prompts, *given, "--out", out)
    assert done.code == 0, done.err
    return [pixels(path) for path in sorted(out.glob("picture-*.png"))]


@pytest.mark.parametrize("weak", ["strong/checkpoints/step-0000005", "inner"])
def test_pictures_are_those_of_the_components(runs: Path, tmp_path: Path, weak: str) -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    folders = [model_folder.find(runs / name) for name in ("strong", weak)]
    recipes = [load(folder / "recipe.resolved.toml", registry=registry) for folder in folders]
    models = [model_folder.load(f, r, registry) for f, r in zip(folders, recipes, strict=True)]
    captions = ["a red ring", "a blue star"]
    with torch.no_grad():
        strong, other = (
            Denoiser(nest.eval(), assemble.diffusion(recipe, registry), **told._asdict())
            for (nest, text), recipe in zip(models, recipes, strict=True)
            for _, told in encoded(text, captions, "", batch=2, apart=False)
        )
    drawing = assemble.drawing(recipes[0], registry)
    by_hand = sample_pyramid(
        guided(strong, [CFG(2.0), Auto(other, 3.0, len(recipes[1].model.levels))]),
        assemble.diffusion(recipes[0], registry),
        [(3, *size) for size in assemble.resolutions(recipes[0])],
        [3, 4],
        rule=drawing.rule,
        spacing=drawing.spacing,
        threshold=drawing.threshold,
        steps=4,
    )
    recipe = load(folders[0] / "recipe.resolved.toml", [auto(runs / weak)[1]], registry)
    drawn = draw(
        *models[0],
        assemble.diffusion(recipe, registry),
        assemble.drawing(recipe, registry),
        resolutions=assemble.resolutions(recipe),
        captions=captions,
        seed=3,
    )
    for r in range(2):
        torch.testing.assert_close(torch.stack([p[r] for p in drawn]), by_hand[r], rtol=0, atol=1e-5)
    plain = sampled(runs, tmp_path / "plain", "--set", 'sample.guidance=[{use="cfg", scale=2.0}]')
    led = sampled(runs, tmp_path / "led", *auto(runs / weak))
    assert all((a != b).any() for a, b in zip(plain, led, strict=True))


def test_evaluate_and_run_draw_with_it(runs: Path, tmp_path: Path) -> None:
    values = {}
    for name, guide in (("plain", ()), ("led", auto(runs / "inner"))):
        metric = ("--metric", "prompt_accuracy", "--count", "3", "--out", tmp_path / f"{name}.json")
        done = tiny.here("evaluate", runs / "strong", *metric, *guide)
        assert done.code == 0, done.err
        values[name] = json.loads((tmp_path / f"{name}.json").read_text())
    recipe = tiny.write_recipe(tmp_path)
    done = tiny.here("run", recipe, "--out", tmp_path / "run", *FEW, *auto(runs / "inner"))
    assert done.code == 0, done.err
    assert list((tmp_path / "run" / "samples").rglob("*.png"))


def test_a_model_that_does_not_fit_is_refused_before_anything_is_trained(runs: Path, tmp_path: Path) -> None:
    cases = {
        'diffusion.schedule="ddpm"': "diffusion.schedule.use: it has cosine@1, the model that draws ddpm@1",
        "diffusion.shift_power=2.0": "diffusion.shift_power: it has 1.0, the model that draws 2.0",
        "model.levels[0].resolution=4": "model.levels[0].resolution: it has [8, 8], the model that draws [4,",
        "diffusion.signal_scale=0.5": "diffusion.signal_scale: it has 1.0, the model that draws 0.5",
    }
    recipe = tiny.write_recipe(tmp_path)
    for change, said in cases.items():
        sets = ["--set", change, *auto(runs / "strong")]
        if "resolution" in change:
            sets += ["--set", "model.levels[1].resolution=8"]
        done = tiny.here("run", recipe, "--out", tmp_path / "run", *FEW, *sets)
        assert done.code == 2
        assert f"sample.guidance: weak: {runs / 'strong'} does not fit: {said}" in done.err.replace('"', "")
        assert not (tmp_path / "run").exists()
    done = tiny.here("run", recipe, "--out", tmp_path / "run", *auto(tmp_path / "nowhere"))
    assert done.code == 2
    assert done.err.strip().endswith(
        f"sample.guidance: weak: {tmp_path / 'nowhere'}: no such folder; expected a checkpoint, a run folder "
        "or a model folder"
    )
    # what one level alone has in common does not depend on the shift
    shifted = ("--set", "diffusion.shift_power=2.0", *auto(runs / "inner"))
    sampled(runs, tmp_path / "ok", *shifted)


def test_what_cannot_be_told_is_refused(runs: Path, tmp_path: Path) -> None:
    way = ("--prompt", "a", "--to-prompt", "b", "--count", "2")
    done = tiny.here("sample", runs / "strong", *auto(runs / "inner"), *way, "--out", tmp_path / "way")
    assert done.code == 2
    assert done.err.strip().endswith(
        f"{runs / 'inner'} reads prompts with its own encoder, and cannot be told stored features or a way "
        "between prompts; draw for prompts, or leave its guidance out"
    )
    lacking = tmp_path / "lacking"
    shutil.copytree(model_folder.find(runs / "inner"), lacking)
    (lacking / "ema.safetensors").unlink()
    done = tiny.here(
        "sample", runs / "strong", *auto(lacking, ', weights="ema"'), "--prompt", "a", "--out", tmp_path / "x"
    )
    assert done.code == 2
    assert f"sample.guidance: weak: {lacking} has no ema.safetensors; it has model.safetensors" in done.err


def test_a_negative_prompt_needs_other_guidance() -> None:
    text = tiny.RECIPE + 'negative_prompt = "blue"\nguidance = [{ use = "auto", weak = "runs/a" }]\n'
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    with pytest.raises(Exception, match=r"sample.negative_prompt: nothing leads away from it"):
        loads(text, registry=registry)
