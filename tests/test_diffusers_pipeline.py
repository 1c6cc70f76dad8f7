"""A pipeline of diffusers draws the pictures of `mdmkit sample`, from a folder that diffusers can load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdmkit import assemble, model_folder, torchvision_ops
from mdmkit.errors import WrongInput
from mdmkit.plugins import load_registry
from mdmkit.recipe import loads
from mdmkit.train.plan import trained_parameters
from tests.train import tiny

torchvision_ops.declare()
pytest.importorskip("diffusers")

# ruff: noqa: E402
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mdmkit.diffusers_pipeline import MatryoshkaPipeline, NestedUNetModel, load_pipeline
from mdmkit.nn import NestedUNet

REGISTRY = load_registry()
GUIDED = 'sample.guidance=[{use="cfg", scale=3.0}]'
PROMPTS = ("a red star", "a large ring left of a small blue square")


def model(folder: Path, *sets: str, text: str = tiny.RECIPE) -> Path:
    """A model folder with random weights; with zeros as they start, every picture would be the same."""
    recipe = loads(text, sets, REGISTRY)
    torch.manual_seed(4)
    parameters = trained_parameters(assemble.nest(recipe, REGISTRY), assemble.text_encoder(recipe, REGISTRY))
    weights = {name: 0.3 * torch.randn(p.shape) for name, p in parameters.items()}
    model_folder.write(folder / "model", recipe, weights, {})
    return folder / "model"


def exported(model: Path, out: Path) -> Path:
    done = tiny.here("export", model, "--format", "diffusers", "--out", out)
    assert done == (0, f"{out}\n", ""), done.err
    return out


def sampled(model: Path, out: Path, prompts: Sequence[str], *more: Any) -> list[np.ndarray]:
    """The pictures of `mdmkit sample`."""
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    done = tiny.here("sample", model, *asked, "--out", out, *more)
    assert done.code == 0, done.err
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("picture-*.png"))]


def equal(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and its folder for diffusers."""
    folder = tmp_path_factory.mktemp("guided")
    mine = model(folder, GUIDED, "sample.steps=3")
    return mine, exported(mine, folder / "diffusers")


@pytest.fixture
def pipeline(guided: tuple[Path, Path]) -> MatryoshkaPipeline:
    return load_pipeline(guided[1])


def test_the_folder_has_the_layout_of_diffusers(guided: tuple[Path, Path]) -> None:
    files = sorted(str(path.relative_to(guided[1])) for path in guided[1].rglob("*") if path.is_file())
    assert files == [
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    for path in guided[1].rglob("*.json"):
        assert str(guided[0].parent) not in path.read_text(), "a path of this machine"


def test_the_same_seed_gives_the_same_picture(
    guided: tuple[Path, Path], pipeline: MatryoshkaPipeline, tmp_path: Path
) -> None:
    ours = sampled(guided[0], tmp_path / "out", PROMPTS, "--seed", "7", "--count", "2")
    answer = pipeline(list(PROMPTS), generator=seeded(7), num_images_per_prompt=2)
    assert equal(answer.images, ours)
    assert not equal(pipeline(list(PROMPTS), generator=seeded(8), num_images_per_prompt=2).images, ours)
    (images,) = pipeline(list(PROMPTS), generator=seeded(7), num_images_per_prompt=2, return_dict=False)
    assert equal(images, ours)


def test_steps_and_guidance_are_those_of_the_call(
    guided: tuple[Path, Path], pipeline: MatryoshkaPipeline, tmp_path: Path
) -> None:
    scale = 'sample.guidance=[{use="cfg", scale=5.5}]'
    ours = sampled(guided[0], tmp_path / "a", PROMPTS, "--steps", "5", "--set", scale)
    drawn = pipeline(list(PROMPTS), num_inference_steps=5, guidance_scale=5.5, generator=seeded(0)).images
    assert equal(drawn, ours)
    ours = sampled(guided[0], tmp_path / "b", PROMPTS, "--set", "sample.guidance=[]")
    assert equal(pipeline(list(PROMPTS), guidance_scale=1, generator=seeded(0)).images, ours)


def test_a_negative_prompt_is_led_away_from(
    guided: tuple[Path, Path], pipeline: MatryoshkaPipeline, tmp_path: Path
) -> None:
    for i, negative in enumerate(("a blue ring", "")):
        ours = sampled(guided[0], tmp_path / str(i), PROMPTS, "--negative-prompt", negative)
        drawn = pipeline(list(PROMPTS), negative_prompt=negative, generator=seeded(0)).images
        assert equal(drawn, ours)
        assert equal(pipeline(list(PROMPTS), generator=seeded(0)).images, ours) == (not negative)
    # one a prompt
    both = pipeline(
        list(PROMPTS), negative_prompt=["", "a blue ring"], generator=seeded(0), output_type="pt"
    ).images
    alone = pipeline(PROMPTS[1], negative_prompt="a blue ring", generator=seeded(1), output_type="pt").images
    assert equal(pipeline(PROMPTS[0], generator=seeded(0), output_type="pt").images, both[:1])
    assert equal(alone, both[1:])


def test_the_recipe_may_have_a_negative_prompt(tmp_path: Path) -> None:
    mine = model(tmp_path, GUIDED, 'sample.negative_prompt="a blue ring"')
    pipeline = load_pipeline(exported(mine, tmp_path / "diffusers"))
    ours = sampled(mine, tmp_path / "out", PROMPTS)
    assert equal(pipeline(list(PROMPTS), generator=seeded(0)).images, ours)
    assert not equal(pipeline(list(PROMPTS), negative_prompt="", generator=seeded(0)).images, ours)


def test_the_whole_process_travels(tmp_path: Path) -> None:
    process = ("diffusion.shift_power=0.0", "diffusion.signal_scale=0.5", 'diffusion.schedule="sigmoid"')
    mine = model(tmp_path, *process, 'diffusion.prediction="x0"')
    ours = sampled(mine, tmp_path / "out", PROMPTS)
    pipeline = load_pipeline(exported(mine, tmp_path / "diffusers"))
    assert equal(pipeline(list(PROMPTS), generator=seeded(0)).images, ours)


def test_without_guidance_no_unconditional_row_is_evaluated(
    pipeline: MatryoshkaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    forward = NestedUNet.forward

    def counted(self: NestedUNet, z: Sequence[Tensor], *args: Any, **given: Any) -> Any:
        rows.append(len(z[0]))
        return forward(self, z, *args, **given)

    monkeypatch.setattr(NestedUNet, "forward", counted)
    pipeline("a ring", guidance_scale=1)
    pipeline("a ring", guidance_scale=2)
    assert rows == [1] * 3 + [2] * 3


def test_each_picture_may_have_a_generator_of_its_own(pipeline: MatryoshkaPipeline) -> None:
    generators = [seeded(seed) for seed in (5, 6, 3)]
    together = pipeline("a ring", generator=generators, num_images_per_prompt=3, output_type="pt").images
    for one, generator in zip(together, generators, strict=True):
        alone = pipeline("a ring", generator=generator, output_type="pt").images[0]
        # another batch sums in another order
        torch.testing.assert_close(one, alone, atol=1e-5, rtol=0)
    # and none is used up
    again = pipeline("a ring", generator=generators, num_images_per_prompt=3, output_type="pt").images
    assert torch.equal(together, again)


def test_without_a_generator_pictures_follow_torchs_own(pipeline: MatryoshkaPipeline) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(pipeline("a ring", output_type="np").images)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_outputs_are_one_picture_in_three_forms(pipeline: MatryoshkaPipeline) -> None:
    forms = {
        form: pipeline(list(PROMPTS), generator=seeded(3), output_type=form).images
        for form in ("pil", "np", "pt")
    }
    assert [image.size for image in forms["pil"]] == [(16, 16)] * 2
    assert forms["np"].shape == (2, 16, 16, 3)
    assert forms["pt"].shape == (2, 3, 16, 16)
    assert np.array_equal(forms["np"], forms["pt"].movedim(1, -1).numpy())
    assert 0 <= forms["np"].min() < forms["np"].max() <= 1
    bytes_of = np.stack([np.asarray(image) for image in forms["pil"]])
    # a float just beside half a step may fall to either side
    assert abs(bytes_of - forms["np"] * 255).max() <= 0.5 + 1e-4


def test_diffusers_loads_the_folder_itself(guided: tuple[Path, Path], pipeline: MatryoshkaPipeline) -> None:
    folder = str(guided[1])
    theirs = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    assert type(theirs) is MatryoshkaPipeline
    assert equal(theirs("a ring", generator=seeded(1)).images, pipeline("a ring", generator=seeded(1)).images)


def test_what_diffusers_saves_again_is_the_same(pipeline: MatryoshkaPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "again")
    again = load_pipeline(tmp_path / "again")
    assert equal(again("a ring", generator=seeded(1)).images, pipeline("a ring", generator=seeded(1)).images)


def test_the_unet_alone_is_a_model_of_diffusers(guided: tuple[Path, Path]) -> None:
    unet = NestedUNetModel.from_pretrained(guided[1], subfolder="unet", low_cpu_mem_usage=False)
    recipe = model_folder.weights_in(guided[0])
    assert {f"levels.{name.partition('.')[2]}" for name in unet.state_dict()} == {
        name for name in recipe if name.startswith("levels.")
    }
    assert all(torch.equal(value, recipe[name]) for name, value in unet.state_dict().items())


def test_a_pretrained_encoder_travels_where_it_is_a_local_folder(tmp_path: Path) -> None:
    from tests.text.test_pretrained import TINY, save_tokenizer, transformers

    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=48, **TINY)).save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5")
    where = f'model="{tmp_path}/t5", cache="{tmp_path}/cache"'
    local = f'text={{use="t5", {where}, width=16, max_tokens=24}}'
    mine = model(tmp_path, local, GUIDED)
    out = exported(mine, tmp_path / "diffusers")
    assert not list((out / "text_encoder").glob("*.safetensors"))
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    assert (config["settings"]["model"], config["settings"]["cache"]) == ("pretrained", "none")
    ours = sampled(mine, tmp_path / "out", PROMPTS)
    (tmp_path / "t5").rename(tmp_path / "gone")
    moved = out.rename(tmp_path / "moved")
    assert equal(load_pipeline(moved)(list(PROMPTS), generator=seeded(0)).images, ours)


def test_an_encoder_of_the_hub_is_named_and_not_loaded(tmp_path: Path) -> None:
    """Export needs neither the network nor room for a language model."""
    mine = model(tmp_path)
    recipe = mine / "recipe.resolved.toml"
    hub = loads(recipe.read_text(), ['text={use="t5", model="google/flan-t5-xl", width=16}'], REGISTRY)
    weights = {k: v for k, v in model_folder.weights_in(mine).items() if k.startswith("levels.")}
    model_folder.write(tmp_path / "t5-model", hub, weights, {})
    out = exported(tmp_path / "t5-model", tmp_path / "diffusers")
    assert [path.name for path in (out / "text_encoder").iterdir()] == ["config.json"]
    assert json.loads((out / "text_encoder" / "config.json").read_text())["settings"]["model"] == (
        "google/flan-t5-xl"
    )


def test_names_of_classes_travel(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("circle\nring\n")
    mine = model(tmp_path, f'text={{use="classes", file="{tmp_path}/names.txt", width=16}}')
    ours = sampled(mine, tmp_path / "out", ["ring"])
    out = exported(mine, tmp_path / "diffusers")
    (tmp_path / "names.txt").unlink()
    assert equal(load_pipeline(out)("ring", generator=seeded(0)).images, ours)


def test_a_model_without_text(tmp_path: Path) -> None:
    head, _, tail = tiny.RECIPE.partition("[text]")
    text = head + "[[model.levels]]" + tail.partition("[[model.levels]]")[2]
    mine = model(tmp_path, text=text)
    ours = sampled(mine, tmp_path / "out", [], "--count", "2")
    pipeline = load_pipeline(exported(mine, tmp_path / "diffusers"))
    assert pipeline.text_encoder is None
    assert equal(pipeline(num_images_per_prompt=2, generator=seeded(0), guidance_scale=1).images, ours)
    for name, value in {"prompt": "a ring", "negative_prompt": "x", "guidance_scale": 2.0}.items():
        with pytest.raises(ValueError, match=f"{name}: the model reads no text; leave it out"):
            pipeline(**{name: value})


def test_features_that_came_with_the_data_have_no_pipeline(tmp_path: Path) -> None:
    mine = model(tmp_path, 'text={use="cached", width=16}')
    done = tiny.here("export", mine, "--format", "diffusers", "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "a pipeline reads prompts, but this model's recipe names no encoder for them: "
        "its text features came with the data; set text.encoder in its recipe.resolved.toml\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"output_type": "latent"}, "expected output_type to be one of pil, np, pt, got 'latent'"),
        ({"num_inference_steps": 0}, "expected num_inference_steps of at least 1, got 0"),
        ({"num_images_per_prompt": 0}, "expected num_images_per_prompt of at least 1, got 0"),
        ({"guidance_scale": -1.0}, "expected guidance_scale of at least 0, got -1.0"),
        ({"prompt": []}, "expected a prompt, got none"),
        ({"generator": [seeded(0)] * 2}, "expected one generator, or one a picture, 1, got 2"),
        ({"negative_prompt": ["a", "b"]}, "expected one negative_prompt a prompt, 1, got 2"),
    ],
)
def test_wrong_calls_say_what_was_expected(
    pipeline: MatryoshkaPipeline, given: dict[str, Any], line: str
) -> None:
    told: dict[str, Any] = {"prompt": "a ring"} | given
    with pytest.raises(ValueError, match=f"^{line}$"):
        pipeline(**told)


def test_half_precision_weights_are_refused(guided: tuple[Path, Path]) -> None:
    half = MatryoshkaPipeline.from_pretrained(guided[1], dtype=torch.bfloat16, low_cpu_mem_usage=False)
    with pytest.raises(ValueError, match="expected a unet in float32"):
        half("a ring")


def test_a_folder_that_is_no_pipeline(tmp_path: Path, guided: tuple[Path, Path]) -> None:
    with pytest.raises(WrongInput, match=r"holds no pipeline \(model_index\.json is missing\)"):
        load_pipeline(tmp_path)
    config = guided[1] / "scheduler" / "scheduler_config.json"
    text = config.read_text()
    try:
        config.write_text(text.replace("ddim@1", "acme.leap"))
        with pytest.raises(WrongInput, match=r"^sample\.rule\.use: unknown sampler 'acme\.leap'"):
            load_pipeline(guided[1])
    finally:
        config.write_text(text)


MISSING = """
import sys
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *more: None if name == "diffusers" else found(name, *more)
from mdmkit.cli import main
code = main(["export", sys.argv[1], "--format", "diffusers", "--out", sys.argv[2]])
print(code, "diffusers" in sys.modules)
"""
LIGHT = """
import sys
from mdmkit.cli import main
assert main(["export", sys.argv[1], "--format", "safetensors", "--out", sys.argv[2]]) == 0
import mdmkit.interop.apple_settings, mdmkit.sampling, mdmkit.text, mdmkit.evaluate.report, mdmkit.assemble
print([name for name in ("diffusers", "transformers") if name in sys.modules])
"""


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tiny.ROOT,
        check=False,
    )


def test_a_missing_diffusers_is_one_line(guided: tuple[Path, Path], tmp_path: Path) -> None:
    done = python(MISSING, guided[0], tmp_path / "out")
    assert done.stdout == "1 False\n", done.stderr
    assert done.stderr == "a pipeline of diffusers needs diffusers; pip install 'mdmkit[diffusers]'\n"
    assert not (tmp_path / "out").exists()


def test_nothing_else_imports_diffusers(guided: tuple[Path, Path], tmp_path: Path) -> None:
    done = python(LIGHT, guided[0], tmp_path / "out")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
