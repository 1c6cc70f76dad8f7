"""Pictures for people: bytes, and a grid that shows every picture as it is with its caption under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mdmkit.evaluate.grid import grid, grid_path, save_grid, save_picture, to_uint8


def random_pictures(count: int, height: int, width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, height, width, generator=generator) * 2 - 1 for _ in range(count)]


def test_every_byte_comes_back() -> None:
    original = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(to_uint8(original.to(dtype) / 127.5 - 1), original.movedim(0, -1).numpy())


def test_bytes_are_clipped_rounded_and_broken_pixels_magenta() -> None:
    x = torch.tensor([-7.0, -1.0, 0.0, 1.0, 9.0]).expand(2, 3, 1, 5).clone()
    assert to_uint8(x)[1, 0, :, 2].tolist() == [0, 0, 128, 255, 255]
    x[0, 1, 0, 0], x[0, 2, 0, 3] = float("nan"), float("inf")
    pixels = to_uint8(x)
    assert pixels.shape == (2, 1, 5, 3)
    assert pixels[0, 0, 0].tolist() == pixels[0, 0, 3].tolist() == [255, 0, 255]
    assert pixels[0, 0, 2].tolist() == [128, 128, 128]


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected pictures \(..., 3, height, width\), got shape \(4, 5, 3\)"
    ):
        to_uint8(torch.zeros(4, 5, 3))


def find(page: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the page holds these pixels somewhere, exactly."""
    h, w = picture.shape[:2]
    ys, xs = np.nonzero((page[: -h + 1 or None, : -w + 1 or None] == picture[0, 0]).all(-1))
    return any(np.array_equal(page[y : y + h, x : x + w], picture) for y, x in zip(ys, xs, strict=True))


@given(
    count=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    columns=st.none() | st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_every_picture_is_there_enlarged_by_a_whole_factor(
    count: int, height: int, width: int, columns: int | None, seed: int
) -> None:
    pictures = random_pictures(count, height, width, seed)
    page = np.asarray(grid(pictures, ["a caption"] * count, columns=columns))
    scale = -(-128 // max(height, width))
    assert scale * max(height, width) >= 128
    for picture in pictures:
        assert find(page, to_uint8(picture).repeat(scale, 0).repeat(scale, 1))


def test_large_pictures_keep_their_size_and_a_scale_is_obeyed() -> None:
    (picture,) = random_pictures(1, 200, 150)
    assert find(np.asarray(grid([picture], [""])), to_uint8(picture))
    assert find(np.asarray(grid([picture], [""], scale=2)), to_uint8(picture).repeat(2, 0).repeat(2, 1))


def ink(image: Image.Image) -> int:
    return int((np.asarray(image.convert("L")) < 100).sum())


def test_captions_and_title_are_drawn_and_longer_ones_take_more_lines() -> None:
    white = [torch.ones(3, 16, 16)] * 2
    bare = grid(white, ["", ""])
    short, long = (
        grid(white, ["red", "blue"]),
        grid(white, ["red", "a small red star left of a large blue circle"]),
    )
    titled = grid(white, ["", ""], title="step 100")
    assert ink(bare) == 0 < ink(short) < ink(long)
    assert bare.height < short.height < long.height
    assert titled.height > bare.height
    assert titled.tobytes() != bare.tobytes()
    endless = grid(white, ["red", "on and on " * 500])
    assert endless.height < 2 * long.height


def test_captions_stay_within_their_column() -> None:
    page = grid([torch.ones(3, 8, 128)] * 3, ["", "i" * 400 + " wide MMMMMMMMMMMMMMMMMMMMMMMM", ""])
    dark = np.nonzero((np.asarray(page.convert("L")) < 100).any(0))[0]
    column = page.width / 3
    assert column - 4 < dark.min()
    assert dark.max() < 2 * column + 4


@given(st.lists(st.text(st.characters(codec=None), max_size=40), min_size=1, max_size=4))
def test_any_text_can_be_a_caption(captions: list[str]) -> None:
    grid([torch.zeros(3, 4, 4)] * len(captions), captions, title=captions[0])


def test_half_a_surrogate_pair_and_control_characters_do_no_harm() -> None:
    pictures = [torch.zeros(3, 4, 4)]
    assert grid(pictures, ["a\x00\x1b b\ud83d\r\nc"]).tobytes() == grid(pictures, ["a b? c"]).tobytes()


def test_a_grid_is_a_function_of_its_input() -> None:
    pictures = random_pictures(3, 10, 20)
    assert grid(pictures, "abc").tobytes() == grid(torch.stack(pictures), ["a", "b", "c"]).tobytes()


@pytest.mark.parametrize(
    ("count", "captions", "message"),
    [(2, ["a"], "got 2 pictures, 1 captions"), (0, [], "expected at least one picture, got none")],
)
def test_pictures_and_captions_must_match(count: int, captions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(random_pictures(count, 4, 4), captions)


def test_files_are_made_with_their_folder_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    pictures = random_pictures(2, 12, 8)
    path = save_grid(grid_path(tmp_path, step=5000, level=1), pictures, ["a", "b"])
    assert path == tmp_path / "samples" / "step-0005000-level-1.png"
    single = save_picture(tmp_path / "samples" / "single.png", pictures[0])
    with Image.open(path) as image, Image.open(single) as one:
        assert image.tobytes() == grid(pictures, ["a", "b"]).tobytes()
        assert np.array_equal(np.asarray(one), to_uint8(pictures[0]))
    assert sorted(p.name for p in path.parent.iterdir()) == ["single.png", "step-0005000-level-1.png"]
