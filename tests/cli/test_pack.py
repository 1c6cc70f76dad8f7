"""`mdmkit pack`: what it writes, a recipe can train from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdmkit import torchvision_ops
from tests.train import tiny

torchvision_ops.declare()
transformers = pytest.importorskip("transformers")
pytest.importorskip("webdataset")

SHAPES = '[data]\nuse = "shapes"\nobjects = [1, 1]\n'
TEXT = '[text]\nuse = "bytes"\nwidth = 16\nlayers = 1\nheads = 2\nmax_tokens = 24\n'
FEW = ("--set", "train.steps=2", "--set", "sample.count=1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 in a folder."""
    from tests.text.test_pretrained import TINY, save_tokenizer

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=48, **TINY)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def from_shards(folder: Path, shards: Path, *, text: str = TEXT, features: bool = False) -> Path:
    data = f'[data]\nuse = "webdataset"\nurls = "{shards}"\nfeatures = {str(features).lower()}\n'
    return tiny.write_recipe(folder, tiny.RECIPE.replace(SHAPES, data).replace(TEXT, text))


def test_packed_shapes_train_like_any_shards(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    recipe = tiny.write_recipe(tmp_path)
    done = tiny.here(
        "pack", recipe, "--out", shards, "--count", "20", "--shard-size", "8", "--resolution", "8"
    )
    assert done == (0, f"{shards}\n", "20 samples in 3 shards\n")
    run = tmp_path / "run"
    done = tiny.here("run", from_shards(tmp_path, shards), "--out", run, *FEW)
    assert done.code == 0, done.err
    assert tiny.numbers(run)[-1]["pictures"] == 16
    # with workers the numbers are the same
    assert (
        tiny.here(
            "run", tmp_path / "tiny.toml", "--out", tmp_path / "again", *FEW, "--set", "data.workers=1"
        ).code
        == 0
    )
    assert tiny.numbers(tmp_path / "again") == tiny.numbers(run)


def test_packed_features_train_as_the_encoder_itself(tmp_path: Path, encoder: Path) -> None:
    shards = tmp_path / "shards"
    t5 = f'[text]\nuse = "t5"\nmodel = "{encoder}"\nwidth = 16\nmax_tokens = 24\n'
    live = tiny.write_recipe(tmp_path, tiny.RECIPE.replace(TEXT, t5))
    done = tiny.here("pack", live, "--out", shards, "--count", "20", "--text")
    assert done.code == 0, done.err
    assert done.err.splitlines()[0] == "20 samples in 1 shards"
    assert done.err.splitlines()[1].endswith(" captions were cut to the encoder's length")

    dropped = ("--set", "train.caption_dropout=0.5")
    recipe = from_shards(tmp_path, shards, text=t5)
    assert tiny.here("run", recipe, "--out", tmp_path / "live", *FEW, *dropped).code == 0
    inside = f'{{ use = "t5", model = "{encoder}", width = 16, max_tokens = 24 }}'
    cached = f'[text]\nuse = "cached"\nwidth = 16\nencoder = {inside}\n'
    recipe = from_shards(tmp_path, shards, text=cached, features=True)
    assert tiny.here("run", recipe, "--out", tmp_path / "cached", *FEW, *dropped).code == 0
    for ours, theirs in zip(tiny.numbers(tmp_path / "cached"), tiny.numbers(tmp_path / "live"), strict=True):
        # features are stored in half precision
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert list((tmp_path / "cached" / "samples").iterdir())

    # without an encoder for prompts nothing can be drawn, and that is said
    recipe = from_shards(tmp_path, shards, text='[text]\nuse = "cached"\nwidth = 16\n', features=True)
    done = tiny.here("run", recipe, "--out", tmp_path / "silent", *FEW)
    assert done.code == 0, done.err
    assert "no pictures are drawn: text features are packed and text.encoder names no encoder" in done.err
    assert len(tiny.events(tmp_path / "silent", "not_sampled")) == 1

    # features of one encoder, captions for another
    recipe = from_shards(tmp_path, shards, features=True)
    assert tiny.here("run", recipe, "--out", tmp_path / "odd", *FEW) == (
        2,
        "",
        (
            "the data bring text features, but the text encoder reads captions; "
            'say text.use = "cached", or data.features = false\n'
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--count", "0"), "pack --count: expected a number of at least 1, got 0"),
        (("--count", "4", "--shard-size", "0"), "pack --shard-size: expected a number of at least 1, got 0"),
        (("--count", "4", "--resolution", "0"), "pack --resolution: expected a number of at least 1, got 0"),
        (("--count", "4", "--resolution", "32"),
         "cannot pack at 32x32: the dataset is read at 16x16, and pack only shrinks"),
        (("--count", "4", "--text"),
         "pack --text: expected a frozen text encoder (t5, hf), but the recipe's 'bytes' "
         "learns with the model"),
        ((), "this dataset is endless; say how many samples to pack"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    recipe = tiny.write_recipe(tmp_path)
    assert tiny.here("pack", recipe, "--out", tmp_path / "out", *arguments) == (2, "", line + "\n")
    assert not (tmp_path / "out").exists()
