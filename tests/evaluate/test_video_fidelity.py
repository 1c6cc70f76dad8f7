"""Distances of clips: a network that reads words off clips sees what happens when, I3D is called as it is."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdmkit.cli import main
from mdmkit.data.moving_shapes import MovingShapes
from mdmkit.evaluate.words import WordsNet, learn, load, save, words_of
from tests.cli.test_sample_clips import RECIPE

pytestmark = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="needs torch-fidelity")

FEW = {"objects": (1, 1), "shapes": ("circle",), "colours": ("red", "blue"), "textures": ("solid",)}
PLAIN = {"sizes": ("large",), "speeds": ("fast",), "wording": "plain", "split": "all"}
WAYS = ("left", "right", "down")


def moving(seed: int = 0, motions: tuple[str, ...] = WAYS, **more: Any) -> MovingShapes:
    return MovingShapes(seed=seed, resolution=(8, 8), frames=8, motions=motions, **FEW, **PLAIN, **more)


def clips(source: MovingShapes, count: int) -> Tensor:
    images = np.stack([source.sample(i).image for i in range(count)])
    return torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A network that has seen clips for a few seconds, in its file."""
    net, told = learn(moving(), pictures=320, steps=120, batch=16)
    path = tmp_path_factory.mktemp("words") / "clips.safetensors"
    save(path, net, {**told, "seed": 0})
    return path, told


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a dot falls", "a dot falls"),
        ("a dot moves left, then it falls", "a dot moves left it falls then |it |falls"),
        ("a dot falls before it moves left", "a dot moves left it falls then |it |moves |left"),
        ("a dot falls after it moves left", "a dot moves left it falls then |a |dot |falls"),
    ],
)
def test_words_of_clips_say_what_comes_later(caption: str, words: str) -> None:
    assert words_of(caption, in_time=True) == {word.replace("|", "then ") for word in words.split()}
    assert words_of(caption) == set(caption.replace(",", "").split()), "of a picture nothing comes later"


def test_the_network_reads_off_what_happens_and_when(learned: tuple[Path, dict[str, float]]) -> None:
    path, told = learned
    net, facts = load(path)
    assert net.frames == 8
    assert facts == {**told, "seed": 0}
    assert {"red", "blue", "left", "right", "down", "then", "then down", "then left"} <= set(net.words)
    assert told["accuracy"] > 0.5, "a guess of a colour and of one of seven courses is right once in 14"
    sideways = moving(5, ("left", "right"))
    x, captions = clips(sideways, 48), [sideways.sample(i).caption for i in range(48)]
    left, right = net.words.index("left"), net.words.index("right")
    there = torch.tensor([["left" in caption, "right" in caption] for caption in captions])
    for played, said in ((x, there), (x.flip(2), there.flip(1))):  # the other way round left is right
        assert ((net(played)[:, [left, right]] > 0) == said).float().mean() > 0.9


def test_clips_of_another_size_and_number_of_frames_are_brought_to_the_networks(
    learned: tuple[Path, dict[str, float]],
) -> None:
    net, _ = load(learned[0])
    x = clips(moving(), 3)
    larger = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(net.features(larger), net.features(x))
    assert net.features(x[:, :, :3, :7, :6]).shape == net.features(x).shape
    torch.testing.assert_close(net.features(x[:, :, :1]), net.features(x[:, :, :1].expand_as(x)))
    with pytest.raises(ValueError, match=r"learned from \(B, 3, F, H, W\), got \(3, 3, 8, 8\)"):
        net.features(x[:, :, 0])
    pictures = WordsNet(["red"], side=8, width=8)
    with pytest.raises(ValueError, match=r"learned from \(B, 3, H, W\), got \(3, 3, 8, 8, 8\)"):
        pictures.features(x)


def far(path: Path, drawn: Tensor, real: Tensor) -> dict[str, float]:
    from mdmkit.evaluate.fidelity import VideoFidelity

    metric = VideoFidelity(weights=str(path))
    metric.update(drawn, [""] * len(drawn))
    metric.beside(real)
    return metric.result()


def test_what_only_time_tells_lies_far_though_every_frame_is_the_same(
    learned: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    from mdmkit.evaluate.fidelity import Fidelity

    path, told = learned
    ways = ("left", "down")  # played backwards, none of them is left
    real, other = clips(moving(2, ways), 80), clips(moving(1, ways), 80)
    order = [0, 5, 2, 7, 4, 1, 6, 3]  # the first stays: where an object begins says where it will go
    plays = {"forwards": other, "backwards": other.flip(2), "shuffled": other[:, :, order]}
    found = {name: far(path, drawn, real) for name, drawn in plays.items()}
    for name in ("frechet", "kernel"):
        assert found["backwards"][name] > 3 * found["forwards"][name], name
        assert found["shuffled"][name] > 3 * found["forwards"][name], name
    assert (found["forwards"]["clips"], found["forwards"]["data"]) == (80, 80)
    assert found["forwards"]["extractor_accuracy"] == told["accuracy"]
    # frame by frame nothing has changed
    torch.manual_seed(0)
    save(tmp_path / "pictures.safetensors", WordsNet(["red"], side=8, width=8), {})
    frame_wise = []
    for drawn in plays.values():
        metric = Fidelity(weights=str(tmp_path / "pictures.safetensors"), subsets=1)
        metric.update(drawn.transpose(1, 2).flatten(0, 1), [])
        metric.beside(real.transpose(1, 2).flatten(0, 1))
        frame_wise.append(metric.result()["frechet"])
    assert frame_wise == pytest.approx([frame_wise[0]] * 3, rel=1e-3)


class Scored(nn.Module):
    """What is called as I3D is: five numbers a clip, each of another part of what it is told."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if x.shape[2] < 10:
            raise ValueError("smaller than the kernel")
        if rescale:
            x = x / 127.5 - 1
        n = x.shape[0]
        if resize:
            x = torch.nn.functional.interpolate(x, [x.shape[2], 224, 224], mode="nearest")
        whole = x.mean([2, 3, 4])
        size = torch.full([n, 1], float(x.shape[3]))
        late = x[:, 0, -1].mean([1, 2]) - x[:, 0, 0].mean([1, 2])
        scored = torch.cat([whole, size, late[:, None]], 1)
        return scored if return_features else scored.softmax(1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of the format of those weights
        torch.jit.script(Scored()).save(str(path))
    return path


def test_i3d_is_called_with_bytes_to_be_rescaled_and_resized(i3d: Path) -> None:
    from mdmkit.evaluate.fidelity import VideoFidelity, distances

    metric = VideoFidelity(weights=str(i3d), extractor="i3d", subsets=3)
    generator = torch.Generator().manual_seed(0)
    drawn, real = (torch.randint(256, (6, 3, 10, 7, 9), generator=generator) / 127.5 - 1 for _ in range(2))
    got = metric.features(drawn)
    assert got.shape == (6, 5), "in parts of four"
    torch.testing.assert_close(got[:, :3], drawn.mean((2, 3, 4)), atol=1e-2, rtol=0)
    assert (got[:, 3] == 224).all()
    metric.update(drawn, [""] * 6)
    metric.beside(real)
    wanted = distances(got, metric.features(real), subsets=3)
    assert {name: metric.result()[name] for name in wanted} == pytest.approx(wanted)
    assert "extractor_accuracy" not in metric.result(), "that is known of our own networks"
    line = r"i3d refuses clips of \(F, H, W\) = \(8, 7, 9\): .* kernel; the usual file takes about ten"
    with pytest.raises(ValueError, match=line):
        metric.update(drawn[:, :, :8], [""] * 6)


def test_an_extractor_of_the_other_kind_is_refused_before_anything_is_drawn(
    learned: tuple[Path, dict[str, float]], i3d: Path, tmp_path: Path
) -> None:
    from mdmkit.evaluate.fidelity import Fidelity, VideoFidelity

    save(tmp_path / "pictures.safetensors", WordsNet(["red"], side=8, width=8), {})
    with pytest.raises(ValueError, match=r"an extractor of clips, but mdmkit-words of .* takes pictures"):
        VideoFidelity(weights=str(tmp_path / "pictures.safetensors"))
    for extractor, path in (("mdmkit-words", learned[0]), ("i3d", i3d)):
        with pytest.raises(ValueError, match=r"an extractor of pictures, but .* takes clips"):
            Fidelity(weights=str(path), extractor=extractor)
    with pytest.raises(ValueError, match=r"clips\.safetensors cannot be read as TorchScript: .*i3d_torch"):
        VideoFidelity(weights=str(learned[0]), extractor="i3d")
    metric = VideoFidelity(weights=str(learned[0]))
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, F, H, W\), got \(2, 1, 8, 8, 8\)"):
        metric.update(torch.zeros(2, 1, 8, 8, 8), ["", ""])
    metric.update(torch.zeros(3, 3, 8, 8), [""] * 3)  # pictures are clips of one frame
    with pytest.raises(ValueError, match="at least 2 drawn clips and 2 of the data, got 3 and 0"):
        metric.result()


def test_anyone_may_register_an_extractor_of_clips(tmp_path: Path) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    from mdmkit.evaluate.extractors import OneLayer
    from mdmkit.evaluate.fidelity import VideoFidelity

    class Steps(OneLayer):
        """How much each frame differs from the one before."""

        takes = "clips"

        def read(self, path: Path | str) -> nn.Module:
            return nn.Identity()

        def forward(self, input: Tensor) -> tuple[Tensor]:
            return (input.float().diff(dim=2).abs().mean((1, 3, 4)),)

    (tmp_path / "none").touch()
    register_feature_extractor("acme-steps", Steps)
    try:
        metric = VideoFidelity(weights=str(tmp_path / "none"), extractor="acme-steps")
        x = clips(moving(), 4)
        steps = x.diff(dim=2).abs().mean((1, 3, 4)) * 127.5
        torch.testing.assert_close(metric.features(x), steps)
    finally:
        del FEATURE_EXTRACTORS_REGISTRY["acme-steps"]


def test_a_recipes_extractor_is_made_and_a_run_measures_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "tiny.toml", tmp_path / "deep" / "words.safetensors"
    recipe.write_text(RECIPE.replace("steps = 1\nbatch = 2", "steps = 2\nbatch = 2", 1))
    few = ("--count", "40", "--steps", "2", "--seed", "3")
    assert main(["extractor", str(recipe), "--out", str(out), *few]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    net, facts = load(out)
    assert (net.frames, net.side) == (2, 8)
    assert json.loads(said.err).items() <= facts.items()
    assert (facts["seed"], facts["steps"], facts["torch"]) == (3, 2, torch.__version__)
    metric = f'metrics = [{{ use = "video_fidelity", weights = "{out}", data = 5 }}]\ncount = 3'
    recipe.write_text(recipe.read_text().replace("metrics = []", metric))
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (numbers["video_fidelity.clips"], numbers["video_fidelity.data"]) == (3, 5)
    assert numbers["video_fidelity.extractor_accuracy"] == facts["accuracy"]
    capsys.readouterr()


def test_clips_that_i3d_refuses_are_one_line(
    tmp_path: Path, i3d: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = f'metrics = [{{ use = "video_fidelity", extractor = "i3d", weights = "{i3d}" }}]\ncount = 3'
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("metrics = []", metric))
    assert main(["run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 1
    assert "metric video_fidelity: i3d refuses clips of (F, H, W) = (2, 8, 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--count", "0"), 2, "extractor --count: expected a number of at least 1, got 0"),
        (("--steps", "0"), 2, "extractor --steps: expected a number of at least 1, got 0"),
        (("--count", "1"), 1, "extractor: expected captions with words that tell pictures apart, and some "),
    ],
)
def test_what_no_extractor_can_be_made_of(
    arguments: tuple[str, ...], code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert main(["extractor", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "x"), *arguments]) == code
    assert capsys.readouterr().err.startswith(line)
    assert not (tmp_path / "x").exists()
