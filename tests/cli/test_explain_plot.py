"""`mdmkit explain --plot`: a picture of a recipe's noise, and of what a model knows when."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.train import tiny

pytest.importorskip("matplotlib")


def test_a_recipe_is_drawn_as_noise_alone(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path)
    plots = []
    for changed in ("run.seed=1", "diffusion.shift_power=2", "sample.steps=9"):
        out = tmp_path / f"{changed}.png"
        assert tiny.here("explain", recipe, "--plot", out, "--set", changed) == (0, f"{out}\n", "")
        with Image.open(out) as picture:
            plots.append(picture.convert("RGB").tobytes())
    assert len(set(plots)) == 3, "shift and steps are seen"


def test_a_run_is_drawn_with_what_it_knows(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "knows.png"
    assert tiny.here("run", tiny.write_recipe(tmp_path), "--out", run, "--set", "train.steps=2").code == 0
    before = sorted(run.rglob("*"))
    done = tiny.here("explain", run, "--plot", out, "--count", "3")
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    with Image.open(out) as picture:
        width, height = picture.size
    assert width > height > 900, "more than the noise"
    assert sorted(run.rglob("*")) == before, "the run is left as it is"
    model = run / "checkpoints" / "step-0000002"
    done = tiny.here("explain", model, "--plot", out, "--count", "3", "--weights", "model")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("no.toml",), 2, "no.toml: no such file"),
        (("{folder}",), 2, "{folder} is neither a run folder nor a model folder"),
        (("mdmkit:quickstart", "--count", "0"), 2, "explain --count: expected a number of at least 1, got 0"),
        (("mdmkit:quickstart", "--weights", "best"), 2,
         "explain --weights: expected ema or model, got 'best'"),
        (("mdmkit:quickstart", "--plot", "{folder}/no/such/folder.png"), 2,
         "explain --plot: there is no folder {folder}/no/such"),
        (("noise_schedule/cosine",), 2, "explain --plot draws a recipe, a run or a model, got "),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, line: str) -> None:
    given = [argument.format(folder=tmp_path) for argument in arguments]
    done = tiny.here("explain", *given, *(() if "--plot" in given else ("--plot", tmp_path / "a.png")))
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
    assert done.err.startswith(line.format(folder=tmp_path))


def test_without_matplotlib_the_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = tiny.here("explain", "mdmkit:quickstart", "--plot", tmp_path / "a.png")
    assert done == (1, "", "explain --plot needs matplotlib: pip install 'mdmkit[report]'\n")
