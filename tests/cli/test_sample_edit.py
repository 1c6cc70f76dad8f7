"""`mdmkit sample` from pictures, parts of them, low levels, and on the way between seeds and prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    few = ("--set", "train.steps=5", "--set", "train.optimizer.lr=0.01", "--set", "sample.steps=4")
    done = tiny.here("run", tiny.write_recipe(folder), "--out", folder / "run", *few)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures: 16x16 and 8x8 in colours, a mask of the left half, one of another size, and no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(values).save(folder / "picture.png")
    Image.fromarray(values[:8, :8]).save(folder / "low.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(folder / "left.png")
    Image.fromarray(np.full_like(mask, 255)).save(folder / "all.png")
    Image.fromarray(mask[:, :8]).save(folder / "narrow.png")
    Image.fromarray(values).resize((40, 20)).save(folder / "wide.png")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def sampled(run: Path, out: Path, *given: str | Path) -> list[np.ndarray]:
    done = tiny.here("sample", run, "--prompt", "a red ring", *given, "--out", out)
    assert done.code == 0, done.err
    return [pixels(path) for path in sorted(out.glob("picture-*.png"))]


def test_variations(run: Path, files: Path, tmp_path: Path) -> None:
    picture = pixels(files / "picture.png")
    for strength, name in (("0", "a"), ("0.2", "b"), ("1", "c")):
        (got,) = sampled(run, tmp_path / name, "--init", files / "picture.png", "--strength", strength)
        if strength == "0":
            assert np.array_equal(got, picture)
        elif strength == "1":
            assert np.array_equal(got, sampled(run, tmp_path / "plain")[0])
        else:
            assert 0 < abs(got - picture).mean() < 60
    (got,) = sampled(run, tmp_path / "wide", "--init", files / "wide.png", "--strength", "0")
    assert got.shape == (16, 16, 3)


def test_a_known_part(run: Path, files: Path, tmp_path: Path) -> None:
    picture = pixels(files / "picture.png")
    given = ("--init", files / "picture.png", "--mask")
    one, other = sampled(run, tmp_path / "a", *given, files / "left.png", "--count", "2")
    for got in (one, other):
        assert abs(got - picture)[:, :8].max() <= 1
    assert abs(one - other)[:, 8:].max() > 10
    (whole,) = sampled(run, tmp_path / "b", *given, files / "all.png")
    assert abs(whole - picture).max() <= 1
    steps = ("--set", "sample.steps=8")
    (once,) = sampled(run, tmp_path / "once", *given, files / "left.png", *steps)
    (again,) = sampled(run, tmp_path / "again", *given, files / "left.png", *steps, "--passes", "2")
    assert abs(again - picture)[:, :8].max() <= 1
    assert (again != once).any()
    for more, said in (
        (("--passes", "2"), "sample --passes: fits the rest to --mask, --low or frames, and none is given"),
        ((*given, files / "left.png", "--passes", "0"), "--passes: expected a number of at least 1, got 0"),
    ):
        done = tiny.here("sample", run, "--prompt", "a", *more, "--out", tmp_path / "wrong")
        assert done.code == 2
        assert said in done.err


def test_a_low_level(run: Path, files: Path, tmp_path: Path) -> None:
    # the plain sampler's average over blocks, before bytes are cut, is that of the low picture
    soft = Image.fromarray((96 + pixels(files / "low.png") // 4).astype(np.uint8))
    soft.save(tmp_path / "soft.png")
    many = ("--low", tmp_path / "soft.png", "--count", "2", "--set", "sample.steps=8")
    one, other = sampled(run, tmp_path / "a", *many)
    assert not np.array_equal(one, other)
    for got in (one, other):
        mean = got.reshape(8, 2, 8, 2, 3).mean((1, 3))
        inside = ((got > 0) & (got < 255)).reshape(8, 2, 8, 2, 3).all((1, 3))
        assert inside.any()
        assert abs(mean - np.asarray(soft))[inside].max() <= 1


def test_on_the_way_between_seeds_and_prompts(run: Path, tmp_path: Path) -> None:
    way = sampled(run, tmp_path / "way", "--seed", "3", "--to-seed", "8", "--count", "3")
    for seed, got in (("3", way[0]), ("8", way[2])):
        (end,) = sampled(run, tmp_path / seed, "--seed", seed)
        assert abs(end - got).max() <= 1
    assert not np.array_equal(way[1], way[0])
    way = sampled(run, tmp_path / "texts", "--seed", "3", "--to-prompt", "a blue star", "--count", "3")
    done = tiny.here("sample", run, "--prompt", "a blue star", "--seed", "3", "--out", tmp_path / "star")
    assert done.code == 0
    assert abs(way[2] - pixels(tmp_path / "star" / "picture-00003.png")).max() <= 1
    (ring,) = sampled(run, tmp_path / "ring", "--seed", "3")
    assert abs(way[0] - ring).max() <= 1


def test_a_canvas_larger_than_trained(run: Path, files: Path, tmp_path: Path) -> None:
    (got,) = sampled(run, tmp_path / "a", "--canvas", "16x40", "--set", 'sample.guidance=["apg"]')
    assert got.shape == (16, 40, 3)
    (tmp_path / "a" / "grid-level-0-8x20.png").stat()
    (same,) = sampled(run, tmp_path / "b", "--canvas", "16x16")
    assert np.array_equal(same, sampled(run, tmp_path / "c")[0])
    (wide,) = sampled(
        run, tmp_path / "d", "--canvas", "20x40", "--init", files / "wide.png", "--strength", "0"
    )
    assert np.array_equal(wide, pixels(files / "wide.png"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--strength", "0.5"), "--strength: is about the picture of --init, which is not given"),
        (("--mask", "{left.png}"), "--mask: is about the picture of --init, which is not given"),
        (("--init", "{picture.png}", "--strength", "1.5"),
         "--strength: expected 0 (the picture) to 1 (another one), got 1.5"),
        (("--init", "{picture.png}", "--low", "{low.png}"),
         "--low: gives the picture to draw for, as --init does; leave one out"),
        (("--init", "{picture.png}", "--mask", "{narrow.png}"),
         "--mask: {narrow.png}: expected the size of --init, 16x16, got 16x8; resize one of the two"),
        (("--low", "{picture.png}"),
         "--low: {picture.png}: expected a picture of a level below the highest drawn, 8x8, got 16x16; "
         "resize it"),
        (("--canvas", "16x"),
         "--canvas: expected HEIGHTxWIDTH of at least 16x16, a multiple of 2x2, got '16x'"),
        (("--canvas", "32x8"),
         "--canvas: expected HEIGHTxWIDTH of at least 16x16, a multiple of 2x2, got '32x8'"),
        (("--canvas", "16x17"),
         "--canvas: expected HEIGHTxWIDTH of at least 16x16, a multiple of 2x2, got '16x17'"),
        (("--to-seed", "5"), "--to-seed: expected --count of at least 2, got 1"),
        (("--to-seed", "-5", "--count", "2"), "--to-seed: expected a seed of at least 0, got -5"),
        (("--to-prompt", "y", "--prompt", "z", "--count", "2"),
         "--to-prompt: expected one --prompt to start from, got 2"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    run: Path, files: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    def named(text: str) -> str:
        for path in files.iterdir():
            text = text.replace("{" + path.name + "}", str(path))
        return text

    given = [named(argument) for argument in arguments]
    done = tiny.here("sample", run, "--prompt", "x", *given, "--out", tmp_path / "out")
    assert done == (2, "", f"sample {named(line)}\n")
    assert not (tmp_path / "out").exists()


def test_what_is_no_picture_is_one_line(run: Path, files: Path) -> None:
    for name in ("text.png", "none.png"):
        done = tiny.here("sample", run, "--prompt", "x", "--init", files / name)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(f"sample --init: {files / name}: cannot be read as a picture: ")
