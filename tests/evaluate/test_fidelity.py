"""Distances of pictures by torch-fidelity, and the network of words whose features they are taken in."""

from __future__ import annotations

import json
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mdmkit.cli.run_pictures import compare
from mdmkit.data.sample import Sample
from mdmkit.data.shapes import Shapes
from mdmkit.evaluate.words import WordsNet, learn, load, save, telling
from mdmkit.plugins import load_registry
from mdmkit.recipe import loads
from tests.train import tiny

pytestmark = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="needs torch-fidelity")

FEW = {"shapes": ("circle", "cross"), "colours": ("red", "green", "blue"), "textures": ("solid",)}
PLAIN = {"objects": (1, 1), "positions": False, "wording": "plain", "sizes": ("large",), "split": "all"}


def shapes(seed: int = 0, side: int = 16) -> Shapes:
    return Shapes(seed=seed, resolution=(side, side), **FEW, **PLAIN)


def pictures(source: Shapes, count: int) -> Tensor:
    images = np.stack([source.sample(i).image for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A network that has seen 200 pictures for a few seconds, in its file."""
    net, told = learn(shapes(), pictures=200, steps=80, batch=32)
    path = tmp_path_factory.mktemp("words") / "words.safetensors"
    save(path, net, {**told, "seed": 0})
    return path, told


def normals(seed: int, mean: float, scale: float, count: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    draws = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return mean + scale * draws @ mixing


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), of symmetric roots alone."""
    s1, s2 = np.cov(a.T), np.cov(b.T)
    middle = root(root(s1) @ s2 @ root(s1))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * middle))


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared mean discrepancy of (x . y / D + 1)^3, pair by pair."""

    def mean(x: np.ndarray, y: np.ndarray, others: bool) -> float:
        k = (np.einsum("id,jd->ij", x, y) / x.shape[1] + 1) ** 3
        return float(k[~np.eye(len(x), dtype=bool)].mean() if others else k.mean())

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (-1.0, 0.3)])
def test_the_distances_are_those_of_the_formulas(mean: float, scale: float) -> None:
    from mdmkit.evaluate.fidelity import distances

    a, b = normals(0, 0.0, 1.0), normals(1, mean, scale)
    got = distances(a, b, subsets=1, subset_size=1000)
    assert got["frechet"] == pytest.approx(frechet(a.numpy(), b.numpy()), rel=1e-6, abs=1e-9)
    assert got["kernel"] == pytest.approx(kernel(a.numpy(), b.numpy()), rel=1e-6)
    assert got["kernel_spread"] == 0, "one subset of all pictures"


def test_a_set_has_no_distance_from_itself_and_more_from_what_is_farther() -> None:
    from mdmkit.evaluate.fidelity import distances

    a = normals(0, 0.0, 1.0)
    assert abs(distances(a, a)["frechet"]) < 1e-6
    far = [distances(a, normals(1, mean, 1.0), subset_size=200) for mean in (0.0, 0.5, 1.0)]
    for name in ("frechet", "kernel"):
        assert far[0][name] < far[1][name] < far[2][name], name
    assert abs(far[0]["kernel"]) < 3 * far[0]["kernel_spread"], "unbiased"


def test_the_network_learns_the_words_of_captions(learned: tuple[Path, dict[str, float]]) -> None:
    path, told = learned
    net, facts = load(path)
    assert set(net.words) == {"red", "green", "blue", "circle", "cross"}
    assert told["accuracy"] > 0.6, "a guess of colour and shape is right once in six"
    assert facts == {**told, "seed": 0}
    # on pictures of another seed, that nobody has counted
    said = net(pictures(shapes(seed=5), 48)) > 0
    captions = [shapes(seed=5).sample(i).caption for i in range(48)]
    there = torch.tensor([[word in caption for word in net.words] for caption in captions])
    assert (said == there).all(1).float().mean() > 0.5


def test_what_is_learned_depends_on_the_arguments_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    (one, told), (again, _), (other, _) = (
        learn(shapes(), pictures=64, steps=3, batch=8, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before), "and nobody else's draws move"
    pairs = list(zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert 0 < told["pictures"] < 64


class Ends:
    """Data with an end, whose samples come again."""

    resolution = (8, 8)

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def sample(self, position: int) -> Sample:
        assert position < len(self), "again would be among those kept apart, or count twice"
        image = np.full((8, 8, 3), position, np.uint8)
        return Sample(image, self.captions[position], f"{position}", (8, 8))


def test_pictures_kept_apart_are_never_learned_from() -> None:
    apart = [zlib.crc32(str(i).encode()) % 8 == 0 for i in range(80)]
    other = ("flag", "face")
    net, told = learn(Ends(["secret" if hidden else other[i % 2] for i, hidden in enumerate(apart)]), steps=1)
    assert net.words == ("face", "flag")
    assert told["pictures"] == sum(apart)


@pytest.mark.parametrize("captions", [["a face"] * 20, ["a", "an"] * 10, [""] * 20])
def test_captions_that_tell_nothing_apart_are_refused(captions: list[str]) -> None:
    with pytest.raises(ValueError, match="expected captions with words that tell pictures apart"):
        learn(Ends(captions), steps=1)


def test_telling_words_are_neither_everywhere_nor_rare() -> None:
    captions = ["the red flag"] * 60 + ["the blue flag"] * 50 + ["the one of a kind"]
    assert telling(captions, 64) == ("red", "blue")
    assert telling(captions, 1) == ("red",)


def test_pictures_of_another_size_are_brought_to_the_networks(learned: tuple[Path, dict[str, float]]) -> None:
    net, _ = load(learned[0])
    x = pictures(shapes(), 4)
    larger = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(net.features(larger), net.features(x))
    assert net.features(x[:, :, :8, :12]).shape == net.features(x).shape


def test_the_metric_is_torch_fidelitys_with_our_features(learned: tuple[Path, dict[str, float]]) -> None:
    from mdmkit.evaluate.fidelity import Fidelity, distances

    path, told = learned
    drawn, real = pictures(shapes(seed=1), 40), pictures(shapes(seed=2), 60)
    metrics = [Fidelity(weights=str(path)), Fidelity(weights=str(path))]
    for metric, parts in zip(metrics, ([slice(0, 60)], [slice(0, 7), slice(7, 60)]), strict=True):
        for rows in parts:
            metric.update(drawn[rows], [""] * len(drawn[rows]))
            metric.beside(real[rows])
    whole, parts = (metric.result() for metric in metrics)
    assert whole == pytest.approx(parts, rel=1e-3, abs=1e-5)
    net, _ = load(path)
    direct = distances(net.features(drawn), net.features(real))
    assert {name: whole[name] for name in direct} == pytest.approx(direct, rel=1e-3, abs=1e-5)
    assert (whole["pictures"], whole["data"]) == (40, 60)
    assert whole["extractor_accuracy"] == told["accuracy"]


def test_worse_pictures_lie_farther(learned: tuple[Path, dict[str, float]]) -> None:
    from mdmkit.evaluate.fidelity import Fidelity

    path, _ = learned
    clean = pictures(shapes(seed=1), 60)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    far = []
    for sigma in (0.0, 0.3, 1.0):
        metric = Fidelity(weights=str(path))
        metric.update((clean + sigma * noise).clamp(-1, 1), [""] * 60)
        metric.beside(pictures(shapes(seed=2), 120))
        far.append(metric.result())
    for name in ("frechet", "kernel"):
        assert far[0][name] < far[1][name] < far[2][name], name


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"extractor": "inception"}, r"unknown extractor 'inception' \(known: .*inception-v3-compat"),
        ({"weights": "nowhere.bin"}, "expected the weights of mdmkit-words in 'nowhere.bin', there is no"),
        ({"weights": __file__}, "test_fidelity.py cannot be read as weights of words"),
    ],
)
def test_wrong_settings_are_said(
    settings: dict[str, Any], line: str, learned: tuple[Path, dict[str, float]]
) -> None:
    from mdmkit.evaluate.fidelity import Fidelity

    with pytest.raises(ValueError, match=line):
        Fidelity(**{"weights": str(learned[0]), **settings})


def test_another_safetensors_file_is_no_network_of_words(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected a file of 'mdmkit words 1'"):
        load(tmp_path / "model.safetensors")


def test_nothing_to_compare_is_said(learned: tuple[Path, dict[str, float]]) -> None:
    from mdmkit.evaluate.fidelity import Fidelity

    metric = Fidelity(weights=str(learned[0]))
    metric.update(torch.zeros(3, 3, 16, 16), [""] * 3)
    with pytest.raises(ValueError, match=r"expected pictures \(B, 3, H, W\), got \(3, 3, 2, 16, 16\)"):
        metric.beside(torch.zeros(3, 3, 2, 16, 16))
    with pytest.raises(ValueError, match="at least 2 drawn pictures and 2 of the data, got 3 and 0"):
        metric.result()


def test_a_run_measures_it_beside_pictures_that_it_has_not_seen(
    tmp_path: Path, learned: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    sample = Shapes.sample
    monkeypatch.setattr(Shapes, "sample", lambda self, p: (asked.append(p), sample(self, p))[1])
    metric = f'{{ use = "fidelity", weights = "{learned[0]}", data = 9 }}'
    recipe = f"{tiny.RECIPE}\n[evaluate]\nmetrics = [{metric}]\ncount = 5\n"
    few = ("--set", "train.steps=2")
    done = tiny.here("run", tiny.write_recipe(tmp_path, recipe), "--out", tmp_path / "run", *few)
    assert done.code == 0, done.err
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (numbers["fidelity.pictures"], numbers["fidelity.data"]) == (5, 9)
    assert asked[-9:] == list(range(16, 25)), "two steps of eight have been seen"
    again = tiny.here("evaluate", tmp_path / "run")
    assert again.code == 0, again.err
    assert float(again.out.split()[1]) == pytest.approx(numbers["fidelity.frechet"], abs=1e-3)


class Sees:
    """A metric that keeps what it is shown."""

    def __init__(self, data: int) -> None:
        self.data, self.seen = data, torch.zeros(0, 3, 16, 16)

    def beside(self, pictures: Tensor) -> None:
        self.seen = torch.cat([self.seen, pictures])


def test_each_metric_sees_as_many_pictures_of_the_data_as_it_wants() -> None:
    registry = load_registry(env={"MDMKIT_PLUGINS": ""})
    recipe = loads(tiny.RECIPE, registry=registry)
    source, few, many = shapes(), Sees(3), Sees(70)
    compare(recipe, registry, [few, many], source, torch.device("cpu"))
    first = 12 * 8
    assert torch.equal(many.seen, pictures(source, first + 70)[first:])
    assert torch.equal(few.seen, many.seen[:3])
    compare(recipe, registry, [], source, torch.device("cpu"))


def test_weights_that_are_not_there_are_known_before_the_training(tmp_path: Path) -> None:
    recipe = tiny.RECIPE + '\n[evaluate]\nmetrics = [{ use = "fidelity", weights = "no.safetensors" }]\n'
    done = tiny.here("run", tiny.write_recipe(tmp_path, recipe), "--out", tmp_path / "run")
    assert done.code == 1
    assert done.err.endswith("of mdmkit-words in 'no.safetensors', there is no such file\n")
    assert not (tmp_path / "run").exists()


def test_the_width_of_the_network_is_in_its_file(tmp_path: Path) -> None:
    net = WordsNet(["red"], side=8, width=16)
    save(tmp_path / "w.safetensors", net, {})
    again, _ = load(tmp_path / "w.safetensors")
    x = torch.zeros(1, 3, 8, 8)
    assert torch.equal(again(x), net(x))
