"""Every built-in component keeps the promises of its kind."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdmkit.plugins import KINDS, Entry, Registry, load_registry
from mdmkit.recipe import Use
from mdmkit.testing import check_component
from mdmkit.testing.subject import load

BUILTINS = load_registry(env={"MDMKIT_PLUGINS": ""})

SMALL_UNET = {"channels": (32, 32), "blocks": 1, "attention": (0, 1), "heads": 4}


def pictures(folder: Path) -> Path:
    """Six pictures with captions beside them."""
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def shards(folder: Path) -> Path:
    """The same pictures as two shards."""
    import tarfile

    source = folder / "pictures"
    source.mkdir()
    names = sorted(path for path in pictures(source).iterdir())
    for shard in range(2):
        with tarfile.open(folder / f"part-{shard:06d}.tar", "w") as tar:
            for path in names[6 * shard : 6 * shard + 6]:
                tar.add(path, path.name)
    return folder


def videos(folder: Path) -> Path:
    """Three videos with captions beside them."""
    pytest.importorskip("av")
    from mdmkit.evaluate.clips import save_mp4

    for i in range(3):
        clip = np.random.default_rng(i).integers(0, 256, (6, 20 + 2 * i, 30, 3), np.uint8)
        save_mp4(folder / f"{i}.mp4", clip, fps=8)
        (folder / f"{i}.txt").write_text(f"video {i}")
    return folder


def video_shards(folder: Path) -> Path:
    """The same videos as a shard."""
    import tarfile

    source = folder / "videos"
    source.mkdir()
    with tarfile.open(folder / "part-000000.tar", "w") as tar:
        for path in sorted(videos(source).iterdir()):
            tar.add(path, path.name)
    return folder


def frames(folder: Path) -> Path:
    """Two folders of five frames."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / f"{name}.txt").write_text(name)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def tiny_t5(folder: Path) -> Path:
    """A T5 encoder of random weights with a tokenizer of letters."""
    from mdmkit import torchvision_ops

    torchvision_ops.declare()
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    tokens = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "]
    letters = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


def cached(folder: Path) -> dict[str, Any]:
    t5 = BUILTINS.find("text_encoder", "t5").component.settings(model=str(tiny_t5(folder)), width=16)
    return {"width": 16, "encoder": Use("t5", 1, t5, "text_encoder")}


def words(folder: Path, frames: int | None = None) -> Path:
    """A network of words that has learned nothing, of pictures or of clips."""
    from mdmkit.evaluate.words import WordsNet, save

    if find_spec("torch_fidelity") is None:
        pytest.skip("needs torch-fidelity")
    torch.manual_seed(0)
    net = WordsNet(["red", "circle"], side=16, width=8, frames=frames)
    save(folder / "words.safetensors", net, {"accuracy": 0.0})
    return folder / "words.safetensors"


def staged(name: str, *changes: dict[str, Any]) -> tuple[Any, ...]:
    """Stages of one level more each."""
    from mdmkit.builtin import growth

    settings = getattr(growth, name)
    return tuple(settings(levels=r, steps=4, batch=4, **more) for r, more in enumerate(changes, 1))


# sample settings of those whose defaults need a file, a choice, or too much time
SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "core/unet": lambda folder: SMALL_UNET,
    "shell/unet": lambda folder: SMALL_UNET,
    "text_encoder/classes": lambda folder: {
        "names": ("a circle", "a small red star left of a large blue circle")
    },
    "text_encoder/t5": lambda folder: {"model": str(tiny_t5(folder)), "width": 16},
    "text_encoder/hf": lambda folder: {"model": str(tiny_t5(folder)), "width": 16},
    "text_encoder/cached": cached,
    "dataset/folder": lambda folder: {"path": str(pictures(folder))},
    "dataset/webdataset": lambda folder: {
        "urls": str(shards(folder) / "part-{000000..000001}.tar"),
        "cache": str(folder / "cache"),
    },
    "dataset/video_folder": lambda folder: {"path": str(videos(folder))},
    "dataset/frames_folder": lambda folder: {"path": str(frames(folder)), "source_fps": 8.0},
    "dataset/webdataset_video": lambda folder: {
        "urls": str(video_shards(folder)),
        "cache": str(folder / "cache"),
    },
    "resolution_sampler/fixed": lambda folder: {"level": 1},
    "resolution_sampler/mixed": lambda folder: {"shares": (0.5, 0.25, 0.25)},
    "resolution_sampler/stochastic": lambda folder: {"probabilities": (0.5, 0.25, 0.25)},
    "resolution_sampler/curriculum": lambda folder: {
        "start": (1.0, 0.0, 0.0),
        "end": (0.0, 0.5, 0.5),
        "steps": 100,
    },
    "guidance/auto": lambda folder: {"weak": str(folder)},
    "metric/fidelity": lambda folder: {"weights": str(words(folder))},
    "metric/video_fidelity": lambda folder: {"weights": str(words(folder, frames=4))},
    "growth/staged": lambda folder: {"stages": staged("Stage", {}, {}, {})},
    "growth/freeze_then_thaw": lambda folder: {"stages": staged("FreezeStage", {}, {"freeze": 2}, {})},
    "growth/fade_in": lambda folder: {"stages": staged("FadeStage", {}, {"fade": 2}, {})},
    "growth/net2wider": lambda folder: {
        "stages": staged("WideStage", {"narrower": 4}, {"narrower": (2, 4)}, {})
    },
    "growth/temporal": lambda folder: {"stages": staged("TimeStage", {"clips": False}, {}, {"freeze": 2})},
    "growth/deepen": lambda folder: {"stages": staged("DeepStage", {"extra_blocks": 0}, {}, {})},
    "growth/stack": lambda folder: {"stages": staged("DeepStage", {"extra_blocks": 0}, {}, {})},
    "growth/cascade": lambda folder: {"stages": staged("Stage", {}, {}, {"warmup": 2})},
    "lr_schedule/cosine": lambda folder: {"steps": 1000, "warmup": 10},
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return BUILTINS


def name_of(entry: Entry) -> str:
    return f"{entry.component.kind}/{entry.component.name}"


@pytest.mark.parametrize("entry", BUILTINS.entries(), ids=name_of)
def test_a_built_in_conforms(entry: Entry, registry: Registry, tmp_path: Path) -> None:
    samples = SAMPLES.get(name_of(entry))
    settings = None if samples is None else entry.component.settings(**samples(tmp_path))
    check_component(entry.component, settings=settings, registry=registry)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_protocol_and_a_built_in(kind: str, registry: Registry) -> None:
    assert isinstance(load(KINDS[kind].protocol), type)
    assert registry.names(kind)


@pytest.mark.parametrize("kind", ["core", "shell"])
def test_levels_that_are_shown_their_estimate_conform(kind: str, registry: Registry) -> None:
    entry = registry.find(kind, "unet")
    settings = entry.component.settings(**SMALL_UNET, self_conditioning=True)
    check_component(entry.component, settings=settings, registry=registry)


def test_samples_name_components_that_exist() -> None:
    assert set(SAMPLES) <= {name_of(entry) for entry in BUILTINS.entries()}


def test_a_component_is_found_by_kind_and_name(registry: Registry) -> None:
    check_component("lr_schedule/constant", registry=registry)
