"""`mdmkit sample`: pictures of a model, the same for a seed, at the cost of the levels asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mdmkit import assemble, model_folder
from mdmkit.nn import UNetCore, UNetShell
from mdmkit.plugins import load_registry
from mdmkit.recipe import load
from mdmkit.text import BytesEncoder
from tests.train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    few = ("--set", "train.steps=5", "--set", "train.optimizer.lr=0.01", "--set", "sample.steps=4")
    done = tiny.here("run", tiny.write_recipe(folder), "--out", folder / "run", *few)
    assert done.code == 0, done.err
    return folder / "run"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_grid_a_level_and_a_file_a_picture(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tiny.here(
        "sample",
        run,
        "--prompt",
        "a red star",
        "--prompt",
        "a ring",
        "--count",
        "2",
        "--seed",
        "5",
        "--out",
        out,
    )
    assert done == (
        0,
        f"{out}/grid-level-0-8x8.png\n{out}/grid-level-1-16x16.png\n",
        f"4 pictures in {out}\n",
    )
    assert names(out) == [
        "grid-level-0-8x8.png",
        "grid-level-1-16x16.png",
        *(f"picture-{i:05d}.png" for i in (5, 6, 7, 8)),
    ]
    assert pixels(out / "picture-00005.png").shape == (16, 16, 3)
    assert not np.array_equal(pixels(out / "picture-00005.png"), pixels(out / "picture-00006.png"))


def test_without_out_it_finds_a_free_name_in_the_run(run: Path) -> None:
    for name in ("drawn", "drawn-2"):
        assert tiny.here("sample", run, "--prompt", "x", "--levels", "1").code == 0
        assert (run / name / "picture-00000.png").is_file()
    shutil.rmtree(run / "drawn")
    shutil.rmtree(run / "drawn-2")


def test_a_picture_depends_on_its_seed_and_caption_alone(run: Path, tmp_path: Path) -> None:
    drawn = ("sample", run, "--prompt", "a red star", "--count", "5")
    for name, more in (("a", ()), ("b", ("--set", "sample.batch=2")), ("c", ("--seed", "3", "--count", "1"))):
        assert tiny.here(*drawn, "--out", tmp_path / name, *more).code == 0
    for i in range(5):
        name = f"picture-{i:05d}.png"
        # another batch sums in another order: to rounding, which may tip one of 256 steps
        assert abs(pixels(tmp_path / "a" / name) - pixels(tmp_path / "b" / name)).max() <= 1
    third = "picture-00003.png"
    assert names(tmp_path / "c")[-1] == third
    assert abs(pixels(tmp_path / "a" / third) - pixels(tmp_path / "c" / third)).max() <= 1
    again = tiny.here(*drawn, "--out", tmp_path / "d")
    assert again.code == 0
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
        for name in names(tmp_path / "a")
    )


def test_inner_levels_alone_never_run_a_shell(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"core": 0, "shell": 0}
    core, shell = UNetCore.forward, UNetShell.encode

    def count(name: str, method):
        def counted(self, *args, **given):
            calls[name] += 1
            return method(self, *args, **given)

        return counted

    monkeypatch.setattr(UNetCore, "forward", count("core", core))
    monkeypatch.setattr(UNetShell, "encode", count("shell", shell))
    out = tmp_path / "inner"
    done = tiny.here("sample", run, "--prompt", "a ring", "--levels", "1", "--out", out)
    assert (done.code, calls) == (0, {"core": 4, "shell": 0})
    assert names(out) == ["grid-level-0-8x8.png", "picture-00000.png"]
    assert pixels(out / "picture-00000.png").shape == (8, 8, 3)
    done = tiny.here("sample", run, "--prompt", "a ring", "--out", tmp_path / "whole")
    assert (done.code, calls) == (0, {"core": 8, "shell": 4})


def test_the_inner_picture_is_that_of_the_core_alone(run: Path, tmp_path: Path) -> None:
    from mdmkit.evaluate.grid import save_picture
    from mdmkit.sampling.draw import draw

    registry = load_registry()
    recipe = load(run / "recipe.resolved.toml", [], registry)
    nest, text = model_folder.load(model_folder.find(run), recipe, registry)
    core = assemble.nest(recipe, registry, levels=1)
    core.load_state_dict(
        {name: value for name, value in nest.state_dict().items() if name.startswith("levels.0.")}
    )
    pyramids = draw(
        core,
        text,
        assemble.diffusion(recipe, registry),
        assemble.drawing(recipe, registry),
        resolutions=assemble.resolutions(recipe, 1),
        captions=["a ring"],
    )
    save_picture(tmp_path / "alone.png", pyramids[0][0])
    assert (
        tiny.here("sample", run, "--prompt", "a ring", "--levels", "1", "--out", tmp_path / "out").code == 0
    )
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "out" / "picture-00000.png").read_bytes()


def test_predictions_on_the_way(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tiny.here("sample", run, "--prompt", "x", "--intermediate", "2", "--out", out)
    assert done.code == 0
    assert [name for name in names(out) if "after" in name] == [
        "grid-level-0-8x8-after-0001.png", "grid-level-0-8x8-after-0003.png",
        "grid-level-1-16x16-after-0001.png", "grid-level-1-16x16-after-0003.png",
    ]  # fmt: skip
    assert done.out.count("after") == 4


def test_the_outer_level_joins_late(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    encode = UNetShell.encode
    monkeypatch.setattr(UNetShell, "encode", lambda *a, **k: (ran.append(1), encode(*a, **k))[1])
    out = tmp_path / "out"
    late = ("--set", "sample.outer_from=0.0", "--intermediate", "1")
    done = tiny.here("sample", run, "--prompt", "x", *late, "--out", out)
    assert (done.code, len(ran)) == (0, 2), done.err
    assert pixels(out / "picture-00000.png").shape == (16, 16, 3)
    never = ("--set", "sample.outer_from=30.0")
    done = tiny.here("sample", run, "--prompt", "x", *never, "--out", tmp_path / "b")
    assert (done.code, done.err) == (
        2,
        "sample: outer_from=30 leaves level 1 no step, as its logsnr ends at 19.3; "
        "choose a lower one, such as -2\n",
    )


def test_weights_as_trained_differ_from_the_average(run: Path, tmp_path: Path) -> None:
    for weights in ("ema", "model"):
        assert (
            tiny.here("sample", run, "--prompt", "x", "--weights", weights, "--out", tmp_path / weights).code
            == 0
        )
    one, other = (pixels(tmp_path / name / "picture-00000.png") for name in ("ema", "model"))
    assert not np.array_equal(one, other)


GUIDED = ("--set", 'sample.guidance=[{use="cfg", scale=3.0}]')


def test_guidance_leads_away_from_a_negative_prompt(run: Path, tmp_path: Path) -> None:
    """On the command line or in the recipe; the recipe's is the empty text."""
    given = {
        "empty": (),
        "said": ("--negative-prompt", ""),
        "blue": ("--negative-prompt", "a blue ring"),
        "recipe": ("--set", 'sample.negative_prompt="a blue ring"'),
    }
    seen = {}
    for name, more in given.items():
        out = tmp_path / name
        assert tiny.here("sample", run, "--prompt", "a star", *GUIDED, *more, "--out", out).code == 0
        seen[name] = pixels(out / "picture-00000.png")
    assert np.array_equal(seen["empty"], seen["said"])
    assert np.array_equal(seen["blue"], seen["recipe"])
    assert not np.array_equal(seen["empty"], seen["blue"])


def save_features(run: Path, path: Path, captions: list[str], negative: str) -> None:
    """What the model's own encoder makes of captions, as --features reads it."""
    registry = load_registry()
    recipe = load(run / "recipe.resolved.toml", [], registry)
    _, text = model_folder.load(model_folder.find(run), recipe, registry)
    assert text is not None
    with torch.no_grad():
        (features, mask), (away, away_mask) = text(captions), text([negative])
    tensors = {"features": features, "mask": mask.to(torch.uint8)}
    tensors |= {"negative_features": away[0], "negative_mask": away_mask[0].to(torch.uint8)}
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, path)


def test_stored_features_stand_for_prompts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures, and no encoder on the way."""
    captions = ["a red star", "a blue ring"]
    save_features(run, tmp_path / "text.safetensors", captions, "a square")
    prompts = [word for caption in captions for word in ("--prompt", caption)]
    more = ("--count", "2", *GUIDED)
    done = tiny.here("sample", run, *prompts, "--negative-prompt", "a square", *more, "--out", tmp_path / "a")
    assert done.code == 0, done.err

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was used")

    monkeypatch.setattr(BytesEncoder, "encode", refuse)
    file = tmp_path / "text.safetensors"
    done = tiny.here("sample", run, "--features", file, *more, "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for i in range(4):
        name = f"picture-{i:05d}.png"
        assert abs(pixels(tmp_path / "a" / name) - pixels(tmp_path / "b" / name)).max() <= 1


def test_a_frozen_encoder_is_not_loaded_for_stored_features(tmp_path: Path) -> None:
    """It need not even be there: 11 GB of FLAN-T5-XL for whoever has the features."""
    registry = load_registry()
    text = '[text]\nuse = "t5"\nmodel = "/no/such/folder"\nwidth = 16\nmax_tokens = 24\n'
    start, _, rest = tiny.RECIPE.partition("[text]")
    recipe = load(
        tiny.write_recipe(tmp_path, start + text + rest[rest.index("[[model.levels]]") :]), [], registry
    )
    nest = assemble.nest(recipe, registry)
    model_folder.write(tmp_path / "model", recipe, dict(nest.named_parameters()), {})
    save_file({"features": torch.randn(3, 24, 16)}, tmp_path / "text.safetensors")
    done = tiny.here("sample", tmp_path / "model", "--features", tmp_path / "text.safetensors")
    assert done.code == 0, done.err
    assert len(names(tmp_path / "model" / "drawn")) == 5
    done = tiny.here("sample", tmp_path / "model", "--prompt", "x", "--out", tmp_path / "out")
    assert (done.code, done.err) == (
        2,
        "/no/such/folder: no such folder; expected a hub id or a model's folder\n",
    )


def test_features_that_do_not_fit_are_one_line(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    save_file({"features": torch.randn(1, 3, 17)}, file)
    assert tiny.here("sample", run, "--features", file, "--out", tmp_path / "out") == (
        2,
        "",
        f"sample --features: {file}: expected features of width 16, which the model is built for, got 17\n",
    )
    save_file({"features": torch.randn(1, 3, 16)}, file)
    assert tiny.here("sample", run, "--features", file, *GUIDED, "--out", tmp_path / "out") == (
        2,
        "",
        (
            f"sample --features: {file}: has no negative_features, which guidance leads away from; add them "
            "(those of the empty prompt), or draw without: --set 'sample.guidance=[]'\n"
        ),
    )
    done = tiny.here("sample", run, "--features", tmp_path, "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--prompt", "x", "--negative-prompt", "y"),
         "sample --negative-prompt: nothing leads away from it, as no sample.guidance of the recipe does; "
         "add --set 'sample.guidance=[{use=\"cfg\", scale=5.0}]'"),
        (("--prompt", "x", "--features", "y"),
         "sample --prompt: --features brings the text of every picture, the negative one too; "
         "leave one of the two out"),
        (("--prompt", "x", "--count", "0"), "sample --count: expected a number of at least 1, got 0"),
        (("--prompt", "x", "--levels", "3"),
         "sample --levels: expected 1 to 2, got 3: the model has no more"),
        (("--prompt", "x", "--intermediate", "4"),
         "sample --intermediate: expected 0 to 3, fewer than the steps, got 4"),
        (("--prompt", "x", "--noise-device", "tpu"),
         "sample --noise-device: expected cpu, or nothing for the model's own, got 'tpu'"),
        (("--prompt", "x", "--weights", "best"), "sample --weights: expected ema or model, got 'best'"),
        ((), "sample: give at least one --prompt (the recipe has no sample.prompts)"),
        (("--prompt", "x", "--out", "{run}"), "{run} exists and is not an empty folder; name another --out"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run: Path, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    filled = [argument.replace("{run}", str(run)) for argument in arguments]
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    assert tiny.here("sample", run, *filled, *out) == (2, "", line.replace("{run}", str(run)) + "\n")


def test_a_folder_without_a_model(run: Path, tmp_path: Path) -> None:
    assert tiny.here("sample", tmp_path, "--prompt", "x") == (
        2,
        "",
        f"{tmp_path} is neither a run folder nor a model folder (recipe.resolved.toml is missing)\n",
    )
    (tmp_path / "checkpoints").mkdir()
    assert tiny.here("sample", tmp_path, "--prompt", "x") == (
        2,
        "",
        f"{tmp_path} has no whole checkpoint yet; let it train longer: mdmkit run --resume {tmp_path}\n",
    )


def test_a_checkpoint_alone_is_a_model_and_a_damaged_one_is_not(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "checkpoints" / "step-0000005", model)
    assert tiny.here("sample", model, "--prompt", "x", "--levels", "1").code == 0
    file = model / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = tiny.here("sample", model, "--prompt", "x", "--out", tmp_path / "out")
    assert done == (
        1,
        "",
        (
            f"{model} is not a whole checkpoint: ema.safetensors missing or cut short; "
            "use another one, or start again\n"
        ),
    )


def test_a_long_prompt_is_said_to_be_cut(run: Path, tmp_path: Path) -> None:
    done = tiny.here("sample", run, "--prompt", "x" * 99, "--levels", "1", "--out", tmp_path / "out")
    assert done.err.splitlines()[0] == "1 prompts were cut to the encoder's length"


def test_a_model_without_text_draws_and_refuses_prompts(tmp_path: Path) -> None:
    text = (
        tiny.RECIPE.partition("[text]")[0] + "[[model.levels]]" + tiny.RECIPE.partition("[[model.levels]]")[2]
    )
    run = tmp_path / "run"
    few = ("--set", "train.steps=1", "--set", "sample.count=1")
    assert tiny.here("run", tiny.write_recipe(tmp_path, text), "--out", run, *few).code == 0
    assert tiny.here("sample", run, "--count", "2", "--out", tmp_path / "out").code == 0
    assert len(names(tmp_path / "out")) == 4
    assert tiny.here("sample", run, "--prompt", "x") == (
        2,
        "",
        "sample --prompt: the model reads no text (its recipe has no [text]); leave it out\n",
    )
    for option in ("--negative-prompt", "--features"):
        assert tiny.here("sample", run, option, "x") == (
            2,
            "",
            f"sample {option}: the model reads no text (its recipe has no [text]); leave it out\n",
        )
